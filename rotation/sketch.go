package rotation

import (
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/matter-ops/kms-rotation/source"
)

// Sketch says about how many distinct data keys rows have, to within 5 % in 97 of 100 cases, in
// so little that each checkpoint of a census has one. Two sketches of different rows, of one
// segment each or of one source each, merge into that of all of these rows. It is a HyperLogLog
// (Flajolet and others, 2007) with 64-bit hashes and Ertl's estimator (arXiv:1702.01284,
// algorithm 6), which needs no tables of corrections. nil is a sketch of no rows.
//
// There are libraries. But the bytes of a sketch are stored under the MAC of a checkpoint, so
// their format must not change with a library's release, and they are changed with each row.
//
//	register i  B  the most leading zeros plus one of the hashes that begin with i; 0: none does
type Sketch []byte

const (
	sketchBits = 11              // of a hash that choose the register; the standard error is 1.04/√2048
	sketchSize = 1 << sketchBits // registers
	sketchRest = 64 - sketchBits // bits of a hash of which the zeros are counted
)

// addRow adds the data key of a row. The sketch is changed in place if it is not nil.
func (s Sketch) addRow(row source.Row) Sketch {
	key := resultKey("counted", row)
	return s.addHash(binary.BigEndian.Uint64(key[:]))
}

func (s Sketch) addHash(hash uint64) Sketch {
	if s == nil {
		s = make(Sketch, sketchSize)
	}
	zeros := bits.LeadingZeros64(hash<<sketchBits | 1<<(sketchBits-1)) // sketchRest at most
	at := hash >> sketchRest
	s[at] = max(s[at], byte(zeros+1)) //nolint:gosec // 54 at most
	return s
}

// merge returns the sketch of the rows of both. It changes neither.
func (s Sketch) merge(o Sketch) Sketch {
	if len(s) != sketchSize || len(o) != sketchSize {
		if len(s) != sketchSize {
			return o
		}
		return s
	}
	out := make(Sketch, sketchSize)
	for i := range out {
		out[i] = max(s[i], o[i])
	}
	return out
}

// Count returns about how many distinct data keys were added.
func (s Sketch) Count() float64 {
	if len(s) != sketchSize {
		return 0
	}
	var have [sketchRest + 2]float64 // registers by their value
	for _, value := range s {
		have[min(int(value), sketchRest+1)]++
	}
	z := sketchSize * sketchTau(1-have[sketchRest+1]/sketchSize)
	for k := sketchRest; k >= 1; k-- {
		z = (z + have[k]) / 2
	}
	z += sketchSize * sketchSigma(have[0]/sketchSize)
	return sketchSize / (2 * math.Ln2) * sketchSize / z
}

// sketchSigma corrects for registers that no hash has reached, sketchTau for full ones.
func sketchSigma(x float64) float64 {
	if x == 1 {
		return math.Inf(1)
	}
	z, y := x, 1.0
	for before := -1.0; z != before; y *= 2 {
		x *= x
		before = z
		z += x * y
	}
	return z
}

func sketchTau(x float64) float64 {
	if x == 0 || x == 1 {
		return 0
	}
	z, y := 1-x, 1.0
	for before := -1.0; z != before; {
		x = math.Sqrt(x)
		before = z
		y /= 2
		z -= (1 - x) * (1 - x) * y
	}
	return z / 3
}
