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

// arn is what GenerateDataKey says of kek-0.
const arn = "arn:aws:kms:eu-central-1:000000000000:key/kek-0"

// testReplaceARN: a row that names its KEK by ARN is one under that KEK. Conditions
// compare what the row says to the byte, and a rewrap writes the plain id.
func testReplaceARN(t *testing.T, h SourceHarness) {
	e := sound("a")
	e.KeyARN = arn
	row := h.only(t, e, false)
	if row.KEK != e.KEK || row.KeyARN != arn || row.Defect != "" {
		t.Errorf("KEK %q, ARN %q, defect %q", row.KEK, row.KeyARN, row.Defect)
	}
	plain := e
	plain.KeyARN = ""
	h.Put(t, "a", plain)
	h.replace(t, "a row that was given the plain id meanwhile", row, rewrapped(), false, plain)
	h.Put(t, "a", e)
	moved := Envelope{KEK: "kek-1", Epoch: 2, Version: e.Version + 1, WrappedDEK: []byte("new dek"), Ciphertext: e.Ciphertext}
	h.replace(t, "a row as it was read", row, rewrapped(), true, moved)
}

// testReplaceDefect: what is not a sound envelope is not replaced, and one without room
// is refused by the place itself: its own failure, not that of the source.
func testReplaceDefect(t *testing.T, h SourceHarness) {
	for kind, reported := range h.Defects {
		e := sound("a")
		e.Defect = kind
		row, with := h.only(t, e, false), rewrapped()
		with.WrappedDEK = make([]byte, 200) // more than there is room for
		done, err := h.Source.Replace(t.Context(), row, with)
		if done || err == nil {
			t.Errorf("%s: %v, %v, want an error", kind, done, err)
		}
		if rejected := kind == rotation.NoRoom; errors.Is(err, rotation.ErrRejected) != rejected || rejected != (row.Defect == "") {
			t.Errorf("%s, reported as %s: %v", kind, reported, err)
		}
		h.Delete(t, "a")
	}
}

// testRehearse: a rehearsal passes, whatever became of the row, and changes nothing.
func testRehearse(t *testing.T, h SourceHarness) {
	for _, payload := range []bool{false, true} {
		e := sound("a")
		row := h.only(t, e, payload)
		rehearse := func(what string, then Envelope) {
			t.Helper()
			if err := h.Source.Rehearse(t.Context(), row); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			got, ok := h.Get(t, "a")
			if !ok {
				t.Fatalf("%s: the row is gone", what)
			}
			same(t, what, got, then)
		}
		rehearse("a row as it was read", e)
		e.WrappedDEK, e.Version = []byte("written meanwhile"), 8
		h.Put(t, "a", e)
		rehearse("a row with another wrapped DEK", e)
		h.Delete(t, "a")
		if err := h.Source.Rehearse(t.Context(), row); err != nil {
			t.Errorf("a row that is gone: %v", err)
		}
		if got, ok := h.Get(t, "a"); ok {
			t.Errorf("a rehearsal made a row: %v", got)
		}
	}
}

// labeled is the row that names its KEK in a form that is not its plain id.
func labeled() map[string]Envelope {
	forms := map[string]Envelope{"an ARN": sound("a"), "none": sound("a"), "an alias": sound("a")}
	for name, e := range forms {
		switch name {
		case "an ARN":
			e.KeyARN = arn
		case "none":
			e.Defect = rotation.NoKEK
		case "an alias":
			e.Defect = rotation.UnknownForm
		}
		forms[name] = e
	}
	return forms
}

func (h SourceHarness) labeler(t *testing.T) rotation.Labeler {
	t.Helper()
	l, ok := h.Source.(rotation.Labeler)
	if !ok {
		t.Skip("rows of this source cannot be labeled")
	}
	return l
}

// testLabel: a row is given its KEK's id, once, and nothing else of it changes.
func testLabel(t *testing.T, h SourceHarness) {
	l := h.labeler(t)
	for name, e := range labeled() {
		row := h.only(t, e, false)
		if len(row.WrappedDEK) == 0 || row.Context["id"] != "a" {
			t.Errorf("%s: nobody can tell its KEK: %v", name, row)
		}
		if ok, err := l.Label(t.Context(), row, "kek-7"); err != nil || !ok {
			t.Fatalf("%s: %v, %v", name, ok, err)
		}
		then := sound("a")
		then.KEK = "kek-7"
		got, _ := h.Get(t, "a")
		same(t, name, got, then)
		if ok, err := l.Label(t.Context(), row, "kek-8"); err != nil || ok {
			t.Errorf("%s, again: %v, %v, want false", name, ok, err)
		}
		again, ok, err := h.Source.Reread(t.Context(), row, false)
		if err != nil || !ok || again.KEK != "kek-7" || again.KeyARN != "" || again.Defect != "" {
			t.Errorf("%s: reread %+v, %v, %v", name, again, ok, err)
		}
	}
	for _, kind := range []rotation.Defect{rotation.NoWrappedDEK, rotation.CipherAlone, rotation.WrongType} {
		if h.Defects[kind] == "" {
			continue
		}
		e := sound("a")
		e.Defect = kind
		if ok, err := l.Label(t.Context(), h.only(t, e, false), "kek-7"); err == nil || ok {
			t.Errorf("%s: %v, %v, want an error", kind, ok, err)
		}
	}
}

// testLabelChanged: a row that is not what was read is left alone.
func testLabelChanged(t *testing.T, h SourceHarness) {
	l := h.labeler(t)
	for name, e := range labeled() {
		row := h.only(t, e, false)
		other := sound("a")
		other.WrappedDEK, other.Defect, other.KeyARN = []byte("written meanwhile"), e.Defect, e.KeyARN
		h.Put(t, "a", other)
		if ok, err := l.Label(t.Context(), row, "kek-7"); err != nil || ok {
			t.Errorf("%s, with another wrapped DEK: %v, %v, want false", name, ok, err)
		}
		h.Put(t, "a", sound("a"))
		if ok, err := l.Label(t.Context(), row, "kek-7"); err != nil || ok {
			t.Errorf("%s, with a KEK by now: %v, %v, want false", name, ok, err)
		}
		got, _ := h.Get(t, "a")
		same(t, name, got, sound("a"))
		h.Delete(t, "a")
		if ok, err := l.Label(t.Context(), row, "kek-7"); err != nil || ok {
			t.Errorf("%s, deleted: %v, %v, want false", name, ok, err)
		}
		if got, ok := h.Get(t, "a"); ok {
			t.Errorf("%s: the deleted row came back: %v", name, got)
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
		if err := h.Source.Rehearse(t.Context(), row); err == nil {
			t.Errorf("rehearsal with handle %v: no error", handle)
		}
		if l, can := h.Source.(rotation.Labeler); can {
			if ok, err := l.Label(t.Context(), row, "kek-7"); err == nil || ok {
				t.Errorf("label with handle %v: %v, %v, want an error", handle, ok, err)
			}
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
