package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// Preflight checks everything a rotation relies on and, unless CheckOnly is set,
// starts it: it takes the lock and writes the record as its very last act. A
// refusal has changed nothing. With Announce a look also tells customers of the
// window ahead, whatever else it finds: what is red can be fixed until then, but the
// days of notice cannot be made up. (spec: Start)
func (s *Steps) Preflight(ctx context.Context, in PreflightInput) (Plan, error) {
	r, window, err := s.request(in)
	if err != nil {
		return Plan{}, err
	}
	if in.Input.Resume != "" {
		return s.resume(ctx, in.Input.Resume, in.Entrance)
	}
	if err := checkEntrance(in.Entrance, r.Mode); err != nil {
		return Plan{}, err
	}
	v, err := s.loadAll(ctx, r.ID)
	if err != nil {
		return Plan{}, err
	}
	if in.CheckOnly { // of a rotation without a name yet: one of this name may run, or be over
		v.Rotation, r.ID = nil, ""
	}
	if v.Rotation != nil { // a retry after the start was written
		return s.restarted(ctx, r)
	}
	r.Segments = segmentsOf(r.Segments, len(v.Sources))
	checks, err := s.check(ctx, v, r, in.Input.Again, s.gates(in, r, window))
	if err != nil {
		return Plan{Checks: checks}, err
	}
	if in.CheckOnly {
		look := kek.Rotation{ID: in.ExecutionName, Mode: r.Mode, Label: r.Label, OldKEK: v.Pointer.KEKID, Drill: r.Drill, Segments: r.Segments, Sources: v.Sources}
		if c, err := s.start(v, r, in.Input.Again); err == nil {
			look.Olds = c.Rotation.After.Olds
		}
		p, err := s.plan(look)
		p.Checks = checks
		return p, err
	}
	v, err = s.transitionAll(ctx, "preflight", r.ID, func(v kek.View) (kek.Change, error) {
		if err := s.checkQuarter(ctx, v, r); err != nil { // another execution may have rotated meanwhile
			return kek.Change{}, err
		}
		return s.start(v, r, in.Input.Again)
	}, overrides(checks))
	if err != nil {
		return Plan{}, err
	}
	if err := sameStart(*v.Rotation, r); err != nil { // another execution of this name came first
		return Plan{}, err
	}
	p, err := s.plan(*v.Rotation)
	p.Checks = checks
	return p, err
}

// MaxSegments is how many segments of all sources a rotation has at most: one execution
// may have 25,000 events (Step Functions quotas), past which it ends without any Catch, and
// each segment takes 11 of them and 7 more for each time that it is continued. Many sources
// are scanned in fewer parts each.
const MaxSegments = 400

// segmentsOf is in how many parts each of some sources is scanned when n are wished for.
func segmentsOf(n, sources int) int { return min(n, max(1, MaxSegments/max(1, sources))) }

// MachineLasts is how long an execution of the state machine may run: its TimeoutSeconds.
const MachineLasts = 30 * day

// start is the change that begins r. An emergency ends the rotation that runs, whatever it
// has come to.
func (s *Steps) start(v kek.View, r kek.Rotation, again bool) (kek.Change, error) {
	if r.Mode == kek.Emergency {
		return v.TakeOver(r, again, s.Now())
	}
	return v.Start(r, s.Now())
}

// request turns the input of the execution into the rotation asked for and the
// window it may start in.
func (s *Steps) request(in PreflightInput) (kek.Rotation, Window, error) {
	r := kek.Rotation{
		ID: in.ExecutionName, Mode: kek.Mode(in.Input.Mode), Label: in.Input.Label, Reason: in.Input.Reason,
		Segments: s.Segments, Settings: s.settings(), Execution: in.ExecutionARN, Actor: s.Actor, Requester: in.Input.RequestedBy, Drill: in.Input.Drill,
	}
	if err := kek.CheckRotationID(r.ID); err != nil {
		return r, s.Window, invalid("execution_name", err.Error(), "start the execution under another name")
	}
	if in.Input.Resume != "" {
		return r, s.Window, checkResume(in.Input)
	}
	if r.Mode == "" {
		r.Mode = kek.Normal
	}
	switch {
	case r.Label != "":
	case r.Drill != "":
		r.Label = "drill " + r.Drill
	default:
		r.Label = s.QuarterLabel(s.Now())
	}
	if err := s.checkRequest(&r, in.Input.Again); err != nil {
		return r, s.Window, err
	}
	w := s.Window
	if in.Input.Window != "" {
		var err error
		if w, err = ParseWindow(in.Input.Window, s.Window.Zone); err != nil {
			return r, w, invalid("window", err.Error(), `use "HH:MM-HH:MM" in the deployment's time zone, or "any"`)
		}
	}
	r.Settings.Window = w.Text()
	return r, w, nil
}

