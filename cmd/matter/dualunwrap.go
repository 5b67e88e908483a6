package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/corpus"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

func newDualUnwrap() *cobra.Command {
	var id, known string
	cmd := &cobra.Command{
		Use:   "kms-dual-unwrap --kek-id NEW --corpus CORPUS",
		Short: "Step 2: show that both KEKs unwrap, before anything depends on the new one",
		Long: `Seals a known plaintext under the new KEK and opens it again, several times;
shows that a wrong encryption context is refused; and opens every known cipher of
the corpus under the old KEK and, rewrapped, under the new one. Nothing is
written but the phase.

--corpus must name the corpus that the deployment is configured with, as
s3://bucket/prefix/ or as a path, /prefix or /bucket/prefix: it is the assurance
that the operator and the deployment mean the same known ciphers.`,
		Example: "  matter ops kms-dual-unwrap --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab --corpus /forensics/known-cipher-corpus",
	}
	cmd.Flags().StringVar(&id, "kek-id", "", "the new KEK, as kms-mint-kek printed it")
	cmd.Flags().StringVar(&known, "corpus", "", "the known-cipher corpus; default: the deployment's")
	return newOp(cmd, func(ctx context.Context, o *operator) error { return o.dualUnwrap(ctx, kek.ID(id), known) }, "kek-id")
}

func (o *operator) dualUnwrap(ctx context.Context, id kek.ID, known string) error {
	if err := sameCorpus(known, o.Config.Corpus); err != nil {
		return err
	}
	r, err := o.rotationOfNew(ctx, id)
	if err != nil {
		return err
	}
	if err := o.ready(ctx, r, kek.Minted); err != nil {
		return err
	}
	out, err := o.Steps.DualUnwrap(ctx, rotation.StepInput{RotationID: r.ID})
	if err != nil {
		return o.advise(err, r)
	}
	var seen string
	if out.Canaries > 0 {
		seen = fmt.Sprintf("%d canaries came back byte for byte under the new KEK; %d known ciphers opened under both", out.Canaries, out.Corpus)
	}
	return o.done(ctx, r.ID, later(r.Phase, kek.Minted), out, seen)
}

// later is the phase that a step found, "" if it was the step's turn.
func later(found, turn kek.Phase) kek.Phase {
	if found == turn {
		return ""
	}
	return found
}

// sameCorpus refuses a corpus other than the configured one.
func sameCorpus(given, configured string) error {
	if given == "" || given == configured {
		return nil
	}
	refuse := func(msg string) error {
		return &rotation.Error{
			Kind: rotation.InvalidInput, Field: "--corpus", Msg: msg,
			Next: "leave --corpus out to use the deployment's, or correct the stack's parameters CorpusBucket and CorpusPrefix",
		}
	}
	if configured == "" {
		return refuse(fmt.Sprintf("%q: the deployment has no corpus", given))
	}
	bucket, prefix, err := corpus.ParseURL(configured)
	if err != nil {
		return err
	}
	path := strings.Trim(strings.TrimPrefix(given, "s3:/"), "/")
	prefix = strings.Trim(prefix, "/")
	if path == bucket+"/"+prefix || path == prefix && !strings.HasPrefix(given, "s3:") {
		return nil
	}
	return refuse(fmt.Sprintf("%q is not the deployment's corpus, which is %s", given, configured))
}
