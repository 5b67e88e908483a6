package trace_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/trace"
)

var storms = flag.Int("storms", 24, "how many storms to check")

// storm is a rotation at whose every call anything may happen: the call is lost
// before or after its effect, an application writes under a pointer that it may
// have loaded long ago, a duplicate of any step runs to its end.
type storm struct {
	*site
	rand   *rand.Rand
	mode   string
	past   []kek.Pointer // what applications have loaded
	leases []rotation.Lease
	nested int

	// A step works on several rows at once, so the hook is called from several
	// goroutines. The mutex guards the fields; it is not held while a step or an
	// application runs inside the hook.
	mu sync.Mutex
}

// draw returns a number below n.
func (s *storm) draw(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rand.IntN(n)
}

// enter reports whether another step or application may run inside the hook.
func (s *storm) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nested >= 2 {
		return false
	}
	s.nested++
	return true
}

func (s *storm) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nested--
}

// load remembers p, if it is not nil, and returns a pointer that was ever loaded.
func (s *storm) load(p *kek.Pointer) kek.Pointer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p != nil {
		s.past = append(s.past, *p)
	}
	return s.past[s.rand.IntN(len(s.past))]
}

func (s *storm) hold(l rotation.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases = append(s.leases, l)
}

// held returns a lease that was ever held; false if there was none.
func (s *storm) held() (rotation.Lease, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.leases) == 0 {
		return rotation.Lease{}, false
	}
	return s.leases[s.rand.IntN(len(s.leases))], true
}

func (s *storm) hook(string, ...any) (bool, error) {
	if s.enter() {
		switch n := s.draw(100); {
		case n < 10:
			s.application()
		case n < 13:
			_ = s.step() // a duplicate; whether it succeeds is its own affair
		}
		s.leave()
	}
	switch n := s.draw(100); {
	case n < 3:
		return false, memstore.ErrInjected
	case n < 6:
		return true, memstore.ErrInjected
	}
	return true, nil
}

// application makes one effect on the data plane, if the world lets it.
func (s *storm) application() {
	ctx, store := s.as(trace.Application), s.world.Store()
	var now *kek.Pointer
	if p, err := store.Pointer(ctx); err == nil {
		now = &p
	}
	p := s.load(now)
	row := fmt.Sprintf("o%d", s.draw(5))
	switch s.draw(6) {
	case 0, 1:
		if r, err := s.wrap(row, p); err == nil {
			_ = s.orders.Insert(ctx, row, r, s.draw(shards))
		}
	case 2:
		was, ok, _ := s.orders.Get(ctx, row)
		if r, err := s.wrap(row, p); ok && err == nil {
			_ = s.orders.Update(ctx, row, was.Version, r)
		}
	case 3:
		_ = s.orders.Delete(ctx, row)
	case 4:
		l := rotation.Lease{KEK: p.KEKID, Holder: fmt.Sprintf("h%d", s.draw(2)), Expires: s.at.Add(time.Minute)}
		if store.PutLease(ctx, l) == nil {
			s.hold(l)
		}
	case 5:
		if l, ok := s.held(); ok {
			l.Expires = s.at.Add(2 * time.Minute)
			if s.draw(2) == 0 {
				_, _ = store.RenewLease(ctx, l)
			} else {
				_ = store.DropLease(ctx, l)
			}
		}
	}
}

// wrap is seal for a KMS that may refuse.
func (s *storm) wrap(row string, p kek.Pointer) (memstore.Record, error) {
	encctx := map[string]string{"id": row}
	dek, wrapped, err := s.Keys.Wrapper.GenerateDataKey(s.as(trace.Application), p.KEKID, encctx)
	if err != nil {
		return memstore.Record{}, err
	}
	ct, err := s.Keys.Cipher.Seal(dek, []byte("secret"), encctx)
	return memstore.Record{KEK: p.KEKID, Epoch: p.Epoch, WrappedDEK: wrapped, Ciphertext: ct, Context: encctx}, err
}

