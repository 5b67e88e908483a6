package rotation

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

const (
	rehearsalRows  = 3  // of a KEK and shape, in each segment
	rehearsalPage  = 50 // items read of each segment at once,
	rehearsalPages = 40 // so often while there is no row among them
)

// rehearseRotation does to a sample of real rows what the rewrap will do, without changing
// any (spec: Rehearse). Some rows of each source and KEK are unwrapped under their KEK with
// their context, rewrapped, and unwrapped under the new KEK to the same data key. A write
// whose condition cannot hold shows the permission to write. It also tries to open the
// payloads, as an emergency would. A normal rotation does not touch payloads, so there a
// payload that does not open is only noted.
//
// It runs in the function that rewraps later, so that it shows the permissions of that
// role. An emergency notes what fails and continues: the pointer must leave the compromised
// KEK, and what cannot be moved blocks the retirement.
func (s *Steps) rehearseRotation(ctx context.Context, id string) (out SweepOutput, err error) {
	v, r, err := s.Journal.LoadRotation(ctx, id)
	if err != nil {
		return out, err
	}
	if !r.Phase.Reached(kek.Minted) {
		return out, errTooEarly(r, kek.Minted)
	}
	out.Done = true
	if r.Phase != kek.Minted || r.Rehearsed == r.NewKEK {
		return out, s.Journal.Publish(ctx)
	}
	defer func() { err = s.retryWhileKeyIsYoung(r.UpdatedAt, err) }()
	sources, unread, err := s.openRead(r)
	if err != nil {
		return out, err
	}
	body := map[string]string{}
	for _, name := range unread {
		body["source."+name] = notRead
	}
	for _, src := range sources {
		tried, err := s.rehearseSource(ctx, rosterOf(v, r), src)
		out.Tally.Scanned += tried.rows
		if err != nil && r.Mode == kek.Emergency && isRehearsalError(err) {
			tried.notes, err = append(tried.notes, gates.Overridden+": "+err.Error()), nil
		}
		if err != nil {
			return out, err
		}
		body["source."+src.Name()] = tried.String()
	}
	_, err = s.Journal.Transition(ctx, "rewrap", r.ID, func(now kek.View) (kek.Change, error) {
		if now.Rotation != nil && now.Rotation.NewKEK != r.NewKEK {
			return kek.Change{}, fmt.Errorf("rehearsed with KEK %q, the rotation is at %q", r.NewKEK, now.Rotation.NewKEK)
		}
		return now.Rehearse(s.Journal.Now())
	}, body)
	return out, err
}

// isRehearsalError reports a failure of a row or a table: minting another KEK would not
// help.
func isRehearsalError(err error) bool {
	var typed *journal.Error
	return errors.As(err, &typed) && (typed.Kind == journal.RehearsalFailed || typed.Kind == journal.SourceMisconfigured)
}

// rehearsal counts what was tried in one source.
type rehearsal struct {
	rows   int64
	opened int64            // payloads that opened
	sealed int64            // payloads that were tried
	byKEK  map[string]int64 // rows tried, by KEK
	notes  []string
}

func (t rehearsal) String() string {
	text := fmt.Sprintf("%d rows tried (%s)", t.rows, formatCounts(t.byKEK))
	if t.sealed > 0 {
		text += fmt.Sprintf(", %d of %d payloads open", t.opened, t.sealed)
	}
	for _, n := range t.notes {
		text += "; " + n
	}
	return journal.CutText(text)
}

