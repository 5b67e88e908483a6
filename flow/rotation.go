package flow

import (
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Comment is the state machine's own description, which the console shows.
const Comment = "One KEK rotation. Before Switch a failure rolls back (normal) or mints again (emergency); from Switch on it only goes forward: it retries, then halts, pages, and is redriven. Every step is idempotent, so a crash or a timeout is safe to retry. The payload carries ids and counts only."

// Lasts is how long an execution may run.
const Lasts = rotation.MachineLasts

// Error names that are not kinds of the steps: of Step Functions, and of the task that asks for
// an approval.
const (
	allErrors = journal.Kind("States.ALL")
	timeout   = journal.Kind("States.Timeout")
	approved  = journal.Kind("Approved")

	childFailed = journal.Kind("States.ExceedToleratedFailureThreshold")
)

// Refusals lists the failures of preflight that have changed nothing. Every other failure may
// have come after it took the lock, so Abandon follows.
var Refusals = []journal.Kind{
	journal.InvalidInput, journal.Misconfigured, journal.ControlTableMissing, journal.PointerInvalid, journal.RotationInProgress,
	journal.SourceMisconfigured, journal.AuditUnlocked, journal.AnnouncementMissing, journal.AnnouncementYoung, journal.DrillStale,
	journal.HealthRed, journal.SourceForgotten, journal.KeyInUse, journal.QuarterRotated, journal.RowsUnaccounted, journal.WindowClosed,
}

// rotationPayload returns a payload: the rotation's id, and more fields.
func rotationPayload(more ...Field) []Field {
	return append([]Field{{"rotation_id", Path("$.rotation_id")}}, more...)
}

// rollBack catches any failure before the switch.
var rollBack = []CatchClause{{Errors: []journal.Kind{allErrors}, Result: "$.failure", Next: "RollBackOrRemint"}}

// ignoreFailure continues at next whatever fails.
func ignoreFailure(next string) []CatchClause {
	return []CatchClause{{Errors: []journal.Kind{allErrors}, Result: Drop, Next: next}}
}

// haltIn catches any failure after the switch: it continues at record, where the rotation
// halts, unless an emergency has ended the rotation.
func haltIn(record string) []CatchClause {
	return []CatchClause{
		{Errors: []journal.Kind{journal.Superseded}, Result: "$.failure", Next: "Superseded"},
		{Errors: []journal.Kind{allErrors}, Result: "$.failure", Next: record},
	}
}

// halt catches any failure of a map after the switch.
var halt = []CatchClause{{Errors: []journal.Kind{allErrors}, Result: "$.failure", Next: "HaltedRecord"}}

// resumePause is how long a child execution waits before it asks again whether a walk that a
// person has paused continues.
const resumePause = time.Minute

// walkMap completes a map over the segments of a pass, and the task that works on one of them.
//
// A child execution that fails fails the map, which stops the others: an outage must not be
// waited for by thousands of segments one after the other. The map's error is then
// States.ExceedToleratedFailureThreshold, whatever failed in the child (developer guide,
// "Setting failure thresholds for Distributed Map states"). So the map continues at its Next,
// the task that concludes: it works on the segments that are left too, and fails with the error
// itself. Any other error of the map, such as a missing permission, is caught as it is.
//
// A child's output is one word, because a map's output is the array of its children's outputs,
// and a state passes on 256 KiB at most.
func walkMap(m, task State) State {
	name := strings.TrimSuffix(m.Name, "Rows") + "Segment"
	task.Name, task.Type = name, Task
	task.Timeout = 930 * time.Second
	task.Retry = Patient
	task.Select = []Field{{"done", Path("$.Payload.done")}, {"paused", Path("$.Payload.paused")}, {"scanned", Path("$.Payload.tally.scanned")}, {"rewrapped", Path("$.Payload.tally.rewrapped")}, {"quarantined", Path("$.Payload.tally.quarantined")}}
	task.Result = "$.progress"
	task.Next = name + "Done?"

	m.Type = Map
	m.ItemSelector = rotationPayload(Field{"source", Path("$$.Map.Item.Value.source")}, Field{"segment", Path("$$.Map.Item.Value.segment")})
	m.ConcurrencyAt = "$.rewrap_concurrency"
	m.Result = Drop
	m.Catch = append([]CatchClause{{Errors: []journal.Kind{childFailed}, Result: Drop, Next: m.Next, Comment: "A child execution has failed. The task that concludes says why."}}, m.Catch...)
	m.Each = []State{
		task,
		{
			Name: name + "Done?", Type: Choice,
			Comment: "A call that ran out of time is made again and continues from its checkpoint.",
			Choices: []ChoiceRule{{At: "$.progress.done", Is: true, Next: name + "Done"}, {At: "$.progress.paused", Is: true, Next: name + "Wait"}}, Default: name,
		},
		{
			Name: name + "Wait", Type: Wait,
			Comment: "A person has paused the walk.",
			Pause:   resumePause,
			Next:    name,
		},
		{
			Name: name + "Done", Type: Succeed,
			Comment: "The pass is over for this segment.",
			Output:  "$.progress.done",
		},
	}
	return m
}

// Rotation lists every state. An execution begins with the first.
var Rotation = []State{
	{
		Name: "Preflight", Type: Task,
		Comment: "Checks everything a rotation relies on and, as its last act, takes the lock and writes the rotation's record. Its plan becomes the payload. The entrance is this state machine's, not the input's: which mode it may start.",
		Event:   kek.EventRotationStarted, Title: "Preflight",
		Function: "Preflight", Payload: []Field{{"execution_arn", Path("$$.Execution.Id")}, {"execution_name", Path("$$.Execution.Name")}, {"entrance", "${Entrance}"}, {"input", Path("$")}},
		Timeout: 135 * time.Second,
		Retry:   Brief,
		Output:  "$.Payload",
		Catch:   []CatchClause{{Errors: Refusals, Next: "NotifyRefused", Comment: "A refusal has changed nothing: there is nothing to abandon, and a rotation of this name that another execution runs must be left alone."}, {Errors: []journal.Kind{allErrors}, Next: "Abandon", Comment: "Anything else may have failed after the lock was taken. The error replaces the input, which need not be an object; $$.Execution.Input keeps it."}},
		Next:    "NotifyStarted",
	},
	{
		Name: "NotifyStarted", Type: Task,
		Comment:  "Tells people, and customers who follow the announced window, that it has begun. It continues whether or not they hear of it.",
		Function: "Notify", Payload: []Field{{"event", "started"}, {"rotation_id", Path("$.rotation_id")}, {"label", Path("$.label")}, {"mode", Path("$.mode")}, {"drill", Path("$.drill")}, {"execution", Path("$$.Execution")}},
		Timeout: 40 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Catch:   ignoreFailure("Census"),
		Next:    "Census",
	},
	{
		Name: "Abandon", Type: Task,
		Comment:  "Frees the lock if preflight died after taking it; changes nothing otherwise. An emergency keeps its lock and is resumed.",
		Function: "Retire", Payload: []Field{{"rotation_id", Path("$$.Execution.Name")}, {"execution_arn", Path("$$.Execution.Id")}, {"action", "abandon"}, {"error", Path("$.Error")}, {"cause", Path("$.Cause")}},
		Timeout: 930 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Catch:   ignoreFailure("NotifyRefused"),
		Next:    "NotifyRefused",
	},
	{
		Name: "NotifyRefused", Type: Task,
		Comment:  "Tells people that no rotation was started, and why.",
		Function: "Notify", Payload: []Field{{"event", "refused"}, {"rotation_id", Path("$$.Execution.Name")}, {"error", Path("$.Error")}, {"cause", Path("$.Cause")}, {"execution", Path("$$.Execution")}},
		Timeout: 40 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Catch:   ignoreFailure("Refused"),
		Next:    "Refused",
	},
	{
		Name: "Refused", Type: Fail,
		Comment: "Preflight said no. Nothing was changed and no key was minted.",
		ErrorAt: "$.Error", CauseAt: "$.Cause",
	},
	{
		Name: "Census", Type: Task,
		Comment: "Reads every item of every source and classifies it, before a key is minted. An item that cannot be accounted for ends a normal rotation here: it is rolled back with nothing changed. An emergency does not wait for it.",
		From:    kek.Started, Event: kek.EventRowsCounted, Title: "Census",
		Function: "Verify", Payload: rotationPayload(Field{"census", true}),
		Timeout: 930 * time.Second,
		Retry:   Polled,
		Select:  []Field{{"done", Path("$.Payload.done")}, {"left", Path("$.Payload.left")}, {"scanned", Path("$.Payload.tally.scanned")}, {"other", Path("$.Payload.tally.other")}, {"declared", Path("$.Payload.tally.declared")}},
		Result:  "$.census",
		Catch:   rollBack,
		Next:    "CensusDone?",
	},
	{
		Name: "CensusDone?", Type: Choice,
		Comment: "The map works on the segments that are left, until there are none.",
		Choices: []ChoiceRule{{At: "$.census.done", Is: true, Next: "Mint"}}, Default: "CensusRows",
	},
	walkMap(State{
		Name:    "CensusRows",
		Comment: "Classifies the items of every segment that is left, some at once. Census then concludes.",
		Items:   "$.census.left",
		Catch:   rollBack,
		Next:    "Census",
	}, State{
		Comment:  "Classifies the items of one segment from its checkpoint until it is done or time is nearly up.",
		Function: "Verify", Payload: rotationPayload(Field{"census", true}, Field{"source", Path("$.source")}, Field{"segment", Path("$.segment")}),
	}),
	{
		Name: "Mint", Type: Task,
		Comment: "Makes the new KEK, one per attempt whatever is repeated, and registers it as pending. Its retries outlast the minutes until a new key's tag is known everywhere.",
		From:    kek.Started, Event: kek.EventKEKMinted, Title: "Mint", Command: "kms-mint-kek",
		Function: "Mint", Payload: rotationPayload(),
		Timeout: 75 * time.Second,
		Retry:   Patient,
		Select:  []Field{{"new_kek_id", Path("$.Payload.new_kek_id")}, {"attempt", Path("$.Payload.attempt")}},
		Result:  "$.mint",
		Catch:   rollBack,
		Next:    "Rehearse",
	},
	{
		Name: "Rehearse", Type: Task,
		Comment: "Rewraps a sample of real rows of every source for trial, under the role that rewraps later, and changes none. Its retries outlast the minutes until a new key's tag is known everywhere.",
		From:    kek.Minted, Event: kek.EventRowsRehearsed, Title: "Rehearsal",
		Function: "Rewrap", Payload: rotationPayload(Field{"rehearse", true}),
		Timeout: 930 * time.Second,
		Retry:   Patient,
		Select:  []Field{{"scanned", Path("$.Payload.tally.scanned")}},
		Result:  "$.rehearsal",
		Catch:   rollBack,
		Next:    "DualUnwrap",
	},
	{
		Name: "DualUnwrap", Type: Task,
		Comment: "Shows that old and new KEKs unwrap: canaries under the new one, every known cipher of the corpus under its own and the new one. Its retries outlast the minutes until a new key's tag is known everywhere.",
		From:    kek.Minted, Event: kek.EventDualUnwrapPassed, Title: "Dual unwrap", Command: "kms-dual-unwrap",
		Function: "DualUnwrap", Payload: rotationPayload(),
		Timeout: 135 * time.Second,
		Retry:   Patient,
		Select:  []Field{{"canaries", Path("$.Payload.canaries")}, {"corpus_entries", Path("$.Payload.corpus_entries")}, {"settle_seconds", Path("$.Payload.settle_seconds")}},
		Result:  "$.dual_unwrap",
		Catch:   rollBack,
		Next:    "Settle",
	},
	{
		Name: "Settle", Type: Wait,
		Comment:   "Until the new KEK's tag, on which applications' permissions are conditioned, is known to every host of KMS. Nothing depends on the KEK yet; Switch looks at its age again.",
		SecondsAt: "$.dual_unwrap.settle_seconds",
		Next:      "Approval?",
	},
	{
		Name: "Approval?", Type: Choice,
		Comment: "Whether a second person must agree, as preflight has fixed it. An emergency and a drill do not wait.",
		Choices: []ChoiceRule{{At: "$.approval", Is: true, Next: "AwaitApproval"}}, Default: "Switch",
	},
	{
		Name: "AwaitApproval", Type: Task,
		Comment:  "Asks for the approval of exactly this plan and waits for the token to come back. The answer is in the control table, where Switch looks for it again. Error Approved: it was given before. No retry of States.Timeout: that is the end of the time to answer.",
		Function: "Approve", Payload: rotationPayload(Field{"task_token", Path("$$.Task.Token")}),
		AwaitToken: true,
		TimeoutAt:  "$.approval_seconds",
		Retry:      Retry{Attempts: 5, Most: 30 * time.Second, NotOnTimeout: true},
		Result:     Drop,
		Catch:      []CatchClause{{Errors: []journal.Kind{approved}, Result: Drop, Next: "Switch"}, {Errors: []journal.Kind{timeout}, Result: Drop, Next: "ApprovalExpired"}, {Errors: []journal.Kind{allErrors}, Result: "$.failure", Next: "RollBackOrRemint"}},
		Next:       "Switch",
	},
	{
		Name: "ApprovalExpired", Type: Pass,
		Comment:    "Nobody has answered in time: a failure before the switch like any other.",
		Parameters: []Field{{"Error", "ApprovalExpired"}, {"Cause", "nobody but the requester has answered in time; the pointer was left alone"}},
		Result:     "$.failure",
		Next:       "RollBackOrRemint",
	},
	{
		Name: "RollBackOrRemint", Type: Choice,
		Comment: "An emergency must not go back to a KEK that may be compromised: it mints another. A normal rotation rolls back.",
		Choices: []ChoiceRule{{At: "$.mode", Is: "emergency", Next: "Remint"}}, Default: "PreSwitchFailure",
	},
	{
		Name: "Remint", Type: Task,
		Comment: "Emergency: retires the KEK that failed and goes back to started, a bounded number of times (MintsExhausted).",
		Event:   kek.EventReminted, Title: "Give up this attempt",
		Function: "Retire", Payload: rotationPayload(Field{"action", "remint"}, Field{"failed_attempt", Path("$.current.attempt")}, Field{"error", Path("$.failure.Error")}, Field{"cause", Path("$.failure.Cause")}),
		Timeout: 930 * time.Second,
		Retry:   Patient,
		Select:  []Field{{"attempt", Path("$.Payload.attempt")}},
		Result:  "$.current",
		Catch:   haltIn("HaltedBeforeSwitchRecord"),
		Next:    "Mint",
	},
	{
		Name: "PreSwitchFailure", Type: Task,
		Comment: "Normal mode: retires the new KEK, if one was minted, at once and frees the lock. The pointer never moved.",
		Event:   kek.EventRolledBack, Title: "Roll back",
		Function: "Retire", Payload: rotationPayload(Field{"action", "pre_switch_failure"}, Field{"error", Path("$.failure.Error")}, Field{"cause", Path("$.failure.Cause")}),
		Timeout: 930 * time.Second,
		Retry:   Patient,
		Select:  []Field{{"drill", Path("$.Payload.drill")}},
		Result:  "$.rollback",
		Catch:   haltIn("HaltedBeforeSwitchRecord"),
		Next:    "DrillPassed?",
	},
	{
		Name: "DrillPassed?", Type: Choice,
		Comment: "A drill that failed where it should has passed; everything else that was rolled back has failed.",
		Choices: []ChoiceRule{{At: "$.rollback.drill", Is: "passed", Next: "NotifyDrilled"}}, Default: "NotifyRolledBack",
	},
	{
		Name: "NotifyDrilled", Type: Task,
		Comment:  "Tells people that the drill has passed.",
		Function: "Notify", Payload: []Field{{"event", "drilled"}, {"rotation_id", Path("$.rotation_id")}, {"execution", Path("$$.Execution")}},
		Timeout: 40 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Catch:   ignoreFailure("DrillPassed"),
		Next:    "DrillPassed",
	},
	{
		Name: "DrillPassed", Type: Succeed,
		Comment: "The canary failed as it was made to, the pointer did not move, and the new KEK is retired. drill_passed is in the audit chain.",
	},
	{
		Name: "NotifyRolledBack", Type: Task,
		Comment:  "Tells people that the rotation was rolled back before the switch, and why.",
		Function: "Notify", Payload: []Field{{"event", "rolledback"}, {"rotation_id", Path("$.rotation_id")}, {"label", Path("$.label")}, {"drill", Path("$.drill")}, {"error", Path("$.failure.Error")}, {"cause", Path("$.failure.Cause")}, {"execution", Path("$$.Execution")}},
		Timeout: 40 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Catch:   ignoreFailure("RolledBack"),
		Next:    "RolledBack",
	},
	{
		Name: "RolledBack", Type: Fail,
		Comment: "The old KEK wraps as before; the new one, if there is one, is retired. Start again once the cause is fixed.",
		ErrorAt: "$.failure.Error", CauseAt: "$.failure.Cause",
	},
	{
		Name: "HaltedBeforeSwitchRecord", Type: Pass,
		Comment:    "Keeps how often the execution had been redriven when it halted, for HaltedBeforeSwitch to compare.",
		Parameters: []Field{{"execution", Path("$$.Execution")}},
		Result:     "$.halt",
		Next:       "HaltedBeforeSwitch",
	},
	{
		Name: "HaltedBeforeSwitch", Type: Task,
		Comment:  "Pages, and fails the execution in this very task (error Halted, no Catch) so that a redrive re-enters it. Redriven, it succeeds, and census, mint and tests are tried again under the same attempt.",
		Function: "Notify", Payload: []Field{{"event", "halted"}, {"rotation_id", Path("$.rotation_id")}, {"error", Path("$.failure.Error")}, {"cause", Path("$.failure.Cause")}, {"execution", Path("$$.Execution")}, {"halted_in", Path("$.halt.execution")}},
		Timeout: 40 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Next:    "Census",
	},
	{
		Name: "Switch", Type: Task,
		Comment: "The point of no return: moves the pointer to the new KEK in one transaction. No path from here leads back before it.",
		From:    kek.Tested, Event: kek.EventPointerSwitched, Title: "Switch", Command: "kms-switch-pointer",
		Function: "Switch", Payload: rotationPayload(),
		Timeout: 75 * time.Second,
		Retry:   Patient,
		Select:  []Field{{"kek_id", Path("$.Payload.kek_id")}, {"epoch", Path("$.Payload.epoch")}},
		Result:  "$.switch",
		Catch:   haltIn("HaltedRecord"),
		Next:    "Drain",
	},
	{
		Name: "Drain", Type: Task,
		Comment: "Looks once whether any process may still write under the old KEK; seals it when none may.",
		From:    kek.Switched, Event: kek.EventOldKEKSealed, Title: "Drain and seal", Command: "kms-watch-drain",
		Function: "Drain", Payload: rotationPayload(),
		Timeout: 75 * time.Second,
		Retry:   Polled,
		Select:  []Field{{"done", Path("$.Payload.done")}, {"leases", Path("$.Payload.leases")}, {"refs", Path("$.Payload.refs")}, {"waited_seconds", Path("$.Payload.waited_seconds")}, {"wait_seconds", Path("$.Payload.wait_seconds")}},
		Result:  "$.drain",
		Catch:   haltIn("HaltedRecord"),
		Next:    "DrainDone?",
	},
	{
		Name: "DrainDone?", Type: Choice,
		Comment: "Sealed, or wait. The drain function itself fails with DrainTimeout after max-wait.",
		Choices: []ChoiceRule{{At: "$.drain.done", Is: true, Next: "Rewrap"}}, Default: "DrainWait",
	},
	{
		Name: "DrainWait", Type: Wait,
		Comment:   "Leases run out or are released meanwhile. The pause grows with what has been waited, up to DrainPollSeconds.",
		SecondsAt: "$.drain.wait_seconds",
		Next:      "Drain",
	},
	walkMap(State{
		Name:    "Rewrap",
		Comment: "Rewraps every segment of every source that is left, some at once. It starts only after the seal.",
		Items:   "$.rewrap.left",
		Catch:   halt,
		Next:    "RewrapComplete",
	}, State{
		Comment:  "Rewraps one segment from its checkpoint until it is done or time is nearly up.",
		Function: "Rewrap", Payload: rotationPayload(Field{"source", Path("$.source")}, Field{"segment", Path("$.segment")}),
	}),
	{
		Name: "RewrapComplete", Type: Task,
		Comment: "Records that every segment's checkpoint says done and that no row is quarantined. It works on the segments that are left for a minute itself: those of sources that joined late, and one whose work has failed in the map, so that its error is seen here.",
		From:    kek.Drained, Event: kek.EventRowsRewrapped, Title: "Rewrap", Command: "kms-rewrap",
		Function: "Rewrap", Payload: rotationPayload(Field{"complete", true}),
		Timeout: 930 * time.Second,
		Retry:   Polled,
		Select:  []Field{{"done", Path("$.Payload.done")}, {"left", Path("$.Payload.left")}, {"scanned", Path("$.Payload.tally.scanned")}, {"rewrapped", Path("$.Payload.tally.rewrapped")}},
		Result:  "$.rewrap",
		Catch:   haltIn("HaltedRecord"),
		Next:    "RewrapDone?",
	},
	{
		Name: "RewrapDone?", Type: Choice,
		Comment: "The map works on the segments that are left, until there are none.",
		Choices: []ChoiceRule{{At: "$.rewrap.done", Is: true, Next: "Retire"}}, Default: "Rewrap",
	},
	{
		Name: "Retire", Type: Task,
		Comment: "Looks who else uses the old KEKs, scans every row a second time, retires the KEKs in the registry, and only then disables their KMS keys.",
		From:    kek.Rewrapped, Event: kek.EventOldKEKRetired, Title: "Second scan and retire", Command: "kms-retire-kek",
		Function: "Retire", Payload: rotationPayload(),
		Timeout: 930 * time.Second,
		Retry:   Patient,
		Select:  []Field{{"done", Path("$.Payload.done")}, {"left", Path("$.Payload.left")}, {"phase", Path("$.Payload.phase")}},
		Result:  "$.retire",
		Catch:   haltIn("HaltedRecord"),
		Next:    "RetireDone?",
	},
	{
		Name: "RetireDone?", Type: Choice,
		Comment: "The map works on the segments that are left, until there are none.",
		Choices: []ChoiceRule{{At: "$.retire.done", Is: true, Next: "NotifyVerifying"}}, Default: "ConfirmRows",
	},
	walkMap(State{
		Name:    "ConfirmRows",
		Comment: "Scans every segment that is left a second time, some at once, and rewraps what it finds. Retire then concludes.",
		Items:   "$.retire.left",
		Catch:   halt,
		Next:    "Retire",
	}, State{
		Comment:  "Scans one segment from its checkpoint until it is clean or time is nearly up.",
		Function: "Retire", Payload: rotationPayload(Field{"source", Path("$.source")}, Field{"segment", Path("$.segment")}),
	}),
	{
		Name: "NotifyVerifying", Type: Task,
		Comment:  "Moves the announced window on for customers who follow it.",
		Function: "Notify", Payload: []Field{{"event", "verifying"}, {"rotation_id", Path("$.rotation_id")}, {"label", Path("$.label")}, {"execution", Path("$$.Execution")}},
		Timeout: 40 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Catch:   ignoreFailure("Anchor"),
		Next:    "Anchor",
	},
	{
		Name: "Anchor", Type: Task,
		Comment:  "States the head of the audit chain in the transparency log. Verify refuses a chain that is not in it, but for an emergency, which records that; so a failure here is named there.",
		Function: "Anchor", Payload: rotationPayload(),
		Timeout: 135 * time.Second,
		Retry:   Polled,
		Result:  Drop,
		Catch:   ignoreFailure("Verify"),
		Next:    "Verify",
	},
	{
		Name: "Verify", Type: Task,
		Comment: "Every row is under the new KEK, the old KMS keys refuse to unwrap, the audit chain is whole. Closes the rotation and frees the lock.",
		From:    kek.KEKRetired, Event: kek.EventRotationCompleted, Title: "Verify", Command: "verify-kms-rotation",
		Function: "Verify", Payload: rotationPayload(),
		Timeout: 930 * time.Second,
		Retry:   Patient,
		Select:  []Field{{"done", Path("$.Payload.done")}, {"left", Path("$.Payload.left")}, {"scanned", Path("$.Payload.tally.scanned")}, {"note", Path("$.Payload.note")}, {"rows_missing", Path("$.Payload.rows_missing")}},
		Result:  "$.verify",
		Catch:   haltIn("HaltedRecord"),
		Next:    "VerifyDone?",
	},
	{
		Name: "VerifyDone?", Type: Choice,
		Comment: "The map works on the segments that are left, until there are none.",
		Choices: []ChoiceRule{{At: "$.verify.done", Is: true, Next: "AnchorCompletion"}}, Default: "VerifyRows",
	},
	walkMap(State{
		Name:    "VerifyRows",
		Comment: "Reads the rows of every segment that is left, some at once. Verify then concludes.",
		Items:   "$.verify.left",
		Catch:   halt,
		Next:    "Verify",
	}, State{
		Comment:  "Reads one segment from its checkpoint until it is done or time is nearly up.",
		Function: "Verify", Payload: rotationPayload(Field{"source", Path("$.source")}, Field{"segment", Path("$.segment")}),
	}),
	{
		Name: "AnchorCompletion", Type: Task,
		Comment:  "The same for kms_rotation_completed. If it fails, the schedule anchors within the hour.",
		Function: "Anchor", Payload: rotationPayload(),
		Timeout: 135 * time.Second,
		Retry:   Polled,
		Result:  Drop,
		Catch:   ignoreFailure("NotifyCompleted"),
		Next:    "NotifyCompleted",
	},
	{
		Name: "NotifyCompleted", Type: Task,
		Comment:  "Tells people that the rotation is complete. It is, whether or not they hear of it.",
		Function: "Notify", Payload: []Field{{"event", "completed"}, {"rotation_id", Path("$.rotation_id")}, {"label", Path("$.label")}, {"detail", Path("$.verify.note")}, {"rows_missing", Path("$.verify.rows_missing")}, {"execution", Path("$$.Execution")}},
		Timeout: 40 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Catch:   ignoreFailure("Completed"),
		Next:    "Completed",
	},
	{
		Name: "Completed", Type: Succeed,
		Comment: "kms_rotation_completed is in the audit chain.",
	},
	{
		Name: "Superseded", Type: Fail,
		Comment: "An emergency has taken over: it ended this rotation, holds the lock and moves every row, those that this one has moved too. Nothing is left to do here.",
		ErrorAt: "$.failure.Error", CauseAt: "$.failure.Cause",
	},
	{
		Name: "HaltedRecord", Type: Pass,
		Comment:    "Keeps how often the execution had been redriven when it halted, for Halted to compare.",
		Parameters: []Field{{"execution", Path("$$.Execution")}},
		Result:     "$.halt",
		Next:       "Halted",
	},
	{
		Name: "Halted", Type: Task,
		Comment:  "Pages, and fails the execution in this very task (error Halted, no Catch) so that a redrive re-enters it; a redrive would only repeat a Fail state. Redriven, it succeeds, and every finished step returns its old output at once.",
		Function: "Notify", Payload: []Field{{"event", "halted"}, {"rotation_id", Path("$.rotation_id")}, {"error", Path("$.failure.Error")}, {"cause", Path("$.failure.Cause")}, {"execution", Path("$$.Execution")}, {"halted_in", Path("$.halt.execution")}},
		Timeout: 40 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Next:    "Switch",
	},
}
