package rotation

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// Preflight checks everything that a rotation relies on and, unless CheckOnly is set, starts
// it: its last write takes the lock and creates the record. A refusal has changed nothing.
// With Announce, a check also tells customers of the window ahead, even if other checks
// fail: those can be fixed before the window, but lost days of notice cannot be made up.
// (spec: Start)
func (s *Steps) Preflight(ctx context.Context, in PreflightInput) (Plan, error) {
	r, window, err := s.readRequest(in)
	if err != nil {
		return Plan{}, err
	}
	if in.Input.Resume != "" {
		return s.resumeRotation(ctx, in.Input.Resume, in.Entrance)
	}
	if err := checkEntrance(in.Entrance, r.Mode); err != nil {
		return Plan{}, err
	}
	v, err := s.Journal.LoadAll(ctx, r.ID)
	if err != nil {
		return Plan{}, err
	}
	if in.CheckOnly { // the checked rotation has no name yet; a rotation of this name may exist
		v.Rotation, r.ID = nil, ""
	}
	if v.Rotation != nil { // a retry after the start was written
		return s.repeatStart(ctx, r)
	}
	r.Segments = segmentsOf(r.Segments, len(v.Sources))
	asked := gates.Request{Rotation: r, Window: window, Ahead: in.CheckOnly && in.Announce, From: in.AnnounceFrom, Label: in.Input.Label}
	checks, err := s.runChecks(ctx, v, r, in.Input.Again, s.Gates.ListGates(asked))
	if err != nil {
		return Plan{Checks: checks}, err
	}
	if in.CheckOnly {
		look := kek.Rotation{ID: in.ExecutionName, Mode: r.Mode, Label: r.Label, OldKEK: v.Pointer.KEKID, Drill: r.Drill, Segments: r.Segments, Sources: v.Sources}
		if c, err := s.startChange(v, r, in.Input.Again); err == nil {
			look.Olds = c.Rotation.After.Olds
		}
		p, err := s.planRotation(look)
		p.Checks = checks
		return p, err
	}
	v, err = s.Journal.TransitionAll(ctx, "preflight", r.ID, func(v kek.View) (kek.Change, error) {
		if err := s.checkQuarter(ctx, v, r); err != nil { // another execution may have completed meanwhile
			return kek.Change{}, err
		}
		return s.startChange(v, r, in.Input.Again)
	}, listOverrides(checks))
	if err != nil {
		return Plan{}, err
	}
	if err := sameStart(*v.Rotation, r); err != nil { // another execution of this name came first
		return Plan{}, err
	}
	p, err := s.planRotation(*v.Rotation)
	p.Checks = checks
	return p, err
}

// MaxSegments bounds the segments of all sources of a rotation: five for each of the 400 workers
// that a deployment may have at once. A map's child execution has a history of its own, so
// segments cost the parent no events. With many sources, each is scanned in fewer segments.
const MaxSegments = 2000

// maxLeftBytes bounds a list of segments in the payload. A state passes on 256 KiB (Step
// Functions developer guide, "Service quotas"), which the plan shares with two lists.
const maxLeftBytes = 80 << 10

// CutLeft returns as many of the segments as the payload takes. The conclusion of the pass
// names the others when these are done.
func CutLeft(left []Segment) []Segment {
	bytes := 0
	for i, at := range left {
		bytes += len(at.Source) + len(`{"source":"","segment":1999},`)
		if bytes > maxLeftBytes {
			return left[:i]
		}
	}
	return left
}

// segmentsOf returns how many segments each source gets if n are configured.
func segmentsOf(n, sources int) int { return min(n, max(1, MaxSegments/max(1, sources))) }

// MachineLasts is how long an execution of the state machine may run: its TimeoutSeconds.
const MachineLasts = gates.WindowLasts

// startChange returns the change that starts r. An emergency also ends the rotation that
// runs, in whatever phase it is.
func (s *Steps) startChange(v kek.View, r kek.Rotation, again bool) (kek.Change, error) {
	if r.Mode == kek.Emergency {
		return v.TakeOver(r, again, s.Journal.Now())
	}
	return v.Start(r, s.Journal.Now())
}

