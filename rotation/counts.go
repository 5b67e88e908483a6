package rotation

import (
	"context"
	"fmt"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
)

// passRows is how many rows of one source the passes of a rotation have scanned, by
// pass. A pass that was not made, or is not done, is left out: an emergency takes no
// census, and a source that joined late has no earlier pass.
type passRows struct {
	source string
	rows   map[string]int64
}

// everyPass are the passes in the order in which they are made.
var (
	everyPass     = []string{PassCensus, PassRewrap, passConfirm, passVerify}
	earlierPasses = everyPass[:3]
)

// countPasses reads the rows that each pass has scanned from the checkpoints, for every
// source in order. Checkpoints stay when a rotation is completed, so a repeated call
// counts the same.
func (s *Steps) countPasses(ctx context.Context, r kek.Rotation) ([]passRows, error) {
	var out []passRows
	for _, src := range r.Sources {
		c := passRows{src.Name, map[string]int64{}}
		for _, pass := range everyPass {
			cps, err := s.Checkpoints.ListCheckpoints(ctx, r.ID, ProgressName(src), pass)
			if err != nil {
				return nil, unavailable("checkpoints", err)
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

// String is what the record of the completion says of a source.
func (c passRows) String() string {
	var parts []string
	for _, pass := range everyPass {
		if n, ok := c.rows[pass]; ok {
			parts = append(parts, fmt.Sprintf("%s %d", pass, n))
		}
	}
	return "rows scanned: " + strings.Join(parts, ", ")
}

// most is the earlier pass that has scanned most rows, the last one of several.
func (c passRows) most() (pass string, rows int64) {
	for _, p := range earlierPasses {
		if n, ok := c.rows[p]; ok && n >= rows {
			pass, rows = p, n
		}
	}
	return pass, rows
}

// fewer says in a sentence that there are fewer rows now than an earlier pass has
// scanned; "" if there are not.
func (c passRows) fewer() string {
	pass, before := c.most()
	now := c.rows[passVerify]
	if now >= before {
		return ""
	}
	return fmt.Sprintf("%s: the number of rows fell from %d in the %s pass to %d in the last", c.source, before, pass, now)
}

// The rule for rows that are missing. An application may delete rows while a rotation
// runs, and a table may be emptied on purpose, so fewer rows are recorded and never stop a
// rotation. So many fewer are told to people as well, since only they know whether it was
// on purpose: half of a source's rows or more, which includes all of them, or a tenth of a
// source of a hundred rows or more.
const (
	missingOfAny  = 2 // one in so many rows
	missingOfMany = 10
	manyRows      = 100
)

// missing reports whether so many rows are gone that people should know of it, of a source
// that has fewer.
func (c passRows) missing() bool {
	_, before := c.most()
	gone := before - c.rows[passVerify]
	return gone*missingOfAny >= before || before >= manyRows && gone*missingOfMany >= before
}

// tellCounts puts the rows of each pass into the body of the completion's record, and
// returns what people are told of rows that are missing; "" if none are.
func tellCounts(body map[string]string, counts []passRows) (missing string) {
	var fewer, told []string
	for _, c := range counts {
		body["source."+c.source] = c.String()
		if text := c.fewer(); text != "" {
			fewer = append(fewer, text)
			if c.missing() {
				told = append(told, text)
			}
		}
	}
	missing = strings.Join(told, "; ")
	put(body, "rows_fewer", strings.Join(fewer, "; "), "rows_missing", missing)
	return missing
}

// RowsMissing names the sources of a completed rotation that lost many rows while it ran;
// "" if none did.
func (s *Steps) RowsMissing(ctx context.Context, r kek.Rotation) (string, error) {
	counts, err := s.countPasses(ctx, r)
	return tellCounts(map[string]string{}, counts), err
}
