package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// probeContext returns the encryption context of canaries and probes. No row uses it, so
// neither can be confused with a row.
func probeContext(rotationID string) map[string]string {
	return map[string]string{"matter:purpose": "canary", "matter:rotation": rotationID}
}

// DualUnwrap shows that both KEKs unwrap before anything depends on the new one: the new
// KEK has the key policy that mint gives, a known plaintext comes back from it, a wrong
// encryption context is refused, and every known cipher of the corpus opens under the old
// KEK and, rewrapped, under the new one. Only the phase is written. (Spec: DualUnwrap.)
//
// In a drill the canary is corrupted on purpose, so this step fails.
func (s *Steps) DualUnwrap(ctx context.Context, in StepInput) (out DualUnwrapOutput, err error) {
	v, r, err := s.Journal.LoadRotation(ctx, in.RotationID)
	if err != nil {
		return DualUnwrapOutput{}, err
	}
	defer func() { err = s.retryWhileKeyIsYoung(r.UpdatedAt, err) }()
	var probes map[kek.ID][]byte
	policy := ""
	if r.Phase == kek.Minted {
		if policy, err = s.checkKeyPolicy(ctx, r); err != nil {
			return out, err
		}
		for range r.Settings.CanaryRounds { // KMS is eventually consistent: another host may not know the key yet
			if err := s.Keys.CheckCanary(ctx, r.NewKEK, probeContext(r.ID), r.Drill != ""); err != nil {
				return out, err
			}
			out.Canaries++
		}
		if r.Drill != "" {
			return out, &journal.Error{Kind: journal.Internal, Field: string(r.NewKEK), Msg: "a corrupted canary passed: the canaries prove nothing"}
		}
		if out.Corpus, err = s.openCorpus(ctx, rosterOf(v, r)); err != nil {
			return out, err
		}
		if probes, err = s.makeProbes(ctx, r); err != nil {
			return out, err
		}
	}
	body := map[string]string{"canaries": fmt.Sprint(out.Canaries), "corpus_entries": fmt.Sprint(out.Corpus)}
	journal.AddPairs(body, "key_policy", policy)
	_, err = s.Journal.Transition(ctx, "dualunwrap", r.ID, func(now kek.View) (kek.Change, error) {
		if now.Rotation != nil && now.Rotation.NewKEK != v.Rotation.NewKEK {
			return kek.Change{}, fmt.Errorf("tested KEK %q, the rotation is at %q", v.Rotation.NewKEK, now.Rotation.NewKEK)
		}
		return now.Test(probes, s.Journal.Now())
	}, body)
	out.Settle = int(math.Ceil(s.settleTime(v.KEKs[r.NewKEK].CreatedAt).Seconds()))
	return out, err
}

// checkKeyPolicy refuses a new KEK whose key policy is not the one that mint gives
// (docs/adr/0013-key-policy.md): a policy that lets somebody schedule the key's deletion or
// create grants, or that leaves out what rows need. IAM has no condition on the text of a
// policy, so this check is what limits a compromised mint function. Nothing depends on the
// key yet, and later only the account's administrators can change the policy.
//
// An emergency must leave its old KEK whatever the policy says. If the policy cannot be
// read, or if this is the last KEK that the emergency may mint, the difference is only
// noted in the audit chain.
func (s *Steps) checkKeyPolicy(ctx context.Context, r kek.Rotation) (noted string, err error) {
	differences, err := s.Keys.Admin.PolicyDifferences(ctx, r.NewKEK)
	urgent := r.Mode == kek.Emergency
	last := urgent && r.Attempt >= r.Settings.MaxMints
	switch {
	case urgent && (errors.Is(err, journal.ErrDenied) || errors.Is(err, journal.ErrRejected)), last && err != nil:
		return "not read: " + err.Error(), nil
	case err != nil:
		return "", s.Keys.ExplainError(r.NewKEK, err)
	case len(differences) == 0:
		return "", nil
	case last:
		return strings.Join(differences, "; "), nil
	}
	return "", &journal.Error{
		Kind: journal.KeyUnusable, Field: string(r.NewKEK), Msg: "its key policy is not the one that mint gives a KEK: " + strings.Join(differences, "; "),
		Next: journal.Next{Say: "find out who made the key or changed its policy (CloudTrail: CreateKey, PutKeyPolicy), then start again"},
	}
}

// makeProbes wraps a data key under each old KEK, so that verify can show at the end that
// the KEK no longer unwraps it. An emergency continues without the probe of a KEK that no
// longer wraps: the person who found it compromised may already have denied its use, and
// the pointer must leave it.
func (s *Steps) makeProbes(ctx context.Context, r kek.Rotation) (map[kek.ID][]byte, error) {
	probes := map[kek.ID][]byte{}
	for _, old := range r.Olds {
		dek, probe, err := s.Keys.Wrapper.GenerateDataKey(ctx, old, probeContext(r.ID))
		if r.Mode == kek.Emergency && (errors.Is(err, journal.ErrDenied) || errors.Is(err, journal.ErrKeyDisabled) || errors.Is(err, journal.ErrNoKey)) {
			continue
		}
		if err != nil {
			return nil, s.Keys.ExplainError(old, err)
		}
		clear(dek)
		probes[old] = probe
	}
	return probes, nil
}

