package report

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
)

// Table is what a report reads of the control table.
type Table interface {
	Load(ctx context.Context, rotationID string) (kek.View, error)
	KEKs(ctx context.Context) ([]kek.KEK, error)
	ListCheckpoints(ctx context.Context, rotationID, source, pass string) ([]rotation.Checkpoint, error)
	Unpublished(ctx context.Context) ([]audit.Entry, audit.Line, error)
	AuditEntries(ctx context.Context, fromSeq int64) ([]audit.Entry, error)
}

// Head reads the head of the audit chain.
type Head interface {
	Head(ctx context.Context) (audit.Line, audit.Head, error)
}

// Keys asks KMS for the state of a key.
type Keys interface {
	Describe(ctx context.Context, id kek.ID) (keyring.Key, error)
}

// Vault reads one record of the audit bucket.
type Vault interface {
	Get(ctx context.Context, key string) ([]byte, error)
}

// History finds the executions that worked on a rotation, oldest first.
type History interface {
	Executions(ctx context.Context, r kek.Rotation) ([]Execution, error)
}

// Reader is everything a report reads. Anchoring and History may be nil; without Prove no
// checkpoint counts.
type Reader struct {
	Table     Table
	Head      Head
	Keys      Keys
	Vault     Vault
	Bucket    audit.Bucket  // the whole audit bucket
	Retention time.Duration // least Object Lock of a record
	Anchoring *anchor.Anchor
	History   History
	Open      func(kek.Source) (source.Driver, error) // the driver of a source
	Prove     func(context.Context, rotation.Checkpoint) (rotation.Proof, error)
	Stack     string
	Actor     string
	Now       func() time.Time
}

// collection is the state of collecting one report.
type collection struct {
	Reader
	report   *Report
	view     kek.View
	keks     []kek.KEK
	entries  []audit.Entry         // of the whole chain
	line     audit.Line            // where the chain's records are in the bucket
	archived []rotation.Checkpoint // of this rotation, as the chain keeps them
	unproven []string              // checkpoints, and why
	unasked  bool                  // a note says that MACs could not be compared
}

// Collect reads everything that is known about one rotation. It fails only if there is no
// such rotation or the control table cannot be read; anything else that cannot be read is
// a note in the report.
func Collect(ctx context.Context, from Reader, id string) (Report, error) {
	c := &collection{Reader: from, report: &Report{
		V: Version, GeneratedAt: from.Now().UTC(), GeneratedBy: from.Actor, Stack: from.Stack,
		Timeline: []Span{}, KEKs: []KEK{}, Rows: []SourceRows{}, Registry: []Change{}, Drain: []DrainPoll{}, Rewrap: []Progress{},
		Checks: []Check{}, Executions: []Execution{}, Claims: []Claim{}, Notes: []string{},
	}}
	if err := c.loadRotation(ctx, id); err != nil {
		return Report{}, err
	}
	if err := c.collectAudit(ctx); err != nil {
		return Report{}, err
	}
	c.collectArchived(ctx)
	if err := c.collectRows(ctx); err != nil {
		return Report{}, err
	}
	c.collectExecutions(ctx)
	c.collectKeys(ctx)
	c.makeTimeline()
	c.setCryptoperiod()
	c.collectSeries()
	c.setOutcome()
	c.collectChecks()
	c.makeClaims()
	c.addStandingNotes()
	return *c.report, nil
}

// loadRotation reads the rotation's record and the registry.
func (c *collection) loadRotation(ctx context.Context, id string) (err error) {
	if c.view, err = c.Table.Load(ctx, id); err != nil {
		return fmt.Errorf("report of %s: read the rotation: %w", id, err)
	}
	r := c.view.Rotation
	if r == nil {
		return &journal.Error{
			Kind: journal.InvalidInput, Field: "rotation_id", Err: kek.ErrNoRotation,
			Msg:  fmt.Sprintf("%q has no record; one that preflight refused leaves none", id),
			Next: journal.Next{Say: "matter ops kms-status lists the rotations"},
		}
	}
	if c.keks, err = c.Table.KEKs(ctx); err != nil {
		return fmt.Errorf("report of %s: read the registry: %w", id, err)
	}
	c.report.Rotation = Rotation{
		ID: r.ID, Mode: r.Mode, Phase: r.Phase, Label: r.Label, Reason: r.Reason, OldKEK: r.OldKEK, NewKEK: r.NewKEK,
		Attempt: r.Attempt, Epoch: r.Epoch, Actor: r.Actor, Execution: r.Execution,
		StartedAt: r.StartedAt.UTC(), SwitchedAt: toUTC(r.SwitchedAt), Error: r.Err,
	}
	if r.Phase.Final() {
		c.report.Rotation.EndedAt = r.UpdatedAt.UTC()
	}
	return nil
}

// toUTC returns t in UTC; the zero time is not changed, so that JSON can omit it.
func toUTC(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC()
}

// addNote adds a sentence about what the report lacks, and why.
func (c *collection) addNote(format string, args ...any) {
	c.report.Notes = append(c.report.Notes, fmt.Sprintf(format, args...))
}

