package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
)

// newDualUnwrap returns the command matter ops kms-dual-unwrap, step 2.
func newDualUnwrap() *cobra.Command {
	var id, known string
	cmd := &cobra.Command{
		Use:   "kms-dual-unwrap --kek-id NEW --corpus CORPUS",
		Short: "Step 2: show that real rows can be moved and that the KEKs unwrap, before anything depends on the new one",
		Long: `First the rehearsal: some rows of each source and KEK are unwrapped under their KEK,
rewrapped, and unwrapped under the new KEK to the same data key, and a write whose
condition cannot hold shows that rows may be written. Then it seals a known plaintext
under the new KEK and opens it again, several times; shows that a wrong encryption
context is refused; and opens every known cipher of the corpus under the KEK that it
names and, rewrapped, under the new one. Nothing is written but the phase. By hand the
rehearsal shows your own permissions, in the state machine those of the function that
rewraps.

--corpus must name the corpus that the rotation has frozen, as s3://bucket/prefix/ or as
a path, /prefix or /bucket/prefix: it is the assurance that the operator and the
deployment mean the same known ciphers.`,
		Example: "  matter ops kms-dual-unwrap --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab --corpus /forensics/known-cipher-corpus",
	}
	cmd.Flags().StringVar(&id, "kek-id", "", "the new KEK, as kms-mint-kek printed it")
	cmd.Flags().StringVar(&known, "corpus", "", "the known-cipher corpus; default: the rotation's")
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.dualUnwrap(ctx, kek.ID(id), known) }, "kek-id")
}

// dualUnwrap runs the rehearsal and then the step dualunwrap. Both may be repeated: what is
// done already is reported as done before.
func (o *operator) dualUnwrap(ctx context.Context, id kek.ID, known string) error {
	r, err := o.rotationOfNew(ctx, flagKEK, id)
	if err != nil {
		return err
	}
	if err := sameCorpus(known, corporaOf(o.stack.Steps.OpenSource, r)); err != nil {
		return err
	}
	if err := o.checkPhase(ctx, flagKEK, r, kek.Minted); err != nil {
		return err
	}
	tried, err := o.stack.Steps.Rewrap(ctx, rotation.RewrapInput{RotationID: r.ID, Rehearse: true})
	if err != nil {
		return o.adviseByHand(ctx, err, r)
	}
	out, err := o.stack.Steps.DualUnwrap(ctx, rotation.StepInput{RotationID: r.ID})
	if err != nil {
		return o.adviseByHand(ctx, err, r)
	}
	var rehearsed, seen string
	switch {
	case tried.Tally.Scanned > 0 && r.Mode == kek.Emergency: // which continues whatever it finds
		rehearsed = fmt.Sprintf("rehearsal: %d rows tried; what failed is in the record rows_rehearsed (matter ops audit show --rotation %s -o json)", tried.Tally.Scanned, r.ID)
	case tried.Tally.Scanned > 0:
		rehearsed = fmt.Sprintf("rehearsal: a sample of %d rows unwraps, rewraps and may be written", tried.Tally.Scanned)
	}
	if out.Canaries > 0 {
		seen = fmt.Sprintf("%d canaries came back byte for byte under the new KEK; %d known ciphers opened under both", out.Canaries, out.Corpus)
	}
	return o.reportStep(ctx, r.ID, phaseFoundLater(r.Phase, kek.Minted), out, rehearsed, seen)
}

// phaseFoundLater is the phase that a step found, "" if it was the step's turn.
func phaseFoundLater(found, turn kek.Phase) kek.Phase {
	if found == turn {
		return ""
	}
	return found
}

// corporaOf lists the places of known ciphers that a rotation has frozen, as bucket/prefix.
func corporaOf(open func(kek.Source) (source.Driver, error), r kek.Rotation) []string {
	var out []string
	for _, def := range r.Sources {
		if src, err := open(def); err == nil && src.Traits().KnownPlaintexts {
			out = append(out, strings.Trim(strings.TrimPrefix(def.Place, "s3://"), "/"))
		}
	}
	return out
}

// sameCorpus refuses a corpus that is none of the rotation's, each as bucket/prefix.
func sameCorpus(given string, frozen []string) error {
	if given == "" {
		return nil
	}
	refuse := func(msg string) error {
		return &journal.Error{
			Kind: journal.InvalidInput, Field: "--corpus", Msg: msg, Next: journal.Next{Say: "leave --corpus out to use the rotation's; matter ops source list shows the sources"},
		}
	}
	if len(frozen) == 0 {
		return refuse(fmt.Sprintf("%q: no corpus is among the rotation's sources", given))
	}
	path := strings.Trim(strings.TrimPrefix(given, "s3:/"), "/")
	for _, place := range frozen {
		_, prefix, _ := strings.Cut(place, "/")
		if path == place || path == prefix && !strings.HasPrefix(given, "s3:") {
			return nil
		}
	}
	return refuse(fmt.Sprintf("%q is not the rotation's corpus, which is s3://%s/", given, strings.Join(frozen, "/, s3://")))
}
