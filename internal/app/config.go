// Package app turns the environment of a process into wired steps.
//
//	environment (template.yaml) → [Config] → [Wire] → rotation.Steps on real adapters
//
// Functions get their adapters only from here; test/layers checks that. internal/restore and
// cmd/matter also import some adapters, for definitions of sources and for commands that are
// not steps. Except for commands, internal/operate and internal/console, this is the only
// package that uses the real clock and real randomness.
package app

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// Config holds the parameters of a deployment, as template.yaml puts them into the environment
// of every function. Every variable is required unless its comment says otherwise.
type Config struct {
	rotation.Config
	gates.Rules
	Stack        string        // MATTER_STACK: stack name, audit chain, tag of every KEK
	ControlTable string        // MATTER_CONTROL_TABLE
	AuditBucket  string        // MATTER_AUDIT_BUCKET
	Retention    time.Duration // MATTER_RETENTION_DAYS: Object Lock of audit records
	KMSRate      float64       // MATTER_KMS_RATE: the most KMS requests a second of all processes of a rotation
	WriteRate    float64       // MATTER_WRITE_RATE: the most write units a second of all of them, for each table
	Topic        string        // MATTER_TOPIC_ARN, "" for none
	EventBus     string        // MATTER_EVENT_BUS: name of an EventBridge event bus, "" for none
	Trust        audit.Trust   // MATTER_TRUST: transparency logs, "" for none
	AnchorKey    string        // MATTER_ANCHOR_KEY: ARN or alias; required with MATTER_TRUST
	Announce     Announce      // MATTER_ANNOUNCE

	CheckpointKey string // MATTER_CHECKPOINT_KEY: id, ARN or alias of the HMAC key of the checkpoints

	// ARNs of the state machines by the mode of the rotations that each starts, from the
	// variables in [MachineVariables]. Functions have none of them.
	StateMachines map[kek.Mode]string
}

// MachineVariables are the variables with the ARNs of the state machines. The operator's shell
// sets them: eval "$(matter ops env --stack STACK)".
var MachineVariables = map[kek.Mode]string{
	kek.Normal: "MATTER_STATE_MACHINE_ARN", kek.Emergency: "MATTER_EMERGENCY_STATE_MACHINE_ARN",
}

const day = 24 * time.Hour

