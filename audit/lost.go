package audit

import (
	"slices"
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
	missing []missingRecord
	lost    map[int64]Lost
}

// missingRecord is a record that is not there, and its hash if the next one is.
type missingRecord struct {
	seq   int64
	hash  string
	known bool
}

// Miss notes that a record is not there.
func (g *Gaps) Miss(seq int64) { g.missing = append(g.missing, missingRecord{seq: seq}) }

// Meet notes a record that is there.
func (g *Gaps) Meet(r Record) {
	if n := len(g.missing); n > 0 && g.missing[n-1].seq == r.Seq-1 {
		g.missing[n-1].hash, g.missing[n-1].known = r.Prev, true
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
	for _, m := range g.missing {
		l, said := g.lost[m.seq]
		if !said || m.known && m.hash != l.Hash {
			others = append(others, m.seq)
			continue
		}
		lost = append(lost, l)
	}
	return lost, others
}

// missedRecords is a gap and the finding of it.
type missedRecords struct {
	from, to int64
	finding  int // index; beyond those that are listed if the report is full
}

// miss notes a gap that is about to be found.
func (v *verifier) miss(from, to int64) {
	for seq := from; seq <= to && seq-from < maxLost; seq++ {
		v.gaps.Miss(seq)
	}
	v.missed = append(v.missed, missedRecords{from, to, len(v.report.Findings)})
}

// maxLost is how many records of one gap are looked up.
const maxLost = 1000

// explainLost takes back the finding of each gap that the chain explains whole. An anchor
// that covers a record and not the one that says it is lost contradicts that: whoever made
// it has read the record from the bucket.
func (v *verifier) explainLost() {
	lost, _ := v.gaps.Explain()
	said := map[int64]Lost{}
	for _, l := range lost {
		if !slices.ContainsFunc(v.covered, func(seq int64) bool { return l.Seq <= seq && seq < l.By }) {
			said[l.Seq] = l
		}
	}
	for i := len(v.missed) - 1; i >= 0; i-- {
		m := v.missed[i]
		var explained []Lost
		for seq := m.from; seq <= m.to; seq++ {
			l, ok := said[seq]
			if !ok {
				break // the gap may be as long as numbers go
			}
			explained = append(explained, l)
		}
		if int64(len(explained)) == m.to-m.from+1 && m.finding < len(v.report.Findings) {
			v.report.Findings = slices.Delete(v.report.Findings, m.finding, m.finding+1)
			v.report.Lost = append(explained, v.report.Lost...)
		}
	}
	if v.report.More == 0 {
		v.changed = slices.ContainsFunc(v.report.Findings, func(f Finding) bool { return f.Kind.Tampering() })
	}
}
