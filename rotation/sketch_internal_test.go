package rotation

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/matter-ops/kms-rotation/source"
)

// TestSketch: the count of distinct data keys is within four standard errors for any number of
// them, and of few it is nearly exact.
func TestSketch(t *testing.T) {
	if n := Sketch(nil).Count(); n != 0 {
		t.Errorf("of nothing: %g", n)
	}
	random := rand.New(rand.NewPCG(5, 7))
	squares, tries := 0.0, 0
	for n := 1; n <= 3_000_000; n *= 3 {
		for range max(1, min(40, 300_000/n)) {
			var s Sketch
			for range n {
				s = s.addHash(random.Uint64())
			}
			off := s.Count()/float64(n) - 1
			if math.Abs(off) > 0.095 || n <= 9 && math.Abs(off) > 0.02 {
				t.Errorf("%d counted as %.1f", n, s.Count())
			}
			if n > 10000 {
				squares += off * off
				tries++
			}
		}
	}
	if deviation := math.Sqrt(squares / float64(tries)); deviation > 0.033 || tries < 20 {
		t.Errorf("the standard error of %d counts is %.3f", tries, deviation)
	}
}

// TestSketchEstimates: registers count as Ertl's algorithm 6 says, by figures that were worked
// out from the series of the paper (arXiv:1702.01284) in another language.
func TestSketchEstimates(t *testing.T) {
	for _, c := range []struct {
		registers map[byte]int // how many have each value
		want      float64
	}{
		{map[byte]int{0: 2047, 1: 1}, 1.000237827038294},
		{map[byte]int{0: 1024, 1: 1024}, 1295.045812952362},
		{map[byte]int{1: 2048}, 2954.639443740597},
		{map[byte]int{0: 100, 3: 948, 10: 1000}, 13483.888696751777},
		{map[byte]int{53: 2048}, 1.3306513097844322e19},
		{map[byte]int{53: 1024, 54: 1024}, 2.047377935994915e19},
		{map[byte]int{53: 1, 54: 2047}, 1.4064848999708575e20},
		{map[byte]int{1: 1, 54: 2047}, 6051101.580780484},
		{map[byte]int{0: 1, 54: 1047, 200: 1000}, 3024074.190960155}, // no hash has more than 53 zeros
		{map[byte]int{20: 1000, 30: 1048}, 3169276389.279721},
	} {
		var s Sketch
		for value, n := range c.registers {
			s = append(s, bytes.Repeat([]byte{value}, n)...)
		}
		if got := s.Count(); math.Abs(got/c.want-1) > 1e-12 {
			t.Errorf("%v count %v, want %v", c.registers, got, c.want)
		}
	}
	if n := make(Sketch, sketchSize).Count(); n != 0 {
		t.Errorf("empty registers count %g", n)
	}
}

// TestSketchMerges: segments that share data keys count each once, whatever their order, and a
// row is counted by what KMS would be asked about it.
func TestSketchMerges(t *testing.T) {
	row := func(n int) source.Row { return source.Row{KEK: "k", WrappedDEK: fmt.Append(nil, n)} }
	var whole, parts Sketch
	for segment := range 8 {
		var s Sketch
		for n := range 2000 {
			r := row(segment*1000 + n) // half of them are in the next segment too
			s = s.addRow(r)
			whole = whole.addRow(r)
		}
		kept := bytes.Clone(parts)
		if merged := s.merge(parts); !bytes.Equal(merged, parts.merge(s)) || !bytes.Equal(kept, parts) {
			t.Fatal("the order matters, or a merge changes what it merges")
		}
		parts = parts.merge(s)
	}
	if !bytes.Equal(whole, parts) || math.Abs(whole.Count()/9000-1) > 0.05 {
		t.Errorf("whole %.0f, of parts %.0f, want 9000", whole.Count(), parts.Count())
	}
	var one Sketch
	for range 100 {
		one = one.addRow(row(1))
	}
	other := row(1)
	other.Context = map[string]string{"a": "b"}
	if n := one.Count(); math.Round(n) != 1 {
		t.Errorf("one data key of 100 rows counts %.2f", n)
	}
	if n := one.addRow(other).Count(); math.Round(n) != 2 {
		t.Errorf("in another encryption context it counts %.2f", n)
	}
}

// TestSketchOfAnother: bytes that are not a sketch count nothing, and leave one as it is.
func TestSketchOfAnother(t *testing.T) {
	s := Sketch(nil).addHash(1)
	odd := Sketch{255, 3}
	if odd.Count() != 0 || !bytes.Equal(s.merge(odd), s) || !bytes.Equal(odd.merge(s), s) {
		t.Errorf("%v, %v", odd.Count(), s.merge(odd))
	}
	full := bytes.Repeat([]byte{255}, sketchSize)
	if n := Sketch(full).Count(); n < 1e18 {
		t.Errorf("a full one counts %g", n)
	}
}

// TestKeyedRowsAreNotRewrapped: what a census says of keyed rows makes no rotation longer that
// rewraps the records of their data keys.
func TestKeyedRowsAreNotRewrapped(t *testing.T) {
	var own Sketch
	for i := range 100 {
		own = own.addRow(source.Row{WrappedDEK: []byte{byte(i)}})
	}
	mixed := Tally{Scanned: 1_000_300, Keyed: 1_000_000, DataKeys: own}
	if got := mixed.countRewrapped(); got != 300 {
		t.Errorf("%d rows are rewrapped, want 300", got)
	}
	if s := mixed.Shares(); len(s) != 1 || s[0].Each < 2.8 || s[0].Each > 3.2 {
		t.Errorf("%+v, want 100 data keys of 3 rows each", s)
	}
	if s := (Tally{Scanned: 5, Keyed: 5}).Shares(); s != nil {
		t.Errorf("keyed rows alone share %+v", s)
	}
}
