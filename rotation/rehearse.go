package rotation

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"

	"github.com/matter-ops/kms-rotation/kek"
)

const (
	rehearsalRows  = 3  // of a KEK and shape, in each segment
	rehearsalPage  = 50 // items read of each segment at once,
	rehearsalPages = 40 // so often while there is no row among them
)

// rehearse does to a sample of real rows what the rewrap will do, without changing
// any (spec: Rehearse): of each source and KEK some rows are unwrapped under their KEK
// with their context, rewrapped, and unwrapped under the new KEK to the same data key;
// and a write whose condition cannot hold shows the permission. It also tries to open
// the payloads, as an emergency would: in a normal rotation a payload that does not
// open is a note, for it is left alone.
//
// It runs in the function that rewraps later, so that it shows that very role's
// permissions. An emergency notes what fails and goes on: the pointer must leave the
// compromised KEK, and what cannot be moved blocks the retirement.
func (s *Steps) rehearse(ctx context.Context, id string) (out SweepOutput, err error) {
	v, r, err := s.rotation(ctx, id)
	if err != nil {
		return out, err
	}
	if !r.Phase.Reached(kek.Minted) {
		return out, early(r, kek.Minted)
	}
	out.Done = true
	if r.Phase != kek.Minted || r.Rehearsed == r.NewKEK {
		return out, s.publish(ctx)
	}
	defer func() { err = s.young(r.UpdatedAt, err) }()
	sources, err := s.openSources(r.Sources)
	if err != nil {
		return out, err
	}
	body := map[string]string{}
	for _, src := range sources {
		tried, err := s.rehearseSource(ctx, rosterOf(v, r), src)
		out.Tally.Scanned += tried.rows
		if err != nil && r.Mode == kek.Emergency && ofRow(err) {
			tried.notes, err = append(tried.notes, overridden+": "+err.Error()), nil
		}
		if err != nil {
			return out, err
		}
		body["source."+src.Name()] = tried.String()
	}
	_, err = s.transition(ctx, "rewrap", r.ID, func(now kek.View) (kek.Change, error) {
		if now.Rotation != nil && now.Rotation.NewKEK != r.NewKEK {
			return kek.Change{}, fmt.Errorf("rehearsed with KEK %q, the rotation is at %q", r.NewKEK, now.Rotation.NewKEK)
		}
		return now.Rehearse(s.Now())
	}, body)
	return out, err
}

// ofRow reports a failure of a row or a table, which another KEK would not cure.
func ofRow(err error) bool {
	var typed *Error
	return errors.As(err, &typed) && (typed.Kind == RehearsalFailed || typed.Kind == SourceMisconfigured)
}

// rehearsal is what was tried of one source.
type rehearsal struct {
	rows   int64
	opened int64            // payloads
	sealed int64            // payloads that were tried
	byKEK  map[string]int64 // rows tried
	notes  []string
}

func (t rehearsal) String() string {
	text := fmt.Sprintf("%d rows tried (%s)", t.rows, counted(t.byKEK))
	if t.sealed > 0 {
		text += fmt.Sprintf(", %d of %d payloads open", t.opened, t.sealed)
	}
	for _, n := range t.notes {
		text += "; " + n
	}
	return cut(text)
}

// rehearseSource tries a sample of one source's rows.
func (s *Steps) rehearseSource(ctx context.Context, t roster, src frozen) (rehearsal, error) {
	out := rehearsal{byKEK: map[string]int64{}}
	rows, err := s.sampleRows(ctx, src, t.rotation.Segments)
	if err != nil {
		return out, deniedRehearsal(src, "read", err)
	}
	wrote := false
	for _, row := range rows {
		if err := t.judge(row); err != nil {
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
			return out, &Error{Kind: RehearsalFailed, Field: "sources[" + src.Name() + "]", Msg: note}
		}
		out.notes = append(out.notes, note)
	}
	return out, nil
}

// deniedRehearsal is what a source that rewrap may not read or write ends a rehearsal
// with.
func deniedRehearsal(src frozen, what string, err error) error {
	if errors.Is(err, ErrDenied) || errors.Is(err, ErrRejected) {
		return &Error{
			Kind: RehearsalFailed, Field: "sources[" + src.Name() + "]", Msg: fmt.Sprintf("rewrap may not %s its rows; the pointer was left alone", what), Err: err,
			Next: "compare the stack's parameter SourceTableArns and the policies of the table and the account, then start again",
		}
	}
	return unavailable("source "+src.Name(), err)
}

