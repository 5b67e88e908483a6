package audit

import (
	"slices"
	"strconv"
)

// A record is written to the control table and then published to the bucket. A record that
// is damaged or deleted in between is lost: nothing can restore its bytes. The chain can
// continue, because the next record commits to the hash of the lost one, and a record of
// type [EventRecordLost] states the loss. A gap that such a record names is explained; any
// other gap is tampering.

// EventRecordLost is the type of a record that states that another record was lost before
// it was published. Its body has the number and, if known, the hash of the lost record.
const EventRecordLost = "audit_record_lost"

// Lost is a record whose loss the chain states.
type Lost struct {
	Seq  int64  `json:"seq"`
	Hash string `json:"hash"` // that the record after it commits to
	By   int64  `json:"by"`   // the record that states the loss
}

// Gaps collects the missing records of a chain, and what the chain states about them. Call
// [Gaps.Miss] or [Gaps.Meet] for every record, in order.
type Gaps struct {
	missing []missingRecord
	lost    map[int64]Lost
}

// missingRecord is a record that is not in the bucket. Its hash is known if the next
// record is there.
type missingRecord struct {
	seq   int64
	hash  string
	known bool
}

// Miss notes that a record is missing.
func (g *Gaps) Miss(seq int64) { g.missing = append(g.missing, missingRecord{seq: seq}) }

// Meet notes a record that is present.
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

// Explain separates the missing records whose loss the chain states from the others. A
// statement with another hash than the one that the next record commits to explains
// nothing.
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
	finding  int // index among the findings; beyond the end if the report is full
}

// noteGap notes a gap whose finding is added next.
func (v *verifier) noteGap(from, to int64) {
	for seq := from; seq <= to && seq-from < maxLost; seq++ {
		v.gaps.Miss(seq)
	}
	v.gapsFound = append(v.gapsFound, missedRecords{from, to, len(v.report.Findings)})
}

// maxLost bounds how many records of one gap are looked up, because the numbers in the
// keys, and so the length of a gap, are chosen by those who can write to the bucket.
const maxLost = 1000

// explainLost removes the finding of each gap that the chain explains completely. An
// anchor that covers a record, but not the statement of its loss, contradicts the
// statement: the signer had read the record from the bucket.
func (v *verifier) explainLost() {
	lost, _ := v.gaps.Explain()
	said := map[int64]Lost{}
	for _, l := range lost {
		if !slices.ContainsFunc(v.covered, func(seq int64) bool { return l.Seq <= seq && seq < l.By }) {
			said[l.Seq] = l
		}
	}
	for i := len(v.gapsFound) - 1; i >= 0; i-- {
		m := v.gapsFound[i]
		var explained []Lost
		for seq := m.from; seq <= m.to; seq++ {
			l, ok := said[seq]
			if !ok {
				break // before the end of the gap, which may be very long
			}
			explained = append(explained, l)
		}
		if int64(len(explained)) == m.to-m.from+1 && m.finding < len(v.report.Findings) {
			v.report.Findings = slices.Delete(v.report.Findings, m.finding, m.finding+1)
			v.report.Lost = append(explained, v.report.Lost...)
		}
	}
	if v.report.More == 0 {
		v.tampered = slices.ContainsFunc(v.report.Findings, func(f Finding) bool { return f.Kind.Tampering() })
	}
}
