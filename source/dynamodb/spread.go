package dynamodb

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/source"
)

// A spread scan reads a segment in spreadParts parts, evenly far apart over the whole table, and
// takes a page of spreadAtOnce of them in turn. A walk that writes to the rows of such pages
// writes to every partition alike. The rows of one part lie in one partition, which takes 1,000
// write units a second: several workers in one partition and none in another leave capacity
// unused, and no metric of AWS shows that (test/limits).
//
// A checkpoint holds the cursors of all parts that have begun. While they are longer than
// spreadLength no other part begins, so that they fit in an item however long the table's keys are.
const (
	spreadParts  = 64
	spreadAtOnce = 8
	spreadLength = 64 << 10 // bytes
)

// spreadTurns are the first parts of each turn, in the order of the turns: the next turn's parts
// are far from this one's.
var spreadTurns = [spreadParts / spreadAtOnce]int{0, 4, 2, 6, 1, 5, 3, 7}

// partitionWrites is what one partition takes in write units a second (DynamoDB developer guide,
// "Burst and adaptive capacity").
const partitionWrites = 1000

// hasPartitions reports whether a table takes more writes than one partition does. A table that
// does not say is read in one part.
func hasPartitions(d *types.TableDescription) bool {
	if p := d.ProvisionedThroughput; p != nil && aws.ToInt64(p.WriteCapacityUnits) > 0 {
		return *p.WriteCapacityUnits > partitionWrites
	}
	return d.WarmThroughput != nil && aws.ToInt64(d.WarmThroughput.WriteUnitsPerSecond) > partitionWrites
}

// spreadCursor says where each part of a segment continues. As text:
//
//	spread:<turn>:<cursor of part 0>,<cursor of part 1>,…
//
// The cursor of a part is "" at its start and partDone at its end.
type spreadCursor struct {
	turn  int // which parts are next
	parts []string
}

const (
	spreadPrefix = "spread:"
	partDone     = "."
)

// String returns the cursor as text; "" when every part is done.
func (c spreadCursor) String() string {
	for _, part := range c.parts {
		if part != partDone {
			return spreadPrefix + strconv.Itoa(c.turn) + ":" + strings.Join(c.parts, ",")
		}
	}
	return ""
}

// parseSpread reads a cursor. The cursors of its parts are checked when they are used.
func parseSpread(text string) (spreadCursor, error) {
	turn, parts, ok := strings.Cut(strings.TrimPrefix(text, spreadPrefix), ":")
	c := spreadCursor{parts: strings.Split(parts, ",")}
	var err error
	if c.turn, err = strconv.Atoi(turn); !ok || err != nil || c.turn < 0 || len(c.parts) != spreadParts || c.turn >= len(spreadTurns) || c.String() == "" {
		return c, fmt.Errorf("%w: turn %q of %d parts", errCursor, turn, len(c.parts))
	}
	return c, nil
}

// takeTurn returns the parts to read now, at most so many, and moves on to the next ones. Some
// part must not be done.
func (c *spreadCursor) takeTurn(most int) []int {
	full := len(c.String()) > spreadLength // then some part has begun
	for {
		var now []int
		for part := spreadTurns[c.turn]; part < spreadParts && len(now) < most; part += len(spreadTurns) {
			if at := c.parts[part]; at != partDone && (at != "" || !full) {
				now = append(now, part)
			}
		}
		if c.turn = (c.turn + 1) % len(spreadTurns); len(now) > 0 {
			return now
		}
	}
}

// scanSpread reads a page of a spread scan. Its rows are in turn of the parts.
func (t *Table) scanSpread(ctx context.Context, keys []keyAttribute, req source.ScanRequest) (source.Page, error) {
	// Segments that are worked on at the same time are far apart, so they begin with other turns.
	at := spreadCursor{turn: req.Segment * len(spreadTurns) / max(req.Total, 1), parts: make([]string, spreadParts)}
	if req.Cursor != "" {
		var err error
		if at, err = parseSpread(req.Cursor); err != nil {
			return source.Page{}, fmt.Errorf("scan %s: %w", t.cfg.Name, err)
		}
	}
	limit := cmp.Or(max(req.Limit, 0), pageSize)
	parts := at.takeTurn(min(limit, spreadAtOnce))
	pages := make([]source.Page, len(parts))
	g, gctx := errgroup.WithContext(ctx)
	for i, part := range parts {
		g.Go(func() (err error) {
			one := req
			one.Segment, one.Total = part*req.Total+req.Segment, spreadParts*req.Total
			one.Cursor, one.Limit = at.parts[part], max(1, limit/spreadAtOnce)
			pages[i], err = t.scanPage(gctx, keys, one)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return source.Page{}, err //nolint:wrapcheck // scanPage names it
	}
	for i, part := range parts {
		at.parts[part] = cmp.Or(pages[i].Next, partDone)
	}
	page := mergePages(pages)
	page.Next = at.String()
	return page, nil
}

// mergePages returns the rows of pages in turn: the first of each, then the second of each.
func mergePages(pages []source.Page) (merged source.Page) {
	for more, n := true, 0; more; n++ {
		more = false
		for _, p := range pages {
			if n < len(p.Rows) {
				merged.Rows, more = append(merged.Rows, p.Rows[n]), true
			}
			if n < len(p.Keyed) {
				merged.Keyed, more = append(merged.Keyed, p.Keyed[n]), true
			}
		}
	}
	for _, p := range pages {
		merged.Other += p.Other
		merged.Declared += p.Declared
	}
	return merged
}