// settings are those of the configuration that a rotation keeps from its start.
func (s *Steps) settings() kek.Settings {
	return kek.Settings{
		DrainMaxWait: s.DrainMaxWait, DeleteHold: s.DeleteHold, FenceShards: s.FenceShards,
		MaxMints: s.MaxMints, CanaryRounds: s.CanaryRounds, Deep: s.Deep,
	}
}

func invalid(field, msg, next string) error {
	return &Error{Kind: InvalidInput, Field: field, Msg: msg, Next: next}
}

// checkRequest refuses what no deployment would start, and settles whether the
// rotation waits for a second person. Who runs a step by hand is who asks.
func (s *Steps) checkRequest(r *kek.Rotation, again bool) error {
	if r.Requester == "" && !strings.HasPrefix(s.Actor, LambdaActor) {
		r.Requester = strings.ToValidUTF8(s.Actor, "?")
	}
	r.Approval = s.ApprovalRequired && r.Mode == kek.Normal && r.Drill == ""
	switch {
	case r.Drill != "" && r.Drill != DrillFailure:
		return invalid("drill", fmt.Sprintf("%q is no drill", r.Drill), `use "`+DrillFailure+`"`)
	case again && r.Mode != kek.Emergency:
		return invalid("again", "only an emergency ends another rotation", `leave it out, or add "mode": "emergency" and a reason`)
	case r.Drill != "" && r.Mode == kek.Emergency:
		return invalid("drill", "an emergency is no drill", "leave drill out to rotate in earnest, or mode to drill")
	case r.Approval && r.Requester == "":
		return invalid("requested_by", "a second person must approve this rotation, so it must say who asks",
			`matter ops kms-rotate says so by itself; in the console add "requested_by": "<your ARN>"`)
	case len(r.Requester) > 500 || audit.Visible(r.Requester) != r.Requester:
		return invalid("requested_by", "it is no identity", "use the ARN that aws sts get-caller-identity says")
	}
	if r.Mode != kek.Normal && r.Mode != kek.Emergency {
		return invalid("mode", fmt.Sprintf("%q is neither normal nor emergency", r.Mode), `use "normal", "emergency", or leave it out`)
	}
	if r.Mode == kek.Emergency && r.Reason == "" {
		return invalid("reason", "an emergency needs one", `add "reason": "what happened", for the audit chain`)
	}
	if audit.Visible(r.Reason) != r.Reason {
		return invalid("reason", "it has line ends, control characters or other text that is not seen", "write it in one line of UTF-8")
	}
	if len(r.Reason) > 1000 {
		return invalid("reason", fmt.Sprintf("%d bytes; at most 1000 are kept", len(r.Reason)), "shorten it")
	}
	if err := kek.CheckLabel(r.Label); err != nil {
		return invalid("label", err.Error(), "choose another label or leave it out")
	}
	return nil
}

// checkEntrance refuses a rotation of a mode that the state machine which asks does not
// start or resume.
func checkEntrance(at Entrance, mode kek.Mode) error {
	switch {
	case at == "", at == EntranceAny, string(at) == string(mode):
		return nil
	case at == EntranceNormal:
		return invalid("mode", "this state machine starts and resumes normal rotations alone; an emergency has a state machine, and a permission, of its own",
			`matter ops kms-rotate --emergency --reason "what happened" --watch; or start the stack's EmergencyStateMachineArn with the same input`)
	case at == EntranceEmergency:
		return invalid("mode", "this state machine starts and resumes emergencies alone",
			`add "mode": "emergency" and a reason; a normal rotation is started with the stack's StateMachineArn`)
	}
	return &Error{
		Kind: Misconfigured, Field: "entrance", Msg: fmt.Sprintf("%q is no entrance", at), Next: "deploy template.yaml and statemachine.asl.json of one version",
	}
}

