package gates

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// ApprovalState says whether a plan waits for an answer, or which one it got.
type ApprovalState string

// The states of an approval.
const (
	ApprovalPending ApprovalState = "pending"
	ApprovalGiven   ApprovalState = "approved"
	ApprovalRefused ApprovalState = "rejected"
)

// Approval is the second person's answer to one plan of one rotation.
type Approval struct {
	Rotation  string
	Rev       int64  // grows with every save; a save conditions on it
	Plan      string // hash of the plan that was asked about, see [Gates.HashPlan]
	State     ApprovalState
	Token     string // of the waiting task; "" if none waits
	Requester string
	Asked     time.Time
	Expires   time.Time
	By        string // who answered
	At        time.Time
	Reason    string
}

// NextRevision implements [journal.Revisioned].
func (a Approval) NextRevision() Approval {
	a.Rev++
	return a
}

// Approvals stores the approvals.
type Approvals interface {
	// LoadApproval returns an approval with revision 0 if none is stored.
	LoadApproval(ctx context.Context, rotationID string) (Approval, error)
	// SaveApproval stores a with Rev+1 if the stored revision is a.Rev, else
	// [kek.ErrConflict], and appends ev to the outbox in the same transaction.
	SaveApproval(ctx context.Context, a Approval, ev audit.Event) error
}

