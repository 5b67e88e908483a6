package rotation_test

import (
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// TestEmptyCorpus: a corpus without a known cipher, as a wrong prefix makes one,
// proves nothing. Preflight refuses it, and so does a dual unwrap that meets it.
func TestEmptyCorpus(t *testing.T) {
	s := newSite(t)
	s.remove(s.corpus, "known-1.json")
	s.remove(s.corpus, "known-2.json")
	_, err := s.Preflight(t.Context(), preflightInput(spring, rotation.ExecutionInput{}))
	wantKind(t, err, journal.SourceMisconfigured)
	if e := typed(err); e.Field != "sources[corpus]" {
		t.Errorf("field %q", e.Field)
	}

	s = newSite(t)
	s.advance(spring, rotation.ExecutionInput{}, kek.Minted)
	s.remove(s.corpus, "known-1.json")
	s.remove(s.corpus, "known-2.json")
	_, err = s.DualUnwrap(t.Context(), input(spring))
	wantKind(t, err, journal.CorpusCorrupted)
	s.phase(spring, kek.Minted)
}
