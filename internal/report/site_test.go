package report

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/internal/rekor"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

const (
	stack   = "matter"
	spring  = "Q2-2026-rotation"
	machine = "arn:aws:states:eu-central-1:000000000000:stateMachine:matter-rotation"
	arn     = "arn:aws:states:eu-central-1:000000000000:execution:matter-rotation:" + spring
)

// site is a deployment in memory with rows under its first KEK, anchored in a log
// of its own, and the Step Functions that ran its steps.
type site struct {
	*rotation.Steps
	t      *testing.T
	at     time.Time
	world  *memstore.World
	orders *memstore.Table
	corpus *memstore.Table
	states *states

	tables []*memstore.Table // that are registered
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, at: time.Date(2026, 1, 4, 2, 0, 0, 0, time.UTC), states: newStates()}
	now := func() time.Time { return s.at }
	s.world = memstore.New(stack, now)
	store, vault, keys := s.world.Store(), s.world.Vault(), s.world.KMS()
	log, key := rekortest.New(t), rekortest.NewKey(t)
	s.orders, s.corpus = s.world.NewTable("orders"), s.world.NewTable("corpus")
	window, err := gates.ParseWindow("any", time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	j := &journal.Journal{Registry: store, Outbox: store, AuditBucket: vault, Now: now, Actor: "arn:aws:iam::000000000000:user/alice"}
	s.Steps = &rotation.Steps{
		Config: rotation.Config{
			DrainMaxWait: 30 * time.Minute, DeleteHold: 400 * 24 * time.Hour,
			Segments: 3, FenceShards: 2, MaxMints: 3, CanaryRounds: 5,
		},
		Journal: j, Gates: gates.Gates{Rules: gates.Rules{Window: window}, Journal: j}, Drainage: store, Checkpoints: rotation.SealCheckpoints(store, memstore.CheckpointKeys{}), Archive: store, OpenSource: s.world.Open,
		Keys: keyring.Keyring{Admin: keys, Wrapper: keys, Cipher: aead.Cipher{}, Random: func(b []byte) { copy(b, "known plaintext") }},
		Anchor: &anchor.Anchor{
			Journal: j, Store: store, Objects: vault, Signer: key, Log: rekor.New(log.Client(nil)), Recorder: store, Bucket: vault,
			Trust:     audit.Trust{Logs: []audit.Log{log.Trust()}},
			Retention: 24 * time.Hour, Heartbeat: time.Hour, MaxTail: 15 * time.Minute, Deadline: time.Minute,
		},
	}
	first, err := keys.Create(t.Context(), "", 0, "genesis", keyring.Key{})
	must(t, err)
	known := s.corpus.Source()
	known.Kind = memstore.KindCorpus
	s.tables = []*memstore.Table{s.orders, s.corpus}
	_, err = s.Genesis(t.Context(), first.ID, "genesis", []kek.Source{known, s.orders.Source()})
	must(t, err)
	for i := range 240 {
		s.insert(s.orders, fmt.Sprintf("order-%03d", i), first.ID)
	}
	for i := range 4 {
		s.insert(s.corpus, fmt.Sprintf("known-%d.json", i), first.ID)
	}
	s.anchor()
	s.pass(87 * 24 * time.Hour)
	_, err = s.Anchor.AnchorChain(t.Context(), anchor.Input{Heartbeat: true}) // as the cron does: preflight looks at its age
	must(t, err)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *site) pass(d time.Duration) { s.at = s.at.Add(d) }

func (s *site) insert(table *memstore.Table, id string, under kek.ID) {
	s.t.Helper()
	must(s.t, table.Insert(s.t.Context(), id, s.sealed(table, id, under), 0))
}