// readRequest turns the input of the execution into the requested rotation and the window in
// which it may start.
func (s *Steps) readRequest(in PreflightInput) (kek.Rotation, gates.Window, error) {
	r := kek.Rotation{
		ID: in.ExecutionName, Mode: kek.Mode(in.Input.Mode), Label: in.Input.Label, Reason: in.Input.Reason,
		Segments: s.Config.Segments, Settings: s.newSettings(), Execution: in.ExecutionARN, Actor: s.Journal.Actor, Requester: in.Input.RequestedBy, Drill: in.Input.Drill,
	}
	if err := kek.CheckRotationID(r.ID); err != nil {
		return r, s.Gates.Rules.Window, journal.RejectInput("execution_name", err.Error(), "start the execution under another name")
	}
	if in.Input.Resume != "" {
		return r, s.Gates.Rules.Window, checkResume(in.Input)
	}
	if r.Mode == "" {
		r.Mode = kek.Normal
	}
	switch {
	case r.Label != "":
	case r.Drill != "":
		r.Label = "drill " + r.Drill
	case r.Mode == kek.Emergency:
		r.Label = kek.EmergencyLabel(s.Journal.Now())
	default:
		r.Label = s.Gates.Rules.QuarterLabel(s.Journal.Now())
	}
	if err := s.checkRequest(&r, in.Input.Again); err != nil {
		return r, s.Gates.Rules.Window, err
	}
	w := s.Gates.Rules.Window
	if in.Input.Window != "" {
		var err error
		if w, err = gates.ParseWindow(in.Input.Window, s.Gates.Rules.Window.Zone); err != nil {
			return r, w, journal.RejectInput("window", err.Error(), `use "HH:MM-HH:MM" in the deployment's time zone, or "any"`)
		}
	}
	r.Settings.Window = w.Text()
	return r, w, nil
}

// newSettings returns the part of the configuration that a rotation keeps from its start, so
// that a deployment in between does not change the rules of a rotation that runs.
func (s *Steps) newSettings() kek.Settings {
	return kek.Settings{
		DrainMaxWait: s.Config.DrainMaxWait, DeleteHold: s.Config.DeleteHold, FenceShards: s.Config.FenceShards,
		MaxMints: s.Config.MaxMints, CanaryRounds: s.Config.CanaryRounds, Deep: s.Config.Deep,
	}
}

// checkRequest refuses a request that no deployment would start, and decides whether the
// rotation waits for a second person. If a person runs the step by hand, that person is the
// requester.
func (s *Steps) checkRequest(r *kek.Rotation, again bool) error {
	if r.Requester == "" && !strings.HasPrefix(s.Journal.Actor, journal.LambdaActor) {
		r.Requester = strings.ToValidUTF8(s.Journal.Actor, "?")
	}
	r.Approval = s.Gates.Rules.ApprovalRequired && r.Mode == kek.Normal && r.Drill == ""
	switch {
	case r.Drill != "" && r.Drill != gates.DrillFailure:
		return journal.RejectInput("drill", fmt.Sprintf("unknown drill %q", r.Drill), `use "`+gates.DrillFailure+`"`)
	case again && r.Mode != kek.Emergency:
		return journal.RejectInput("again", "only an emergency ends another rotation", `leave it out, or add "mode": "emergency" and a reason`)
	case r.Drill != "" && r.Mode == kek.Emergency:
		return journal.RejectInput("drill", "drill and emergency cannot be combined", "leave drill out to rotate in earnest, or mode to drill")
	case r.Approval && r.Requester == "":
		return &journal.Error{Kind: journal.InvalidInput, Field: "requested_by", Msg: "a second person must approve this rotation, so it must say who asks", Next: journal.Next{Do: journal.NameRequester}}
	case len(r.Requester) > 500 || audit.Visible(r.Requester) != r.Requester:
		return &journal.Error{Kind: journal.InvalidInput, Field: "requested_by", Msg: "it is not the ARN of an identity", Next: journal.Next{Do: journal.NameIdentity}}
	}
	if r.Mode != kek.Normal && r.Mode != kek.Emergency {
		return journal.RejectInput("mode", fmt.Sprintf("%q is neither normal nor emergency", r.Mode), `use "normal", "emergency", or leave it out`)
	}
	if r.Mode == kek.Emergency && r.Reason == "" {
		return journal.RejectInput("reason", "an emergency needs one", `add "reason": "what happened", for the audit chain`)
	}
	if audit.Visible(r.Reason) != r.Reason {
		return journal.RejectInput("reason", "it has line ends, control characters or other invisible text", "write it in one line of UTF-8")
	}
	if len(r.Reason) > 1000 {
		return journal.RejectInput("reason", fmt.Sprintf("%d bytes; at most 1000 are kept", len(r.Reason)), "shorten it")
	}
	if err := kek.CheckLabel(r.Label); err != nil {
		return journal.RejectInput("label", err.Error(), "choose another label or leave it out")
	}
	return nil
}

