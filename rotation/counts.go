package rotation

import (
	"context"
	"fmt"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// passRows counts the rows of one source that the passes of a rotation have scanned, by
// pass. A pass that was not made, or is not done, is absent: an emergency takes no census,
// and a source that joined late has no earlier pass.
type passRows struct {
	source string
	rows   map[string]int64
}

// everyPass lists the passes in the order in which they are made.
var (
	everyPass     = []string{PassCensus, PassRewrap, passConfirm, passVerify}
	earlierPasses = everyPass[:3]
)

// countPasses reads the rows that each pass has scanned from the checkpoints, for every
// source in order. Checkpoints stay until the next rotation is completed, so a repeated call
// counts the same. After that the completion's record has the counts.
func (s *Steps) countPasses(ctx context.Context, r kek.Rotation) ([]passRows, error) {
	var out []passRows
	for _, src := range r.Sources {
		c := passRows{src.Name, map[string]int64{}}
		for _, pass := range everyPass {
			cps, err := s.Checkpoints.ListCheckpoints(ctx, r.ID, ProgressName(src), pass)
			if err != nil {
				return nil, journal.WrapUnavailable("checkpoints", err)
			}
			scanned, done := int64(0), len(cps) > 0
			for _, cp := range cps {
				scanned, done = scanned+cp.Tally.Scanned, done && cp.Done
			}
			if done {
				c.rows[pass] = scanned
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// String returns what the record of the completion says of a source.
func (c passRows) String() string {
	var parts []string
	for _, pass := range everyPass {
		if n, ok := c.rows[pass]; ok {
			parts = append(parts, fmt.Sprintf("%s %d", pass, n))
		}
	}
	return "rows scanned: " + strings.Join(parts, ", ")
}

// mostScanned returns the earlier pass that scanned the most rows; of several, the last.
func (c passRows) mostScanned() (pass string, rows int64) {
	for _, p := range earlierPasses {
		if n, ok := c.rows[p]; ok && n >= rows {
			pass, rows = p, n
		}
	}
	return pass, rows
}

// describeLoss says in a sentence that the last pass found fewer rows than an earlier one;
// "" if it did not.
func (c passRows) describeLoss() string {
	pass, before := c.mostScanned()
	now := c.rows[passVerify]
	if now >= before {
		return ""
	}
	return fmt.Sprintf("%s: the number of rows fell from %d in the %s pass to %d in the last", c.source, before, pass, now)
}

// When missing rows are told to people. An application may delete rows while a rotation
// runs, and a table may be emptied on purpose, so a loss is recorded and never stops a
// rotation. A large loss is also told to people, because only they know whether it was
// intended: half of a source's rows or more, or a tenth if the source has a hundred rows or
// more.
const (
	missingOfAny  = 2   // one in so many rows, in a source of any size
	missingOfMany = 10  // one in so many rows, in a source of manyRows or more
	manyRows      = 100 // rows
)

// lostMany reports whether the loss is large enough to be told. It expects a source that has
// lost rows.
func (c passRows) lostMany() bool {
	_, before := c.mostScanned()
	gone := before - c.rows[passVerify]
	return gone*missingOfAny >= before || before >= manyRows && gone*missingOfMany >= before
}

// bodyMissing is the name of the missing rows in the body of the completion's record.
const bodyMissing = "rows_missing"

// recordCounts puts the rows of each pass into the body of the completion's record, and
// returns what people are told of rows that are missing; "" if none are.
func recordCounts(body map[string]string, counts []passRows) (missing string) {
	var fewer, told []string
	for _, c := range counts {
		body["source."+c.source] = c.String()
		if text := c.describeLoss(); text != "" {
			fewer = append(fewer, text)
			if c.lostMany() {
				told = append(told, text)
			}
		}
	}
	missing = strings.Join(told, "; ")
	journal.AddPairs(body, "rows_fewer", strings.Join(fewer, "; "), bodyMissing, missing)
	return missing
}

// RowsMissing names the sources of a completed rotation that lost many rows while it ran;
// "" if none did.
func (s *Steps) RowsMissing(ctx context.Context, r kek.Rotation) (string, error) {
	counts, err := s.countPasses(ctx, r)
	return recordCounts(map[string]string{}, counts), err
}
