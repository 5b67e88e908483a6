package rotation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
)

// probeContext is the encryption context of canaries and probes. No row uses it.
func probeContext(rotationID string) map[string]string {
	return map[string]string{"matter:purpose": "canary", "matter:rotation": rotationID}
}

// DualUnwrap shows that both KEKs unwrap before anything depends on the new one:
// the new KEK has the key policy that mint gives, a known plaintext roundtrips under it,
// a wrong encryption context is refused, and every known cipher of the corpus opens under
// the old KEK and, rewrapped, under the new. Nothing is written but the phase. (Spec:
// DualUnwrap.)
// In a drill the canary is corrupted on purpose, so this step fails.
func (s *Steps) DualUnwrap(ctx context.Context, in StepInput) (out DualUnwrapOutput, err error) {
	v, r, err := s.rotation(ctx, in.RotationID)
	if err != nil {
		return DualUnwrapOutput{}, err
	}
	defer func() { err = s.young(r.UpdatedAt, err) }()
	var probes map[kek.ID][]byte
	policy := ""
	if r.Phase == kek.Minted {
		if policy, err = s.checkKeyPolicy(ctx, r); err != nil {
			return out, err
		}
		for range r.Settings.CanaryRounds { // KMS is eventually consistent: once is luck
			if err := s.canary(ctx, r.NewKEK, probeContext(r.ID), r.Drill != ""); err != nil {
				return out, err
			}
			out.Canaries++
		}
		if r.Drill != "" {
			return out, &Error{Kind: Internal, Field: string(r.NewKEK), Msg: "a spoilt canary passed: the canaries prove nothing"}
		}
		if out.Corpus, err = s.openCorpus(ctx, rosterOf(v, r)); err != nil {
			return out, err
		}
		if probes, err = s.makeProbes(ctx, r); err != nil {
			return out, err
		}
	}
	body := map[string]string{"canaries": fmt.Sprint(out.Canaries), "corpus_entries": fmt.Sprint(out.Corpus)}
	put(body, "key_policy", policy)
	_, err = s.transition(ctx, "dualunwrap", r.ID, func(now kek.View) (kek.Change, error) {
		if now.Rotation != nil && now.Rotation.NewKEK != v.Rotation.NewKEK {
			return kek.Change{}, fmt.Errorf("tested KEK %q, the rotation is at %q", v.Rotation.NewKEK, now.Rotation.NewKEK)
		}
		return now.Test(probes, s.Now())
	}, body)
	out.Settle = int(math.Ceil(s.settling(v.KEKs[r.NewKEK].CreatedAt).Seconds()))
	return out, err
}

// checkKeyPolicy refuses a new KEK whose key policy is another one than mint gives
// (docs/adr/0013-key-policy.md): one that lets somebody schedule the key's deletion or grant
// it, or that leaves out what rows need. Nothing depends on the key yet, and IAM has no
// condition on a policy's text, so this is what holds a compromised mint to it. Who can
// change the policy later is the account's administrators alone.
//
// No policy keeps an emergency on the KEK that it leaves. One that may not be read, and
// that of the last KEK which it may mint, are noted in the audit log instead.
func (s *Steps) checkKeyPolicy(ctx context.Context, r kek.Rotation) (noted string, err error) {
	differences, err := s.Keys.PolicyDifferences(ctx, r.NewKEK)
	urgent := r.Mode == kek.Emergency
	last := urgent && r.Attempt >= r.Settings.MaxMints
	switch {
	case urgent && (errors.Is(err, ErrDenied) || errors.Is(err, ErrRejected)), last && err != nil:
		return "not read: " + err.Error(), nil
	case err != nil:
		return "", s.keyError(r.NewKEK, err)
	case len(differences) == 0:
		return "", nil
	case last:
		return strings.Join(differences, "; "), nil
	}
	return "", &Error{
		Kind: KeyUnusable, Field: string(r.NewKEK), Msg: "its key policy is not the one that mint gives a KEK: " + strings.Join(differences, "; "),
		Next: "find out who made the key or changed its policy (CloudTrail: CreateKey, PutKeyPolicy), then start again",
	}
}

// makeProbes wraps a data key under each old KEK, for verify to show that it is dead. An
// emergency does without where a KEK does not wrap any more: whoever saw it compromised
// may have denied that already, and the pointer must leave it.
func (s *Steps) makeProbes(ctx context.Context, r kek.Rotation) (map[kek.ID][]byte, error) {
	probes := map[kek.ID][]byte{}
	for _, old := range r.Olds {
		dek, probe, err := s.KMS.GenerateDataKey(ctx, old, probeContext(r.ID))
		if r.Mode == kek.Emergency && (errors.Is(err, ErrDenied) || errors.Is(err, ErrKeyDisabled) || errors.Is(err, ErrNoKey)) {
			continue
		}
		if err != nil {
			return nil, s.keyError(old, err)
		}
		clear(dek)
		probes[old] = probe
	}
	return probes, nil
}