// sampleRows reads the beginning of each segment, as far as there is a row, and keeps
// some rows of each KEK and shape.
func (s *Steps) sampleRows(ctx context.Context, src frozen, segments int) ([]Row, error) {
	var out []Row
	total := src.Segments(segments)
	for segment := range total {
		req := ScanRequest{Segment: segment, Total: total, Limit: rehearsalPage, Payload: true}
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

// rehearseRow rewraps one row for trial. It reports whether its payload opens. What is
// wrong with an old KEK is wrong with its rows: another new one would not cure it.
func (s *Steps) rehearseRow(ctx context.Context, r kek.Rotation, src frozen, row Row) (bool, error) {
	before, err := s.KMS.Decrypt(ctx, row.KEK, row.WrappedDEK, row.Context)
	if errors.Is(err, ErrDenied) || errors.Is(err, ErrKeyDisabled) || errors.Is(err, ErrNoKey) {
		return false, failedRehearsal(src, row, s.keyError(row.KEK, err))
	}
	if err != nil {
		return false, s.rehearsalError(src, row, row.KEK, err)
	}
	defer clear(before)
	wrapped, err := s.KMS.ReEncrypt(ctx, row.KEK, r.NewKEK, row.WrappedDEK, row.Context)
	if err != nil {
		return false, s.rehearsalError(src, row, r.NewKEK, err)
	}
	after, err := s.KMS.Decrypt(ctx, r.NewKEK, wrapped, row.Context)
	if err != nil {
		return false, s.rehearsalError(src, row, r.NewKEK, err)
	}
	defer clear(after)
	if subtle.ConstantTimeCompare(before, after) != 1 {
		return false, failedRehearsal(src, row, errors.New("it unwraps to another data key after the rewrap"))
	}
	return s.opens(before, row), nil
}

// opens reports whether the row's payload opens under its data key.
func (s *Steps) opens(dek []byte, row Row) bool {
	if len(row.Ciphertext) == 0 {
		return false
	}
	plain, err := s.Cipher.Open(dek, row.Ciphertext, row.Bound)
	clear(plain)
	return err == nil
}

func (s *Steps) rehearsalError(src frozen, row Row, id kek.ID, err error) error {
	if errors.Is(err, ErrUnwrap) {
		return failedRehearsal(src, row, err)
	}
	return s.keyError(id, err)
}

func failedRehearsal(src frozen, row Row, err error) error {
	return &Error{
		Kind: RehearsalFailed, Field: "sources[" + src.Name() + "]", Msg: "a row cannot be rewrapped; the pointer was left alone", Err: err,
		Rows: []string{row.ID},
		Next: `compare "context" in the source's definition with what the rows were sealed with; matter ops census shows the items that cannot be accounted for`,
	}
}

// CheckRows unwraps a sample of each registered source's rows under the KEK that they
// name, and tries to open their payloads as an emergency would. It is for a person
// before a rotation: nothing is written.
func (s *Steps) CheckRows(ctx context.Context, mode kek.Mode) ([]Check, error) {
	v, err := s.loadAll(ctx, "")
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
		checks = append(checks, s.checkRows(ctx, t, src, mode))
	}
	return checks, nil
}

func (s *Steps) checkRows(ctx context.Context, t roster, src frozen, mode kek.Mode) Check {
	out := Check{Name: "rows of " + src.Name()}
	rows, err := s.sampleRows(ctx, src, s.Segments)
	if err != nil {
		out.Detail = unavailable("source "+src.Name(), err).Error()
		return out
	}
	var tried, sealed, opened int64
	for _, row := range rows {
		if err := t.judge(row); err != nil {
			out.Detail = fmt.Sprintf("item %s: %v", row.ID, err)
			return out
		}
		dek, err := s.KMS.Decrypt(ctx, row.KEK, row.WrappedDEK, row.Context)
		if err != nil {
			out.Detail = s.rehearsalError(src, row, row.KEK, err).Error()
			return out
		}
		tried++
		if len(row.Ciphertext) > 0 {
			sealed++
			if s.opens(dek, row) {
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

// cut shortens a text to what a record should hold.
func cut(text string) string {
	const most = 900
	if len(text) > most {
		text = text[:most]
	}
	return string(slices.DeleteFunc([]rune(text), func(r rune) bool { return r == '\uFFFD' }))
}
