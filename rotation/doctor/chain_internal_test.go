package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// hashes are what records are known by.
func hashes(records []audit.Entry) []string {
	var out []string
	for _, e := range records {
		out = append(out, e.Hash)
	}
	return out
}

// itemsOf are a control table's records.
func itemsOf(records ...audit.Entry) []Item {
	var out []Item
	for _, e := range records {
		out = append(out, Item{Key: ItemKey{"AUDIT", fmt.Sprintf("%012d", e.Record.Seq)}, Kind: ItemRecord, Value: e})
	}
	return out
}

// branchOf is a branch as these tests compare it.
func branchOf(b branch) string { return fmt.Sprint(b.fork, " ", hashes(b.records)) }

// branchesOf are the branches that a table's records and a bucket give.
func branchesOf(t *testing.T, bucket *shelf, items []Item) []string {
	t.Helper()
	s := Doctor{Journal: &journal.Journal{AuditBucket: bucket}}
	c, err := s.readChain(t.Context(), line, items)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, b := range c.branches {
		out = append(out, branchOf(b))
	}
	return out
}

// TestReadBucketIsBounded: all records are read, sixteen at once, and the first failure is
// told.
func TestReadBucketIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := chained(t, audit.Genesis(line), 0, make([]string, 50)...)
		var bucket shelf
		bucket.keep("", records...)
		s := Doctor{Journal: &journal.Journal{AuditBucket: &bucket}}
		c := &chainRead{at: audit.Line{Chain: line}, last: 50, bucket: map[int64]audit.Entry{}}
		if err := s.readBucket(t.Context(), c); err != nil || bucket.most.Load() != 16 || len(c.bucket) != 50 || c.bucket[50].Hash != records[49].Hash {
			t.Errorf("%d of 50 records, %d at once, %v", len(c.bucket), bucket.most.Load(), err)
		}
		bucket.broken = keyIn("", 50)
		var typed *journal.Error
		if err := s.readBucket(t.Context(), c); !errors.Is(err, errShelf) || !errors.As(err, &typed) || typed.Field != "audit bucket" {
			t.Error(err)
		}
	})
}