func checkResume(in ExecutionInput) error {
	if in.Mode != "" || in.Label != "" || in.Window != "" || in.Drill != "" || in.Again {
		return invalid("resume", "a resumed rotation keeps its mode, label, window and drill", `send {"resume": "<rotation id>"} alone`)
	}
	if err := kek.CheckRotationID(in.Resume); err != nil {
		return invalid("resume", err.Error(), "matter ops kms-status shows the rotation that holds the lock")
	}
	return nil
}

// resume goes on with a rotation that halted: every finished step returns its
// old output at once, and every pass over the rows begins from the start.
func (s *Steps) resume(ctx context.Context, id string, at Entrance) (Plan, error) {
	_, r, err := s.rotation(ctx, id)
	if err != nil {
		return Plan{}, err
	}
	if err := checkEntrance(at, r.Mode); err != nil {
		return Plan{}, err
	}
	if r.Phase.Final() {
		return Plan{}, &Error{
			Kind: InvalidInput, Field: "resume", Msg: fmt.Sprintf("rotation %s is %s already", id, r.Phase),
			Next: "start a new rotation without resume",
		}
	}
	if err := s.restartPasses(ctx, r); err != nil {
		return Plan{}, err
	}
	now := s.Now().UTC().Truncate(time.Millisecond) // as the control table keeps it
	v, err := s.transition(ctx, "preflight", id, func(v kek.View) (kek.Change, error) { return v.Resume(now) }, nil)
	if err != nil {
		return Plan{}, err
	}
	return s.plan(*v.Rotation)
}

// restarted answers a repeated preflight whose record is there.
func (s *Steps) restarted(ctx context.Context, want kek.Rotation) (Plan, error) {
	_, r, err := s.rotation(ctx, want.ID)
	if err != nil {
		return Plan{}, err
	}
	if err := sameStart(r, want); err != nil {
		return Plan{}, err
	}
	p, err := s.plan(r)
	return p, errors.Join(err, s.publish(ctx))
}

// sameStart refuses a record that is not that of the execution which asks.
func sameStart(r, want kek.Rotation) error {
	if r.Execution == want.Execution && !r.Phase.Final() {
		return nil
	}
	if r.Execution == want.Execution && r.EndedBy != "" {
		return superseded(r)
	}
	return &Error{
		Kind: InvalidInput, Field: "execution_name", Msg: fmt.Sprintf("rotation %s exists and is %s", r.ID, r.Phase),
		Next: "start the execution under another name",
	}
}

func (s *Steps) plan(r kek.Rotation) (Plan, error) {
	p := Plan{
		RotationID: r.ID, Mode: string(r.Mode), Label: r.Label, OldKEK: string(r.OldKEK), Olds: []string{},
		Segments: []Segment{}, Checks: []Check{}, Current: Attempt{Attempt: r.Attempt},
		Drill: r.Drill, Approval: s.needsApproval(r) && r.Phase.PreSwitch(),
		ApprovalSeconds: int64(s.ApprovalWait / time.Second), Concurrency: s.Concurrency,
	}
	for _, id := range r.Olds {
		p.Olds = append(p.Olds, string(id))
	}
	sources, err := s.openSources(r.Sources)
	for _, src := range sources {
		for i := range src.Segments(r.Segments) {
			p.Segments = append(p.Segments, Segment{Source: src.Name(), Segment: i})
		}
	}
	return p, err
}