// collectExecutions reads the executions that Step Functions still has. It keeps them for
// 90 days (Step Functions developer guide, "Quotas").
func (c *collection) collectExecutions(ctx context.Context) {
	if c.History == nil {
		c.addNote("The execution history was not read.")
		return
	}
	all, err := c.History.Executions(ctx, *c.view.Rotation)
	switch {
	case err != nil:
		c.addNote("The execution history could not be read (Step Functions keeps it for 90 days): %v", err)
	case len(all) == 0:
		c.addNote("The rotation was run step by step from the command line: there is no execution history, and so no drain curve and no throughput.")
	case c.report.Rotation.Execution == "":
		c.addNote("The rotation was begun step by step from the command line and handed to the state machine later: the curves begin there.")
	}
	c.report.Executions = append(c.report.Executions, all...)
}

// collectKeys adds the rotation's KEKs and their states in KMS.
func (c *collection) collectKeys(ctx context.Context) {
	r := c.report.Rotation
	for _, k := range c.keks {
		var role string
		switch {
		case k.ID == r.OldKEK:
			role = roleOld
		case slices.Contains(c.view.Rotation.Olds, k.ID):
			role = roleHistoric
		case k.ID == r.NewKEK:
			role = roleNew
		case k.RotationID == r.ID:
			role = roleFailed
		default:
			continue
		}
		state, enabled := c.kmsState(ctx, k.ID)
		c.report.KEKs = append(c.report.KEKs, KEK{
			ID: k.ID, Role: role, ARN: k.ARN, Label: k.Label, State: k.State, KMSState: state, Enabled: enabled,
			CreatedAt: k.CreatedAt.UTC(), SwitchedAt: toUTC(k.SwitchedAt), RetiredAt: toUTC(k.RetiredAt),
			Reason: k.Reason, NotBeforeDelete: toUTC(k.NotBeforeDelete),
		})
	}
	slices.SortStableFunc(c.report.KEKs, func(a, b KEK) int {
		return cmp.Or(cmp.Compare(roleRank(a), roleRank(b)), a.CreatedAt.Compare(b.CreatedAt))
	})
}

// roleRank orders KEKs: the old one first, then historic ones, then those of each mint.
func roleRank(k KEK) int {
	switch k.Role {
	case roleOld:
		return 0
	case roleHistoric:
		return 1
	default:
		return 2
	}
}

// kmsState returns the state of a key in KMS. A failure is a note, not an error: the rest of
// the report is still of use.
func (c *collection) kmsState(ctx context.Context, id kek.ID) (state string, enabled bool) {
	k, err := c.Keys.Describe(ctx, id)
	switch {
	case errors.Is(err, journal.ErrNoKey):
		return "gone", false
	case err != nil:
		c.addNote("KMS did not say in which state key %s is: %v", id, err)
		return unknown, false
	case k.State == "" && k.Enabled:
		return "Enabled", true
	case k.State == "":
		return "Disabled", false
	}
	return k.State, k.Enabled
}

// The roles of a KEK in a rotation, and of the rows that name none of them.
const (
	roleOld      = "old"
	roleHistoric = "historic" // rows were under it too, and it is retired with the old one
	roleNew      = "new"
	roleFailed   = "failed attempt"
	roleKeyed    = "keyed" // rows that name a data key, whose record names the KEK
	roleNeither  = "neither"
)

// unknown is the KMS state of a key that KMS did not describe.
const unknown = "unknown"

// addStandingNotes adds notes on what no report can show.
func (c *collection) addStandingNotes() {
	r := c.report
	if r.Rotation.Execution != "" {
		c.addNote("Who started the execution is not in the rotation's record, whose actor is the function that ran preflight: CloudTrail has it, as the StartExecution call of %s.", r.Rotation.Execution)
	}
	if len(r.Rows) > 0 {
		c.addNote("Rows are counted by the checkpoints of each pass. A row that was moved by a call which died before its checkpoint, or that was deleted meanwhile, counts as under the new KEK when the rewrap came to it.")
	}
	if n := len(r.Rewrap); n > 0 && n < 3 {
		c.addNote("The throughput has a point per finished call of rewrap; this rotation needed so few that the curve says little.")
	}
	c.addNote("KMS states and the verification of the audit chain are of %s, when this report was made; everything else is of the time of the rotation.", r.GeneratedAt.Format(time.RFC3339))
}

// oldKEK returns the KEK that was rotated, and whether the registry has it.
func (r Report) oldKEK() (KEK, bool) {
	if len(r.KEKs) == 0 || r.KEKs[0].Role != roleOld {
		return KEK{}, false
	}
	return r.KEKs[0], true
}

// lastRecord returns the rotation's last record of a type.
func (r Report) lastRecord(event string) (Record, bool) {
	for i := len(r.Audit.Records) - 1; i >= 0; i-- {
		if r.Audit.Records[i].Type == event {
			return r.Audit.Records[i], true
		}
	}
	return Record{}, false
}