// rehearseSource rehearses a sample of one source's rows, and one write.
func (s *Steps) rehearseSource(ctx context.Context, t roster, src frozenSource) (rehearsal, error) {
	out := rehearsal{byKEK: map[string]int64{}}
	rows, err := s.sampleRows(ctx, src, t.rotation.Segments)
	if err != nil {
		return out, deniedRehearsal(src, "read", err)
	}
	wrote := false
	for _, row := range rows {
		if err := t.checkRow(row); err != nil {
			return out, failedRehearsal(src, row, err)
		}
		opens, err := s.rehearseRow(ctx, t.rotation, src, row)
		if err != nil {
			return out, err
		}
		out.rows++
		out.byKEK[string(row.KEK)]++
		if len(row.Ciphertext) > 0 {
			out.sealed++
		}
		if opens {
			out.opened++
		}
		if wrote {
			continue
		}
		if err := src.Rehearse(ctx, row); err != nil {
			return out, deniedRehearsal(src, "write", err)
		}
		wrote = true
	}
	if out.opened < out.sealed {
		note := fmt.Sprintf(`an emergency cannot re-encrypt %d of %d payloads tried: they do not open as payloads of this project; `+
			`say "payloads": "opaque" in the source's definition to have it rewrap their data keys alone`, out.sealed-out.opened, out.sealed)
		if t.rotation.Mode == kek.Emergency {
			return out, &journal.Error{Kind: journal.RehearsalFailed, Field: "sources[" + src.Name() + "]", Msg: note}
		}
		out.notes = append(out.notes, note)
	}
	return out, nil
}

// deniedRehearsal returns the error of a source that the function rewrap may not read or
// write. Any other error is worth a retry.
func deniedRehearsal(src frozenSource, what string, err error) error {
	if errors.Is(err, journal.ErrDenied) || errors.Is(err, journal.ErrRejected) {
		return &journal.Error{
			Kind: journal.RehearsalFailed, Field: "sources[" + src.Name() + "]", Msg: fmt.Sprintf("rewrap may not %s its rows; the pointer was left alone", what), Err: err,
			Next: journal.Next{Do: journal.CompareSourcePolicies},
		}
	}
	return journal.WrapUnavailable("source "+src.Name(), err)
}

// sampleRows reads each segment from its beginning until a page has a row, and keeps some
// rows of each KEK and shape.
func (s *Steps) sampleRows(ctx context.Context, src frozenSource, segments int) ([]source.Row, error) {
	var out []source.Row
	total := src.Segments(segments)
	for segment := range total {
		req := source.ScanRequest{Segment: segment, Total: total, Limit: rehearsalPage, Payload: true}
		taken := map[string]int{}
		for range rehearsalPages {
			page, err := src.Scan(ctx, req)
			if err != nil {
				return nil, err
			}
			for _, row := range page.Rows {
				shape := fmt.Sprint(row.KEK, row.Whole, row.Kind)
				if taken[shape]++; taken[shape] <= rehearsalRows {
					out = append(out, row)
				}
			}
			if req.Cursor = page.Next; req.Cursor == "" || len(taken) > 0 {
				break
			}
		}
	}
	return out, nil
}

// rehearseRow rewraps one row for trial and reports whether its payload opens. An unusable
// old KEK is reported as a failure of the row, because minting another KEK would not help.
func (s *Steps) rehearseRow(ctx context.Context, r kek.Rotation, src frozenSource, row source.Row) (bool, error) {
	before, err := s.Keys.Wrapper.Decrypt(ctx, row.KEK, row.WrappedDEK, row.Context)
	if errors.Is(err, journal.ErrDenied) || errors.Is(err, journal.ErrKeyDisabled) || errors.Is(err, journal.ErrNoKey) {
		return false, failedRehearsal(src, row, s.Keys.ExplainError(row.KEK, err))
	}
	if err != nil {
		return false, s.rehearsalError(src, row, row.KEK, err)
	}
	defer clear(before)
	wrapped, err := s.Keys.Wrapper.ReEncrypt(ctx, row.KEK, r.NewKEK, row.WrappedDEK, row.Context)
	if err != nil {
		return false, s.rehearsalError(src, row, r.NewKEK, err)
	}
	after, err := s.Keys.Wrapper.Decrypt(ctx, r.NewKEK, wrapped, row.Context)
	if err != nil {
		return false, s.rehearsalError(src, row, r.NewKEK, err)
	}
	defer clear(after)
	if subtle.ConstantTimeCompare(before, after) != 1 {
		return false, failedRehearsal(src, row, errors.New("it unwraps to another data key after the rewrap"))
	}
	return s.opensPayload(before, row), nil
}

