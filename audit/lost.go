package audit

import (
	"strconv"
)

// A record is first in the control table and then in the bucket. One that is damaged or
// deleted in between is lost: nothing can bring its bytes back. The chain goes on, for the
// record after it commits to its hash, and a record of type [EventRecordLost] says that it
// is lost. So a gap that such a record names is explained, and any other is tampering.

// EventRecordLost is the type of the record that says that another was lost before it was
// in the bucket. Its body has the number and, if it is known, the hash.
const EventRecordLost = "audit_record_lost"

// Lost is a record that the chain says is lost.
type Lost struct {
	Seq  int64  `json:"seq"`
	Hash string `json:"hash"` // that the record after it commits to
	By   int64  `json:"by"`   // the record that says so
}

// Gaps are the records that are missing along a chain, and what the chain says of them.
// Records are told in order: each either missing or met.
type Gaps struct {
	missing []int64
	hashes  map[int64]string
	lost    map[int64]Lost
}

// Miss notes that a record is not there.
func (g *Gaps) Miss(seq int64) { g.missing = append(g.missing, seq) }

// Meet notes a record that is there.
func (g *Gaps) Meet(r Record) {
	if n := len(g.missing); n > 0 && g.missing[n-1] == r.Seq-1 {
		if g.hashes == nil {
			g.hashes = map[int64]string{}
		}
		g.hashes[r.Seq-1] = r.Prev
	}
	seq, err := strconv.ParseInt(r.Body["seq"], 10, 64)
	if r.Type != EventRecordLost || err != nil || seq >= r.Seq {
		return
	}
	if g.lost == nil {
		g.lost = map[int64]Lost{}
	}
	g.lost[seq] = Lost{Seq: seq, Hash: r.Body["hash"], By: r.Seq}
}

// Explain sorts the missing records: those that the chain says are lost, and the others.
// Of a record that is said to be lost with another hash than the next one commits to,
// nothing is explained.
func (g *Gaps) Explain() (lost []Lost, others []int64) {
	for _, seq := range g.missing {
		l, said := g.lost[seq]
		if hash, known := g.hashes[seq]; !said || known && hash != l.Hash {
			others = append(others, seq)
			continue
		}
		lost = append(lost, l)
	}
	return lost, others
}
