package sample

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	s3source "github.com/matter-ops/kms-rotation/source/s3"
	"github.com/matter-ops/kms-rotation/test/load"
	"github.com/matter-ops/kms-rotation/test/rowcheck"
)

// Report is what reading every row of a set back has shown.
type Report struct {
	ByKEK  map[kek.ID]int // rows by the KEK they name
	Guests map[kek.ID]int // rows of a load (package load), likewise; whether they are right only the load knows
	Sample source.Row     // one of the rows
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
	return s.check(ctx, s.newChecker(), s.expected(rows))
}

// newChecker is a checker that asks KMS once for rows that share a data key.
func (s *Set) newChecker() *rowcheck.Checker {
	return rowcheck.New(s.askOnce(), aead.Cipher{})
}

func (s *Set) check(ctx context.Context, c *rowcheck.Checker, want map[string]string) (Report, error) {
	out := Report{ByKEK: map[kek.ID]int{}, Guests: map[kek.ID]int{}}
	read := map[string]bool{}
	var mu sync.Mutex
	err := s.each(ctx, func(row source.Row) error {
		var found *rowcheck.Finding
		guest := strings.Contains(row.ID, "="+load.Prefix)
		if !guest {
			found = c.Row(ctx, row, want)
		} else if _, err := c.Open(ctx, row); err != nil {
			found = &rowcheck.Finding{Promise: "RowIntegrity", Detail: fmt.Sprintf("row %s under %s: %v", row.ID, row.KEK, err)}
		}
		mu.Lock()
		defer mu.Unlock()
		if found == nil && read[row.ID] {
			found = &rowcheck.Finding{Promise: "NoRowComesBack", Detail: fmt.Sprintf("row %s was read twice", row.ID)}
		}
		read[row.ID] = true
		if guest {
			out.Guests[row.KEK]++
		} else {
			out.ByKEK[row.KEK]++
			out.Sample = row
		}
		switch {
		case found != nil:
			out.Wrong = append(out.Wrong, found.String())
		case !guest:
			out.Opened++
		}
		return ctx.Err()
	})
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if !read[id] {
			out.Wrong = append(out.Wrong, rowcheck.Finding{Promise: "NoLostWrite", Detail: "row " + id + " is missing"}.String())
		}
	}
	return out, err
}

// expected maps source and row id to the plaintext.
func (s *Set) expected(rows int) map[string]string {
	letters, symbols := s.chosen(rows)
	out := map[string]string{}
	for _, c := range letters {
		out["characters/codepoint="+c.id()] = string(c.plain)
	}
	for _, c := range symbols {
		out[fmt.Sprintf("symbols/block=%s,number=%d", c.block, c.code)] = string(c.plain)
	}
	for _, c := range pick(letters, corpusEntries) {
		out[s3source.Name+"/"+corpusPrefix+knownName(c)] = string(c.plain)
	}
	return out
}

// each reads every row of every source, several at once. A row's id begins with its
// source.
func (s *Set) each(ctx context.Context, visit func(source.Row) error) error {
	var all []source.Driver
	tables := s.Sources()
	if s.Records != nil {
		tables = append(tables, s.notes())
	}
	for _, cfg := range tables {
		src, err := dynamosource.New(s.Dynamo, cfg)
		if err != nil {
			return err
		}
		all = append(all, src)
	}
	for _, src := range append(all, s.corpus()) {
		if err := s.eachOf(ctx, src, visit); err != nil {
			return err
		}
	}
	return nil
}

func (s *Set) eachOf(ctx context.Context, src source.Driver, visit func(source.Row) error) error {
	cursor := ""
	for {
		page, err := src.Scan(ctx, source.ScanRequest{Total: 1, Cursor: cursor, Payload: true})
		if err != nil {
			return fmt.Errorf("read %s: %w", src.Name(), err)
		}
		var g errgroup.Group
		g.SetLimit(sealsInFlight)
		for _, row := range append(page.Rows, page.Keyed...) {
			g.Go(func() error {
				row, err := s.resolve(ctx, row)
				if err != nil {
					return err
				}
				row.ID = src.Name() + "/" + row.ID
				return visit(row)
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if cursor = page.Next; cursor == "" {
			return nil
		}
	}
}

// asking is KMS, asked once for what several rows share.
type asking struct {
	kms keyring.Wrapper

	mu    sync.Mutex
	known map[string][]byte
}

func (s *Set) askOnce() *asking { return &asking{kms: s.KMS, known: map[string][]byte{}} }

// Decrypt implements [rowcheck.Unwrapper].
func (a *asking) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	name := fmt.Sprintf("%q %q %q", id, wrapped, encctx) // a map is printed in the order of its keys
	a.mu.Lock()
	dek := a.known[name]
	a.mu.Unlock()
	if dek != nil {
		return dek, nil
	}
	dek, err := a.kms.Decrypt(ctx, id, wrapped, encctx)
	if err == nil {
		a.mu.Lock()
		a.known[name] = dek
		a.mu.Unlock()
	}
	return dek, err
}