// step calls any step once.
func (s *storm) step() error {
	in := s.in()
	var err error
	switch s.draw(13) {
	case 0:
		_, err = s.Preflight(s.as("preflight"), rotation.PreflightInput{ExecutionName: id, Input: rotation.ExecutionInput{Mode: s.mode, Reason: "why", Window: "any"}})
	case 1:
		_, err = s.Mint(s.as("mint"), in)
	case 11:
		_, err = s.Verify(s.as("verify"), rotation.VerifyInput{RotationID: id, Census: true})
	case 12:
		_, err = s.Rewrap(s.as("rewrap"), rotation.RewrapInput{RotationID: id, Rehearse: true})
	case 2:
		_, err = s.DualUnwrap(s.as("dualunwrap"), in)
	case 3:
		_, err = s.Switch(s.as("switch"), in)
	case 4:
		_, err = s.Drain(s.as("drain"), in)
	case 5:
		_, err = s.Rewrap(s.as("rewrap"), rotation.RewrapInput{RotationID: id, Source: "orders", Segment: s.draw(2)})
	case 6:
		_, err = s.Rewrap(s.as("rewrap"), rotation.RewrapInput{RotationID: id, Complete: true})
	case 7:
		_, err = s.Retire(s.as("retire"), rotation.RetireInput{RotationID: id})
	case 8:
		_, err = s.Verify(s.as("verify"), rotation.VerifyInput{RotationID: id})
	case 9:
		if s.draw(4) == 0 {
			_, err = s.Retire(s.as("retire"), rotation.RetireInput{RotationID: id, Action: rotation.ActionPreSwitchFailure, Error: "storm"})
		}
	case 10:
		if s.draw(4) == 0 {
			_, err = s.Retire(s.as("retire"), rotation.RetireInput{RotationID: id, Action: rotation.ActionRemint, FailedAttempt: 1 + s.draw(2), Error: "storm"})
		}
	}
	return err
}

// quietKeys says nothing of a key's last use, as an AWS without GetKeyLastUsage: the
// applications of a storm go on making data keys under every KEK that they ever loaded,
// on which a rotation rightly halts.
type quietKeys struct{ keyring.Admin }

func (k quietKeys) Use(ctx context.Context, id kek.ID) (keyring.Use, error) {
	use, err := k.Admin.Use(ctx, id)
	use.LastUse, use.LastUseAt, use.LastUseBy = "", time.Time{}, ""
	return use, err
}

// ended reports whether the rotation is over.
func (s *storm) ended() bool {
	v, err := s.world.Store().Load(s.t.Context(), id)
	return err == nil && v.Rotation != nil && v.Rotation.Phase.Final()
}

// blow calls steps in no order at all until the rotation is over.
func (s *storm) blow() []trace.Event {
	s.world.SetHook(s.hook)
	for n := 0; !s.ended(); n++ {
		if n > 5000 {
			s.t.Fatal("the rotation does not end")
		}
		var e *journal.Error
		if err := s.step(); err != nil && !errors.As(err, &e) {
			s.t.Fatalf("an error of no kind: %v", err)
		}
		s.at = s.at.Add(20 * time.Second)
	}
	return s.recorder.Events()
}

// TestStormsAreAccepted checks that the model explains the code under duplicates,
// lost calls and paused writers: that it is no stricter than it should be.
func TestStormsAreAccepted(t *testing.T) {
	var runs [][]trace.Event
	ends := map[string]int{}
	for seed := range uint64(*storms) {
		s := &storm{site: newSite(t), rand: rand.New(rand.NewPCG(seed, 0)), mode: "normal"}
		if seed%2 == 1 {
			s.mode = "emergency"
		}
		s.Config.DrainMaxWait = 1000 * time.Hour
		s.Keys.Admin = quietKeys{s.Keys.Admin}
		s.past = append(s.past, s.pointer())
		runs = append(runs, s.blow())
		for _, e := range runs[seed] {
			if e.Effect == "Store.Apply" {
				ends[e.Event]++
			}
		}
	}
	for seed, v := range check(t, runs...) {
		if !v.Accepted {
			t.Errorf("seed %d: %s %+v", seed, v, v.Event)
		}
	}
	for _, event := range []string{"kms_rotation_completed", "rolled_back", "reminted"} {
		if ends[event] == 0 {
			t.Errorf("no storm saw %s: %v", event, ends)
		}
	}
	t.Log(ends)
}
