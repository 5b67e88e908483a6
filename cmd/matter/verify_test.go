package main

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// TestDescribeInspection: what an inspection finds, as sentences and as an exit code.
func TestDescribeInspection(t *testing.T) {
	sound := func() rotation.Inspection {
		return rotation.Inspection{
			Rows: rotation.RowInspection{
				Pointer: "new", Sources: 2, Tally: rotation.Tally{Scanned: 7, Other: 1, Declared: 2}, Proof: rotation.RowProof{Unwrapped: 5},
			},
			OldKEKs: []rotation.OldKEK{{ID: "old", Registered: kek.Retired, Key: keyring.Key{State: "Disabled"}, Tried: true}},
			Chain:   rotation.ChainInspection{Chain: "c", Records: 9, Completion: audit.Record{Seq: 8, Time: "noon"}},
			Anchor: &rotation.AnchorInspection{Completion: 8, Report: audit.Report{
				Result: audit.Green, Records: 9, Anchored: 9, LogIndex: 3, Log: "log", AnchorAt: time.Date(2026, 4, 1, 2, 0, 0, 0, time.UTC),
			}},
		}
	}
	const (
		rows   = "every item of 2 sources was classified: 7 rows, 0 of them under another KEK, 0 orphaned, 0 unaccounted; 3 other items; a sample of 5 data keys was unwrapped"
		dead   = "registry retired; KMS Disabled; a data key wrapped under it does not unwrap any more"
		record = "record 8 of 9 of chain c, at noon; the chain in the locked bucket verifies"
		anchor = "records up to 9 are at log index 3 of log, anchored 2026-04-01T02:00:00Z"
	)
	for name, c := range map[string]struct {
		change func(*rotation.Inspection)
		exit   int
		seen   []string
		text   string // of the expectation that differs; "" for none
	}{
		"all is true": {func(*rotation.Inspection) {}, console.ExitDone, []string{rows, dead, record, anchor}, ""},
		"no pointer": {
			func(i *rotation.Inspection) { i.Rows = rotation.RowInspection{} },
			console.ExitFailed,
			[]string{"there is no pointer", dead, record, anchor},
			"every row's KEK id resolves to the new KEK",
		},
		"a later rotation": {
			func(i *rotation.Inspection) { i.Rows.Pointer, i.Rows.Later = "newer", true },
			console.ExitDone,
			[]string{rows, dead, record, anchor},
			"every row's KEK id resolves to an active KEK (a later rotation has moved the pointer to newer)",
		},
		"orphans": {
			func(i *rotation.Inspection) {
				i.Rows.Elsewhere, i.Rows.Orphaned, i.Rows.Unaccounted, i.Rows.Tally.Poison = 1, 2, 3, []string{"row a", "row b"}
				i.Rows.Proof = rotation.RowProof{Deep: true, Unwrapped: 6, Wrong: 4, First: "row c"}
			},
			console.ExitOrphans,
			[]string{
				"every item of 2 sources was classified: 7 rows, 1 of them under another KEK, 2 orphaned, 3 unaccounted (first: row a); 3 other items; " +
					"every distinct data key, 6, was unwrapped, but 4 rows are not under the KEK that they name (first: row c)", dead, record, anchor,
			},
			"",
		},
		"leftover old KEKs": { // of a rotation that an emergency ended: one still unwraps
			func(i *rotation.Inspection) {
				i.OldKEKs = append(i.OldKEKs,
					rotation.OldKEK{ID: "left", Registered: kek.Retired, Key: keyring.Key{State: "Enabled", Enabled: true}, Tried: true, Unwraps: true},
					rotation.OldKEK{ID: "lost", Failure: errors.New("no answer"), Tried: true})
			},
			console.ExitFailed,
			[]string{
				rows, "old: " + dead + "; left: registry retired; KMS Enabled; a data key wrapped under it still unwraps; " +
					"lost: registry has no entry; KMS ; its answer to Decrypt: no answer", record, anchor,
			},
			"the 3 old KEKs are inactive",
		},
		"an emergency without probes": {
			func(i *rotation.Inspection) { i.OldKEKs[0].Tried = false },
			console.ExitDone,
			[]string{rows, "registry retired; KMS Disabled; Decrypt was not tried, because the emergency could wrap no data key under it", record, anchor},
			"the old KEK is inactive",
		},
		"a chain that was changed": {
			func(i *rotation.Inspection) {
				i.Chain, i.Anchor = rotation.ChainInspection{Tampered: errors.New("record 3 is changed")}, nil
			},
			console.ExitFailed,
			[]string{rows, dead, "record 3 is changed"},
			"the audit chain is extended with kms_rotation_completed",
		},
		"no record of the end": {
			func(i *rotation.Inspection) { i.Chain.Completion, i.Anchor = audit.Record{}, nil },
			console.ExitFailed,
			[]string{rows, dead, "chain c verifies, but none of its 9 records is that of rotation q"},
			"the audit chain is extended with kms_rotation_completed",
		},
		"no log": {
			func(i *rotation.Inspection) { i.Anchor = &rotation.AnchorInspection{NoLog: true} },
			console.ExitUnproven,
			[]string{rows, dead, record, "this deployment has no transparency log; see docs/audit.md"},
			"the anchor cron processed the rotation event",
		},
		"a log that is down": {
			func(i *rotation.Inspection) { i.Anchor.Report.Anchored, i.Anchor.Failure = 6, errors.New("no answer") },
			console.ExitUnproven,
			[]string{rows, dead, record, "records 7 to 9 are in no public log yet: no answer; next: matter ops audit verify"},
			"the anchor cron processed the rotation event",
		},
		"an anchor that is not made yet": {
			func(i *rotation.Inspection) { i.Anchor.Report.Anchored = 6 },
			console.ExitUnproven,
			[]string{rows, dead, record, "records 7 to 9 are in no public log yet; next: matter ops audit verify"},
			"",
		},
	} {
		found := sound()
		c.change(&found)
		all := describeInspection("q", found)
		var seen, texts []string
		for _, e := range all {
			seen = append(seen, e.Seen)
			texts = append(texts, e.Text)
		}
		if !slices.Equal(seen, c.seen) || c.text != "" && !slices.Contains(texts, c.text) || worstExitCode(all) != c.exit {
			t.Errorf("%s: exit code %d\n%q\n%q", name, worstExitCode(all), texts, seen)
		}
	}
}