// TestReadChainOfAnother: a sound record of another chain ends the look, a damaged one is
// damage.
func TestReadChainOfAnother(t *testing.T) {
	e, err := audit.Next("other", audit.Genesis("other"), at(0), audit.Event{ID: "x", Type: "x"})
	if err != nil {
		t.Fatal(err)
	}
	s := Doctor{Journal: &journal.Journal{AuditBucket: &shelf{}}}
	var typed *journal.Error
	if _, err := s.readChain(t.Context(), line, itemsOf(e)); !errors.As(err, &typed) || typed.Kind != journal.Misconfigured || typed.Field != "AUDIT/000000000001" {
		t.Error(err)
	}
	damaged := itemsOf(e)
	damaged[0].Err = errShelf
	if c, err := s.readChain(t.Context(), line, damaged); err != nil || c.last != 1 || c.sound[1] || len(c.line) != 0 || c.gaps[1] != e.Hash {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestReadChainOfADamagedHead: what a damaged head says counts for nothing, and the outbox
// says which generations there are.
func TestReadChainOfADamagedHead(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, "a=1")
	s := Doctor{Journal: &journal.Journal{AuditBucket: &shelf{}}}
	head := itemOf(ItemHead, "", HeadItem{Head: audit.Head{Seq: 9, Hash: "h"}, Published: 1, Generations: audit.Generations("").With(audit.Generation{ID: generation(1), From: 1})})
	for _, tc := range []struct {
		head Item
		last int64
		said audit.Head
	}{
		{head, 9, audit.Head{Seq: 9, Hash: "h"}},
		{broken(head), 1, audit.Head{}},
	} {
		c, err := s.readChain(t.Context(), line, append(itemsOf(own...), tc.head))
		if err != nil || c.last != tc.last || c.tableHead != tc.said || (c.at.Generations == "") != (tc.last == 1) {
			t.Errorf("%v: %+v, %v", tc.head.Err, c, err)
		}
	}
}

// TestReadChainInAnyOrder: the chain is as long as the last of the table's records says,
// wherever that is among them.
func TestReadChainInAnyOrder(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, "a=1", "a=2", "a=3")
	s := Doctor{Journal: &journal.Journal{AuditBucket: &shelf{}}}
	if c, err := s.readChain(t.Context(), line, itemsOf(own[2], own[0], own[1])); err != nil || c.last != 3 || len(c.line) != 3 {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestFollow: which of the table's and the bucket's records are the chain, and where it
// forks. Records with a prime follow others than those without.
func TestFollow(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, "a=1", "a=2", "a=3", "a=4")
	other := append(slices.Clone(own[:1]), chained(t, own[0].Head(), 10, "b=2", "b=3", "b=4")...)
	third := chained(t, own[1].Head(), 20, "c=3")[0]
	none := audit.Entry{}
	for _, tc := range []struct {
		name          string
		table, bucket []audit.Entry
		want          []audit.Entry
		gaps          map[int64]string
		fork          int64
		damaged       int64 // a record of the table that is not sound
	}{
		{"the same", own, own, own, nil, 4, 0},
		{"the table alone", own, nil, own, nil, 4, 0},
		{"the bucket alone", nil, own, own, nil, 4, 0},
		{"each half", own[:2], []audit.Entry{none, none, own[2], own[3]}, own, nil, 4, 0},
		{"they differ from the second on", own, other, own, nil, 1, 0},
		{"they differ in the second, and again in the third", own, []audit.Entry{own[0], other[1], third, none}, own, nil, 1, 0},
		{"after a fork the bucket's do not count", own[:3], other, own[:3], map[int64]string{4: ""}, 1, 0},
		{"nor does one that follows the table's", own[:3], []audit.Entry{own[0], other[1], none, own[3]}, own[:3], map[int64]string{4: ""}, 1, 0},
		{"the bucket's does not follow", own[:2], []audit.Entry{none, none, other[2], none}, own[:2], map[int64]string{3: "", 4: ""}, 4, 0},
		{"the table's does not follow", []audit.Entry{own[0], own[1], other[2], own[3]}, own, own, nil, 4, 0},
		{"one is in neither", []audit.Entry{own[0], none, own[2], own[3]}, nil, []audit.Entry{own[0], own[2], own[3]}, map[int64]string{2: own[1].Hash}, 4, 0},
		{"one is in neither and the bucket says its hash", []audit.Entry{own[0]}, []audit.Entry{none, none, own[2], own[3]}, []audit.Entry{own[0], own[2], own[3]}, map[int64]string{2: own[1].Hash}, 4, 0},
		{"the last is in neither", own[:3], nil, own[:3], map[int64]string{4: ""}, 4, 0},
		{"the last is damaged, though it seems to follow", own, nil, own[:3], map[int64]string{4: own[3].Hash}, 4, 4},
		{"one is damaged, and the bucket has another", own[:2], []audit.Entry{own[0], other[1], other[2], other[3]}, other, nil, 4, 2},
	} {
		c := &chainRead{at: audit.Line{Chain: line}, last: 4, table: map[int64]audit.Entry{}, sound: map[int64]bool{}, bucket: map[int64]audit.Entry{}, gaps: map[int64]string{}}
		for i, e := range tc.table {
			if e.Bytes != nil {
				c.table[int64(i+1)], c.sound[int64(i+1)] = e, int64(i+1) != tc.damaged
			}
		}
		for i, e := range tc.bucket {
			if e.Bytes != nil {
				c.bucket[int64(i+1)] = e
			}
		}
		fork := c.followChain()
		if tc.gaps == nil {
			tc.gaps = map[int64]string{}
		}
		if d := cmp.Diff(hashes(tc.want), hashes(c.line)) + cmp.Diff(tc.gaps, c.gaps); d != "" || fork != tc.fork {
			t.Errorf("%s: it forks at %d, want %d (-want +got):\n%s", tc.name, fork, tc.fork, d)
		}
	}
}

// TestHashOfALostRecord: the next record says it, or the head, or what is left of it.
func TestHashOfALostRecord(t *testing.T) {
	next := chained(t, audit.Head{Seq: 4, Hash: strings.Repeat("a", 64)}, 0, "")[0]
	for want, c := range map[string]chainRead{
		next.Record.Prev: {table: map[int64]audit.Entry{5: next}, sound: map[int64]bool{5: true}, tableHead: audit.Head{Seq: 4, Hash: "said"}},
		"said":           {table: map[int64]audit.Entry{5: next, 4: {Hash: "left"}}, tableHead: audit.Head{Seq: 4, Hash: "said"}},
		"left":           {table: map[int64]audit.Entry{4: {Hash: "left"}}, tableHead: audit.Head{Seq: 5, Hash: "said"}},
		"":               {},
	} {
		if got := c.hashOf(4); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	stored := chainRead{bucket: map[int64]audit.Entry{5: next}, tableHead: audit.Head{Seq: 4, Hash: "said"}}
	if got := stored.hashOf(4); got != next.Record.Prev {
		t.Errorf("of the bucket: %q", got)
	}
}

// TestPublished: the chain's own bytes in the bucket, one after the other, past those that
// are declared lost.
func TestPublished(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, "a=1", "a=2", "a=3", "a=4")
	other := chained(t, own[1].Head(), 10, "b=3")[0]
	for _, tc := range []struct {
		name   string
		line   []audit.Entry
		bucket map[int64]audit.Entry
		lost   map[int64]bool
		want   int64
	}{
		{"none", own, nil, nil, 0},
		{"all", own, map[int64]audit.Entry{1: own[0], 2: own[1], 3: own[2], 4: own[3]}, nil, 4},
		{"a gap", own, map[int64]audit.Entry{1: own[0], 3: own[2], 4: own[3]}, nil, 1},
		{"another", own, map[int64]audit.Entry{1: own[0], 2: own[1], 3: other, 4: own[3]}, nil, 2},
		{"a lost one", []audit.Entry{own[0], own[2], own[3]}, map[int64]audit.Entry{1: own[0], 3: own[2], 4: own[3]}, map[int64]bool{2: true}, 4},
		{"one that is not declared lost", []audit.Entry{own[0], own[2], own[3]}, map[int64]audit.Entry{1: own[0], 3: own[2], 4: own[3]}, nil, 1},
		{"one that is declared lost and is there", own, map[int64]audit.Entry{1: own[0], 3: own[2], 4: own[3]}, map[int64]bool{2: true}, 1},
		{"the last is lost", own[:3], map[int64]audit.Entry{1: own[0], 2: own[1], 3: own[2]}, map[int64]bool{4: true}, 3},
	} {
		c := &chainRead{last: 4, line: tc.line, bucket: tc.bucket}
		if got := c.lastPublished(tc.lost); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

// TestForgottenGenerations: what generations that the table does not know hold, whatever
// others have put beside it.
func TestForgottenGenerations(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, "a=1", "a=2", "a=3", "a=4")
	forgotten := chained(t, own[1].Head(), 10, "b=3", "b=4", "b=5")
	after := chained(t, forgotten[1].Head(), 12, "c=5", "c=6") // from a generation of a generation, at the same time as its third
	early := chained(t, own[1].Head(), 2, "d=3")               // as old as the chain's own third
	before := chained(t, own[1].Head(), 1, "d=3")              // and older
	behind := chained(t, own[1].Head(), 0, "d=3")              // made by a clock that was behind
	anew := chained(t, audit.Genesis(line), 10, "e=1", "e=2")  // from the beginning
	apart := chained(t, audit.Head{Seq: 2, Hash: strings.Repeat("b", 64)}, 10, "b=3")
	g1, g2 := generation(1), generation(2)
	whole := fmt.Sprint("4 ", hashes(forgotten))
	for _, tc := range []struct {
		name string
		fill func(s *shelf)
		want []string
	}{
		{"none", func(*shelf) {}, nil},
		{"one", func(s *shelf) { s.keep(g1, forgotten...) }, []string{whole}},
		{"behind an object that is not a record", func(s *shelf) { s.keep(g1, forgotten...); s.objects[keyIn(g1, 2)] = []byte("{}") }, []string{whole}},
		{"behind copies of the chain's records", func(s *shelf) { s.keep(g1, own[:2]...); s.keep(g1, forgotten...) }, []string{whole}},
		{"copies alone", func(s *shelf) { s.keep(g1, own...) }, nil},
		{"no record", func(s *shelf) { s.objects[keyIn(g1, 3)] = []byte("{}") }, nil},
		{"one that follows nothing", func(s *shelf) { s.keep(g1, apart...) }, nil},
		{"its last two after a hole", func(s *shelf) { s.keep(g1, forgotten[0], forgotten[2]) }, []string{fmt.Sprint("4 ", hashes(forgotten[:1]))}},
		{"one that continues from it", func(s *shelf) { s.keep(g1, after...); s.keep(g2, forgotten[:2]...) }, []string{
			fmt.Sprint("4 ", hashes(forgotten[:2])), fmt.Sprint("4 ", hashes(after)),
		}},
		{"as old as the chain's", func(s *shelf) { s.keep(g1, early...) }, []string{fmt.Sprint("3 ", hashes(early))}},
		{"with a clock that was behind", func(s *shelf) { s.keep(g1, behind...) }, []string{fmt.Sprint("2 ", hashes(behind))}},
		{"from the beginning", func(s *shelf) { s.keep(g1, anew...) }, []string{fmt.Sprint("4 ", hashes(anew))}},
		{"of one moment", func(s *shelf) { s.keep(g1, chained(t, forgotten[0].Head(), 10, "f=4")...); s.keep(g2, forgotten[0]) }, []string{
			fmt.Sprint("4 ", hashes(forgotten[:1])), fmt.Sprint("4 ", hashes(chained(t, forgotten[0].Head(), 10, "f=4"))),
		}},
		{"older than the chain's", func(s *shelf) { s.keep(g1, before...) }, []string{fmt.Sprint("2 ", hashes(before))}},
	} {
		for range 8 { // maps have no order
			var bucket shelf
			bucket.keep("", own...)
			tc.fill(&bucket)
			if d := cmp.Diff(tc.want, branchesOf(t, &bucket, itemsOf(own...))); d != "" {
				t.Fatalf("%s (-want +got):\n%s", tc.name, d)
			}
		}
	}
	for _, broken := range []string{"Versions", keyIn(g1, 3), keyIn(g1, 4), keyIn("", 5)} {
		var bucket shelf
		bucket.keep("", own...)
		bucket.keep(g1, forgotten...)
		bucket.broken = broken
		s := Doctor{Journal: &journal.Journal{AuditBucket: &bucket}}
		if _, err := s.readChain(t.Context(), line, itemsOf(own...)); !errors.Is(err, errShelf) {
			t.Errorf("%s fails: %v", broken, err)
		}
	}
}

// TestForgottenTail: what continues under the chain's own keys, after a fork or the end, and
// in the place of a generation that the table knows.
func TestForgottenTail(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, "a=1", "a=2", "a=3", "a=4")
	other := chained(t, own[1].Head(), 10, "b=3", "b=4", "b=5")
	more := chained(t, own[3].Head(), 10, "b=5", "b=6")
	for _, tc := range []struct {
		name  string
		items []Item
		fill  func(s *shelf)
		want  []string
	}{
		{"nothing", itemsOf(own...), func(s *shelf) { s.keep("", own...) }, nil},
		{"after the end", itemsOf(own...), func(s *shelf) { s.keep("", own...); s.keep("", more...) }, []string{fmt.Sprint("4 ", hashes(more))}},
		{"after a fork", itemsOf(own...), func(s *shelf) { s.keep("", own[:2]...); s.keep("", other...) }, []string{fmt.Sprint("2 ", hashes(other))}},
		{"one that does not follow", itemsOf(own...), func(s *shelf) { s.keep("", own...); s.keep("", other[2]) }, nil},
		{
			"before a generation that the head says",
			append(itemsOf(own...), Item{Kind: ItemHead, Value: HeadItem{Head: own[3].Head(), Published: 4, Generations: audit.Generations("").With(audit.Generation{ID: generation(1), From: 3})}}),
			func(s *shelf) { s.keep("", own[:2]...); s.keep("", other...); s.keep(generation(1), own[2:]...) },
			[]string{fmt.Sprint("2 ", hashes(other))},
		},
		{
			"after the end, in a generation that the head says",
			append(itemsOf(own...), Item{Kind: ItemHead, Value: HeadItem{Head: own[3].Head(), Published: 4, Generations: audit.Generations("").With(audit.Generation{ID: generation(1), From: 3})}}),
			func(s *shelf) {
				s.keep("", own[:2]...)
				s.keep(generation(1), own[2:]...)
				s.keep(generation(1), more...)
			},
			[]string{fmt.Sprint("4 ", hashes(more))},
		},
	} {
		var bucket shelf
		tc.fill(&bucket)
		if d := cmp.Diff(tc.want, branchesOf(t, &bucket, tc.items)); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
	}
}

// TestBucketThatCannotBeListed: it shows no generation that the table has forgotten.
func TestBucketThatCannotBeListed(t *testing.T) {
	own := chained(t, audit.Genesis(line), 0, "a=1", "a=2")
	var bucket shelf
	bucket.keep("", own...)
	bucket.keep(generation(1), chained(t, own[1].Head(), 5, "b=3")...)
	s := Doctor{Journal: &journal.Journal{AuditBucket: struct{ journal.AuditBucket }{&bucket}}}
	if c, err := s.readChain(t.Context(), line, itemsOf(own...)); err != nil || len(c.branches) > 0 || len(c.line) != 2 {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestTell: the branches are heard where they left the chain, as far as they are believed.
func TestTell(t *testing.T) {
	pointed := func(id string) string { return "pointer=" + id + " epoch=1" }
	own := chained(t, audit.Genesis(line), 0, pointed("a1"), pointed("a2"), pointed("a3"))
	mid := chained(t, own[1].Head(), 5, pointed("b3"), pointed("b4"))
	lost := chained(t, audit.Genesis(line), 5, pointed("c1"))
	second := chained(t, own[0].Head(), 5, pointed("d2"))
	for _, tc := range []struct {
		name     string
		branches []branch
		upTo     int64
		want     kek.ID
	}{
		{"the chain", nil, 3, "a3"},
		{"a part of it", nil, 2, "a2"},
		{"nothing", nil, 0, ""},
		{"a branch from its beginning", []branch{{fork: 0, records: lost, believed: 1}}, 0, "c1"},
		{"and the chain after it", []branch{{fork: 0, records: lost, believed: 1}}, 1, "a1"},
		{"a branch after the first", []branch{{fork: 1, records: second, believed: 1}}, 1, "d2"},
		{"a branch of which nothing is believed", []branch{{fork: 2, records: mid}}, 2, "a2"},
		{"a part of it", []branch{{fork: 2, records: mid, believed: 1}}, 2, "b3"},
		{"all of it", []branch{{fork: 2, records: mid, believed: 2}}, 2, "b4"},
		{"before the chain went on", []branch{{fork: 2, records: mid, believed: 2}}, 3, "a3"},
		{"a later branch", []branch{{fork: 2, records: mid, believed: 2}}, 1, "a1"},
		{"after a gap at its fork", []branch{{fork: 5, records: mid, believed: 2}}, 5, "b4"},
	} {
		c := &chainRead{line: own, branches: tc.branches}
		got := kek.ID("")
		if p := c.replayRecords(tc.upTo).pointer; p != nil {
			got = p.KEKID
		}
		if got != tc.want {
			t.Errorf("%s, up to %d: the pointer is at %q, want %q", tc.name, tc.upTo, got, tc.want)
		}
	}
}

// TestProven: the records up to the last that an anchor covers.
func TestProven(t *testing.T) {
	b := branch{records: chained(t, audit.Genesis(line), 0, "", "", "")}
	for n := range 4 {
		heads := map[audit.Head]bool{{Seq: 9, Hash: "x"}: true}
		if n > 0 {
			heads[b.records[n-1].Head()], heads[b.records[0].Head()] = true, true
		}
		if got := b.countProven(heads); got != n {
			t.Errorf("%d, want %d", got, n)
		}
	}
}

// TestBelieve: beyond what an anchor covers, a record counts only if it, and those before
// it, leave the pointer at a KEK that is the deployment's own, enabled, usable and the
// newest such.
func TestBelieve(t *testing.T) {
	pointed := func(id string) string { return "pointer=" + id + " epoch=1 kek." + id + "=active" }
	records := chained(t, audit.Genesis(line), 0, pointed("a"), pointed("b"), pointed("c"))
	good := keyring.Key{Enabled: true, Usable: true}
	for _, tc := range []struct {
		name   string
		proven int
		known  map[kek.ID]keyring.Key
		ours   string
		want   int
	}{
		{"all agree", 0, map[kek.ID]keyring.Key{"a": {}, "b": {}, "c": good}, "a b c", 3},
		{"the last is not ours", 0, map[kek.ID]keyring.Key{"b": good, "c": {Usable: true}}, "a b", 2},
		{"the last is disabled", 0, map[kek.ID]keyring.Key{"b": good, "c": {Usable: true}}, "a b c", 2},
		{"the last is not usable", 0, map[kek.ID]keyring.Key{"b": good, "c": {Enabled: true}}, "a b c", 2},
		{"KMS knows the last alone, disabled", 0, map[kek.ID]keyring.Key{"c": {}}, "a b c", 0},
		{"an earlier one while a later is enabled is the chain's word", 0, map[kek.ID]keyring.Key{"a": good, "b": {Enabled: true}}, "a b c", 1},
		{"none", 0, nil, "a b c", 0},
		{"none, but an anchor covers two", 2, nil, "", 2},
		{"one, and an anchor covers two", 2, map[kek.ID]keyring.Key{"a": good}, "a", 2},
	} {
		c := &chainRead{branches: []branch{{records: records}}}
		k := keys{known: tc.known, ours: map[kek.ID]bool{}}
		for _, id := range strings.Fields(tc.ours) {
			k.ours[kek.ID(id)] = true
		}
		proven := map[audit.Head]bool{}
		if tc.proven > 0 {
			proven[records[tc.proven-1].Head()] = true
		}
		if c.believeBranches(proven, k); c.branches[0].believed != tc.want {
			t.Errorf("%s: %d believed, want %d", tc.name, c.branches[0].believed, tc.want)
		}
	}
	c := &chainRead{branches: []branch{{records: chained(t, audit.Genesis(line), 0, "x=1", "x=2")}}}
	if c.believeBranches(nil, keys{}); c.branches[0].believed != 0 {
		t.Errorf("of records that tell of no pointer %d are believed", c.branches[0].believed)
	}
}

// TestInUse: a KEK that forgotten records call active may have rows under it until a record
// of a retirement, forgotten or not, retires it.
func TestInUse(t *testing.T) {
	for _, tc := range []struct {
		name            string
		line, forgotten []audit.Record
		want            []kek.ID
	}{
		{"the chain's own records", []audit.Record{record(1, "x", "", "kek.a", "active")}, nil, nil},
		{"a forgotten switch", nil, []audit.Record{record(1, "x", "", "kek.a", "active", "kek.b", "draining")}, []kek.ID{"a"}},
		{"a field that is not a KEK", nil, []audit.Record{record(1, "x", "", "a", "active")}, nil},
		{"retired in the chain", []audit.Record{record(2, kek.EventOldKEKRetired, "", "kek.a", "retired")}, []audit.Record{record(1, "x", "", "kek.a", "active")}, nil},
		{"and in forgotten records", nil, []audit.Record{record(1, "x", "", "kek.a", "active"), record(2, kek.EventOldKEKRetired, "", "kek.a", "retired")}, nil},
		{"retired without its rows moved", nil, []audit.Record{record(1, "x", "", "kek.a", "active"), record(2, "x", "", "kek.a", "retired")}, []kek.ID{"a"}},
		{"not what the retirement retires", nil, []audit.Record{record(1, "x", "", "kek.a", "active"), record(2, kek.EventOldKEKRetired, "", "kek.a", "active", "kek.b", "retired")}, []kek.ID{"a"}},
		{"a retirement with a field of its name", nil, []audit.Record{record(1, "x", "", "kek.a", "active"), record(2, kek.EventOldKEKRetired, "", "a", "retired")}, []kek.ID{"a"}},
		{"of two the one that is not retired", nil, []audit.Record{record(1, "x", "", "kek.a", "active", "kek.b", "active"), record(2, kek.EventOldKEKRetired, "", "kek.b", "retired")}, []kek.ID{"a"}},
	} {
		entries := func(records []audit.Record) (out []audit.Entry) {
			for _, r := range records {
				out = append(out, audit.Entry{Record: r})
			}
			return out
		}
		c := &chainRead{line: entries(tc.line), branches: []branch{{records: entries(tc.forgotten)}}}
		if d := cmp.Diff(tc.want, slices.Sorted(maps.Keys(c.inUse()))); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
	}
}

// TestForget: a branch is history once a repair has named its last record.
func TestForget(t *testing.T) {
	one, two := branch{records: chained(t, audit.Genesis(line), 0, "a=1", "a=2")}, branch{records: chained(t, audit.Genesis(line), 5, "a=3")}
	for _, tc := range []struct {
		event, forgotten string
		left             []branch
	}{
		{EventRepaired, "", []branch{one, two}},
		{EventRepaired, one.tipHash(), []branch{two}},
		{EventRepaired, one.records[0].Hash, []branch{one, two}},
		{EventRepaired, one.tipHash() + "," + two.tipHash(), nil},
		{"x", one.tipHash(), []branch{one, two}},
	} {
		e := audit.Entry{Record: audit.Record{Type: tc.event, Body: map[string]string{audit.BodyForgotten: tc.forgotten}}}
		c := &chainRead{line: []audit.Entry{{Record: audit.Record{Type: "x"}}, e, {Record: audit.Record{Type: "x"}}}, branches: []branch{one, two}}
		c.forgetKnown()
		var want, got []string
		for _, b := range tc.left {
			want = append(want, branchOf(b))
		}
		for _, b := range c.branches {
			got = append(got, branchOf(b))
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s %q (-want +got):\n%s", tc.event, tc.forgotten, d)
		}
	}
}

// TestBegun: a generation begins once, whatever repeats its record.
func TestBegun(t *testing.T) {
	c := chainRead{last: 5, table: map[int64]audit.Entry{}}
	first, second := audit.Generation{ID: generation(1), From: 2}, audit.Generation{ID: generation(2), From: 4}
	taken := audit.Taken{Key: "k", Version: "v", SHA256: strings.Repeat("0", 64)}
	other := audit.Generation{ID: generation(3), From: 5}.Event(audit.OfRecords, "", taken)
	other.Type = "x" // it says the same and is another record
	for seq, ev := range map[int64]audit.Event{
		5: other,
		1: first.Event(audit.OfRecords, "", taken), 2: first.Event(audit.OfRecords, "", taken),
		3: first.Event(audit.OfAnchors, "", taken), 4: second.Event(audit.OfRecords, audit.Generations("").With(first), taken),
	} {
		e, err := audit.Next(line, audit.Head{Seq: seq - 1, Hash: strings.Repeat("0", 64)}, at(0), ev)
		if err != nil {
			t.Fatal(err)
		}
		c.table[seq] = e
	}
	if got, want := c.begunGenerations(audit.OfRecords), audit.Generations("").With(first).With(second); got != want {
		t.Errorf("records: %q, want %q", got, want)
	}
	if got, want := c.begunGenerations(audit.OfAnchors), audit.Generations("").With(first); got != want {
		t.Errorf("anchors: %q, want %q", got, want)
	}
	c.last = 1
	if got, want := c.begunGenerations(audit.OfRecords), audit.Generations("").With(first); got != want {
		t.Errorf("the first record: %q, want %q", got, want)
	}
}

// TestCountAnchors: the last anchor of a place is found with few reads.
func TestCountAnchors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		later := audit.Generations("").With(audit.Generation{ID: generation(1), From: 4})
		for n := range int64(70) {
			for _, places := range []audit.Generations{"", later} {
				bucket := shelf{objects: map[string][]byte{}}
				for i := places.Last().From; i <= n; i++ {
					bucket.objects[places.AnchorKeyIn(line, i)] = []byte("x")
				}
				s := Doctor{Anchor: &anchor.Anchor{Objects: &bucket}}
				got, err := s.countAnchors(t.Context(), line, places)
				if want := max(n, places.Last().From-1); err != nil || got != want {
					t.Errorf("%q: %d, %v, want %d", places, got, err, want)
				}
				if bucket.reads > 14 {
					t.Errorf("%q: %d reads for %d anchors", places, bucket.reads, n)
				}
				for _, broken := range []int64{places.Last().From, n + 1} {
					if bucket.broken = places.AnchorKeyIn(line, broken); broken >= places.Last().From {
						if _, err := s.countAnchors(t.Context(), line, places); !errors.Is(err, errShelf) {
							t.Errorf("%q: anchor %d of %d cannot be read: %v", places, broken, n, err)
						}
					}
				}
			}
		}
	})
}

