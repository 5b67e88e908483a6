package app

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"

	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Deployment is a deployed stack as a person operates it.
type Deployment struct {
	Config Config
	AWS    aws.Config
	Steps  *rotation.Steps
	Table  *ddb.Store
}

// Deployed wires a command from its environment. The caller's identity is the
// actor of what it does.
func Deployed(ctx context.Context) (*Deployment, error) {
	c, err := FromEnv(os.Getenv)
	if err != nil {
		return nil, err
	}
	cfg, err := AWSConfig(ctx)
	if err != nil {
		return nil, err
	}
	// The SDK's warnings are of connections that it replaces and calls that it repeats;
	// what fails in the end is an error. A person reads what else is written there.
	cfg.Logger = logging.Nop{}
	who, err := sts.NewFromConfig(cfg).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return nil, fmt.Errorf("who calls: %w", err)
	}
	return Operate(c, cfg, aws.ToString(who.Arn))
}

// Operate wires a command for an actor.
func Operate(c Config, cfg aws.Config, actor string) (*Deployment, error) {
	steps, err := Wire(c, cfg, actor)
	if err != nil {
		return nil, err
	}
	table := ddb.New(dynamodb.NewFromConfig(cfg), c.ControlTable, c.Stack, time.Now)
	return &Deployment{Config: c, AWS: cfg, Steps: steps, Table: table}, nil
}

// TagKey tags a KMS key with the stack, as the roles of the functions demand.
func (d *Deployment) TagKey(ctx context.Context, id kek.ID) error {
	_, err := kms.NewFromConfig(d.AWS).TagResource(ctx, &kms.TagResourceInput{
		KeyId: aws.String(string(id)),
		Tags:  []kmstypes.Tag{{TagKey: aws.String(awskms.TagStack), TagValue: aws.String(d.Config.Stack)}},
	})
	if err != nil {
		return fmt.Errorf("tag KMS key %s: %w", id, err)
	}
	return nil
}

// Status is what kms-status shows.
type Status struct {
	Pointer   *PointerStatus   `json:"pointer"` // null before genesis
	Lock      string           `json:"lock"`    // rotation id; "" is free
	KEKs      []KEKStatus      `json:"keks"`
	Rotations []RotationStatus `json:"rotations"`
	Audit     AuditStatus      `json:"audit"`

	Faults []rotation.Finding `json:"faults,omitempty"` // items that are lost or damaged, as far as the table alone shows it
}

// PointerStatus is the pointer of truth.
type PointerStatus struct {
	KEK        kek.ID    `json:"kek_id"`
	Epoch      int64     `json:"epoch"`
	SwitchedAt time.Time `json:"switched_at"`
}

// KEKStatus is a registry entry and who may still write under it.
type KEKStatus struct {
	ID     kek.ID    `json:"kek_id"`
	State  kek.State `json:"state"`
	Label  string    `json:"label"`
	Leases int       `json:"leases"`
	Refs   int64     `json:"refs"` // in-flight references
}

// RotationStatus is a rotation's record.
type RotationStatus struct {
	ID        string    `json:"rotation_id"`
	Mode      kek.Mode  `json:"mode"`
	Phase     kek.Phase `json:"phase"`
	Label     string    `json:"label"`
	OldKEK    kek.ID    `json:"old_kek_id"`
	NewKEK    kek.ID    `json:"new_kek_id"`
	StartedAt time.Time `json:"started_at"`
	UpdatedAt time.Time `json:"updated_at"`
	Error     string    `json:"error"`
}

// AuditStatus is how far the audit chain has come.
type AuditStatus struct {
	Chain       string `json:"chain"`
	Records     int64  `json:"records"`
	Unpublished int    `json:"unpublished"`
}

// Status reads the control table. An item that is lost or damaged is among the faults, and
// the rest is shown.
func (d *Deployment) Status(ctx context.Context) (Status, error) {
	items, err := d.Table.Examine(ctx)
	if err != nil {
		return Status{}, err
	}
	s := Status{KEKs: []KEKStatus{}, Rotations: []RotationStatus{}, Audit: AuditStatus{Chain: d.Config.Stack}, Faults: rotation.Inspect(items)}
	keks, rotations := map[kek.ID]*kek.KEK{}, []kek.Rotation{}
	leases, refs := map[kek.ID]int{}, map[kek.ID]int64{}
	for _, i := range items {
		if i.Err != nil {
			continue
		}
		switch v := i.Value.(type) {
		case kek.Pointer:
			s.Pointer = &PointerStatus{KEK: v.KEKID, Epoch: v.Epoch, SwitchedAt: v.SwitchedAt}
		case rotation.LockItem:
			s.Lock = v.RotationID
		case kek.KEK:
			keks[v.ID] = &v
		case kek.Rotation:
			rotations = append(rotations, v)
		case rotation.Lease:
			leases[v.KEK]++
			refs[v.KEK] += v.Refs
		case rotation.HeadItem:
			s.Audit.Records, s.Audit.Unpublished = v.Head.Seq, int(v.Head.Seq-v.Published)
		}
	}
	for _, k := range slices.SortedFunc(maps.Values(keks), func(a, b *kek.KEK) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	}) {
		s.KEKs = append(s.KEKs, KEKStatus{ID: k.ID, State: k.State, Label: k.Label, Leases: leases[k.ID], Refs: refs[k.ID]})
	}
	slices.SortFunc(rotations, func(a, b kek.Rotation) int {
		return cmp.Or(a.StartedAt.Compare(b.StartedAt), cmp.Compare(a.ID, b.ID))
	})
	for _, r := range rotations {
		s.Rotations = append(s.Rotations, RotationStatus{
			ID: r.ID, Mode: r.Mode, Phase: r.Phase, Label: r.Label, OldKEK: r.OldKEK, NewKEK: r.NewKEK,
			StartedAt: r.StartedAt, UpdatedAt: r.UpdatedAt, Error: r.Err,
		})
	}
	return s, nil
}
