package operate

import (
	"context"
	"fmt"

	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// ExamineRecords adds to a diagnosis of the control table what is wrong with the records of
// the key tables. With repair they are put back first. Which KEKs there are only a sound
// control table says, so without one a note says that the records were not examined.
func (d *Deployment) ExamineRecords(ctx context.Context, to *doctor.Diagnosis, repair bool) {
	all, err := d.Steps.PutBackRecords(ctx, d.Table, repair)
	AddRecords(to, all)
	if err != nil {
		to.Notes = append(to.Notes, doctor.Note{Text: "not all records of data keys were examined: " + err.Error(), Next: journal.Next{Do: journal.RepairTable}})
	}
}

// AddRecords adds what is wrong with records of data keys to a diagnosis, one finding for each
// key table and what can be done about it.
func AddRecords(to *doctor.Diagnosis, all []rotation.LostRecords) {
	for _, l := range all {
		item := "records of source " + l.Source
		if l.PutBack > 0 {
			to.Repaired = append(to.Repaired, doctor.Finding{
				Item: item, Fault: fmt.Sprintf("%d were missing or under a KEK that does not resolve", l.PutBack),
				From: "their copies in the audit bucket", Repair: "put them back under the pointer's KEK",
			})
		}
		if n := l.Missing + l.Stale - l.Lost - l.PutBack; n > 0 {
			to.Findings = append(to.Findings, doctor.Finding{
				Item: item, Fault: l.String(), From: "their copies in the audit bucket", Repair: fmt.Sprintf("put %d back under the pointer's KEK", n),
				Next: journal.Next{Do: journal.RepairTable},
			})
			continue
		}
		if l.Lost+l.Damaged > 0 {
			to.Findings = append(to.Findings, doctor.Finding{
				Item: item, Fault: l.String(),
				Next: journal.Next{Say: "restore them from a backup of the key table, beside it, and write back what the rows need; docs/runbook.md, lost data keys"},
			})
		}
	}
}
