package report

import (
	"github.com/aws/aws-sdk-go-v2/service/sfn"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/app"
)

// Of returns the reader of a deployment, as a person operates it.
func Of(d *app.Deployment) Reader {
	s := d.Steps
	r := Reader{
		Table: d.Table, Head: d.Table, Keys: s.Keys, Vault: s.Vault, Retention: d.Config.Retention, Anchoring: s.Anchoring,
		History: StepFunctions{Client: sfn.NewFromConfig(d.AWS), Machines: d.Config.StateMachines}, Stack: d.Config.Stack, Actor: s.Actor, Now: s.Now,
	}
	if b, ok := s.Vault.(audit.Bucket); ok {
		r.Bucket = b
	}
	return r
}