// check runs every check and reports them all, so that a tired person fixes
// everything in one go. The error is the first failure, with the others' names.
func (s *Steps) check(ctx context.Context, v kek.View, r kek.Rotation, again bool, gates []gate) ([]Check, error) {
	var checks []Check
	var first *Error
	run := func(name, detail string, err error) {
		c := Check{Name: name, OK: err == nil, Detail: detail}
		if err != nil {
			c.Detail = err.Error()
			var typed *Error
			errors.As(unavailable(name, err), &typed)
			if first == nil {
				first = typed
			} else {
				first.Msg += fmt.Sprintf("; also %s: %s", name, typed.Msg)
			}
		}
		checks = append(checks, c)
	}
	c, err := s.start(v, r, again) // it computes every condition on the control table
	free := "one active KEK, no other rotation"
	if c.From != "" {
		free = "one active KEK; it ends rotation " + c.From
	}
	switch {
	case errors.Is(err, kek.ErrLocked):
		err = lockedBy(v.Lock)
	case err != nil:
		err = refusal(err)
	}
	run("pointer and lock", free, err)
	run("pointer's KMS key", "enabled", s.checkPointerKey(ctx, v))
	if left := leftKEKs(v); len(left) > 0 {
		err := s.checkLeftKeys(ctx, left)
		detail := "enabled"
		if err != nil && r.Mode == kek.Emergency { // the pointer must leave the KEK; the retirement halts on the rows
			detail, err = overridden+" by the emergency: "+err.Error(), nil
		}
		run("other KEKs' KMS keys", detail, err)
	}
	if scheduled(r) {
		run("quarter", "not rotated yet", s.checkQuarter(ctx, v, r))
	}
	for _, g := range gates {
		switch {
		case g.spared != "":
			checks = append(checks, Check{Name: g.name, OK: true, Detail: g.spared})
		default:
			run(g.name, g.green, g.check(ctx))
		}
	}
	run("audit bucket", "versioned, Object Lock", s.Vault.Check(ctx))
	detail, err := "the chain ends where the control table says", s.checkSetBack(ctx)
	if err != nil && r.Mode == kek.Emergency && !givesUp(c) { // the pointer leaves the KEK; the retirement halts until doctor has repaired the table
		detail, err = overridden+" by the emergency: "+err.Error(), nil
	}
	run("audit head", detail, err)
	run("sources", fmt.Sprintf("%d registered", len(v.Sources)), s.checkSources(ctx, v, r, run))
	if first != nil {
		return checks, first // before the canary, which is a record: a refusal changes nothing
	}
	detail = "no transparency log is configured"
	if s.Anchoring != nil {
		detail, err = s.CheckAnchoring(ctx)
	}
	if err != nil && r.Mode == kek.Emergency { // a compromised KEK waits for no log
		detail, err = overridden+" by the emergency: "+err.Error(), nil
	}
	if run("audit anchor", detail, err); first != nil {
		return checks, first
	}
	return checks, nil
}

// checkSetBack fails if the bucket holds a record that follows the control table's last
// one: the table has been set back to an earlier time, as a restore does, and what it says
// of KEKs is no longer so. Whatever gives a KEK up asks it twice: before the registry is
// written, and before the key is disabled. If the table was set back in between, the record
// of the first has met a forgotten one in the bucket, which the second sees. A transaction
// whose record was not in the bucket yet leaves nothing there to see.
func (s *Steps) checkSetBack(ctx context.Context) error {
	for range maxTries {
		at, head, err := s.Outbox.Head(ctx)
		if err != nil {
			return unavailable("audit head", err)
		}
		key := at.RecordKey(head.Seq + 1)
		b, err := s.Vault.Get(ctx, key)
		if errors.Is(err, ErrNoRecord) {
			return s.checkForgotten(ctx, at, head.Seq)
		}
		if err != nil {
			return unavailable("audit bucket", err)
		}
		e, err := audit.Parse(b)
		if err == nil {
			_, err = e.Follow(at.Chain, head)
		}
		if err != nil { // not of the chain, which goes on past it
			return s.checkForgotten(ctx, at, head.Seq)
		}
		_, now, err := s.Outbox.Head(ctx)
		if err != nil {
			return unavailable("audit head", err)
		}
		if now == head {
			return &Error{
				Kind: AuditTampered, Field: "AUDIT_HEAD",
				Msg:  fmt.Sprintf("%s follows the control table's last record, %d: the table was set back to an earlier time", key, head.Seq),
				Next: "matter ops doctor",
			}
		}
	}
	return unavailable("audit head", fmt.Errorf("it has moved %d times", maxTries))
}

