package report

import (
	"github.com/aws/aws-sdk-go-v2/service/sfn"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/operate"
)

// NewReader returns the reader of a deployment, with the permissions of an operator.
func NewReader(d *operate.Deployment) Reader {
	s := d.Steps
	r := Reader{
		Table: d.Table, Head: d.Table, Keys: s.Keys.Admin, Vault: s.Journal.AuditBucket, Retention: d.Config.Retention, Anchoring: s.Anchor,
		History: StepFunctions{Client: sfn.NewFromConfig(d.AWS), Machines: d.Config.StateMachines}, Stack: d.Config.Stack, Actor: s.Journal.Actor, Now: s.Journal.Now,
		Open: s.OpenSource, Prove: s.ProveCheckpoint,
	}
	if b, ok := s.Journal.AuditBucket.(audit.Bucket); ok {
		r.Bucket = b
	}
	return r
}
