package flow

import (
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Comment is what the state machine says of itself.
const Comment = "One KEK rotation. Before Switch a failure rolls back (normal) or mints again (emergency); from Switch on it only goes forward: it retries, then halts, pages, and is redriven. Every step is idempotent, so a crash or a timeout is safe to retry. The payload carries ids and counts only."

// Lasts is how long an execution may last.
const Lasts = rotation.MachineLasts

// Names that Step Functions and an approver give to an outcome.
const (
	allErrors = rotation.Kind("States.ALL")
	timeout   = rotation.Kind("States.Timeout")
	approved  = rotation.Kind("Approved")
)

// Refusals are the failures of preflight that have changed nothing.
var Refusals = []rotation.Kind{
	rotation.InvalidInput, rotation.Misconfigured, rotation.ControlTableMissing, rotation.PointerInvalid, rotation.RotationInProgress,
	rotation.SourceMisconfigured, rotation.AuditUnlocked, rotation.AnnouncementMissing, rotation.AnnouncementYoung, rotation.DrillStale,
	rotation.HealthRed, rotation.SourceForgotten, rotation.KeyInUse, rotation.QuarterRotated, rotation.RowsUnaccounted, rotation.WindowClosed,
}

// ofRotation is a payload: the rotation's id, and more.
func ofRotation(more ...Field) []Field {
	return append([]Field{{"rotation_id", Path("$.rotation_id")}}, more...)
}

// rollBack takes any failure before the switch.
var rollBack = []CatchClause{{Errors: []rotation.Kind{allErrors}, Result: "$.failure", Next: "RollBackOrRemint"}}

// ignore continues at next whatever fails.
func ignore(next string) []CatchClause {
	return []CatchClause{{Errors: []rotation.Kind{allErrors}, Result: Drop, Next: next}}
}

// haltIn halts on any failure but that of a rotation which an emergency has ended.
func haltIn(record string) []CatchClause {
	return []CatchClause{
		{Errors: []rotation.Kind{rotation.Superseded}, Result: "$.failure", Next: "Superseded"},
		{Errors: []rotation.Kind{allErrors}, Result: "$.failure", Next: record},
	}
}

// Rotation is every state, the first one first.
var Rotation = []State{
	{
		Name: "Preflight", Type: Task,
		Comment: "Checks everything a rotation relies on and, as its last act, takes the lock and writes the rotation's record. Its plan becomes the payload. The entrance is this state machine's, not the input's: which mode it may start.",
		Event:   kek.EventRotationStarted, Title: "Preflight",
		Function: "Preflight", Payload: []Field{{"execution_arn", Path("$$.Execution.Id")}, {"execution_name", Path("$$.Execution.Name")}, {"entrance", "${Entrance}"}, {"input", Path("$")}},
		Timeout: 135 * time.Second,
		Retry:   Brief,
		Output:  "$.Payload",
		Catch:   []CatchClause{{Errors: Refusals, Next: "NotifyRefused", Comment: "A refusal has changed nothing: there is nothing to abandon, and a rotation of this name that another execution runs must be left alone."}, {Errors: []rotation.Kind{allErrors}, Next: "Abandon", Comment: "Anything else may have failed after the lock was taken. The error replaces the input, which need not be an object; $$.Execution.Input keeps it."}},
		Next:    "NotifyStarted",
	},
	{
		Name: "NotifyStarted", Type: Task,
		Comment:  "Tells people, and customers who follow the announced window, that it has begun. It continues whether or not they hear of it.",
		Function: "Notify", Payload: []Field{{"event", "started"}, {"rotation_id", Path("$.rotation_id")}, {"label", Path("$.label")}, {"mode", Path("$.mode")}, {"drill", Path("$.drill")}, {"execution", Path("$$.Execution")}},
		Timeout: 40 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Catch:   ignore("Census"),
		Next:    "Census",
	},
	{
		Name: "Abandon", Type: Task,
		Comment:  "Frees the lock if preflight died after taking it; changes nothing otherwise. An emergency keeps its lock and is resumed.",
		Function: "Retire", Payload: []Field{{"rotation_id", Path("$$.Execution.Name")}, {"execution_arn", Path("$$.Execution.Id")}, {"action", "abandon"}, {"error", Path("$.Error")}, {"cause", Path("$.Cause")}},
		Timeout: 930 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Catch:   ignore("NotifyRefused"),
		Next:    "NotifyRefused",
	},
	{
		Name: "NotifyRefused", Type: Task,
		Comment:  "Tells people that no rotation was started, and why.",
		Function: "Notify", Payload: []Field{{"event", "refused"}, {"rotation_id", Path("$$.Execution.Name")}, {"error", Path("$.Error")}, {"cause", Path("$.Cause")}, {"execution", Path("$$.Execution")}},
		Timeout: 40 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Catch:   ignore("Refused"),
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
		Function: "Verify", Payload: ofRotation(Field{"census", true}),
		Timeout: 930 * time.Second,
		Retry:   Polled,
		Select:  []Field{{"done", Path("$.Payload.done")}, {"scanned", Path("$.Payload.tally.scanned")}, {"other", Path("$.Payload.tally.other")}, {"declared", Path("$.Payload.tally.declared")}},
		Result:  "$.census",
		Catch:   rollBack,
		Next:    "CensusDone?",
	},
	{
		Name: "CensusDone?", Type: Choice,
		Comment: "The census continues from its checkpoints until it is done.",
		Choices: []ChoiceRule{{At: "$.census.done", Is: true, Next: "Mint"}}, Default: "Census",
	},
	{
		Name: "Mint", Type: Task,
		Comment: "Makes the new KEK, one per attempt whatever is repeated, and registers it as pending. Its retries outlast the minutes until a new key's tag is known everywhere.",
		From:    kek.Started, Event: kek.EventKEKMinted, Title: "Mint", Command: "kms-mint-kek",
		Function: "Mint", Payload: ofRotation(),
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
		Function: "Rewrap", Payload: ofRotation(Field{"rehearse", true}),
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
		Function: "DualUnwrap", Payload: ofRotation(),
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
		Function: "Approve", Payload: ofRotation(Field{"task_token", Path("$$.Task.Token")}),
		AwaitToken: true,
		TimeoutAt:  "$.approval_seconds",
		Retry:      Retry{Attempts: 5, Most: 30 * time.Second, NotOnTimeout: true},
		Result:     Drop,
		Catch:      []CatchClause{{Errors: []rotation.Kind{approved}, Result: Drop, Next: "Switch"}, {Errors: []rotation.Kind{timeout}, Result: Drop, Next: "ApprovalExpired"}, {Errors: []rotation.Kind{allErrors}, Result: "$.failure", Next: "RollBackOrRemint"}},
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
		Function: "Retire", Payload: ofRotation(Field{"action", "remint"}, Field{"failed_attempt", Path("$.current.attempt")}, Field{"error", Path("$.failure.Error")}, Field{"cause", Path("$.failure.Cause")}),
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
		Function: "Retire", Payload: ofRotation(Field{"action", "pre_switch_failure"}, Field{"error", Path("$.failure.Error")}, Field{"cause", Path("$.failure.Cause")}),
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
		Catch:   ignore("DrillPassed"),
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
		Catch:   ignore("RolledBack"),
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
		Function: "Switch", Payload: ofRotation(),
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
		Function: "Drain", Payload: ofRotation(),
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
	{
		Name: "Rewrap", Type: Map,
		Comment: "Rewraps every segment of every source, some at once. It starts only after the seal. Any error of an item halts; checkpoints keep what is done.",
		Items:   "$.segments", ItemSelector: ofRotation(Field{"source", Path("$$.Map.Item.Value.source")}, Field{"segment", Path("$$.Map.Item.Value.segment")}), ConcurrencyAt: "$.rewrap_concurrency",
		Each: []State{
			{
				Name: "RewrapSegment", Type: Task,
				Comment:  "Rewraps one segment from its checkpoint until it is done or time is nearly up.",
				Function: "Rewrap", Payload: ofRotation(Field{"source", Path("$.source")}, Field{"segment", Path("$.segment")}),
				Timeout: 930 * time.Second,
				Retry:   Patient,
				Select:  []Field{{"done", Path("$.Payload.done")}, {"scanned", Path("$.Payload.tally.scanned")}, {"rewrapped", Path("$.Payload.tally.rewrapped")}, {"quarantined", Path("$.Payload.tally.quarantined")}},
				Result:  "$.progress",
				Next:    "SegmentDone?",
			},
			{
				Name: "SegmentDone?", Type: Choice,
				Comment: "A call that ran out of time is made again and continues from its checkpoint.",
				Choices: []ChoiceRule{{At: "$.progress.done", Is: true, Next: "SegmentDone"}}, Default: "RewrapSegment",
			},
			{
				Name: "SegmentDone", Type: Succeed,
				Comment: "No row of this segment is under the old KEK.",
				Output:  "$.progress",
			},
		},
		Result: Drop,
		Catch:  haltIn("HaltedRecord"),
		Next:   "RewrapComplete",
	},
	{
		Name: "RewrapComplete", Type: Task,
		Comment: "Records that every segment's checkpoint says done and that no row is quarantined.",
		From:    kek.Drained, Event: kek.EventRowsRewrapped, Title: "Rewrap", Command: "kms-rewrap",
		Function: "Rewrap", Payload: ofRotation(Field{"complete", true}),
		Timeout: 930 * time.Second,
		Retry:   Polled,
		Select:  []Field{{"scanned", Path("$.Payload.tally.scanned")}, {"rewrapped", Path("$.Payload.tally.rewrapped")}},
		Result:  "$.rewrap",
		Catch:   haltIn("HaltedRecord"),
		Next:    "Retire",
	},
	{
		Name: "Retire", Type: Task,
		Comment: "Looks who else uses the old KEKs, scans every row a second time, retires the KEKs in the registry, and only then disables their KMS keys.",
		From:    kek.Rewrapped, Event: kek.EventOldKEKRetired, Title: "Second scan and retire", Command: "kms-retire-kek",
		Function: "Retire", Payload: ofRotation(),
		Timeout: 930 * time.Second,
		Retry:   Patient,
		Select:  []Field{{"done", Path("$.Payload.done")}, {"phase", Path("$.Payload.phase")}},
		Result:  "$.retire",
		Catch:   haltIn("HaltedRecord"),
		Next:    "RetireDone?",
	},
	{
		Name: "RetireDone?", Type: Choice,
		Comment: "The second scan continues from its checkpoints until it is clean.",
		Choices: []ChoiceRule{{At: "$.retire.done", Is: true, Next: "NotifyVerifying"}}, Default: "Retire",
	},
	{
		Name: "NotifyVerifying", Type: Task,
		Comment:  "Moves the announced window on for customers who follow it.",
		Function: "Notify", Payload: []Field{{"event", "verifying"}, {"rotation_id", Path("$.rotation_id")}, {"label", Path("$.label")}, {"execution", Path("$$.Execution")}},
		Timeout: 40 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Catch:   ignore("Anchor"),
		Next:    "Anchor",
	},
	{
		Name: "Anchor", Type: Task,
		Comment:  "States the head of the audit chain in the transparency log. Verify refuses a chain that is not in it, but for an emergency, which records that; so a failure here is named there.",
		Function: "Anchor", Payload: ofRotation(),
		Timeout: 135 * time.Second,
		Retry:   Polled,
		Result:  Drop,
		Catch:   ignore("Verify"),
		Next:    "Verify",
	},
	{
		Name: "Verify", Type: Task,
		Comment: "Every row is under the new KEK, the old KMS keys refuse to unwrap, the audit chain is whole. Closes the rotation and frees the lock.",
		From:    kek.KEKRetired, Event: kek.EventRotationCompleted, Title: "Verify", Command: "verify-kms-rotation",
		Function: "Verify", Payload: ofRotation(),
		Timeout: 930 * time.Second,
		Retry:   Patient,
		Select:  []Field{{"done", Path("$.Payload.done")}, {"scanned", Path("$.Payload.tally.scanned")}, {"note", Path("$.Payload.note")}, {"rows_missing", Path("$.Payload.rows_missing")}},
		Result:  "$.verify",
		Catch:   haltIn("HaltedRecord"),
		Next:    "VerifyDone?",
	},
	{
		Name: "VerifyDone?", Type: Choice,
		Comment: "The last scan continues from its checkpoints until it is done.",
		Choices: []ChoiceRule{{At: "$.verify.done", Is: true, Next: "AnchorCompletion"}}, Default: "Verify",
	},
	{
		Name: "AnchorCompletion", Type: Task,
		Comment:  "The same for kms_rotation_completed. If it fails, the schedule anchors within the hour.",
		Function: "Anchor", Payload: ofRotation(),
		Timeout: 135 * time.Second,
		Retry:   Polled,
		Result:  Drop,
		Catch:   ignore("NotifyCompleted"),
		Next:    "NotifyCompleted",
	},
	{
		Name: "NotifyCompleted", Type: Task,
		Comment:  "Tells people that the rotation is complete. It is, whether or not they hear of it.",
		Function: "Notify", Payload: []Field{{"event", "completed"}, {"rotation_id", Path("$.rotation_id")}, {"label", Path("$.label")}, {"detail", Path("$.verify.note")}, {"rows_missing", Path("$.verify.rows_missing")}, {"execution", Path("$$.Execution")}},
		Timeout: 40 * time.Second,
		Retry:   Brief,
		Result:  Drop,
		Catch:   ignore("Completed"),
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