// HashPlan returns the hash of what a second person agrees to: which rotation moves which
// sources, by their whole definitions, from which KEKs to which, under which settings. It
// changes with any of them, so an approval is valid for one new KEK only.
func (g *Gates) HashPlan(r kek.Rotation) string {
	olds := make([]string, len(r.Olds))
	for i, id := range r.Olds {
		olds[i] = string(id)
	}
	b, err := json.Marshal(struct { // the order must never change: the hash depends on it
		Rotation, Mode, Label, Reason, OldKEK, NewKEK string
		Attempt                                       int
		Sources                                       string
		Olds                                          []string
		Settings                                      kek.Settings
		Segments                                      int
	}{r.ID, string(r.Mode), r.Label, r.Reason, string(r.OldKEK), string(r.NewKEK), r.Attempt, kek.Digest(r.Sources), olds, r.Settings, r.Segments})
	if err != nil {
		panic(err) // strings and numbers
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// AskApproval asks for the approval of a rotation before its switch, and tells people how to
// give it. The task of the state machine that calls it then waits for its token. The error
// [journal.Approved] means that there is nothing to wait for, [journal.ApprovalRejected]
// that the answer was no. A repeated call replaces the token and restarts the wait.
func (g *Gates) AskApproval(ctx context.Context, in ApprovalInput) (ApprovalOutput, error) {
	_, r, err := g.Journal.LoadRotation(ctx, in.RotationID)
	if err != nil {
		return ApprovalOutput{}, err
	}
	if !g.NeedsApproval(r) || !r.Phase.PreSwitch() {
		return ApprovalOutput{}, &journal.Error{Kind: journal.Approved, Field: r.ID, Msg: "it needs no approval"}
	}
	a, err := g.settleApproval(ctx, r, func(was Approval) (Approval, error) {
		switch was.State {
		case ApprovalGiven:
			return was, &journal.Error{Kind: journal.Approved, Field: r.ID, Msg: "approved by " + was.By}
		case ApprovalRefused:
			return was, &journal.Error{Kind: journal.ApprovalRejected, Field: r.ID, Msg: fmt.Sprintf("rejected by %s: %s", was.By, was.Reason)}
		case ApprovalPending:
		}
		was.State = ApprovalPending
		was.Token = in.Token
		was.Asked = g.Journal.Now()
		was.Expires = g.Journal.Now().Add(g.Rules.ApprovalWait)
		return was, nil
	})
	if err != nil {
		return ApprovalOutput{}, err
	}
	out := ApprovalOutput{Plan: a.Plan, Expires: a.Expires.UTC().Format(time.RFC3339)}
	return out, g.Journal.TellPeople(ctx, journal.Notice{
		Event: journal.NotifyApproval, RotationID: r.ID, Plan: a.Plan,
		Detail: fmt.Sprintf("From KEK %s to KEK %s, asked for by %s; expires %s", r.OldKEK, r.NewKEK, r.Requester, out.Expires),
	})
}

// Verdict is a person's answer to a plan.
type Verdict struct {
	RotationID string
	Plan       string // hash that the person has seen
	Reason     string // required to reject
	Reject     bool
}

// JudgePlan records the actor's answer to a plan. The requester of the rotation cannot
// approve it, but may reject it. The caller then ends the waiting task by the token in the
// returned approval.
func (g *Gates) JudgePlan(ctx context.Context, in Verdict) (Approval, error) {
	_, r, err := g.Journal.LoadRotation(ctx, in.RotationID)
	if err != nil {
		return Approval{}, err
	}
	if err := g.checkVerdict(r, in); err != nil {
		return Approval{}, err
	}
	answer := ApprovalGiven
	if in.Reject {
		answer = ApprovalRefused
	}
	return g.settleApproval(ctx, r, func(was Approval) (Approval, error) {
		switch {
		case was.State == answer && was.By == g.Journal.Actor:
			return was, kek.ErrDone // also after the switch: a repeated command is not a failure
		case r.Phase != kek.Tested:
			return was, &journal.Error{
				Kind: journal.Refused, Field: r.ID, Msg: fmt.Sprintf("it is %s; a plan is judged between the test and the switch", r.Phase), Next: journal.Next{Do: journal.ShowStatus},
			}
		case was.State == ApprovalGiven || was.State == ApprovalRefused:
			return was, &journal.Error{Kind: journal.Refused, Field: r.ID, Msg: fmt.Sprintf("it was %s by %s", was.State, was.By), Next: journal.Next{Do: journal.ShowStatus}}
		case was.State == ApprovalPending && g.Journal.Now().After(was.Expires):
			return was, &journal.Error{
				Kind: journal.ApprovalExpired, Field: r.ID, Msg: "the time to answer ended at " + was.Expires.UTC().Format(time.RFC3339),
				Next: journal.Next{Say: "start the rotation again"},
			}
		}
		was.State = answer
		was.By = g.Journal.Actor
		was.At = g.Journal.Now()
		was.Reason = in.Reason
		return was, nil
	})
}

func (g *Gates) checkVerdict(r kek.Rotation, in Verdict) error {
	plan := g.HashPlan(r)
	switch {
	case !g.NeedsApproval(r):
		return &journal.Error{Kind: journal.Refused, Field: r.ID, Msg: "it is not waiting for an approval", Next: journal.Next{Do: journal.ShowStatus}}
	case in.Plan != plan:
		return &journal.Error{Kind: journal.Refused, Field: "plan", Msg: "this is not the plan that waits", Next: journal.Next{Do: journal.ShowPlan}}
	case in.Reject && in.Reason == "":
		return journal.RejectInput("reason", "a rejection needs one", `add --reason "why not", for the audit chain`)
	case audit.Visible(in.Reason) != in.Reason:
		return journal.RejectInput("reason", "it has line ends, control characters or other invisible text", "write it in one line of UTF-8")
	case !in.Reject && samePerson(g.Journal.Actor, r.Requester):
		return &journal.Error{
			Kind: journal.Refused, Field: "approver", Msg: fmt.Sprintf("%s asked for this rotation and cannot approve it", r.Requester),
			Next: journal.Next{Do: journal.AskApprover, Rotation: r.ID, Plan: plan},
		}
	}
	if in.Reject || r.Phase != kek.Tested {
		return nil
	}
	return g.CheckAwake(r)
}

// settleApproval changes the stored answer to the rotation's current plan. An answer to an
// earlier plan does not count.
func (g *Gates) settleApproval(ctx context.Context, r kek.Rotation, next func(Approval) (Approval, error)) (Approval, error) {
	plan := g.HashPlan(r)
	docs := journal.Documents[Approval]{Kind: "approval", Load: g.Approvals.LoadApproval, Save: g.Approvals.SaveApproval}
	return journal.ReviseDocument(ctx, g.Journal, docs, r.ID, func(was Approval) (Approval, audit.Event, error) {
		if was.Plan != plan {
			was = Approval{Rotation: r.ID, Rev: was.Rev, Plan: plan, Requester: r.Requester}
		}
		a, err := next(was)
		return a, a.toEvent(g.Journal.Actor), err
	})
}

// toEvent returns the audit record of an approval that is about to be saved.
func (a Approval) toEvent(actor string) audit.Event {
	kinds := map[ApprovalState]string{
		ApprovalPending: "approval_wanted", ApprovalGiven: "approval_given", ApprovalRefused: "approval_refused",
	}
	ev := audit.Event{
		ID: fmt.Sprintf("%s/%s/%d", a.Rotation, kinds[a.State], a.Rev+1), Type: kinds[a.State], Rotation: a.Rotation, Step: "approve", Actor: actor,
		Body: map[string]string{"plan": a.Plan},
	}
	journal.AddPairs(ev.Body, "requested_by", a.Requester, "approver", a.By, "reason", a.Reason)
	return ev
}

// FindWaitingPlan returns the hash of the plan of r that waits for a second person; "" if
// none does.
func (g *Gates) FindWaitingPlan(ctx context.Context, r kek.Rotation) (string, error) {
	if !g.NeedsApproval(r) || r.Phase != kek.Tested {
		return "", nil
	}
	a, err := g.Approvals.LoadApproval(ctx, r.ID)
	if err != nil {
		return "", journal.WrapUnavailable("approval", err)
	}
	plan := g.HashPlan(r)
	if a.Plan != plan || a.State == ApprovalPending {
		return plan, nil
	}
	return "", nil
}

// CheckApproval refuses the switch of a rotation that a second person must agree to and has
// not. The state machine already waits for the answer; this check also covers a caller that
// does not use the state machine.
func (g *Gates) CheckApproval(ctx context.Context, r kek.Rotation) error {
	if !g.NeedsApproval(r) {
		return nil
	}
	a, err := g.Approvals.LoadApproval(ctx, r.ID)
	if err != nil {
		return journal.WrapUnavailable("approval", err)
	}
	plan := g.HashPlan(r)
	if a.State == ApprovalGiven && a.Plan == plan && !samePerson(a.By, r.Requester) {
		return nil
	}
	return &journal.Error{
		Kind: journal.ApprovalMissing, Field: r.ID, Msg: "nobody but the requester has agreed to this plan; the pointer was left alone",
		Next: journal.Next{Do: journal.AskApprover, Rotation: r.ID, Plan: plan},
	}
}

// NeedsApproval reports whether a second person must agree before the switch. The
// deployment's rule decides as well as the record: a person who starts a rotation, or can
// write its record, cannot switch the rule off.
func (g *Gates) NeedsApproval(r kek.Rotation) bool {
	return r.Approval || g.Rules.ApprovalRequired && r.Mode == kek.Normal && r.Drill == ""
}

// samePerson reports whether two ARNs may belong to one person. In doubt it says yes.
func samePerson(a, b string) bool { return principalOf(a) == principalOf(b) }

// ssoRole is the prefix of the names of roles that IAM Identity Center creates. Their
// sessions are named after the user (IAM Identity Center user guide, "Referencing permission
// sets in resource policies").
const ssoRole = "AWSReservedSSO_"

// principalOf returns the principal in an ARN without the name of its session: the caller
// that assumes a role chooses that name freely. Only for roles of Identity Center does the
// session's name identify the user.
func principalOf(arn string) string {
	before, rest, ok := strings.Cut(arn, ":assumed-role/")
	if !ok {
		return arn
	}
	role, session, _ := strings.Cut(rest, "/")
	if strings.HasPrefix(role, ssoRole) {
		return "user " + session
	}
	return before + " role " + role
}

// ApprovalInput asks for the approval of a rotation before its switch. Token is the task
// token that the state machine waits for.
type ApprovalInput struct {
	RotationID string `json:"rotation_id"`
	Token      string `json:"task_token"`
}

// ApprovalOutput says what is to be approved. It is only written to the log.
type ApprovalOutput struct {
	Plan    string `json:"plan"`
	Expires string `json:"expires"`
}