// describer is KMS as far as describeKeys asks it.
type describer struct {
	keyring.Admin
	keys   map[kek.ID]keyring.Key
	tagged map[string][]kek.ID
	broken string
}

func (d describer) Describe(_ context.Context, id kek.ID) (keyring.Key, error) {
	if d.broken == string(id) {
		return keyring.Key{}, errShelf
	}
	k, ok := d.keys[id]
	if !ok {
		return keyring.Key{}, fmt.Errorf("%s: %w", id, journal.ErrNoKey)
	}
	return k, nil
}

func (d describer) Tagged(_ context.Context, rotation string) ([]kek.ID, error) {
	if d.broken == rotation {
		return nil, errShelf
	}
	return d.tagged[rotation], nil
}

// TestDescribeKeys: KMS is asked for every KEK that anything names. The deployment's own
// are those of the registry, of the chain, of records that an anchor covers, and those
// that records name and that carry their rotation's tag.
func TestDescribeKeys(t *testing.T) {
	started := func(rotation string, keks ...string) audit.Record {
		r := record(0, "x", rotation, "phase", "minted")
		for _, k := range keks {
			r.Body["kek."+k] = "pending"
		}
		return r
	}
	entry := func(hash string, r audit.Record) audit.Entry {
		return audit.Entry{Record: r, Hash: hash, Bytes: []byte(hash)}
	}
	c := &chainRead{
		line: []audit.Entry{entry("1", started("r1", "chain1")), entry("2", started("r2", "chain2"))},
		branches: []branch{{records: []audit.Entry{
			entry("3", started("r3", "proven")), entry("4", started("r4", "named1", "named2", "tagged")),
		}}},
	}
	proven := map[audit.Head]bool{c.branches[0].records[0].Head(): true}
	items := []Item{{Kind: ItemKEK, ID: "listed"}, {Kind: ItemSource, ID: "source"}}
	kms := describer{keys: map[kek.ID]keyring.Key{}, tagged: map[string][]kek.ID{"r1": {"chain1", "stray2", "listed"}, "r4": {"tagged", "stray1"}, "r5": {"x"}}}
	names := []kek.ID{"chain1", "chain2", "listed", "named1", "named2", "proven", "tagged"}
	for _, id := range append(slices.Clone(names), "stray1", "stray2", "x", "source") {
		kms.keys[id] = keyring.Key{ID: id, Enabled: true}
	}
	s := Doctor{Keys: kms}
	for range 3 { // maps have no order
		k, notes, err := s.describeKeys(t.Context(), items, c, proven)
		if err != nil {
			t.Fatal(err)
		}
		ours := []kek.ID{"chain1", "chain2", "listed", "proven", "tagged"}
		if d := cmp.Diff(names, slices.Sorted(maps.Keys(k.known))) + cmp.Diff(ours, slices.Sorted(maps.Keys(k.ours))); d != "" {
			t.Errorf("known and ours (-want +got):\n%s", d)
		}
		if len(notes) != 2 || !strings.Contains(notes[0].Text, "stray1 carries the tag of rotation r4") || !strings.Contains(notes[1].Text, "stray2 carries the tag of rotation r1") {
			t.Errorf("notes %q", notes)
		}
	}
	delete(kms.keys, "named1")
	if k, _, err := s.describeKeys(t.Context(), items, c, proven); err != nil || len(k.known) != len(names)-1 {
		t.Errorf("without one: %v, %v", k.known, err)
	}
	for _, broken := range []string{"named2", "listed", "r1", "r4"} {
		kms.broken = broken
		s.Keys = kms
		var typed *journal.Error
		if _, _, err := s.describeKeys(t.Context(), items, c, proven); !errors.Is(err, errShelf) || !errors.As(err, &typed) {
			t.Errorf("%s cannot be asked for: %v", broken, err)
		}
	}
}