// openCorpus opens every known cipher under the KEK that it names and again,
// rewrapped, under the new one.
func (s *Steps) openCorpus(ctx context.Context, t roster) (int, error) {
	sources, err := s.openSources(t.rotation.Sources)
	if err != nil {
		return 0, err
	}
	total := 0
	for _, corpus := range listCorpora(sources) {
		n, err := visitKnown(ctx, corpus, func(row source.Row) error { return s.openKnown(ctx, t, row) })
		if total += n; err != nil {
			return total, err
		}
	}
	return total, nil
}

// visitKnown calls visit for every known cipher of a corpus and returns their number. A corpus
// without one is an error.
func visitKnown(ctx context.Context, corpus frozenSource, visit func(source.Row) error) (n int, err error) {
	for cursor := ""; ; {
		page, err := corpus.Scan(ctx, source.ScanRequest{Total: 1, Cursor: cursor, Payload: true})
		if err != nil {
			return n, journal.WrapUnavailable("corpus", err)
		}
		for _, row := range page.Rows {
			if row.PlainSHA == "" && row.Defect == "" {
				continue // not a known cipher; an entry that lost its hash has a defect (source/s3)
			}
			if err := visit(row); err != nil {
				return n, err
			}
			n++
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	if n == 0 {
		return n, &journal.Error{
			Kind: journal.CorpusCorrupted, Field: "sources[" + corpus.Name() + "]", Msg: "the corpus has no known cipher: opening none proves nothing",
			Next: journal.Next{Say: "correct the bucket and prefix, or restore the corpus, then start again"},
		}
	}
	return n, nil
}

// errCorpusEntry says what is wrong with an entry of the corpus. A backup of it may be under a
// retired KEK, so the advice is not to restore one.
func errCorpusEntry(row source.Row, msg string, err error) error {
	return &journal.Error{
		Kind: journal.CorpusCorrupted, Field: row.ID, Msg: msg, Err: err,
		Next: journal.Next{Say: "remove this corpus entry or write it again under the current KEK, then start again"},
	}
}

// openKnown opens one known cipher and compares the hash of its plaintext. The entry may
// not be under the new KEK yet: nothing is, before the switch.
func (s *Steps) openKnown(ctx context.Context, t roster, row source.Row) error {
	r := t.rotation
	if err := t.checkRow(row); err != nil {
		return errCorpusEntry(row, err.Error(), nil)
	}
	if row.KEK == r.NewKEK {
		return errCorpusEntry(row, "it is wrapped under the new KEK already, which nothing is before the switch", nil)
	}
	rewrapped, err := s.Keys.Wrapper.ReEncrypt(ctx, row.KEK, r.NewKEK, row.WrappedDEK, row.Context)
	if errors.Is(err, journal.ErrUnwrap) {
		return errCorpusEntry(row, "its data key does not unwrap", err)
	}
	if err != nil {
		return s.Keys.ExplainError(r.NewKEK, err)
	}
	if err := s.compareKnown(ctx, row.KEK, row.WrappedDEK, row); err != nil {
		return err
	}
	return s.compareKnown(ctx, r.NewKEK, rewrapped, row)
}

// compareKnown opens a known cipher with a data key that is wrapped under a KEK, and compares
// the hash of its plaintext.
func (s *Steps) compareKnown(ctx context.Context, id kek.ID, wrapped []byte, row source.Row) error {
	plain, err := s.openUnder(ctx, id, wrapped, row)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(plain)
	clear(plain)
	if row.PlainSHA != hex.EncodeToString(sum[:]) {
		return errCorpusEntry(row, "it opens to another plaintext than the recorded one", nil)
	}
	return nil
}

// openUnder unwraps a data key under a KEK and opens the row's payload with it.
func (s *Steps) openUnder(ctx context.Context, id kek.ID, wrapped []byte, row source.Row) ([]byte, error) {
	dek, err := s.Keys.Wrapper.Decrypt(ctx, id, wrapped, row.Context)
	if errors.Is(err, journal.ErrUnwrap) {
		return nil, errCorpusEntry(row, "its data key does not unwrap", err)
	}
	if err != nil {
		return nil, s.Keys.ExplainError(id, err)
	}
	defer clear(dek)
	plain, err := s.Keys.Cipher.Open(dek, row.Ciphertext, row.Bound)
	if err != nil {
		return nil, errCorpusEntry(row, "its ciphertext does not open", err)
	}
	return plain, nil
}