func (s *site) sealed(table *memstore.Table, id string, under kek.ID) memstore.Record {
	s.t.Helper()
	encctx := map[string]string{"table": table.Name(), "id": id}
	dek, wrapped, err := s.Keys.Wrapper.GenerateDataKey(s.t.Context(), under, encctx)
	must(s.t, err)
	ct, err := s.Keys.Cipher.Seal(dek, []byte("secret of "+id), encctx)
	must(s.t, err)
	sum := sha256.Sum256([]byte("secret of " + id))
	return memstore.Record{
		KEK: under, Epoch: 1, Version: 1, WrappedDEK: wrapped, Ciphertext: ct, Context: encctx, PlainSHA: hex.EncodeToString(sum[:]),
	}
}

func (s *site) anchor() {
	s.t.Helper()
	_, err := s.Anchor.AnchorChain(s.t.Context(), anchor.Input{})
	must(s.t, err)
}

// lease has a process hold the old KEK for a while.
func (s *site) lease(holder string, refs int64, d time.Duration) {
	s.t.Helper()
	p, err := s.world.Store().Pointer(s.t.Context())
	must(s.t, err)
	must(s.t, s.world.Store().PutLease(s.t.Context(), rotation.Lease{KEK: p.KEKID, Holder: holder, Host: "web-1", PID: 7, Refs: refs, Expires: s.at.Add(d)}))
}

// step runs one step as the state machine does: over JSON, in a state whose history
// is kept. It takes that long.
func step[In, Out any](s *site, state string, took time.Duration, in In, run func(context.Context, In) (Out, error)) (Out, error) {
	s.t.Helper()
	input, err := json.Marshal(in)
	must(s.t, err)
	return stepIn(s, s.states.enter(s.at, state, string(input)), took, in, run)
}

func stepIn[In, Out any](s *site, v *visit, took time.Duration, in In, run func(context.Context, In) (Out, error)) (Out, error) {
	s.t.Helper()
	s.pass(took)
	out, err := run(s.t.Context(), in)
	if err != nil {
		s.states.fail(s.at, v, string(lambdastep.ErrorKind(err)), err.Error())
		return out, err
	}
	answer, jerr := json.Marshal(map[string]any{"Payload": out, "StatusCode": 200})
	must(s.t, jerr)
	s.states.succeed(s.at, v, string(answer))
	return out, nil
}

// start begins a rotation by an execution.
func (s *site) start(in rotation.ExecutionInput) {
	s.t.Helper()
	s.states.start(s.at, arn, `{}`)
	_, err := step(s, "Preflight", 1800*time.Millisecond, rotation.PreflightInput{ExecutionARN: arn, ExecutionName: spring, Input: in}, s.Preflight)
	must(s.t, err)
}

func (s *site) input() rotation.StepInput { return rotation.StepInput{RotationID: spring} }

func (s *site) verify() error {
	_, err := step(s, "Verify", 38*time.Second, rotation.VerifyInput{RotationID: spring}, s.Verify)
	return err
}

// test rehearses the rewrap and runs dual unwrap.
func (s *site) test() error {
	if _, err := step(s, "Rehearse", 900*time.Millisecond, rotation.RewrapInput{RotationID: spring, Rehearse: true}, s.Rewrap); err != nil {
		return err
	}
	_, err := step(s, "DualUnwrap", 6400*time.Millisecond, s.input(), s.DualUnwrap)
	return err
}

// mint takes the census and mints.
func (s *site) mint() error {
	if _, err := step(s, "Census", 4100*time.Millisecond, rotation.VerifyInput{RotationID: spring, Census: true}, s.Verify); err != nil {
		return err
	}
	_, err := step(s, "Mint", 2300*time.Millisecond, s.input(), s.Mint)
	return err
}

// upTo runs the steps after preflight until the rotation stands at a phase.
func (s *site) upTo(phase kek.Phase) {
	s.t.Helper()
	for _, next := range []struct {
		to  kek.Phase
		run func() error
	}{
		{kek.Minted, s.mint},
		{kek.Tested, s.test},
		{kek.Switched, func() error { _, err := step(s, "Switch", 400*time.Millisecond, s.input(), s.Switch); return err }},
		{kek.Drained, s.drain},
		{kek.Rewrapped, s.rewrap},
		{kek.KEKRetired, func() error {
			_, err := step(s, "Retire", 41*time.Second, rotation.RetireInput{RotationID: spring}, s.Retire)
			s.anchor()
			return err
		}},
		{kek.Completed, func() error {
			err := s.verify()
			s.anchor()
			return err
		}},
	} {
		must(s.t, next.run())
		if next.to == phase {
			return
		}
	}
}

