package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// ApprovalState is what was said to a plan.
type ApprovalState string

// The states of an approval.
const (
	ApprovalPending ApprovalState = "pending"
	ApprovalGiven   ApprovalState = "approved"
	ApprovalRefused ApprovalState = "rejected"
)

// Approval is the second person's word on one plan of one rotation.
type Approval struct {
	Rotation  string
	Rev       int64  // grows with every save; a save conditions on it
	Plan      string // hash of what was asked and answered, see [Steps.PlanHash]
	State     ApprovalState
	Token     string // of the waiting task; "" if none waits
	Requester string
	Asked     time.Time
	Expires   time.Time
	By        string // who answered
	At        time.Time
	Reason    string
}

// Approvals keeps them.
type Approvals interface {
	// LoadApproval returns one without a revision if none was asked for.
	LoadApproval(ctx context.Context, rotationID string) (Approval, error)
	// SaveApproval stores a with Rev+1 if the stored revision is a.Rev, else
	// [kek.ErrConflict], and appends ev to the outbox in the same transaction.
	SaveApproval(ctx context.Context, a Approval, ev audit.Event) error
}

// PlanHash is the hash of what a second person agrees to: which rotation moves which
// sources, by their whole definitions, from which KEKs to which, under which settings. It
// changes with any of them, so that an approval is good for one new KEK alone.
func (s *Steps) PlanHash(r kek.Rotation) string {
	olds := make([]string, len(r.Olds))
	for i, id := range r.Olds {
		olds[i] = string(id)
	}
	b, err := json.Marshal(struct { // in this order, for good
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

// AskApproval asks for the approval of a rotation that stands before its switch, and
// tells people how to give it. The task that calls it waits for its token; the error
// [Approved] says that there is nothing to wait for, [ApprovalRejected] that the
// answer was no. Asked again, it is for the new token, and for the whole time.
func (s *Steps) AskApproval(ctx context.Context, in ApprovalInput) (ApprovalOutput, error) {
	_, r, err := s.rotation(ctx, in.RotationID)
	if err != nil {
		return ApprovalOutput{}, err
	}
	if !s.needsApproval(r) || !r.Phase.PreSwitch() {
		return ApprovalOutput{}, &Error{Kind: Approved, Field: r.ID, Msg: "it needs no approval"}
	}
	a, err := s.settleApproval(ctx, r, func(was Approval) (Approval, error) {
		switch was.State {
		case ApprovalGiven:
			return was, &Error{Kind: Approved, Field: r.ID, Msg: "approved by " + was.By}
		case ApprovalRefused:
			return was, &Error{Kind: ApprovalRejected, Field: r.ID, Msg: fmt.Sprintf("rejected by %s: %s", was.By, was.Reason)}
		case ApprovalPending:
		}
		was.State = ApprovalPending
		was.Token = in.Token
		was.Asked = s.Now()
		was.Expires = s.Now().Add(s.ApprovalWait)
		return was, nil
	})
	if err != nil {
		return ApprovalOutput{}, err
	}
	out := ApprovalOutput{Plan: a.Plan, Expires: a.Expires.UTC().Format(time.RFC3339)}
	return out, s.tell(ctx, NotifyInput{
		Event: NotifyApproval, RotationID: r.ID, Plan: a.Plan,
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

// Judge records the actor's answer to a plan. Whoever asked for the rotation cannot
// approve it, but may reject it. The caller then ends the waiting task by the token of
// what is returned.
func (s *Steps) Judge(ctx context.Context, in Verdict) (Approval, error) {
	_, r, err := s.rotation(ctx, in.RotationID)
	if err != nil {
		return Approval{}, err
	}
	if err := s.mayJudge(r, in); err != nil {
		return Approval{}, err
	}
	answer := ApprovalGiven
	if in.Reject {
		answer = ApprovalRefused
	}
	return s.settleApproval(ctx, r, func(was Approval) (Approval, error) {
		switch {
		case was.State == answer && was.By == s.Actor:
			return was, errAnswered // also after the switch: whoever repeats the command has not failed
		case r.Phase != kek.Tested:
			return was, &Error{
				Kind: Refused, Field: r.ID, Msg: fmt.Sprintf("it is %s; a plan is judged between the test and the switch", r.Phase), Next: "matter ops kms-status",
			}
		case was.State == ApprovalGiven || was.State == ApprovalRefused:
			return was, &Error{Kind: Refused, Field: r.ID, Msg: fmt.Sprintf("it was %s by %s", was.State, was.By), Next: "matter ops kms-status"}
		case was.State == ApprovalPending && s.Now().After(was.Expires):
			return was, &Error{
				Kind: ApprovalExpired, Field: r.ID, Msg: "the time to answer ended at " + was.Expires.UTC().Format(time.RFC3339),
				Next: "start the rotation again",
			}
		}
		was.State = answer
		was.By = s.Actor
		was.At = s.Now()
		was.Reason = in.Reason
		return was, nil
	})
}

// errAnswered says that this very answer is recorded.
var errAnswered = errors.New("answered already")

func (s *Steps) mayJudge(r kek.Rotation, in Verdict) error {
	plan := s.PlanHash(r)
	switch {
	case !s.needsApproval(r):
		return &Error{Kind: Refused, Field: r.ID, Msg: "it waits for no approval", Next: "matter ops kms-status"}
	case in.Plan != plan:
		return &Error{Kind: Refused, Field: "plan", Msg: "this is not the plan that waits, which is " + plan, Next: "look at it first: matter ops kms-status"}
	case in.Reject && in.Reason == "":
		return invalid("reason", "a rejection needs one", `add --reason "why not", for the audit chain`)
	case audit.Visible(in.Reason) != in.Reason:
		return invalid("reason", "it has line ends, control characters or other text that is not seen", "write it in one line of UTF-8")
	case !in.Reject && samePerson(s.Actor, r.Requester):
		return &Error{
			Kind: Refused, Field: "approver", Msg: fmt.Sprintf("%s asked for this rotation and cannot approve it", r.Requester),
			Next: fmt.Sprintf("have another person run: matter ops approve --rotation %s --plan %s", r.ID, plan),
		}
	}
	if in.Reject || r.Phase != kek.Tested {
		return nil
	}
	return s.checkAwake(r)
}

// settleApproval changes what is recorded of the rotation's present plan. What was
// said to an earlier plan counts for nothing.
func (s *Steps) settleApproval(ctx context.Context, r kek.Rotation, next func(Approval) (Approval, error)) (Approval, error) {
	plan := s.PlanHash(r)
	for range maxTries {
		was, err := s.Approvals.LoadApproval(ctx, r.ID)
		if err != nil {
			return was, unavailable("approval", err)
		}
		if was.Plan != plan {
			was = Approval{Rotation: r.ID, Rev: was.Rev, Plan: plan, Requester: r.Requester}
		}
		a, err := next(was)
		if errors.Is(err, errAnswered) {
			return a, s.publish(ctx)
		}
		if err != nil {
			return a, err
		}
		err = s.Approvals.SaveApproval(ctx, a, a.event(s.Actor))
		if errors.Is(err, kek.ErrConflict) {
			continue
		}
		if err != nil {
			return a, unavailable("control table", err)
		}
		a.Rev++
		return a, s.publish(ctx)
	}
	return Approval{}, unavailable("approval", kek.ErrConflict)
}

// event is the record of an approval that is about to be saved.
func (a Approval) event(actor string) audit.Event {
	kinds := map[ApprovalState]string{
		ApprovalPending: "approval_wanted", ApprovalGiven: "approval_given", ApprovalRefused: "approval_refused",
	}
	ev := audit.Event{
		ID: fmt.Sprintf("%s/%s/%d", a.Rotation, kinds[a.State], a.Rev+1), Type: kinds[a.State], Rotation: a.Rotation, Step: "approve", Actor: actor,
		Body: map[string]string{"plan": a.Plan},
	}
	put(ev.Body, "requested_by", a.Requester, "approver", a.By, "reason", a.Reason)
	return ev
}

// Waiting returns the hash of the plan of r that waits for a second person, "" if none
// does.
func (s *Steps) Waiting(ctx context.Context, r kek.Rotation) (string, error) {
	if !s.needsApproval(r) || r.Phase != kek.Tested {
		return "", nil
	}
	a, err := s.Approvals.LoadApproval(ctx, r.ID)
	if err != nil {
		return "", unavailable("approval", err)
	}
	plan := s.PlanHash(r)
	if a.Plan != plan || a.State == ApprovalPending {
		return plan, nil
	}
	return "", nil
}

// checkApproval refuses the switch of a rotation that a second person must agree to
// and has not. The state machine waits before it; this holds for whoever calls.
func (s *Steps) checkApproval(ctx context.Context, r kek.Rotation) error {
	if !s.needsApproval(r) {
		return nil
	}
	a, err := s.Approvals.LoadApproval(ctx, r.ID)
	if err != nil {
		return unavailable("approval", err)
	}
	plan := s.PlanHash(r)
	if a.State == ApprovalGiven && a.Plan == plan && !samePerson(a.By, r.Requester) {
		return nil
	}
	return &Error{
		Kind: ApprovalMissing, Field: r.ID, Msg: "nobody but the requester has agreed to this plan; the pointer was left alone",
		Next: fmt.Sprintf("have another person run: matter ops approve --rotation %s --plan %s", r.ID, plan),
	}
}

// needsApproval reports whether a second person must agree before the switch. It is the
// deployment's rule, whatever the record says: who starts a rotation, or can write its
// record, does not choose.
func (s *Steps) needsApproval(r kek.Rotation) bool {
	return r.Approval || s.ApprovalRequired && r.Mode == kek.Normal && r.Drill == ""
}

// samePerson reports whether two ARNs may be of one person. In doubt it is one.
func samePerson(a, b string) bool { return person(a) == person(b) }

// ssoRole begins the names of the roles that IAM Identity Center makes. Their sessions
// are named after the user (IAM Identity Center user guide, "Referencing permission sets
// in resource policies").
const ssoRole = "AWSReservedSSO_"

// person is the principal that an ARN stands for, without its session's name, which who
// assumes a role chooses. Only Identity Center says by it who somebody is.
func person(arn string) string {
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