var stackName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,127}$`)

// FromEnv reads the configuration. It reports every fault at once, each under the name of its
// variable, as one [*journal.Error] of kind Misconfigured: a person who corrects a deployment
// sees all that is wrong.
func FromEnv(getenv func(string) string) (Config, error) {
	e := env{get: getenv}
	c := Config{
		Stack:        e.readMatching("MATTER_STACK", stackName, "a CloudFormation stack name"),
		ControlTable: e.readRequired("MATTER_CONTROL_TABLE"),
		AuditBucket:  e.readRequired("MATTER_AUDIT_BUCKET"),
		Retention:    time.Duration(e.readNumber("MATTER_RETENTION_DAYS", 1, 36500)) * day,
		KMSRate:      float64(e.readNumber("MATTER_KMS_RATE", 1, 1_000_000)),
		WriteRate:    float64(e.readNumber("MATTER_WRITE_RATE", 1, 1_000_000)),
		Topic:        getenv("MATTER_TOPIC_ARN"),
		EventBus:     getenv("MATTER_EVENT_BUS"),

		CheckpointKey: e.readRequired("MATTER_CHECKPOINT_KEY"),
		Config: rotation.Config{
			DrainMaxWait: e.readDuration("MATTER_DRAIN_MAX_WAIT"),
			DrainPoll:    time.Duration(e.readNumber("MATTER_DRAIN_POLL_SECONDS", 5, 600)) * time.Second,
			DeleteHold:   time.Duration(e.readNumber("MATTER_DELETE_HOLD_DAYS", 7, 36500)) * day,
			Segments:     e.readNumber("MATTER_SEGMENTS", 1, rotation.MaxSegments),
			Concurrency:  e.readNumber("MATTER_REWRAP_CONCURRENCY", 1, 400),
			FenceShards:  e.readNumber("MATTER_FENCE_SHARDS", 1, 20),
			MaxMints:     e.readNumber("MATTER_MAX_MINTS", 1, 10),
			CanaryRounds: e.readNumber("MATTER_CANARY_ROUNDS", 1, 100),
			KeySettle:    time.Duration(e.readNumber("MATTER_KEY_SETTLE_SECONDS", 0, 3600)) * time.Second,
			Deep:         e.readChoice("MATTER_VERIFY_DATA_KEYS", "every", "sample") == "every",
		},
		Rules: gates.Rules{
			Window:           e.readWindow("MATTER_WINDOW", "MATTER_TIME_ZONE"),
			AnnounceDays:     e.readNumber("MATTER_ANNOUNCE_DAYS", 0, 90),
			DrillFreshDays:   e.readNumber("MATTER_DRILL_FRESH_DAYS", 0, 3650),
			HealthDays:       e.readNumber("MATTER_HEALTH_DAYS", 0, 90),
			ApprovalRequired: e.readBool("MATTER_APPROVAL_REQUIRED"),
			ApprovalWait:     time.Duration(e.readNumber("MATTER_APPROVAL_SECONDS", 1, 604800)) * time.Second,
		},
		Announce:      e.readAnnounce("MATTER_ANNOUNCE"),
		StateMachines: map[kek.Mode]string{},
	}
	for mode, name := range MachineVariables {
		if arn := getenv(name); arn != "" {
			c.StateMachines[mode] = arn
		}
	}
	if c.Trust = e.readTrust("MATTER_TRUST"); len(c.Trust.Logs) > 0 {
		c.AnchorKey = e.readRequired("MATTER_ANCHOR_KEY")
	}
	return c, e.joinFaults()
}

// env reads variables and collects the faults: the error's field is the first variable, its cause names all. After a fault a reader returns the zero value
// and the next variable is read.
type env struct {
	get    func(string) string
	names  []string
	faults []error
}

// addFault adds a fault of a variable.
func (e *env) addFault(name string, err error) {
	e.names = append(e.names, name)
	e.faults = append(e.faults, fmt.Errorf("%s: %w", name, err))
}

// joinFaults returns the faults as one error; nil if there are none.
func (e *env) joinFaults() error {
	if len(e.faults) == 0 {
		return nil
	}
	return &journal.Error{
		Kind: journal.Misconfigured, Field: e.names[0], Msg: "the environment of the process is wrong",
		Err: errors.Join(e.faults...), Next: journal.Next{Say: "correct the parameters of the stack and deploy it again"},
	}
}

// readRequired reads a variable that must not be empty.
func (e *env) readRequired(name string) string {
	v := e.get(name)
	if v == "" {
		e.addFault(name, errors.New("is required"))
	}
	return v
}

// readMatching reads a variable that must match a pattern; what names it in the fault.
func (e *env) readMatching(name string, want *regexp.Regexp, what string) string {
	v := e.readRequired(name)
	if v != "" && !want.MatchString(v) {
		e.addFault(name, fmt.Errorf("%q is not %s", v, what))
	}
	return v
}

// readNumber reads a whole number from low to high.
func (e *env) readNumber(name string, low, high int) int {
	v := e.readRequired(name)
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		e.addFault(name, fmt.Errorf("%q is not a whole number from %d to %d", v, low, high))
	}
	return n
}

// readBool reads "true" or "false".
func (e *env) readBool(name string) bool { return e.readChoice(name, "true", "false") == "true" }

// readChoice reads a variable that must have one of two values.
func (e *env) readChoice(name, one, other string) string {
	v := e.readRequired(name)
	if v != "" && v != one && v != other {
		e.addFault(name, fmt.Errorf("%q is neither %s nor %s", v, one, other))
	}
	return v
}

// readDuration reads a positive duration in Go's syntax, such as 30m.
func (e *env) readDuration(name string) time.Duration {
	v := e.readRequired(name)
	if v == "" {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		e.addFault(name, fmt.Errorf("%q is not a duration like 30m", v))
	}
	return d
}

// readWindow reads the off-peak window and the IANA time zone that it is in.
func (e *env) readWindow(name, zoneName string) gates.Window {
	zone, err := time.LoadLocation(e.readRequired(zoneName))
	if err != nil {
		e.addFault(zoneName, err)
	}
	w, err := gates.ParseWindow(e.get(name), zone)
	if err != nil {
		e.addFault(name, err)
	}
	return w
}