func (s *site) drain() error {
	for {
		out, err := step(s, "Drain", 300*time.Millisecond, s.input(), s.Drain)
		if err != nil || out.Done {
			return err
		}
		s.pass(15 * time.Second)
	}
}

// rewrap enters every segment at once, each in a child execution, and has them answer one
// after the other.
func (s *site) rewrap() error {
	var ins []rotation.RewrapInput
	var visits []*visit
	for _, src := range s.tables {
		for i := range src.Segments(s.Config.Segments) {
			in := rotation.RewrapInput{RotationID: spring, Source: src.Name(), Segment: i}
			b, err := json.Marshal(in)
			must(s.t, err)
			ins, visits = append(ins, in), append(visits, s.states.branch(s.at, "RewrapSegment", string(b)))
		}
	}
	for i, in := range ins {
		if _, err := stepIn(s, visits[i], 9*time.Second, in, s.Rewrap); err != nil {
			return err
		}
	}
	_, err := step(s, "RewrapComplete", 700*time.Millisecond, rotation.RewrapInput{RotationID: spring, Complete: true}, s.Rewrap)
	return err
}

// reader reads the site.
func (s *site) reader() Reader {
	store := s.world.Store()
	return Reader{
		Table: store, Head: store, Keys: s.Keys.Admin, Vault: s.world.Vault(), Bucket: s.world.Vault(), Retention: 24 * time.Hour,
		Anchoring: s.Anchor, History: StepFunctions{Client: s.states}, Stack: stack, Actor: "arn:aws:iam::000000000000:user/auditor", Now: s.Journal.Now,
		Open: s.world.Open, Prove: s.ProveCheckpoint,
	}
}

func (s *site) collect(id string) Report {
	s.t.Helper()
	r, err := Collect(s.t.Context(), s.reader(), id)
	must(s.t, err)
	return r
}

// states is a Step Functions that remembers executions and their events.
type states struct {
	arns  []string
	execs map[string]*sfn.DescribeExecutionOutput
	log   map[string][]types.HistoryEvent
	now   string // the execution that runs
	last  int64  // the event before the next on the main path

	children map[string][]string // ARNs of child executions by that of their map run
}

// visit is a stay in a state: the last event of its path.
type visit struct {
	state string
	last  int64
	of    string // the execution
}

func newStates() *states {
	return &states{execs: map[string]*sfn.DescribeExecutionOutput{}, log: map[string][]types.HistoryEvent{}, children: map[string][]string{}}
}

func (f *states) start(at time.Time, arn, input string) {
	f.now, f.last = arn, 0
	f.arns = append(f.arns, arn)
	f.execs[arn] = &sfn.DescribeExecutionOutput{
		ExecutionArn: aws.String(arn), StateMachineArn: aws.String(machine), Status: types.ExecutionStatusRunning, StartDate: &at, Input: &input,
	}
	f.last = f.add(f.now, at, 0, types.HistoryEvent{Type: types.HistoryEventTypeExecutionStarted})
}

func (f *states) stop(at time.Time, status types.ExecutionStatus, err, cause string) {
	e := f.execs[f.now]
	e.Status, e.StopDate = status, &at
	if err != "" {
		e.Error, e.Cause = &err, &cause
	}
}

func (f *states) add(of string, at time.Time, before int64, e types.HistoryEvent) int64 {
	e.Id, e.PreviousEventId, e.Timestamp = int64(len(f.log[of]))+1, before, &at
	f.log[of] = append(f.log[of], e)
	return e.Id
}

func (f *states) enter(at time.Time, state, input string) *visit {
	v := f.enterOf(f.now, at, f.last, state, input)
	f.last = v.last
	return v
}