// checkForgotten fails if the chain has gone on past records of its own, as it does within
// the hour after a table was set back, and matter ops doctor has not recorded since what was
// forgotten.
func (s *Steps) checkForgotten(ctx context.Context, at audit.Line, last int64) error {
	before := audit.Line{Chain: at.Chain}
	for _, g := range at.Generations.All() {
		own, err := s.getRecord(ctx, before, g.From)
		if err != nil {
			return err
		}
		prev := audit.Genesis(at.Chain).Hash
		if g.From > 1 && own != nil {
			if prev, err = s.hashBefore(ctx, at, g.From); err != nil {
				return err
			}
		}
		before.Generations = before.Generations.With(g)
		repaired := own == nil || own.Record.Prev != prev // an object of others is not of the chain
		for seq := g.From; seq <= last && !repaired; seq++ {
			e, err := s.getRecord(ctx, at, seq)
			if err != nil {
				return err
			}
			repaired = e != nil && e.Record.Type == audit.EventRepaired && e.Record.Body[audit.BodyForgotten] != ""
		}
		if !repaired {
			return &Error{
				Kind: AuditTampered, Field: "AUDIT_HEAD",
				Msg:  fmt.Sprintf("generation %s goes on past record %d of the chain itself: the table was set back to an earlier time", g.ID, g.From),
				Next: "matter ops doctor",
			}
		}
	}
	return nil
}

// hashBefore is the hash of the record before one, as the bucket has it or as the one
// itself says, so that a delete marker on the former hides nothing; "" if neither is there.
func (s *Steps) hashBefore(ctx context.Context, at audit.Line, seq int64) (string, error) {
	before, err := s.getRecord(ctx, at, seq-1)
	if err != nil {
		return "", err
	}
	if before != nil {
		return before.Hash, nil
	}
	e, err := s.getRecord(ctx, at, seq)
	if e == nil {
		return "", err
	}
	return e.Record.Prev, nil
}

// checkSources checks each registered source under its own name, and who else depends
// on the pointer's KEK. What it returns is of all of them.
func (s *Steps) checkSources(ctx context.Context, v kek.View, r kek.Rotation, run func(name, detail string, err error)) error {
	sources, err := s.openSources(v.Sources)
	if err != nil {
		return err
	}
	if forgotten := kek.Forgotten(v.Marks, v.Sources); len(forgotten) > 0 && r.Mode == kek.Emergency {
		run("forgotten tables", overridden+" by the emergency, which will not retire the old KEK before they are sources: "+forgotten[0].Table, nil)
	}
	for _, src := range sources {
		notes, err := src.Check(ctx)
		notes = append([]string{"readable"}, notes...)
		if r.Mode == kek.Emergency && ofSource(err) {
			notes[0], err = overridden+" by the emergency, which moves what it can: "+err.Error(), nil
		}
		run("source "+src.Name(), strings.Join(notes, "; "), err)
	}
	for _, corpus := range known(sources) {
		run("known-cipher corpus", "at least one entry", s.checkCorpus(ctx, corpus))
	}
	if v.Pointer == nil {
		return nil // named by an earlier check
	}
	notes, err := s.successorNotes(ctx, v.Pointer.KEKID)
	if err != nil && r.Mode == kek.Emergency {
		notes, err = []string{overridden + " by the emergency: " + err.Error()}, nil
	}
	run("KEK's other users", orNone(notes), err)
	detail := "by none of the KEKs"
	for _, old := range registryRoster(v).rotation.Olds {
		if err = s.checkEncryptedBy(ctx, sources, old); err != nil {
			break
		}
	}
	if err != nil && r.Mode == kek.Emergency { // the pointer must leave the KEK; the retirement halts on it
		detail, err = overridden+" by the emergency: "+err.Error(), nil
	}
	run("encryption at rest", detail, err)
	return nil
}

// ofSource reports what is wrong with a source's items or definition. An emergency does
// not wait for it: the pointer must leave the KEK.
func ofSource(err error) bool {
	var typed *Error
	return errors.As(err, &typed) && (typed.Kind == RowsUnaccounted || typed.Kind == SourceMisconfigured)
}

