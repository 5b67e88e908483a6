// Package keystest is the conformance suite of the key services that rotations
// mint KEKs in and wrap DEKs with. Every adapter runs it, so that what fault
// schedules show of the in-memory service is true of the real one.
//
// What the suites hold an adapter to: an attempt's alias has one owner, whoever
// races for it; a DEK unwraps under its own KEK and its own encryption context and
// nothing else; a disabled KEK does nothing at all; who else uses a KEK is told; and
// every refusal is the error that the steps branch on.
package keystest

import (
	"sync"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

const (
	racers = 8 // how many goroutines race in the concurrency tests
	spring = "Q2-2026-rotation"
	summer = "Q3-2026-rotation"
)

// unknown is a well-formed id that no key service gives out.
const unknown kek.ID = "00000000-0000-0000-0000-000000000000"

// oldARN is of the key that each new one follows.
const oldARN = "arn:aws:kms:eu-central-1:123456789012:key/old"

// Service is a key service without any key of the suite's rotations.
type Service struct {
	Keys keyring.Admin
	KMS  keyring.Wrapper

	// What somebody else does with a key.
	Grant     func(t *testing.T, id kek.ID, grantee string) // to decrypt
	Alias     func(t *testing.T, id kek.ID, name string)
	Replicate func(t *testing.T, id kek.ID, region string)       // a multi-Region key
	SetPolicy func(t *testing.T, id kek.ID, statements []string) // of these Sids, beside that of a new key
}

// create makes one key.
func (s Service) create(t *testing.T, rotationID string, attempt int) keyring.Key {
	t.Helper()
	return s.createOf(t, rotationID, attempt, false)
}

func (s Service) createOf(t *testing.T, rotationID string, attempt int, multiRegion bool) keyring.Key {
	t.Helper()
	k, err := s.Keys.Create(t.Context(), rotationID, attempt, "Q2 2026", keyring.Key{ARN: oldARN, Multi: multiRegion})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// disable disables a key.
func (s Service) disable(t *testing.T, id kek.ID) {
	t.Helper()
	if err := s.Keys.Disable(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// race runs f in as many goroutines as there are racers, started together.
func race(f func(n int)) {
	start := make(chan struct{})
	var wg sync.WaitGroup
	for n := range racers {
		wg.Go(func() {
			<-start
			f(n)
		})
	}
	close(start)
	wg.Wait()
}