func (f *states) enterOf(of string, at time.Time, before int64, state, input string) *visit {
	id := f.add(of, at, before, types.HistoryEvent{
		Type: types.HistoryEventTypeTaskStateEntered, StateEnteredEventDetails: &types.StateEnteredEventDetails{Name: &state, Input: &input},
	})
	return &visit{state, id, of}
}

// branch enters a state in a child execution of its own, of the map run of the execution.
func (f *states) branch(at time.Time, state, input string) *visit {
	run := strings.Replace(f.now, ":execution:", ":mapRun:", 1)
	if f.children[run] == nil {
		f.last = f.add(f.now, at, f.last, types.HistoryEvent{
			Type: types.HistoryEventTypeMapRunStarted, MapRunStartedEventDetails: &types.MapRunStartedEventDetails{MapRunArn: &run},
		})
	}
	child := fmt.Sprintf("%s/%d", f.now, len(f.children[run]))
	f.children[run] = append(f.children[run], child)
	return f.enterOf(child, at, 0, state, input)
}

func (f *states) succeed(at time.Time, v *visit, output string) {
	v.last = f.add(v.of, at, v.last, types.HistoryEvent{
		Type: types.HistoryEventTypeTaskSucceeded, TaskSucceededEventDetails: &types.TaskSucceededEventDetails{Output: &output},
	})
	f.exit(at, v)
}

func (f *states) fail(at time.Time, v *visit, err, cause string) {
	v.last = f.add(v.of, at, v.last, types.HistoryEvent{
		Type: types.HistoryEventTypeTaskFailed, TaskFailedEventDetails: &types.TaskFailedEventDetails{Error: &err, Cause: &cause},
	})
	f.exit(at, v)
}

func (f *states) exit(at time.Time, v *visit) {
	v.last = f.add(v.of, at, v.last, types.HistoryEvent{
		Type: types.HistoryEventTypeTaskStateExited, StateExitedEventDetails: &types.StateExitedEventDetails{Name: &v.state},
	})
	if v.of == f.now {
		f.last = v.last
	}
}

var errGone = errors.New("ExecutionDoesNotExist")

// DescribeExecution implements [API].
func (f *states) DescribeExecution(_ context.Context, in *sfn.DescribeExecutionInput, _ ...func(*sfn.Options)) (*sfn.DescribeExecutionOutput, error) {
	if out := f.execs[aws.ToString(in.ExecutionArn)]; out != nil {
		return out, nil
	}
	return nil, errGone
}

// GetExecutionHistory implements [API], seven events a page.
func (f *states) GetExecutionHistory(_ context.Context, in *sfn.GetExecutionHistoryInput, _ ...func(*sfn.Options)) (*sfn.GetExecutionHistoryOutput, error) {
	var from int
	if in.NextToken != nil {
		if _, err := fmt.Sscan(*in.NextToken, &from); err != nil {
			return nil, err
		}
	}
	all := f.log[aws.ToString(in.ExecutionArn)]
	to := min(from+7, len(all))
	out := &sfn.GetExecutionHistoryOutput{Events: all[from:to]}
	if to < len(all) {
		out.NextToken = aws.String(fmt.Sprint(to))
	}
	return out, nil
}

// ListExecutions implements [API].
func (f *states) ListExecutions(_ context.Context, in *sfn.ListExecutionsInput, _ ...func(*sfn.Options)) (*sfn.ListExecutionsOutput, error) {
	out := &sfn.ListExecutionsOutput{}
	if in.MapRunArn != nil {
		for _, child := range f.children[*in.MapRunArn] {
			out.Executions = append(out.Executions, types.ExecutionListItem{ExecutionArn: aws.String(child)})
		}
		return out, nil
	}
	if aws.ToString(in.StateMachineArn) != machine {
		return nil, errGone
	}
	for _, a := range f.arns {
		out.Executions = append(out.Executions, types.ExecutionListItem{
			ExecutionArn: aws.String(a), Name: aws.String(a[strings.LastIndexByte(a, ':')+1:]), StartDate: f.execs[a].StartDate,
		})
	}
	return out, nil
}
