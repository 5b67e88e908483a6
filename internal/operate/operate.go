// Package operate answers the operator's tool about a deployment: its status, rows, schedule
// and executions. It decides nothing about a rotation; the steps do.
package operate

import (
	"cmp"
	"context"
	"errors"
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

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Deployment is a deployed stack as a person operates it.
type Deployment struct {
	Config app.Config
	AWS    aws.Config
	Steps  *rotation.Steps
	Doctor *doctor.Doctor
	Table  *ddb.Store
}

// Deployed wires a command from its environment. The audit chain names the caller's identity,
// as AWS STS returns it, as the actor. The options change the configuration of every client.
func Deployed(ctx context.Context, options ...func(*aws.Config)) (*Deployment, error) {
	c, err := readEnv()
	if err != nil {
		return nil, err
	}
	cfg, err := AWSConfig(ctx)
	if err != nil {
		return nil, err
	}
	for _, o := range options {
		o(&cfg)
	}
	// The SDK warns about connections that it replaces and calls that it retries. A call that
	// fails in the end returns an error, and the terminal is for the command's own output.
	cfg.Logger = logging.Nop{}
	who, err := sts.NewFromConfig(cfg).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return nil, fmt.Errorf("who calls: %w", err)
	}
	return Wire(c, cfg, aws.ToString(who.Arn))
}

// useStack says how a shell gets the settings of a deployment.
var useStack = journal.Next{Say: `eval "$(matter ops env --stack NAME)", or give the command --stack NAME`}

// readEnv reads the settings of a deployment from the shell's environment.
func readEnv() (app.Config, error) {
	if os.Getenv("MATTER_STACK") == "" && os.Getenv("MATTER_CONTROL_TABLE") == "" {
		return app.Config{}, &journal.Error{Kind: journal.Misconfigured, Field: "MATTER_STACK", Msg: "this shell names no deployment", Next: useStack}
	}
	c, err := app.FromEnv(os.Getenv)
	var typed *journal.Error
	if errors.As(err, &typed) { // a function's settings are the stack's, a shell's are read from there
		e := *typed
		e.Next = useStack
		err = &e
	}
	return c, err
}

// AWSConfig is the configuration of the shell's account, with credentials that were found.
func AWSConfig(ctx context.Context) (aws.Config, error) {
	cfg, err := app.AWSConfig(ctx)
	if err != nil {
		return cfg, err
	}
	if cfg.Region == "" {
		return cfg, &journal.Error{
			Kind: journal.Misconfigured, Field: "AWS_REGION", Msg: "this shell names no Region",
			Next: journal.Next{Say: "set AWS_REGION, or give the command --region REGION"},
		}
	}
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		return cfg, &journal.Error{
			Kind: journal.Misconfigured, Field: "credentials", Msg: "this shell has no AWS credentials", Err: err,
			Next: journal.Next{Say: "sign in, for example: aws sso login; or set AWS_PROFILE, or give the command --profile NAME"},
		}
	}
	return cfg, nil
}

// Wire wires a command for an actor.
func Wire(c app.Config, cfg aws.Config, actor string) (*Deployment, error) {
	steps, err := app.Wire(c, cfg, actor)
	if err != nil {
		return nil, err
	}
	table := ddb.New(dynamodb.NewFromConfig(cfg), c.ControlTable, c.Stack, time.Now)
	doc := &doctor.Doctor{
		Journal: steps.Journal, Items: table, Keys: steps.Keys.Admin, Anchor: steps.Anchor, FenceShards: c.FenceShards, DeleteHold: c.DeleteHold,
	}
	return &Deployment{Config: c, AWS: cfg, Steps: steps, Doctor: doc, Table: table}, nil
}

// TagKey tags a KMS key with the stack: the permissions of the functions' roles are conditional
// on this tag.
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

	Holders []Holder `json:"holders"` // who may still write under a KEK that the pointer has left

	Faults []doctor.Finding `json:"faults,omitempty"` // items that are lost or damaged, as far as the table alone shows it
}

// PointerStatus is the pointer: the KEK that every new row is wrapped under.
type PointerStatus struct {
	KEK        kek.ID    `json:"kek_id"`
	Epoch      int64     `json:"epoch"`
	SwitchedAt time.Time `json:"switched_at"`
}

// KEKStatus is a registry entry, with the leases of writers that may still write under it.
type KEKStatus struct {
	ID     kek.ID    `json:"kek_id"`
	State  kek.State `json:"state"`
	Label  string    `json:"label"`
	Leases int       `json:"leases"`
	Refs   int64     `json:"refs"` // in-flight references
}

// Holder is a process with a lease on a KEK. If the pointer has left that KEK, a drain waits for it.
type Holder struct {
	KEK     kek.ID    `json:"kek_id"`
	Holder  string    `json:"holder"`
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	Refs    int64     `json:"in_flight"`
	Expires time.Time `json:"expires_at"`
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

// AuditStatus is the length of the audit chain, and how many of its records are not in the
// bucket yet.
type AuditStatus struct {
	Chain       string `json:"chain"`
	Records     int64  `json:"records"`
	Unpublished int    `json:"unpublished"`
}

// ReadStatus reads the control table. Lost and damaged items are among the faults, and the rest
// is shown: the status must also work when something is wrong.
func (d *Deployment) ReadStatus(ctx context.Context) (Status, error) {
	items, err := d.Table.Examine(ctx)
	if err != nil {
		return Status{}, err
	}
	s := Status{KEKs: []KEKStatus{}, Rotations: []RotationStatus{}, Holders: []Holder{}, Audit: AuditStatus{Chain: d.Config.Stack}, Faults: doctor.Inspect(items)}
	for i := range s.Faults {
		s.Faults[i].Advice = advice.Command(s.Faults[i].Next)
	}
	keks, rotations := map[kek.ID]*kek.KEK{}, []kek.Rotation{}
	leases := map[kek.ID]int{}
	refs := map[kek.ID]int64{}
	held := []rotation.Lease{}
	for _, i := range items {
		if i.Err != nil {
			continue
		}
		switch v := i.Value.(type) {
		case kek.Pointer:
			s.Pointer = &PointerStatus{KEK: v.KEKID, Epoch: v.Epoch, SwitchedAt: v.SwitchedAt}
		case doctor.LockItem:
			s.Lock = v.RotationID
		case kek.KEK:
			keks[v.ID] = &v
		case kek.Rotation:
			rotations = append(rotations, v)
		case rotation.Lease:
			held = append(held, v)
			leases[v.KEK]++
			refs[v.KEK] += v.Refs
		case doctor.HeadItem:
			s.Audit.Records, s.Audit.Unpublished = v.Head.Seq, int(v.Head.Seq-v.Published)
		}
	}
	for _, k := range slices.SortedFunc(maps.Values(keks), func(a, b *kek.KEK) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	}) {
		s.KEKs = append(s.KEKs, KEKStatus{ID: k.ID, State: k.State, Label: k.Label, Leases: leases[k.ID], Refs: refs[k.ID]})
	}
	for _, l := range held {
		if s.Pointer != nil && l.KEK != s.Pointer.KEK {
			s.Holders = append(s.Holders, Holder(l))
		}
	}
	slices.SortFunc(s.Holders, func(a, b Holder) int { return a.Expires.Compare(b.Expires) })
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

// Sources returns the registered sources by name.
func (d *Deployment) Sources(ctx context.Context) ([]kek.Source, error) { return d.Table.Sources(ctx) }
