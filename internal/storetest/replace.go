package storetest

import (
	"errors"
	"testing"

	"github.com/matter-ops/kms-rotation/rotation"
)

// only puts one row and returns it as a scan does.
func (h SourceHarness) only(t *testing.T, e Envelope, payload bool) rotation.Row {
	t.Helper()
	h.Put(t, "a", e)
	p, err := h.Source.Scan(t.Context(), rotation.ScanRequest{Total: 1, Payload: payload})
	if err != nil || len(p.Rows) != 1 {
		t.Fatalf("%v, %v", p, err)
	}
	return p.Rows[0]
}

func rewrapped() rotation.Rewrapped {
	return rotation.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new dek")}
}

// replace calls Replace and checks its verdict and what the row then is.
func (h SourceHarness) replace(t *testing.T, what string, old rotation.Row, with rotation.Rewrapped, want bool, then Envelope) {
	t.Helper()
	ok, err := h.Source.Replace(t.Context(), old, with)
	if err != nil || ok != want {
		t.Fatalf("%s: %v, %v, want %v", what, ok, err, want)
	}
	got, ok := h.Get(t, "a")
	if !ok {
		t.Fatalf("%s: the row is gone", what)
	}
	same(t, what, got, then)
}

func testReplace(t *testing.T, h SourceHarness) {
	e := sound("a")
	row := h.only(t, e, false)
	moved := Envelope{KEK: "kek-1", Epoch: 2, Version: e.Version + 1, WrappedDEK: []byte("new dek"), Ciphertext: e.Ciphertext}
	h.replace(t, "a row as it was read", row, rewrapped(), true, moved)
	h.replace(t, "the same again", row, rewrapped(), false, moved)

	other := e
	other.WrappedDEK = []byte("written meanwhile")
	h.Put(t, "a", other)
	h.replace(t, "a row with another wrapped DEK", row, rewrapped(), false, other)

	other = e
	other.KEK = "kek-7"
	h.Put(t, "a", other)
	h.replace(t, "a row with another KEK", row, rewrapped(), false, other)

	other = e
	other.Ciphertext, other.Version, other.Epoch = []byte("written under the same DEK"), 8, 9
	h.Put(t, "a", other)
	moved.Ciphertext, moved.Version = other.Ciphertext, 9
	h.replace(t, "a row with another payload under the same DEK", row, rewrapped(), true, moved)

	bare := e
	bare.Version, bare.Epoch = 0, 0
	row = h.only(t, bare, false)
	moved.Ciphertext, moved.Version = e.Ciphertext, 1
	h.replace(t, "a row that never had a version or an epoch", row, rewrapped(), true, moved)
}

// testReplacePayload: a fresh payload must not overwrite one that was written
// meanwhile under the same wrapped DEK.
func testReplacePayload(t *testing.T, h SourceHarness) {
	e := sound("a")
	row := h.only(t, e, true)
	with := rewrapped()
	with.Ciphertext = []byte("fresh payload")
	other := e
	other.Ciphertext = []byte("written meanwhile")
	h.Put(t, "a", other)
	h.replace(t, "a row with another payload", row, with, false, other)
	h.Put(t, "a", e)
	moved := Envelope{KEK: "kek-1", Epoch: 2, Version: 8, WrappedDEK: []byte("new dek"), Ciphertext: []byte("fresh payload")}
	h.replace(t, "a row as it was read", row, with, true, moved)
	h.replace(t, "the same again", row, with, false, moved)

	blind := h.only(t, e, false)
	if ok, err := h.Source.Replace(t.Context(), blind, with); err == nil || ok {
		t.Errorf("replacing a payload that was not read: %v, %v, want an error", ok, err)
	}
}

// testReplaceGone: a row that somebody deleted never comes back.
func testReplaceGone(t *testing.T, h SourceHarness) {
	for _, payload := range []bool{false, true} {
		row := h.only(t, sound("a"), payload)
		h.Delete(t, "a")
		with := rewrapped()
		if payload {
			with.Ciphertext = []byte("fresh payload")
		}
		if ok, err := h.Source.Replace(t.Context(), row, with); err != nil || ok {
			t.Fatalf("replace of a deleted row: %v, %v, want false", ok, err)
		}
		if e, ok := h.Get(t, "a"); ok {
			t.Fatalf("the deleted row came back: %v", e)
		}
		if r, ok, err := h.Source.Reread(t.Context(), row, payload); err != nil || ok {
			t.Fatalf("reread of a deleted row: %v, %v, %v, want false", r, ok, err)
		}
	}
}

func testReread(t *testing.T, h SourceHarness) {
	row := h.only(t, sound("a"), true)
	other := sound("a")
	other.KEK, other.WrappedDEK, other.Epoch, other.Ciphertext = "kek-1", []byte("other"), 2, []byte("other payload")
	h.Put(t, "a", other)
	for _, payload := range []bool{false, true} {
		got, ok, err := h.Source.Reread(t.Context(), row, payload)
		if err != nil || !ok {
			t.Fatalf("%v, %v", ok, err)
		}
		want := row
		want.KEK, want.WrappedDEK, want.Epoch, want.Ciphertext = other.KEK, other.WrappedDEK, other.Epoch, nil
		if payload {
			want.Ciphertext = other.Ciphertext
		}
		want.Handle, got.Handle = nil, nil
		same(t, "row", got, want)
	}
	// What was reread can be replaced.
	got, _, err := h.Source.Reread(t.Context(), row, false)
	if err != nil {
		t.Fatal(err)
	}
	with := rewrapped()
	with.KEK = "kek-2"
	if ok, err := h.Source.Replace(t.Context(), got, with); err != nil || !ok {
		t.Fatalf("replace of a row reread: %v, %v", ok, err)
	}
}

func testForeignRow(t *testing.T, h SourceHarness) {
	for _, handle := range []any{nil, "a"} {
		row := h.only(t, sound("a"), false)
		row.Handle = handle
		if ok, err := h.Source.Replace(t.Context(), row, rewrapped()); err == nil || ok {
			t.Errorf("replace with handle %v: %v, %v, want an error", handle, ok, err)
		}
		if _, ok, err := h.Source.Reread(t.Context(), row, false); err == nil || ok {
			t.Errorf("reread with handle %v: %v, %v, want an error", handle, ok, err)
		}
	}
}

func testRaceReplace(t *testing.T, h SourceHarness) {
	row := h.only(t, sound("a"), false)
	errs := race(func(n int) error {
		with := rewrapped()
		with.WrappedDEK = []byte{byte(n)}
		ok, err := h.Source.Replace(t.Context(), row, with)
		if err == nil && !ok {
			return errLost
		}
		return err
	})
	won := -1
	for n, err := range errs {
		switch {
		case err == nil && won >= 0:
			t.Errorf("both %d and %d replaced the row", won, n)
		case err == nil:
			won = n
		case !errors.Is(err, errLost):
			t.Error(err)
		}
	}
	e, _ := h.Get(t, "a")
	if won < 0 || e.Version != 8 || e.WrappedDEK[0] != byte(won) {
		t.Errorf("racer %d won, the row is %v", won, e)
	}
}

var errLost = errors.New("lost the race")
