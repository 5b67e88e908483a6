// Package app turns the environment of a process into wired steps. Functions get the
// adapters from here only (test/layers holds that); internal/restore and cmd/matter import
// some of them for definitions of sources and for what no step does. Outside commands and
// internal/watch this is the only place that knows the real clock and real randomness.
package app

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Config is everything a deployment chooses, as template.yaml puts it into the
// environment of every function.
type Config struct {
	rotation.Config
	Stack        string        // MATTER_STACK: stack name, audit chain, tag of every KEK
	ControlTable string        // MATTER_CONTROL_TABLE
	AuditBucket  string        // MATTER_AUDIT_BUCKET
	Retention    time.Duration // MATTER_RETENTION_DAYS: Object Lock of audit records
	KMSRate      float64       // MATTER_KMS_RATE: KMS requests per second of this process
	Topic        string        // MATTER_TOPIC_ARN, "" for none
	Trust        audit.Trust   // MATTER_TRUST: transparency logs, "" for none
	AnchorKey    string        // MATTER_ANCHOR_KEY: ARN or alias; required with MATTER_TRUST
	Announce     Announce      // MATTER_ANNOUNCE

	// ARNs of the state machines by the mode of the rotations that each starts, from the
	// variables in machineVariables; none in the functions.
	StateMachines map[kek.Mode]string
}

var machineVariables = map[kek.Mode]string{
	kek.Normal: "MATTER_STATE_MACHINE_ARN", kek.Emergency: "MATTER_EMERGENCY_STATE_MACHINE_ARN",
}

const day = 24 * time.Hour

var stackName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,127}$`)

// FromEnv reads the configuration. Every fault is reported at once, each under
// the name of its variable, as one [*rotation.Error] of kind Misconfigured.
func FromEnv(getenv func(string) string) (Config, error) {
	e := env{get: getenv}
	c := Config{
		Stack:        e.match("MATTER_STACK", stackName, "a CloudFormation stack name"),
		ControlTable: e.required("MATTER_CONTROL_TABLE"),
		AuditBucket:  e.required("MATTER_AUDIT_BUCKET"),
		Retention:    time.Duration(e.number("MATTER_RETENTION_DAYS", 1, 36500)) * day,
		KMSRate:      float64(e.number("MATTER_KMS_RATE", 1, 100000)),
		Topic:        getenv("MATTER_TOPIC_ARN"),
		Config: rotation.Config{
			Window:       e.window("MATTER_WINDOW", "MATTER_TIME_ZONE"),
			DrainMaxWait: e.duration("MATTER_DRAIN_MAX_WAIT"),
			DrainPoll:    time.Duration(e.number("MATTER_DRAIN_POLL_SECONDS", 5, 600)) * time.Second,
			DeleteHold:   time.Duration(e.number("MATTER_DELETE_HOLD_DAYS", 7, 36500)) * day,
			Segments:     e.number("MATTER_SEGMENTS", 1, 40),
			Concurrency:  e.number("MATTER_REWRAP_CONCURRENCY", 1, 40),
			FenceShards:  e.number("MATTER_FENCE_SHARDS", 1, 20),
			MaxMints:     e.number("MATTER_MAX_MINTS", 1, 10),
			CanaryRounds: e.number("MATTER_CANARY_ROUNDS", 1, 100),
			KeySettle:    time.Duration(e.number("MATTER_KEY_SETTLE_SECONDS", 0, 3600)) * time.Second,
			Deep:         e.choice("MATTER_VERIFY_DATA_KEYS", "every", "sample") == "every",

			AnnounceDays:     e.number("MATTER_ANNOUNCE_DAYS", 0, 90),
			DrillFreshDays:   e.number("MATTER_DRILL_FRESH_DAYS", 0, 3650),
			HealthDays:       e.number("MATTER_HEALTH_DAYS", 0, 90),
			ApprovalRequired: e.boolean("MATTER_APPROVAL_REQUIRED"),
			ApprovalWait:     time.Duration(e.number("MATTER_APPROVAL_SECONDS", 1, 604800)) * time.Second,
		},
		Announce:      e.announce("MATTER_ANNOUNCE"),
		StateMachines: map[kek.Mode]string{},
	}
	for mode, name := range machineVariables {
		if arn := getenv(name); arn != "" {
			c.StateMachines[mode] = arn
		}
	}
	if c.Trust = e.trust("MATTER_TRUST"); len(c.Trust.Logs) > 0 {
		c.AnchorKey = e.required("MATTER_ANCHOR_KEY")
	}
	return c, e.err()
}

// env reads variables and keeps every fault.
type env struct {
	get    func(string) string
	names  []string
	faults []error
}

func (e *env) fault(name string, err error) {
	e.names = append(e.names, name)
	e.faults = append(e.faults, fmt.Errorf("%s: %w", name, err))
}

func (e *env) err() error {
	if len(e.faults) == 0 {
		return nil
	}
	return &rotation.Error{
		Kind: rotation.Misconfigured, Field: strings.Join(e.names, ", "), Msg: "the environment of the process is wrong",
		Err: errors.Join(e.faults...), Next: "correct the parameters of the stack and deploy it again",
	}
}

func (e *env) required(name string) string {
	v := e.get(name)
	if v == "" {
		e.fault(name, errors.New("is required"))
	}
	return v
}

func (e *env) match(name string, want *regexp.Regexp, what string) string {
	v := e.required(name)
	if v != "" && !want.MatchString(v) {
		e.fault(name, fmt.Errorf("%q is not %s", v, what))
	}
	return v
}

func (e *env) number(name string, low, high int) int {
	v := e.required(name)
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		e.fault(name, fmt.Errorf("%q is not a whole number from %d to %d", v, low, high))
	}
	return n
}

func (e *env) boolean(name string) bool { return e.choice(name, "true", "false") == "true" }

// choice reads a variable that has one of two values.
func (e *env) choice(name, one, other string) string {
	v := e.required(name)
	if v != "" && v != one && v != other {
		e.fault(name, fmt.Errorf("%q is neither %s nor %s", v, one, other))
	}
	return v
}

func (e *env) duration(name string) time.Duration {
	v := e.required(name)
	if v == "" {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		e.fault(name, fmt.Errorf("%q is not a duration like 30m", v))
	}
	return d
}

func (e *env) window(name, zoneName string) rotation.Window {
	zone, err := time.LoadLocation(e.required(zoneName))
	if err != nil {
		e.fault(zoneName, err)
	}
	w, err := rotation.ParseWindow(e.get(name), zone)
	if err != nil {
		e.fault(name, err)
	}
	return w
}
