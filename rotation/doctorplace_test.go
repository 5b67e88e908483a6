package rotation_test

import (
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/rotation/doctor"
)

// misplaced are items of kinds that have one place, in other places, with what would
// mislead. No program of ours reads or writes them.
var misplaced = []struct {
	name, pk, sk string
	attributes   []string
}{
	{"POINTER", "POINTER", "copy", []string{"kek_id", "kek-0001"}},
	{"LOCK", "LOCK", "copy", []string{"rotation_id", "other"}},
	{"KEK#kek-0003", "KEK#kek-0003", "copy", []string{"state", "retired"}},
	{"KEK#kek-0003", "KEK#kek-0099", "copy", nil},
	{"KEK#kek-0003", "KEK#", "-", nil},
	{"ROTATION#" + spring, "ROTATION#" + spring, "copy", []string{"phase", "completed"}},
	{"ROTATION#" + spring, "ROTATION#other", "copy", nil},
	{"ROTATION#" + spring, "ROTATION#", "-", nil},
	{"REGISTRY", "REGISTRY", "copy", []string{"rev", "99"}},
	{"AUDIT_HEAD", "AUDIT_HEAD", "copy", []string{"seq", "3", "published_seq", "3"}},
	{"AUDIT_HEAD", "AUDIT_HEAD", "copied", []string{"hash", "-"}},
	{"ANCHOR", "ANCHOR", "copy", []string{"n", "99"}},
	{"AUDIT/000000000003", "AUDIT", "-00000000001", nil},
}

// TestDoctorMisplacedItems: an item under a key that is none of its kind counts for
// nothing, and is named.
func TestDoctorMisplacedItems(t *testing.T) {
	for _, m := range misplaced {
		what := doctor.ItemKey{PK: m.pk, SK: m.sk}.String()
		t.Run(what, func(t *testing.T) {
			c := patientAt(t, atSwitch).clone(t)
			c.copied(m.name, m.pk, m.sk)
			c.edit(what, m.attributes...)
			d := must(c.Doctor.ExamineTable(t.Context()))
			if len(d.Findings) > 0 || d.SetBack != "" || len(d.Notes) != 1 || !strings.HasPrefix(d.Notes[0].Text, "item "+what+" ") || !strings.HasSuffix(d.Notes[0].Text, ": it is left alone") {
				t.Errorf("doctor finds:%s", told(d))
			}
			if found := doctor.Inspect(must(c.table.Examine(t.Context()))); len(found) > 0 {
				t.Errorf("a look at the table alone finds %+v", found)
			}
			if done := must(c.Doctor.RepairTable(t.Context())); len(done.Repaired) > 0 {
				t.Errorf("it repairs %+v", done.Repaired)
			}
		})
	}
}

// TestDoctorMisplacedBesideDamage: what is lost is rebuilt as if they were not there.
func TestDoctorMisplacedBesideDamage(t *testing.T) {
	c := patientAt(t, atSwitch).clone(t)
	for _, m := range misplaced {
		c.copied(m.name, m.pk, m.sk)
		c.edit(doctor.ItemKey{PK: m.pk, SK: m.sk}.String(), m.attributes...)
	}
	c.drop("POINTER", "LOCK", "AUDIT_HEAD", "REGISTRY", "ANCHOR", "KEK#kek-0002")
	c.cured("POINTER", "LOCK", "AUDIT_HEAD", "REGISTRY", "ANCHOR", "KEK#kek-0002")
	for _, m := range misplaced {
		c.stored(doctor.ItemKey{PK: m.pk, SK: m.sk}.String())
	}
}
