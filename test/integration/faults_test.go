package integration

import (
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/kek"
)

// effect is a call that is a function's effect.
type effect struct{ function, service, operation string }

// effects lists, for each function, the call that is its effect; of a function that is
// called before the switch and after it, its first.
var effects = []effect{
	{"preflight", "dynamodb", "TransactWriteItems"},
	{"mint", "kms", "CreateKey"},
	{"mint", "dynamodb", "TransactWriteItems"},
	{"dualunwrap", "dynamodb", "TransactWriteItems"},
	{"switch", "dynamodb", "TransactWriteItems"},
	{"drain", "dynamodb", "PutItem"},
	{"drain", "dynamodb", "TransactWriteItems"},
	{"rewrap", "dynamodb", "UpdateItem"},
	{"rewrap", "dynamodb", "TransactWriteItems"},
	{"retire", "dynamodb", "TransactWriteItems"},
	{"retire", "kms", "DisableKey"},
	{"anchor", "kms", "Sign"},
	{"anchor", "dynamodb", "PutItem"},
	{"anchor", "s3", "PutObject"},
	{"verify", "dynamodb", "TransactWriteItems"},
	{"verify", "s3", "PutObject"},
	{"notify", "sns", "Publish"},
	{"notify", "events", "PutEvents"},
}

// later lists the effects after the switch of functions that have had one before it, and
// which of the function's calls each is when every first one has failed and was repeated.
var later = map[effect]int{
	{"rewrap", "dynamodb", "UpdateItem"}:         20, // the rehearsal makes two, and repeats them
	{"rewrap", "dynamodb", "TransactWriteItems"}: 3,
	{"verify", "dynamodb", "TransactWriteItems"}: 3,
	{"verify", "s3", "PutObject"}:                3,
}

// TestKillEveryFunction kills every function once at each of its effects, before
// it and after it, and loses the answer to each once. The state machine takes it
// up again, and the rotation completes.
func TestKillEveryFunction(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault map[string]any
	}{
		{"kill-before", map[string]any{"mode": "kill-function", "when": "before"}},
		{"kill-after", map[string]any{"mode": "kill-function", "when": "after"}},
		{"drop-response", map[string]any{"mode": "drop-response"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := up(t, nil)
			w.traced(t)
			for _, e := range effects {
				f := map[string]any{"service": e.service, "operation": e.operation, "function": e.function}
				for k, v := range c.fault {
					f[k] = v
				}
				w.inject(t, f)
				nth, ok := later[e]
				if !ok {
					continue
				}
				if c.name == "kill-after" && e.operation == "TransactWriteItems" {
					nth-- // what was done is not done again
				}
				f["nth"] = nth
				w.inject(t, f)
			}
			o := w.rotate(t, c.name, "{}")
			if o.Status != types.ExecutionStatusSucceeded {
				t.Error(describe(o))
			}
			for _, f := range w.faults(t) {
				if f.Fired != 1 {
					t.Errorf("the fault at %s %s of %s fired %d times: it tested nothing", f.Service, f.Operation, f.Function, f.Fired)
				}
			}
			v := w.view(t, c.name)
			if v.Rotation == nil || v.Rotation.Phase != kek.Completed || v.Lock != "" {
				t.Errorf("rotation %+v, lock %q", v.Rotation, v.Lock)
			}
			w.mustHold(t)
			if got := w.enabledKEKs(t); len(got) != 1 || got[0] != string(v.Pointer.KEKID) {
				t.Errorf("enabled KMS keys %v, want the pointer's alone: a stray was left", got)
			}
		})
	}
}

// TestKillInRollback kills the function that rolls back, before and after.
func TestKillInRollback(t *testing.T) {
	w := up(t, nil)
	w.traced(t)
	restore, err := w.Set.CorruptCorpus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, when := range []string{"before", "after"} {
		for _, op := range []string{"dynamodb TransactWriteItems", "kms DisableKey"} {
			var service, operation string
			if _, err := fmt.Sscan(op, &service, &operation); err != nil {
				t.Fatal(err)
			}
			w.inject(t, map[string]any{
				"service": service, "operation": operation, "function": "retire", "mode": "kill-function", "when": when, "nth": i + 1,
			})
		}
	}
	o := w.rotate(t, "killed-rollback", "{}")
	if o.Status != types.ExecutionStatusFailed || o.Error != "CorpusCorrupted" {
		t.Error(describe(o))
	}
	if err := restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := w.view(t, "killed-rollback")
	if v.Rotation.Phase != kek.RolledBack || v.Lock != "" {
		t.Errorf("rotation %+v, lock %q", v.Rotation, v.Lock)
	}
	w.mustHold(t)
}