// checkEntrance refuses a rotation whose mode the calling state machine must not start or
// resume.
func checkEntrance(at Entrance, mode kek.Mode) error {
	switch {
	case at == "", at == EntranceAny, string(at) == string(mode):
		return nil
	case at == EntranceNormal:
		return &journal.Error{
			Kind: journal.InvalidInput, Field: "mode", Msg: "this state machine starts and resumes only normal rotations; an emergency has its own state machine and its own permission",
			Next: journal.Next{Do: journal.StartEmergency},
		}
	case at == EntranceEmergency:
		return &journal.Error{Kind: journal.InvalidInput, Field: "mode", Msg: "this state machine starts and resumes only emergencies", Next: journal.Next{Do: journal.StartNormal}}
	}
	return &journal.Error{
		Kind: journal.Misconfigured, Field: "entrance", Msg: fmt.Sprintf("unknown entrance %q", at), Next: journal.Next{Do: journal.DeployOneVersion},
	}
}

// checkResume refuses a resume that would change what the rotation was started with.
func checkResume(in ExecutionInput) error {
	if in.Mode != "" || in.Label != "" || in.Window != "" || in.Drill != "" || in.Again {
		return journal.RejectInput("resume", "a resumed rotation keeps its mode, label, window and drill", `send {"resume": "<rotation id>"} alone`)
	}
	if err := kek.CheckRotationID(in.Resume); err != nil {
		return &journal.Error{Kind: journal.InvalidInput, Field: "resume", Msg: err.Error(), Next: journal.Next{Do: journal.ShowLock}}
	}
	return nil
}

// resumeRotation continues a rotation that halted. Every finished step returns its old
// output at once. Every pass over the rows begins from the start, because what an earlier
// pass saw may have changed during the halt.
func (s *Steps) resumeRotation(ctx context.Context, id string, at Entrance) (Plan, error) {
	_, r, err := s.Journal.LoadRotation(ctx, id)
	if err != nil {
		return Plan{}, err
	}
	if err := checkEntrance(at, r.Mode); err != nil {
		return Plan{}, err
	}
	if r.Phase.Final() {
		return Plan{}, &journal.Error{
			Kind: journal.InvalidInput, Field: "resume", Msg: fmt.Sprintf("rotation %s is %s already", id, r.Phase),
			Next: journal.Next{Say: "start a new rotation without resume"},
		}
	}
	if err := s.restartPasses(ctx, r); err != nil {
		return Plan{}, err
	}
	now := s.Journal.Now().UTC().Truncate(time.Millisecond) // as the control table keeps it
	v, err := s.Journal.Transition(ctx, "preflight", id, func(v kek.View) (kek.Change, error) { return v.Resume(now) }, nil)
	if err != nil {
		return Plan{}, err
	}
	return s.planRotation(*v.Rotation)
}

