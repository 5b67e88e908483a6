package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// dekSample is how many distinct data keys are unwrapped where the deployment does not
// ask for all of them.
const dekSample = 20

// dekProof unwraps data keys under the KEKs that rows name: a label proves nothing.
type dekProof struct {
	kms  rotation.Wrapper
	keks map[kek.ID]kek.KEK // the registry: a row under another KEK is unaccounted
	deep bool               // every distinct data key, else the first dekSample

	seen      map[string]bool // by hash of KEK, wrapped data key and context
	unwrapped int
	wrong     []string // rows that do not unwrap
}

// String says which data keys were unwrapped.
func (p *dekProof) String() string {
	text := fmt.Sprintf("a sample of %d data keys was unwrapped", p.unwrapped)
	if p.deep {
		text = fmt.Sprintf("every distinct data key, %d, was unwrapped", p.unwrapped)
	}
	if len(p.wrong) > 0 {
		text += fmt.Sprintf(", but %d rows are not under the KEK that they name%s", len(p.wrong), first(p.wrong))
	}
	return text
}

// prove unwraps the row's data key unless that was done.
func (p *dekProof) prove(ctx context.Context, row rotation.Row) error {
	if _, known := p.keks[row.KEK]; !known || row.Defect != "" || !p.deep && len(p.seen) >= dekSample {
		return nil
	}
	text, err := json.Marshal([]any{row.KEK, row.WrappedDEK, row.Context})
	if err != nil {
		return err
	}
	hash := sha256.Sum256(text)
	if p.seen[string(hash[:])] {
		return nil
	}
	dek, err := p.kms.Decrypt(ctx, row.KEK, row.WrappedDEK, row.Context)
	clear(dek)
	switch {
	case errors.Is(err, rotation.ErrUnwrap):
		p.wrong = append(p.wrong, row.ID)
		return nil
	case errors.Is(err, rotation.ErrKeyDisabled), errors.Is(err, rotation.ErrNoKey): // an orphan, counted by its KEK
		return nil
	case err != nil:
		return fmt.Errorf("unwrap the data key of row %s: %w", row.ID, err)
	}
	p.seen[string(hash[:])] = true
	p.unwrapped++
	return nil
}

// provenSource is a source whose rows' data keys are unwrapped as they are read.
type provenSource struct {
	rotation.Source
	proof *dekProof
}

// Scan implements [rotation.Source].
func (s provenSource) Scan(ctx context.Context, req rotation.ScanRequest) (rotation.Page, error) {
	page, err := s.Source.Scan(ctx, req)
	for _, row := range page.Rows {
		if err == nil {
			err = s.proof.prove(ctx, row)
		}
	}
	return page, err
}
