// Package advice is what a person should do next, in words: for each action that a step of
// a rotation names, the command that does it.
//
// Invariants: the steps know no command, environment variable, file or parameter of the
// stack (TestStepsNameNoCommands in test/layers). Every action has an entry, and every
// command of an entry exists (TestEveryActionHasACommand, TestAdviceNamesCommands).
//
// The command line, the error text of a Lambda function and the notifications are read by
// the same person at a terminal, so they share one table. An edge that knows more adds to
// it: a step by hand names the next step by hand, a report the command of its outcome.
package advice

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// commands say how each action is done. A fact is written {rotation}, or {"rotation"} where
// it must be quoted.
var commands = map[journal.Action]string{
	journal.ShowStatus:       "matter ops kms-status",
	journal.ShowLock:         "matter ops kms-status shows the rotation that holds the lock",
	journal.StartAnother:     "matter ops kms-status, then start another rotation",
	journal.RotateByHand:     "nothing; a person may rotate again: matter ops kms-rotate --watch",
	journal.StartNormal:      `add "mode": "emergency" and a reason; a normal rotation is started with the stack's StateMachineArn`,
	journal.StartEmergency:   `matter ops kms-rotate --emergency --reason "what happened" --watch; or start the stack's EmergencyStateMachineArn with the same input`,
	journal.EndEmergency:     `matter ops kms-status; to end that emergency too, start this one with "again": true (matter ops kms-rotate --emergency --again)`,
	journal.AwaitEmergency:   "nothing: the emergency moves its rows; matter ops kms-status",
	journal.AwaitRotation:    `matter ops kms-status; if it halted, redrive it or start an execution with {"resume": {"rotation"}}; an emergency need not wait for it`,
	journal.CheckThenRedrive: "matter ops kms-status, then redrive the execution",
	journal.CorrectRows:      "matter ops report --rotation {rotation} names them; correct or delete these rows, then resume: matter ops resume --rotation {rotation}",
	journal.RestoreOrphans: "matter ops report --rotation {rotation} names them; enable the old KMS key, restore these rows under the current KEK (matter ops restore-rows), " +
		"then resume: matter ops resume --rotation {rotation}",
	journal.MoveUsers:        "move them to the new KEK; revoke grants with aws kms revoke-grant; then resume: matter ops resume --rotation {rotation}",
	journal.StopWriter:       "stop or restart that process; its lease then runs out, and the redriven execution continues. If it never comes back: matter ops lease revoke",
	journal.ListLeases:       "matter ops lease list",
	journal.UsePlannedSource: "use a source of preflight's plan: matter ops source list",
	journal.NameRequester:    `matter ops kms-rotate says so by itself; in the console add "requested_by": "<your ARN>"`,
	journal.NameIdentity:     "use the ARN that aws sts get-caller-identity says",
	journal.ShowPlan:         "look at it first: matter ops kms-status shows the plan with its hash",
	journal.AskApprover:      "have another person run: matter ops approve --rotation {rotation} --plan {plan}",
	journal.AnnounceLater:    `matter ops announce --label {"label"}, for a later window`,
	journal.RotateNow:        "matter ops kms-rotate --watch",
	journal.AnnounceWindow:   `matter ops announce --label {"label"}, then rotate in that window`,
	journal.RunDrill:         "matter ops drill run {name}",
	journal.EnableLeftKey: "matter ops doctor; find out in CloudTrail who disabled it, then aws kms enable-key --key-id {kek}: " +
		"the rotation moves its rows and disables it again",
	journal.RotateAgain: "fix the cause, then: matter ops kms-rotate --watch",
	journal.ResumeRotation: `fix the cause, then: matter ops resume --rotation {rotation}; without the tool: aws stepfunctions redrive-execution --execution-arn {execution}; ` +
		`or start an execution with {"resume": {"rotation"}}`,
	journal.FollowExecution: "nothing; matter ops kms-rotate --watch --execution {execution} follows it",
	journal.ShowPointer:     "nothing; matter ops report --rotation {rotation} --out FILE writes the evidence, matter ops kms-status shows the KEKs",
	journal.ShowDrill:       "nothing; matter ops drill status says until when it counts",
	journal.ShowChecks:      "matter ops kms-preflight names every check; fix the cause, then: matter ops kms-rotate --watch",
	journal.PrepareWindow:   "matter ops kms-preflight, and fix what it names before the window",
	journal.JudgePlan: "anyone who did not ask for it: matter ops approve --rotation {rotation} --plan {plan}; " +
		"or matter ops reject --rotation {rotation} --plan {plan} --reason WHY",
	journal.FindCanaryFault:    "read the error; if KMS is at fault see the AWS Health Dashboard, else: matter ops kms-status, then aws kms describe-key",
	journal.ContinueRotation:   "matter ops continue --rotation {rotation}",
	journal.RunGenesis:         "matter ops kms-genesis --kek-id KEY --confirm",
	journal.MakePointer:        "matter ops doctor; a new deployment needs matter ops kms-genesis once",
	journal.CheckSetBack:       "matter ops doctor: it says whether the control table was set back to a KEK that was left since, which must stay disabled",
	journal.RunDoctor:          "matter ops doctor",
	journal.RetryThenRunDoctor: "it is retried; nothing is lost; if it stays so: matter ops doctor",

	journal.AddOrRemoveSource: "matter ops source add --file DEFINITION.json --confirm; or, if it is none any more, " +
		`matter ops source remove --name {name} --force --reason "why" --confirm`,
	journal.ListSources:   "matter ops source list",
	journal.AddSource:     "matter ops source add --file DEFINITION.json --confirm",
	journal.CorrectSource: "matter ops source list; correct it with matter ops source add --file DEFINITION.json --confirm",
	journal.CorrectNames: "correct the attributes' names with matter ops source add --confirm; if the table holds no envelopes yet, " +
		`say what its items are with "other" in the definition`,
	journal.RegisterTable: "matter ops source add --file DEFINITION.json --confirm; or, if nobody writes into that table any more, " +
		`matter ops source remove --table TABLE --reason "why" --confirm`,
	journal.MoveSourceRows: `move or delete its rows; or go on with: matter ops source remove --name {name} --force --reason "why" --confirm`,
	journal.FindMissingRows: "ask the owner of the table who deleted them; matter ops report --rotation {rotation} has the rows of each pass; " +
		"if nobody did, matter ops restore-rows brings them back from a backup",
	journal.ShowUnaccounted: "matter ops census shows them; matter ops adopt brings rows in that were written without this project",
	journal.CompareContext:  `compare "context" in the source's definition with what the rows were sealed with; matter ops census shows the items that cannot be accounted for`,

	journal.RepairTable:           "matter ops doctor --repair --confirm",
	journal.RestoreTable:          "restore the control table from a backup or point in time, then matter ops doctor",
	journal.EnableUsedKey:         "find out in CloudTrail who disabled it, then aws kms enable-key --key-id {kek}; the next rotation moves its rows and disables it again",
	journal.EnableKey:             "find out in CloudTrail who changed it, then aws kms enable-key --key-id {kek}",
	journal.DisableKey:            "aws kms disable-key --key-id {kek}, unless rows are being restored",
	journal.ShowAudit:             "matter ops audit show, and ask who operates the stack: no rotation has left it a KEK in use",
	journal.VerifyAudit:           "treat it as an incident: matter ops audit verify",
	journal.FindForeignObject:     "matter ops audit verify names the object; find out who put it there, or who set the control table back",
	journal.FindTableWriter:       "find out in CloudTrail who writes the control table beside the stack's functions, then matter ops resume --rotation {rotation}, which begins the pass from its start",
	journal.AnchorAudit:           "matter ops audit anchor, then redrive the execution",
	journal.ResumeAnchoring:       "find out why the anchor schedule does not run, then matter ops audit anchor",
	journal.ConfigureLog:          "set the stack's parameter TransparencyLogs, see docs/audit.md",
	journal.CompareLogKey:         "compare its key and origin with the stack's parameter TransparencyLogs; the anchor stays open",
	journal.NameSuccessor:         "see docs/audit.md: a log that is frozen has a successor, which the stack's parameter TransparencyLogs must name",
	journal.ReplaceLog:            "treat it as an incident of the log: keep both checkpoints, ask who runs it, and name another log in the stack's parameter TransparencyLogs; the anchor stays open",
	journal.CompareSourcePolicies: "compare the stack's parameter SourceTableArns and the policies of the table and the account, then start again",
	journal.DeployAgain:           "deploy template.yaml again",
	journal.DeployTable:           "deploy template.yaml, or set MATTER_CONTROL_TABLE to the stack's output ControlTableName",
	journal.DeployOneVersion:      "deploy template.yaml and statemachine.asl.json of one version",
	journal.ComparePolicies:       "compare the role, the key policy and any service control policy with template.yaml, then continue",
}

