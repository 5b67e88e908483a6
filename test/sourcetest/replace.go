package sourcetest

import (
	"errors"
	"sync"
	"testing"

	"github.com/matter-ops/kms-rotation/source"
)

// only puts one row and returns it as a scan does.
func (h Harness) only(t *testing.T, e Envelope, payload bool) source.Row {
	t.Helper()
	h.Put(t, "a", e)
	p, err := h.Driver.Scan(t.Context(), source.ScanRequest{Total: 1, Payload: payload})
	if err != nil || len(p.Rows) != 1 {
		t.Fatalf("%v, %v", p, err)
	}
	return p.Rows[0]
}

func rewrapped() source.Rewrapped {
	return source.Rewrapped{KEK: "kek-1", Epoch: 2, WrappedDEK: []byte("new dek")}
}

// replace calls Replace and checks its verdict and what the row then is.
func (h Harness) replace(t *testing.T, what string, old source.Row, with source.Rewrapped, want bool, then Envelope) {
	t.Helper()
	ok, err := h.Driver.Replace(t.Context(), old, with)
	if err != nil || ok != want {
		t.Fatalf("%s: %v, %v, want %v", what, ok, err, want)
	}
	got, ok := h.Get(t, "a")
	if !ok {
		t.Fatalf("%s: the row is gone", what)
	}
	same(t, what, h.bare(got), h.bare(then))
}