// checkCorpus refuses a corpus without entries, as a wrong prefix makes one: dual
// unwrap would prove nothing.
func (s *Steps) checkCorpus(ctx context.Context, corpus frozen) error {
	page, err := corpus.Scan(ctx, ScanRequest{Total: 1, Limit: 1})
	for err == nil && len(page.Rows) == 0 && page.Next != "" {
		page, err = corpus.Scan(ctx, ScanRequest{Total: 1, Limit: 100, Cursor: page.Next})
	}
	if err != nil {
		return unavailable("corpus", err)
	}
	if len(page.Rows) == 0 {
		return &Error{
			Kind: SourceMisconfigured, Field: "sources[" + corpus.Name() + "]", Msg: "the corpus has no known cipher",
			Next: "correct its bucket and prefix, or restore the corpus",
		}
	}
	return nil
}

func lockedBy(id string) error {
	return &Error{
		Kind: RotationInProgress, Field: "LOCK", Msg: fmt.Sprintf("rotation %s is running or halted", id),
		Next: fmt.Sprintf(`matter ops kms-status; if it halted, redrive it or start an execution with {"resume": %q}; an emergency need not wait for it`, id),
	}
}

func (s *Steps) checkPointerKey(ctx context.Context, v kek.View) error {
	if v.Pointer == nil {
		return nil // named by the check before
	}
	k, err := s.Keys.Describe(ctx, v.Pointer.KEKID)
	if err != nil && !errors.Is(err, ErrNoKey) {
		return unavailable("KMS", err)
	}
	if err != nil || !k.Enabled || !k.Usable {
		return &Error{
			Kind: PointerInvalid, Field: "POINTER.kek_id", Err: err,
			Msg:  fmt.Sprintf("KMS key %s is not usable (state %q)", v.Pointer.KEKID, k.State),
			Next: cmdDoctor + ": it says whether the control table was set back to a KEK that was left since, which must stay disabled",
		}
	}
	return nil
}

// leftKEKs are the KEKs that the pointer has left and that rows may still be under.
func leftKEKs(v kek.View) (left []kek.ID) {
	for id, k := range v.KEKs {
		if k.State.Resolves() && (v.Pointer == nil || id != v.Pointer.KEKID) {
			left = append(left, id)
		}
	}
	slices.Sort(left)
	return left
}

// checkLeftKeys refuses to start while the KMS key of a KEK that rows may be under is
// disabled: those rows can be neither read nor moved. A key that was deleted is no reason to
// wait, for nobody can enable it.
func (s *Steps) checkLeftKeys(ctx context.Context, left []kek.ID) error {
	for _, id := range left {
		k, err := s.Keys.Describe(ctx, id)
		if errors.Is(err, ErrNoKey) {
			continue
		}
		if err != nil {
			return unavailable("KMS", err)
		}
		if !k.Enabled {
			return &Error{
				Kind: KeyUnusable, Field: "KEK#" + string(id),
				Msg:  fmt.Sprintf("rows may be under it, and its KMS key is in state %q", k.State),
				Next: fmt.Sprintf("%s; find out in CloudTrail who disabled it, then aws kms enable-key --key-id %s: the rotation moves its rows and disables it again", cmdDoctor, id),
			}
		}
	}
	return nil
}

// checkAwake refuses to switch outside the window that the rotation was started in: one
// that waited for its approval may have come out of it.
func (s *Steps) checkAwake(r kek.Rotation) error {
	if r.Mode == kek.Emergency || !s.needsApproval(r) {
		return nil
	}
	w, err := ParseWindow(r.Settings.Window, s.Window.Zone)
	if err != nil {
		return &Error{Kind: Misconfigured, Field: "ROTATION#" + r.ID + ".window", Msg: "the rotation's record has no window that can be read", Err: err, Next: "matter ops doctor"}
	}
	if w.Open(s.Now()) {
		return nil
	}
	return &Error{
		Kind: WindowClosed, Field: "window", Msg: fmt.Sprintf("it is %s, outside %s, in which this rotation may switch", s.Now().In(w.Zone).Format("15:04 MST"), w),
		Next: "approve within the window; or reject it, and start it again with another window",
	}
}

func (s *Steps) checkWindow(w Window, at time.Time) error {
	if w.Open(at) {
		return nil
	}
	return &Error{
		Kind: WindowClosed, Field: "window", Msg: fmt.Sprintf("it is %s, outside %s", at.In(w.Zone).Format("15:04 MST"), w),
		Next: `wait for the window, or start with {"window": "any"} if you accept peak load`,
	}
}
