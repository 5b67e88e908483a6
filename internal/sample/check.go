package sample

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/corpus"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/load"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Report is what reading every row of a set back has shown.
type Report struct {
	ByKEK  map[kek.ID]int // rows by the KEK they name
	Guests map[kek.ID]int // rows of a load (package load), likewise; whether they are right only the load knows
	Sample rotation.Row   // one of the rows
	Opened int            // rows that opened to their original bytes
	Wrong  []string       // every row that did not, and why
}

// Under is how many rows name a KEK, a load's among them.
func (r Report) Under(id kek.ID) int { return r.ByKEK[id] + r.Guests[id] }

// Rows is how many rows of the set were read.
func (r Report) Rows() int { return r.Opened + len(r.Wrong) }

// Check reads every row of every source and opens it under the KEK it names. rows
// is what Seed was given: a row too few or too many is wrong too. Rows of a load
// must open.
func (s *Set) Check(ctx context.Context, rows int) (Report, error) {
	want := s.expected(rows)
	c := checker{set: s, want: want, keks: map[string][]byte{}, report: Report{ByKEK: map[kek.ID]int{}, Guests: map[kek.ID]int{}}}
	for _, cfg := range s.Sources() {
		src, err := ddb.NewTableSource(s.Dynamo, cfg)
		if err != nil {
			return Report{}, err
		}
		if err := c.source(ctx, src); err != nil {
			return Report{}, err
		}
	}
	if err := c.source(ctx, s.corpus()); err != nil {
		return Report{}, err
	}
	for _, id := range slices.Sorted(maps.Keys(c.want)) {
		c.wrong("%s: the row is missing", id)
	}
	return c.report, nil
}

// expected maps source and row id to the plaintext.
func (s *Set) expected(rows int) map[string][]byte {
	letters, symbols := s.chosen(rows)
	out := map[string][]byte{}
	for _, c := range letters {
		out["characters/codepoint="+c.id()] = c.plain
	}
	for _, c := range symbols {
		out[fmt.Sprintf("symbols/block=%s,number=%d", c.block, c.code)] = c.plain
	}
	for _, c := range pick(letters, corpusEntries) {
		out[corpus.Name+"/"+corpusPrefix+knownName(c)] = c.plain
	}
	return out
}

type checker struct {
	set *Set

	mu     sync.Mutex
	want   map[string][]byte // what was not read yet
	keks   map[string][]byte // DEK by wrapped DEK, for rows that share one
	report Report
}

func (c *checker) wrong(format string, args ...any) {
	c.report.Wrong = append(c.report.Wrong, fmt.Sprintf(format, args...))
}

func (c *checker) source(ctx context.Context, src rotation.Source) error {
	cursor := ""
	for {
		page, err := src.Scan(ctx, rotation.ScanRequest{Total: 1, Cursor: cursor, Payload: true})
		if err != nil {
			return fmt.Errorf("read %s: %w", src.Name(), err)
		}
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(sealsInFlight)
		for _, row := range page.Rows {
			g.Go(func() error { return c.row(gctx, src.Name()+"/"+row.ID, row) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if cursor = page.Next; cursor == "" {
			return nil
		}
	}
}

func (c *checker) row(ctx context.Context, id string, row rotation.Row) error {
	plain, err := c.open(ctx, row)
	c.mu.Lock()
	defer c.mu.Unlock()
	if strings.Contains(id, "="+load.Prefix) {
		c.report.Guests[row.KEK]++
		if err != nil {
			c.wrong("%s under KEK %s: %v", id, row.KEK, err)
		}
		return ctx.Err()
	}
	c.report.ByKEK[row.KEK]++
	c.report.Sample = row
	want, ok := c.want[id]
	delete(c.want, id)
	switch {
	case err != nil:
		c.wrong("%s under KEK %s: %v", id, row.KEK, err)
	case !ok:
		c.wrong("%s: nobody wrote this row, or it was read twice", id)
	case !bytes.Equal(plain, want):
		c.wrong("%s: it opens to other bytes than were sealed", id)
	default:
		c.report.Opened++
	}
	return ctx.Err()
}

func (c *checker) open(ctx context.Context, row rotation.Row) ([]byte, error) {
	if row.Defect != "" {
		return nil, fmt.Errorf("defect: %s", row.Defect)
	}
	name := string(row.KEK) + "/" + string(row.WrappedDEK)
	c.mu.Lock()
	dek := c.keks[name]
	c.mu.Unlock()
	if dek == nil {
		var err error
		if dek, err = c.set.KMS.Decrypt(ctx, row.KEK, row.WrappedDEK, row.Context); err != nil {
			return nil, err
		}
		c.mu.Lock()
		c.keks[name] = dek
		c.mu.Unlock()
	}
	return aead.Cipher{}.Open(dek, row.Ciphertext, row.Bound)
}