// opensPayload reports whether the row's payload opens under its data key.
func (s *Steps) opensPayload(dek []byte, row source.Row) bool {
	if len(row.Ciphertext) == 0 {
		return false
	}
	plain, err := s.Keys.Cipher.Open(dek, row.Ciphertext, row.Bound)
	clear(plain)
	return err == nil
}

// rehearsalError blames the row if KMS does not unwrap it, and otherwise the KEK.
func (s *Steps) rehearsalError(src frozenSource, row source.Row, id kek.ID, err error) error {
	if errors.Is(err, journal.ErrUnwrap) {
		return failedRehearsal(src, row, err)
	}
	return s.Keys.ExplainError(id, err)
}

// failedRehearsal refuses the switch because of one row.
func failedRehearsal(src frozenSource, row source.Row, err error) error {
	return &journal.Error{
		Kind: journal.RehearsalFailed, Field: "sources[" + src.Name() + "]", Msg: "a row cannot be rewrapped; the pointer was left alone", Err: err,
		Rows: []string{row.ID},
		Next: journal.Next{Do: journal.CompareContext},
	}
}

// CheckRows unwraps a sample of each registered source's rows under the KEK that they name,
// and tries to open their payloads as an emergency would. Of a corpus it opens every known
// cipher: the dual unwrap rolls a rotation back for one that does not open. The operator's tool
// calls it before a rotation. Nothing is written.
func (s *Steps) CheckRows(ctx context.Context, mode kek.Mode) ([]Check, error) {
	v, err := s.Journal.LoadAll(ctx, "")
	if err != nil {
		return nil, err
	}
	sources, err := s.openSources(v.Sources)
	if err != nil {
		return nil, err
	}
	t := registryRoster(v)
	var checks []Check
	for _, src := range sources {
		if src.Traits().KnownPlaintexts {
			checks = append(checks, s.checkKnown(ctx, t, src))
			continue
		}
		checks = append(checks, s.checkRows(ctx, t, src, mode))
	}
	return checks, nil
}

// checkKnown opens every known cipher of a corpus under the KEK that it names.
func (s *Steps) checkKnown(ctx context.Context, t roster, corpus frozenSource) Check {
	out := Check{Name: "rows of " + corpus.Name()}
	n, err := visitKnown(ctx, corpus, func(row source.Row) error {
		if err := t.checkRow(row); err != nil {
			return errCorpusEntry(row, err.Error(), nil)
		}
		return s.compareKnown(ctx, row.KEK, row.WrappedDEK, row)
	})
	if err != nil {
		return out.fail(err)
	}
	out.OK = true
	out.Detail = fmt.Sprintf("each of %d known ciphers opens", n)
	return out
}

func (s *Steps) checkRows(ctx context.Context, t roster, src frozenSource, mode kek.Mode) Check {
	out := Check{Name: "rows of " + src.Name()}
	rows, err := s.sampleRows(ctx, src, s.Config.Segments)
	if err != nil {
		return out.fail(journal.WrapUnavailable("source "+src.Name(), err))
	}
	var tried, sealed, opened int64
	for _, row := range rows {
		if err := t.checkRow(row); err != nil {
			return out.fail(fmt.Errorf("item %s: %w", row.ID, err))
		}
		dek, err := s.Keys.Wrapper.Decrypt(ctx, row.KEK, row.WrappedDEK, row.Context)
		if err != nil {
			return out.fail(s.rehearsalError(src, row, row.KEK, err))
		}
		tried++
		if len(row.Ciphertext) > 0 {
			sealed++
			if s.opensPayload(dek, row) {
				opened++
			}
		}
		clear(dek)
	}
	out.OK = mode != kek.Emergency || opened == sealed
	out.Detail = fmt.Sprintf("a sample of %d rows unwraps, %d of %d payloads open", tried, opened, sealed)
	if opened < sealed {
		out.Detail += `: an emergency cannot re-encrypt the others; say "payloads": "opaque" in the source's definition to have it rewrap their data keys alone`
	}
	return out
}