func testReplace(t *testing.T, h Harness) {
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

	if h.Records {
		return
	}
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
func testReplacePayload(t *testing.T, h Harness) {
	if h.Records {
		with := rewrapped()
		with.Ciphertext = []byte("fresh payload")
		if ok, err := h.Driver.Replace(t.Context(), h.only(t, sound("a"), true), with); err == nil || ok {
			t.Errorf("replacing a payload that there is not: %v, %v, want an error", ok, err)
		}
		return
	}
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
	if ok, err := h.Driver.Replace(t.Context(), blind, with); err == nil || ok {
		t.Errorf("replacing a payload that was not read: %v, %v, want an error", ok, err)
	}
}

// testReplaceGone: a row that somebody deleted never comes back.
func testReplaceGone(t *testing.T, h Harness) {
	for _, payload := range []bool{false, true} {
		row := h.only(t, sound("a"), payload)
		h.Delete(t, "a")
		with := rewrapped()
		if payload && !h.Records {
			with.Ciphertext = []byte("fresh payload")
		}
		if ok, err := h.Driver.Replace(t.Context(), row, with); err != nil || ok {
			t.Fatalf("replace of a deleted row: %v, %v, want false", ok, err)
		}
		if e, ok := h.Get(t, "a"); ok {
			t.Fatalf("the deleted row came back: %v", e)
		}
		if r, ok, err := h.Driver.Reread(t.Context(), row, payload); err != nil || ok {
			t.Fatalf("reread of a deleted row: %v, %v, %v, want false", r, ok, err)
		}
	}
}

// arn is what GenerateDataKey says of kek-0.
const arn = "arn:aws:kms:eu-central-1:000000000000:key/kek-0"

// testReplaceARN: a row that names its KEK by ARN is one under that KEK. Conditions
// compare what the row says to the byte, and a rewrap writes the plain id.
func testReplaceARN(t *testing.T, h Harness) {
	h.needsPayloads(t)
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
func testReplaceDefect(t *testing.T, h Harness) {
	for kind, reported := range h.Defects {
		e := sound("a")
		e.Defect = kind
		row, with := h.only(t, e, false), rewrapped()
		with.WrappedDEK = make([]byte, 200) // more than there is room for
		done, err := h.Driver.Replace(t.Context(), row, with)
		if done || err == nil {
			t.Errorf("%s: %v, %v, want an error", kind, done, err)
		}
		if rejected := kind == source.NoRoom; errors.Is(err, source.ErrRejected) != rejected || rejected != (row.Defect == "") {
			t.Errorf("%s, reported as %s: %v", kind, reported, err)
		}
		h.Delete(t, "a")
	}
}

// testRehearse: a rehearsal passes, whatever became of the row, and changes nothing.
func testRehearse(t *testing.T, h Harness) {
	for _, payload := range []bool{false, true} {
		e := sound("a")
		row := h.only(t, e, payload)
		rehearse := func(what string, then Envelope) {
			t.Helper()
			if err := h.Driver.Rehearse(t.Context(), row); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			got, ok := h.Get(t, "a")
			if !ok {
				t.Fatalf("%s: the row is gone", what)
			}
			same(t, what, h.bare(got), h.bare(then))
		}
		rehearse("a row as it was read", e)
		e.WrappedDEK, e.Version = []byte("written meanwhile"), 8
		h.Put(t, "a", e)
		rehearse("a row with another wrapped DEK", e)
		h.Delete(t, "a")
		if err := h.Driver.Rehearse(t.Context(), row); err != nil {
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
			e.Defect = source.NoKEK
		case "an alias":
			e.Defect = source.UnknownForm
		}
		forms[name] = e
	}
	return forms
}

func (h Harness) labeler(t *testing.T) source.Labeler {
	t.Helper()
	l, ok := h.Driver.(source.Labeler)
	if !ok {
		t.Skip("rows of this source cannot be labeled")
	}
	return l
}

// testLabel: a row is given its KEK's id, once, and nothing else of it changes.
func testLabel(t *testing.T, h Harness) {
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
		again, ok, err := h.Driver.Reread(t.Context(), row, false)
		if err != nil || !ok || again.KEK != "kek-7" || again.KeyARN != "" || again.Defect != "" {
			t.Errorf("%s: reread %+v, %v, %v", name, again, ok, err)
		}
	}
	for _, kind := range []source.Defect{source.NoWrappedDEK, source.CipherAlone, source.WrongType} {
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
func testLabelChanged(t *testing.T, h Harness) {
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

func testReread(t *testing.T, h Harness) {
	row := h.only(t, sound("a"), true)
	other := sound("a")
	other.KEK, other.WrappedDEK, other.Epoch, other.Ciphertext = "kek-1", []byte("other"), 2, []byte("other payload")
	h.Put(t, "a", other)
	for _, payload := range []bool{false, true} {
		got, ok, err := h.Driver.Reread(t.Context(), row, payload)
		if err != nil || !ok {
			t.Fatalf("%v, %v", ok, err)
		}
		want := row
		want.KEK, want.WrappedDEK, want.Epoch, want.Ciphertext = other.KEK, other.WrappedDEK, other.Epoch, nil
		if payload && !h.Records {
			want.Ciphertext = other.Ciphertext
		}
		want.Handle, got.Handle = nil, nil
		same(t, "row", got, want)
	}
	// What was reread can be replaced.
	got, _, err := h.Driver.Reread(t.Context(), row, false)
	if err != nil {
		t.Fatal(err)
	}
	with := rewrapped()
	with.KEK = "kek-2"
	if ok, err := h.Driver.Replace(t.Context(), got, with); err != nil || !ok {
		t.Fatalf("replace of a row reread: %v, %v", ok, err)
	}
}

func testForeignRow(t *testing.T, h Harness) {
	for _, handle := range []any{nil, "a"} {
		row := h.only(t, sound("a"), false)
		row.Handle = handle
		if ok, err := h.Driver.Replace(t.Context(), row, rewrapped()); err == nil || ok {
			t.Errorf("replace with handle %v: %v, %v, want an error", handle, ok, err)
		}
		if _, ok, err := h.Driver.Reread(t.Context(), row, false); err == nil || ok {
			t.Errorf("reread with handle %v: %v, %v, want an error", handle, ok, err)
		}
		if err := h.Driver.Rehearse(t.Context(), row); err == nil {
			t.Errorf("rehearsal with handle %v: no error", handle)
		}
		if l, can := h.Driver.(source.Labeler); can {
			if ok, err := l.Label(t.Context(), row, "kek-7"); err == nil || ok {
				t.Errorf("label with handle %v: %v, %v, want an error", handle, ok, err)
			}
		}
	}
}

func testRaceReplace(t *testing.T, h Harness) {
	row := h.only(t, sound("a"), false)
	errs := race(func(n int) error {
		with := rewrapped()
		with.WrappedDEK = []byte{byte(n)}
		ok, err := h.Driver.Replace(t.Context(), row, with)
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
	if won < 0 || e.Version != h.bare(Envelope{Version: 8}).Version || e.WrappedDEK[0] != byte(won) {
		t.Errorf("racer %d won, the row is %v", won, e)
	}
}

// testPutBack: a scan that asks for it finds the copies of a record that is gone, after the
// items and once; one of them is put back, once, and not over another record.
func testPutBack(t *testing.T, h Harness) {
	if h.Driver.Traits().DataKeys != h.Records {
		t.Fatalf("its traits say %v of records, the harness %v", h.Driver.Traits().DataKeys, h.Records)
	}
	if !h.Records {
		return
	}
	row := h.only(t, sound("a"), false)
	h.Put(t, "b", sound("b"))
	if ok, err := h.Driver.Replace(t.Context(), row, rewrapped()); !ok || err != nil {
		t.Fatal(ok, err)
	}
	missing := func(total, limit int) (items int, found []source.Row) {
		t.Helper()
		for segment := range total {
			req := source.ScanRequest{Segment: segment, Total: total, Limit: limit, Missing: true}
			for first := true; first || req.Cursor != ""; first = false {
				p, err := h.Driver.Scan(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range p.Rows {
					if r.Missing {
						found = append(found, r)
					} else {
						items++
					}
				}
				req.Cursor = p.Next
			}
		}
		return items, found
	}
	if items, found := missing(1, 0); items != 2 || len(found) > 0 {
		t.Fatalf("%d items, %d copies of missing ones, want 2 and none", items, len(found))
	}
	h.Delete(t, "a")
	for _, total := range []int{1, 3} {
		for _, limit := range []int{0, 1} {
			items, found := missing(total, limit)
			if items != 1 || len(found) == 0 {
				t.Fatalf("%d segments: %d items, %d copies of missing ones", total, items, len(found))
			}
			for _, r := range found {
				if r.ID != row.ID || r.Defect != "" || r.KEK != "kek-1" {
					t.Errorf("a copy %+v", r)
				}
			}
		}
	}
	_, found := missing(1, 0)
	if _, ok, err := h.Driver.Reread(t.Context(), found[0], false); ok || err != nil {
		t.Errorf("what is missing is there: %v, %v", ok, err)
	}
	with := source.Rewrapped{KEK: "kek-2", Epoch: 3, WrappedDEK: []byte("put back")}
	for _, want := range []bool{true, false} {
		if ok, err := h.Driver.Replace(t.Context(), found[0], with); ok != want || err != nil {
			t.Errorf("put back: %v, %v, want %v", ok, err, want)
		}
		with.WrappedDEK = []byte("put back again")
	}
	back, _ := h.Get(t, "a")
	same(t, "the record", back, Envelope{KEK: "kek-2", Epoch: 3, WrappedDEK: []byte("put back")})
	with.KEK = "kek-9" // its fence was never opened
	h.Delete(t, "a")
	if ok, err := h.Driver.Replace(t.Context(), found[0], with); ok || err == nil {
		t.Errorf("put back behind a fence that is not open: %v, %v, want an error", ok, err)
	}
	if e, ok := h.Get(t, "a"); ok {
		t.Errorf("put back past the fence: %v", e)
	}
}

var errLost = errors.New("lost the race")

// racers is how many goroutines race for a row.
const racers = 8

// race runs f in as many goroutines as there are racers, started together, and
// returns their errors.
func race(f func(n int) error) []error {
	errs := make([]error, racers)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for n := range racers {
		wg.Go(func() {
			<-start
			errs[n] = f(n)
		})
	}
	close(start)
	wg.Wait()
	return errs
}