// repeatStart answers a preflight that is repeated after it has written the record.
func (s *Steps) repeatStart(ctx context.Context, want kek.Rotation) (Plan, error) {
	_, r, err := s.Journal.LoadRotation(ctx, want.ID)
	if err != nil {
		return Plan{}, err
	}
	if err := sameStart(r, want); err != nil {
		return Plan{}, err
	}
	p, err := s.planRotation(r)
	return p, errors.Join(err, s.Journal.Publish(ctx))
}

// sameStart refuses a record that another execution has written.
func sameStart(r, want kek.Rotation) error {
	if r.Execution == want.Execution && !r.Phase.Final() {
		return nil
	}
	if r.Execution == want.Execution && r.EndedBy != "" {
		return journal.ReportSuperseded(r)
	}
	return &journal.Error{
		Kind: journal.InvalidInput, Field: "execution_name", Msg: fmt.Sprintf("rotation %s exists and is %s", r.ID, r.Phase),
		Next: journal.Next{Say: "start the execution under another name"},
	}
}

// planRotation returns the payload that the state machine carries from preflight on.
func (s *Steps) planRotation(r kek.Rotation) (Plan, error) {
	p := Plan{
		RotationID: r.ID, Mode: string(r.Mode), Label: r.Label, OldKEK: string(r.OldKEK), Olds: []string{},
		Checks: []Check{}, Current: Attempt{Attempt: r.Attempt},
		Drill: r.Drill, Approval: s.Gates.NeedsApproval(r) && r.Phase.PreSwitch(),
		ApprovalSeconds: int64(s.Gates.Rules.ApprovalWait / time.Second), Concurrency: s.Config.Concurrency,
	}
	for _, id := range r.Olds {
		p.Olds = append(p.Olds, string(id))
	}
	sources, _, err := s.openRead(r)
	p.Rewrap.Left = CutLeft(listSegments(sources, r))
	return p, err
}

// SpreadSegments orders the segments of a source so that segments which are worked on at the
// same time are far apart. DynamoDB gives each segment a contiguous part of the hash range,
// and neighbours share a partition with its limit of 1,000 write units a second. The order
// is that of fractions with their bits reversed (van der Corput): 0, 1/2, 1/4, 3/4, 1/8, … of the
// range. Any run of it is spread over the whole range, whatever n is.
func SpreadSegments(n int) []int {
	order := make([]int, 0, n)
	seen := make([]bool, n)
	shift := bits.Len(uint(max(n-1, 0)))
	for i := range min(n, 1) << shift {
		fraction := bits.Reverse64(uint64(i)) >> (64 - shift)
		if at := int(fraction) * n >> shift; !seen[at] { //nolint:gosec // less than n
			seen[at] = true
			order = append(order, at)
		}
	}
	return order
}