// canary seals a fresh known plaintext under id and opens it again. Spoilt, it comes
// back changed.
func (s *Steps) canary(ctx context.Context, id kek.ID, encctx map[string]string, spoilt bool) error {
	plain := make([]byte, 64)
	s.Random(plain)
	dek, wrapped, err := s.KMS.GenerateDataKey(ctx, id, encctx)
	if err != nil {
		return s.keyError(id, err)
	}
	defer clear(dek)
	sealed, err := s.Cipher.Seal(dek, plain, encctx)
	if err != nil {
		return &Error{Kind: CanaryFailed, Field: string(id), Msg: "sealing failed", Err: err}
	}
	got, err := s.unwrapOpen(ctx, id, wrapped, sealed, encctx)
	if err != nil {
		return err
	}
	if spoilt && len(got) > 0 {
		got[0] ^= 1
	}
	if !bytes.Equal(got, plain) {
		return &Error{Kind: CanaryFailed, Field: string(id), Msg: "the known plaintext came back changed"}
	}
	wrong := map[string]string{"matter:purpose": "wrong context"}
	if _, err := s.KMS.Decrypt(ctx, id, wrapped, wrong); !errors.Is(err, ErrUnwrap) {
		if err != nil {
			return s.keyError(id, err)
		}
		return &Error{Kind: CanaryFailed, Field: string(id), Msg: "a wrong encryption context was accepted"}
	}
	return nil
}

func (s *Steps) unwrapOpen(ctx context.Context, id kek.ID, wrapped, sealed []byte, encctx map[string]string) ([]byte, error) {
	dek, err := s.KMS.Decrypt(ctx, id, wrapped, encctx)
	if errors.Is(err, ErrUnwrap) {
		return nil, &Error{Kind: CanaryFailed, Field: string(id), Msg: "the canary's data key does not unwrap", Err: err}
	}
	if err != nil {
		return nil, s.keyError(id, err)
	}
	defer clear(dek)
	plain, err := s.Cipher.Open(dek, sealed, encctx)
	if err != nil {
		return nil, &Error{Kind: CanaryFailed, Field: string(id), Msg: "the canary does not open", Err: err}
	}
	return plain, nil
}

// openCorpus opens every known cipher under the KEK that it names and again,
// rewrapped, under the new one.
func (s *Steps) openCorpus(ctx context.Context, t roster) (int, error) {
	sources, err := s.openSources(t.rotation.Sources)
	if err != nil {
		return 0, err
	}
	total := 0
	for _, corpus := range known(sources) {
		n, cursor := 0, ""
		for {
			page, err := corpus.Scan(ctx, ScanRequest{Total: 1, Cursor: cursor, Payload: true})
			if err != nil {
				return total, unavailable("corpus", err)
			}
			for _, row := range page.Rows {
				if row.PlainSHA == "" && row.Defect == "" {
					continue // no known cipher; an entry that lost its hash has a defect (internal/corpus)
				}
				if err := s.openKnown(ctx, t, row); err != nil {
					return total, err
				}
				n++
			}
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		if n == 0 {
			return total, &Error{
				Kind: CorpusCorrupted, Field: "sources[" + corpus.Name() + "]", Msg: "the corpus has no known cipher: opening none proves nothing",
				Next: "correct the bucket and prefix, or restore the corpus, then start again",
			}
		}
		total += n
	}
	return total, nil
}

func (s *Steps) openKnown(ctx context.Context, t roster, row Row) error {
	r := t.rotation
	corrupted := func(msg string, err error) error {
		return &Error{
			Kind: CorpusCorrupted, Field: row.ID, Msg: msg, Err: err,
			Next: "restore or remove this corpus entry, then start again",
		}
	}
	if err := t.judge(row); err != nil {
		return corrupted(err.Error(), nil)
	}
	if row.KEK == r.NewKEK {
		return corrupted("it is wrapped under the new KEK already, which nothing is before the switch", nil)
	}
	rewrapped, err := s.KMS.ReEncrypt(ctx, row.KEK, r.NewKEK, row.WrappedDEK, row.Context)
	if errors.Is(err, ErrUnwrap) {
		return corrupted("its data key does not unwrap", err)
	}
	if err != nil {
		return s.keyError(r.NewKEK, err)
	}
	for _, w := range []struct {
		id      kek.ID
		wrapped []byte
	}{{row.KEK, row.WrappedDEK}, {r.NewKEK, rewrapped}} {
		plain, err := s.openUnder(ctx, w.id, w.wrapped, row)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(plain)
		clear(plain)
		if row.PlainSHA != hex.EncodeToString(sum[:]) {
			return corrupted("it opens to another plaintext than the recorded one", nil)
		}
	}
	return nil
}

func (s *Steps) openUnder(ctx context.Context, id kek.ID, wrapped []byte, row Row) ([]byte, error) {
	dek, err := s.KMS.Decrypt(ctx, id, wrapped, row.Context)
	if errors.Is(err, ErrUnwrap) {
		return nil, &Error{Kind: CorpusCorrupted, Field: row.ID, Msg: "its data key does not unwrap", Err: err}
	}
	if err != nil {
		return nil, s.keyError(id, err)
	}
	defer clear(dek)
	plain, err := s.Cipher.Open(dek, row.Ciphertext, row.Bound)
	if err != nil {
		return nil, &Error{
			Kind: CorpusCorrupted, Field: row.ID, Msg: "its ciphertext does not open", Err: err,
			Next: "restore or remove this corpus entry, then start again",
		}
	}
	return plain, nil
}

// keyError tells a disabled key from a service that did not answer. A typed error
// has named its key already.
func (s *Steps) keyError(id kek.ID, err error) error {
	var typed *Error
	if !errors.As(err, &typed) && errors.Is(err, ErrKeyDisabled) {
		return &Error{
			Kind: KeyUnusable, Field: string(id), Msg: "KMS says that the key is disabled", Err: err,
			Next: "find out who disabled it (CloudTrail), enable it, then go on",
		}
	}
	return unavailable("KMS", err)
}
