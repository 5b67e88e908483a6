package audit_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
)

// lost is the event that says that a record is lost.
func lost(seq int64, hash string) audit.Event {
	return audit.Event{ID: fmt.Sprint("lost ", seq), Type: audit.EventRecordLost, Body: map[string]string{"seq": fmt.Sprint(seq), "hash": hash}}
}

// lose appends records that never come into the bucket.
func lose(w *audittest.World, n int) (hashes []string) {
	w.T.Helper()
	for range n {
		e := w.Append(audit.Event{ID: "damaged"})
		w.Bucket.Remove(record(e.Record.Seq))
		hashes = append(hashes, e.Hash)
	}
	return hashes
}

// TestLost: a gap is explained, whole, by records that name what is lost and by no other,
// and not against an anchor whose maker has read it.
func TestLost(t *testing.T) {
	other := audit.Event{ID: "other"}
	missing := func(seq int64, detail string) audit.Finding {
		return audit.Finding{Kind: audit.MissingRecord, Object: record(seq), Detail: detail}
	}
	for name, c := range map[string]struct {
		build func(w *audittest.World) (lost []audit.Lost)
		found []audit.Finding
	}{
		"one, anchored": {func(w *audittest.World) []audit.Lost {
			h := lose(w, 1)
			w.Append(other)
			w.Append(lost(11, h[0]))
			w.Anchor() // of record 13
			return []audit.Lost{{Seq: 11, Hash: h[0], By: 13}}
		}, nil},
		"one, with an anchor right before": {func(w *audittest.World) []audit.Lost {
			w.Anchor() // of record 10
			h := lose(w, 1)
			w.Append(lost(11, h[0]))
			return []audit.Lost{{Seq: 11, Hash: h[0], By: 12}}
		}, nil},
		"two gaps, of one and of three": {func(w *audittest.World) []audit.Lost {
			one := lose(w, 1)
			w.Append(other)
			three := lose(w, 3)
			w.Append(lost(11, one[0]))
			w.Append(lost(13, ""))
			w.Append(lost(15, three[2]))
			w.Append(lost(14, three[1]))
			return []audit.Lost{{Seq: 11, Hash: one[0], By: 16}, {Seq: 13, By: 17}, {Seq: 14, Hash: three[1], By: 19}, {Seq: 15, Hash: three[2], By: 18}}
		}, nil},
		"one of two gaps": {func(w *audittest.World) []audit.Lost {
			lose(w, 1)
			w.Append(other)
			h := lose(w, 1)
			w.Append(other)
			w.Append(lost(13, h[0]))
			w.Append(other)
			lose(w, 1)
			w.Append(other)
			return []audit.Lost{{Seq: 13, Hash: h[0], By: 15}}
		}, []audit.Finding{missing(11, "number 11 is not there"), missing(17, "number 17 is not there")}},
		"the first of two": {func(w *audittest.World) []audit.Lost {
			h := lose(w, 2)
			w.Append(lost(11, h[0]))
			return nil
		}, []audit.Finding{missing(11, "numbers 11 to 12 are not there")}},
		"the last of two": {func(w *audittest.World) []audit.Lost {
			h := lose(w, 2)
			w.Append(lost(12, h[1]))
			return nil
		}, []audit.Finding{missing(11, "numbers 11 to 12 are not there")}},
		"another hash": {func(w *audittest.World) []audit.Lost {
			lose(w, 1)
			w.Append(lost(11, audit.Genesis("other").Hash))
			return nil
		}, []audit.Finding{missing(11, "number 11 is not there")}},
		"with an anchor of it": {func(w *audittest.World) []audit.Lost {
			h := lose(w, 1)
			w.Anchor() // of record 11
			w.Append(other)
			w.Append(lost(11, h[0]))
			return nil
		}, []audit.Finding{missing(11, "number 11 is not there")}},
		"with an anchor before the record that names it": {func(w *audittest.World) []audit.Lost {
			h := lose(w, 1)
			w.Append(other)
			w.Anchor() // of record 12
			w.Append(lost(11, h[0]))
			w.Anchor()
			return nil
		}, []audit.Finding{missing(11, "number 11 is not there")}},
		"beside a record that is forged far ahead": {func(w *audittest.World) []audit.Lost {
			h := lose(w, 1)
			e := w.Append(lost(11, h[0]))
			w.Plant(record(999_999_999_999), string(e.Bytes))
			return []audit.Lost{{Seq: 11, Hash: h[0], By: 12}}
		}, []audit.Finding{
			missing(13, "numbers 13 to 999999999998 are not there"),
			{Kind: audit.MisplacedRecord, Object: record(999_999_999_999), Detail: "it is record 12"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := audittest.New(t)
			want := c.build(w)
			r := verified(t, w, false)
			if d := cmp.Diff(want, r.Lost); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(append([]audit.Finding{}, c.found...), r.Findings); d != "" {
				t.Error(d)
			}
			if (r.Result == audit.Green) != (len(c.found) == 0) {
				t.Error(r)
			}
			if n := len(want); n > 0 && !strings.Contains(r.String(), fmt.Sprintf("%d lost before", n)) {
				t.Error(r)
			}
		})
	}
}

// TestManyLost: a thousand records of one gap are looked up, wherever it begins.
func TestManyLost(t *testing.T) {
	w := audittest.New(t)
	hashes := lose(w, 1000)
	first := w.Head.Seq + 1
	for i, h := range hashes {
		w.Append(lost(11+int64(i), h))
	}
	late := lose(w, 2)
	w.Append(lost(w.Head.Seq-1, late[0]))
	w.Append(lost(w.Head.Seq-1, late[1]))
	w.Anchor()
	r := verified(t, w, false)
	if r.Result != audit.Green || len(r.Lost) != 1002 || r.Lost[0] != (audit.Lost{Seq: 11, Hash: hashes[0], By: first}) {
		t.Errorf("%s %v", r, r.Findings)
	}
	w = audittest.New(t)
	for i, h := range lose(w, 1001) {
		w.Append(lost(11+int64(i), h))
	}
	w.Anchor()
	r = verified(t, w, false)
	audittest.MustFind(t, r, audit.MissingRecord, record(11))
	if len(r.Findings) != 1 || len(r.Lost) != 0 {
		t.Errorf("%s %v", r, r.Findings)
	}
}

// TestLostRecordIsNoAnchor: a record that is said to be lost explains no gap of anchors.
func TestLostRecordIsNoAnchor(t *testing.T) {
	w := audittest.New(t)
	w.Append(lost(1, w.Entries[0].Hash))
	w.Bucket.Remove(anchor(1), anchor(3))
	w.Bucket.Replace(anchor(2), []byte("{}"))
	r := verified(t, w, false)
	audittest.MustFind(t, r, audit.MissingAnchor, anchor(1))
	if len(r.Lost) != 0 {
		t.Errorf("%v", r.Lost)
	}
}

// TestLostInAFullReport: when more is found than a report lists, what is taken back does
// not make it green.
func TestLostInAFullReport(t *testing.T) {
	for _, gaps := range []int{199, 200, 201} {
		w := audittest.New(t)
		var all []audit.Event
		for range gaps {
			seq := w.Head.Seq + 1
			all = append(all, lost(seq, lose(w, 1)[0]))
			w.Append(audit.Event{ID: "between"})
		}
		for _, ev := range all {
			w.Append(ev)
		}
		if gaps < 201 {
			lose(w, 1)
			w.Append(audit.Event{ID: "last"})
		}
		w.Anchor()
		r := verified(t, w, false)
		if r.Result != audit.Tampered || len(r.Lost) != min(gaps, 200) || len(r.Findings)+r.More != 1 {
			t.Errorf("%d gaps: %s, %d lost, %d more, %v", gaps, r, len(r.Lost), r.More, r.Findings)
		}
	}
}

// TestGaps: a missing record is explained by a later record that names it, with the hash
// that the one after it commits to. Anything else is a gap.
func TestGaps(t *testing.T) {
	says := func(seq int64, of, hash string) audit.Record {
		return audit.Record{Seq: seq, Type: audit.EventRecordLost, Body: map[string]string{"seq": of, "hash": hash}}
	}
	after := func(seq int64, prev string) audit.Record { return audit.Record{Seq: seq, Prev: prev} }
	for name, c := range map[string]struct {
		missing []int64
		met     []audit.Record
		lost    []audit.Lost
		others  []int64
	}{
		"named":        {[]int64{2}, []audit.Record{after(3, "h2"), says(4, "2", "h2")}, []audit.Lost{{Seq: 2, Hash: "h2", By: 4}}, nil},
		"not named":    {[]int64{2}, []audit.Record{after(3, "h2")}, nil, []int64{2}},
		"another hash": {[]int64{2}, []audit.Record{after(3, "h2"), says(4, "2", "h9")}, nil, []int64{2}},
		"two, the first's hash is unknown": {
			[]int64{2, 3},
			[]audit.Record{after(4, "h3"), says(5, "2", ""), says(6, "3", "h3")},
			[]audit.Lost{{Seq: 2, By: 5}, {Seq: 3, Hash: "h3", By: 6}},
			nil,
		},
		"named beforehand": {[]int64{5}, []audit.Record{says(4, "5", "h5"), after(6, "h5")}, nil, []int64{5}},
		"of another type":  {[]int64{2}, []audit.Record{after(3, "h2"), {Seq: 4, Type: "other", Body: map[string]string{"seq": "2", "hash": "h2"}}}, nil, []int64{2}},
		"two, the first's hash is told": {
			[]int64{2, 3},
			[]audit.Record{after(4, "h3"), says(5, "2", "h2"), says(6, "3", "h3")},
			[]audit.Lost{{Seq: 2, Hash: "h2", By: 5}, {Seq: 3, Hash: "h3", By: 6}},
			nil,
		},
		"the second of two":               {[]int64{2, 3}, []audit.Record{after(4, "h3"), says(5, "3", "h3")}, []audit.Lost{{Seq: 3, Hash: "h3", By: 5}}, []int64{2}},
		"the next does not commit to any": {[]int64{2}, []audit.Record{after(3, ""), says(4, "2", "h2")}, nil, []int64{2}},
		"more that follow":                {[]int64{2}, []audit.Record{after(3, "h2"), says(4, "2", "h2"), after(5, "h4")}, []audit.Lost{{Seq: 2, Hash: "h2", By: 4}}, nil},
		"with no number at all":           {[]int64{2}, []audit.Record{after(3, "h2"), says(4, "two", "h2")}, nil, []int64{2}},
	} {
		var g audit.Gaps
		missing := c.missing
		for _, r := range c.met {
			for len(missing) > 0 && missing[0] < r.Seq {
				g.Miss(missing[0])
				missing = missing[1:]
			}
			g.Meet(r)
		}
		if lost, others := g.Explain(); !slices.Equal(lost, c.lost) || !slices.Equal(others, c.others) {
			t.Errorf("%s: %+v, %v", name, lost, others)
		}
	}
}