// runChecks runs every check and reports them all, so that a person can fix everything at
// once. The error is the first failure, with the names and messages of the others. The
// check of anchoring comes last: it anchors a canary, and a refusal must change nothing.
func (s *Steps) runChecks(ctx context.Context, v kek.View, r kek.Rotation, again bool, all []gates.Gate) ([]Check, error) {
	var checks []Check
	var first *journal.Error
	run := func(name, detail string, err error) {
		c := Check{Name: name, OK: err == nil, Detail: detail}
		if err != nil {
			c = c.fail(err)
			var typed *journal.Error
			errors.As(journal.WrapUnavailable(name, err), &typed)
			if first == nil {
				first = typed
			} else {
				first.Msg += fmt.Sprintf("; also %s: %s", name, typed.Msg)
			}
		}
		checks = append(checks, c)
	}
	c, err := s.startChange(v, r, again) // it computes every condition on the control table
	free := "one active KEK, no other rotation"
	if c.From != "" {
		free = "one active KEK; it ends rotation " + c.From
	}
	switch {
	case errors.Is(err, kek.ErrLocked):
		err = errLocked(v.Lock)
	case err != nil:
		err = journal.ExplainRefusal(err)
	}
	run("pointer and lock", free, err)
	run("pointer's KMS key", "enabled", s.checkPointerKey(ctx, v))
	if left := leftKEKs(v); len(left) > 0 {
		err := s.checkLeftKeys(ctx, left)
		detail := "enabled"
		if err != nil && r.Mode == kek.Emergency { // the pointer must leave the KEK; the retirement halts on the rows
			detail, err = gates.Overridden+" by the emergency: "+err.Error(), nil
		}
		run("other KEKs' KMS keys", detail, err)
	}
	if isScheduled(r) {
		run("quarter", "not rotated yet", s.checkQuarter(ctx, v, r))
	}
	for _, g := range all {
		switch {
		case g.Skipped != "":
			checks = append(checks, Check{Name: g.Name, OK: true, Detail: g.Skipped})
		default:
			run(g.Name, g.Green, g.Check(ctx))
		}
	}
	run("audit bucket", "versioned, Object Lock", s.Journal.AuditBucket.Check(ctx))
	detail, err := "the chain ends where the control table says", s.Journal.CheckSetBack(ctx)
	if err != nil && r.Mode == kek.Emergency && !journal.GivesUpKEK(c) { // the pointer leaves the KEK; the retirement halts until doctor has repaired the table
		detail, err = gates.Overridden+" by the emergency: "+err.Error(), nil
	}
	run("audit head", detail, err)
	run("sources", fmt.Sprintf("%d registered", len(v.Sources)), s.checkSources(ctx, v, r, run))
	if err := s.checkLimits(ctx, v, r); err != nil {
		detail := ""
		if r.Mode == kek.Emergency { // the pointer must leave the KEK; the execution halts
			detail, err = gates.Overridden+" by the emergency: "+err.Error(), nil
		}
		run("limits", detail, err)
	}
	if first != nil {
		return checks, first // before the canary, which is a record: a refusal changes nothing
	}
	detail = "no transparency log is configured"
	if s.Anchor != nil {
		detail, err = s.Anchor.CheckAnchoring(ctx)
	}
	if err != nil && r.Mode == kek.Emergency { // leaving a compromised KEK must not wait for a log
		detail, err = gates.Overridden+" by the emergency: "+err.Error(), nil
	}
	if run("audit anchor", detail, err); first != nil {
		return checks, first
	}
	return checks, nil
}

// checkSources checks each registered source under its own name, and who else depends on the
// pointer's KEK. It returns an error only if the sources cannot be opened at all; run gets
// the result of each check.
func (s *Steps) checkSources(ctx context.Context, v kek.View, r kek.Rotation, run func(name, detail string, err error)) error {
	sources, err := s.openSources(v.Sources)
	if err != nil {
		return err
	}
	if forgotten := kek.Forgotten(v.Marks, v.Sources); len(forgotten) > 0 && r.Mode == kek.Emergency {
		run("forgotten tables", gates.Overridden+" by the emergency, which will not retire the old KEK before they are sources: "+forgotten[0].Table, nil)
	}
	for _, src := range sources {
		notes, err := CheckSource(ctx, src)
		notes = append([]string{"readable"}, notes...)
		if r.Mode == kek.Emergency && isSourceError(err) {
			notes[0], err = gates.Overridden+" by the emergency, which moves what it can: "+err.Error(), nil
		}
		run("source "+src.Name(), strings.Join(notes, "; "), err)
	}
	for _, corpus := range listCorpora(sources) {
		run("known-cipher corpus", "at least one entry", s.checkCorpus(ctx, corpus))
	}
	if v.Pointer == nil {
		return nil // an earlier check has reported it
	}
	notes, err := s.successorNotes(ctx, v.Pointer.KEKID)
	if err != nil && r.Mode == kek.Emergency {
		notes, err = []string{gates.Overridden + " by the emergency: " + err.Error()}, nil
	}
	run("KEK's other users", joinOrNone(notes), err)
	detail := "by none of the KEKs"
	for _, old := range registryRoster(v).rotation.Olds {
		if err = s.checkEncryptedBy(ctx, sources, old); err != nil {
			break
		}
	}
	if err != nil && r.Mode == kek.Emergency { // the pointer must leave the KEK; the retirement halts on it
		detail, err = gates.Overridden+" by the emergency: "+err.Error(), nil
	}
	run("encryption at rest", detail, err)
	return nil
}