// Command is what to do, with the command that does it; "" if there is nothing to do.
func Command(n journal.Next) string {
	if n.Do == "" {
		return n.Say
	}
	var facts []string
	for _, f := range []struct{ name, value string }{
		{"rotation", n.Rotation}, {"plan", n.Plan}, {"label", n.Label}, {"kek", string(n.KEK)}, {"name", n.Name}, {"execution", n.Execution},
	} {
		facts = append(facts, "{"+f.name+"}", f.value, `{"`+f.name+`"}`, strconv.Quote(f.value))
	}
	return strings.NewReplacer(facts...).Replace(commands[n.Do])
}

// Explain is the text of an error for a person: what it says, and what to do about it and
// about the errors that caused it.
func Explain(err error) string { return Append(err.Error(), err) }

// Append adds to a text what to do about the error that the text tells of.
func Append(text string, err error) string {
	var s strings.Builder
	s.WriteString(text)
	for _, n := range collectNext(err) {
		fmt.Fprintf(&s, " (next: %s)", audit.Visible(strings.ReplaceAll(Command(n), "\n", "; ")))
	}
	return s.String()
}

// Describe is a fact that is not an error, and what to do about it.
func Describe(fact string, n journal.Next) string {
	if n.IsZero() {
		return fact
	}
	return fact + "; next: " + Command(n)
}

// collectNext returns what an error and its causes say to do, the causes' first.
func collectNext(err error) (out []journal.Next) {
	switch x := err.(type) { //nolint:errorlint // it walks the tree itself
	case interface{ Unwrap() error }:
		out = collectNext(x.Unwrap())
	case interface{ Unwrap() []error }:
		for _, e := range x.Unwrap() {
			out = append(out, collectNext(e)...)
		}
	}
	if typed, ok := err.(*journal.Error); ok && !typed.Next.IsZero() { //nolint:errorlint // as above
		out = append(out, typed.Next)
	}
	return out
}