// isSourceError reports an error of a source's items or definition. An emergency does not
// wait until it is fixed: the pointer must leave the KEK.
func isSourceError(err error) bool {
	var typed *journal.Error
	return errors.As(err, &typed) && (typed.Kind == journal.RowsUnaccounted || typed.Kind == journal.SourceMisconfigured)
}

// checkCorpus refuses a corpus without entries, which a wrong prefix gives: dual unwrap
// would prove nothing.
func (s *Steps) checkCorpus(ctx context.Context, corpus frozenSource) error {
	page, err := corpus.Scan(ctx, source.ScanRequest{Total: 1, Limit: 1})
	for err == nil && len(page.Rows) == 0 && page.Next != "" {
		page, err = corpus.Scan(ctx, source.ScanRequest{Total: 1, Limit: 100, Cursor: page.Next})
	}
	if err != nil {
		return journal.WrapUnavailable("corpus", err)
	}
	if len(page.Rows) == 0 {
		return &journal.Error{
			Kind: journal.SourceMisconfigured, Field: "sources[" + corpus.Name() + "]", Msg: "the corpus has no known cipher",
			Next: journal.Next{Say: "correct its bucket and prefix, or restore the corpus"},
		}
	}
	return nil
}

// errLocked refuses a start while another rotation holds the lock.
func errLocked(id string) error {
	return &journal.Error{
		Kind: journal.RotationInProgress, Field: "LOCK", Msg: fmt.Sprintf("rotation %s is running or halted", id),
		Next: journal.Next{Do: journal.AwaitRotation, Rotation: id},
	}
}

// checkPointerKey refuses to start while the KMS key of the pointer's KEK is not usable.
func (s *Steps) checkPointerKey(ctx context.Context, v kek.View) error {
	if v.Pointer == nil {
		return nil // an earlier check has reported it
	}
	k, err := s.Keys.Admin.Describe(ctx, v.Pointer.KEKID)
	if err != nil && !errors.Is(err, journal.ErrNoKey) {
		return journal.WrapUnavailable("KMS", err)
	}
	if err != nil || !k.Enabled || !k.Usable {
		return &journal.Error{
			Kind: journal.PointerInvalid, Field: "POINTER.kek_id", Err: err,
			Msg:  fmt.Sprintf("KMS key %s is not usable (state %q)", v.Pointer.KEKID, k.State),
			Next: journal.Next{Do: journal.CheckSetBack},
		}
	}
	return nil
}

// leftKEKs lists the KEKs that the pointer has left and that rows may still be under.
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
// disabled: those rows can be neither read nor moved. A deleted key does not block the
// start, because nobody can enable it again.
func (s *Steps) checkLeftKeys(ctx context.Context, left []kek.ID) error {
	for _, id := range left {
		k, err := s.Keys.Admin.Describe(ctx, id)
		if errors.Is(err, journal.ErrNoKey) {
			continue
		}
		if err != nil {
			return journal.WrapUnavailable("KMS", err)
		}
		if !k.Enabled {
			return &journal.Error{
				Kind: journal.KeyUnusable, Field: "KEK#" + string(id),
				Msg:  fmt.Sprintf("rows may be under it, and its KMS key is in state %q", k.State),
				Next: journal.Next{Do: journal.EnableLeftKey, KEK: id},
			}
		}
	}
	return nil
}

// listOverrides returns what the record of the start says of the failed checks that an
// emergency has overridden; nil for none.
func listOverrides(checks []Check) map[string]string {
	var names []string
	for _, c := range checks {
		if strings.HasPrefix(c.Detail, gates.Overridden) {
			names = append(names, c.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return map[string]string{"overrides": strings.Join(names, ", ")}
}
