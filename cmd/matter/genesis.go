package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// keyFlags are the flags of the commands that register a KMS key.
type keyFlags struct {
	key, label, sources string
	confirm             bool
}

// newGenesisCommand returns the command matter ops kms-genesis.
func newGenesisCommand() *cobra.Command {
	var f keyFlags
	cmd := &cobra.Command{
		Use:   "kms-genesis --kek-id KEY --confirm",
		Short: "Register the first KEK and the first sources, and point at the KEK, once per deployment",
		Long: `Registers, as the first KEK, the KMS key under which the rows are wrapped already,
tags it with the stack (the roles of the functions are conditioned on that tag)
and makes the pointer. Only a rotation moves the pointer from then on. It reads every row
of the first sources, and begins after the highest epoch that one carries.

It says when the schedule starts the first rotation, and who is told of outcomes.

The first sources are those of --sources, a file as source add takes it, or else the
deployment's seed: MATTER_SOURCES and MATTER_CORPUS, which matter ops env takes from
the stack's parameters. Later ones are registered with matter ops source add.`,
		Example: `  matter ops kms-genesis --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab --confirm
  matter ops kms-genesis --kek-id alias/orders --sources sources.json --confirm`,
	}
	cmd.Flags().StringVar(&f.key, "kek-id", "", "the KMS key that the rows are wrapped under: its id, ARN or alias")
	cmd.Flags().StringVar(&f.label, "label", "genesis", "the operator's name for it")
	cmd.Flags().StringVar(&f.sources, "sources", "", "the first sources; default: MATTER_SOURCES and MATTER_CORPUS")
	cmd.Flags().BoolVar(&f.confirm, "confirm", false, "do it")
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.beginDeployment(ctx, f) }, "kek-id")
}

// beginDeployment tags the first KEK, registers it with the first sources and makes the
// pointer. It tags first, because the functions may use a key only with that tag, and checks
// before that what the registry would refuse.
func (o *operator) beginDeployment(ctx context.Context, f keyFlags) error {
	k, err := o.usableKey(ctx, f.key)
	if err != nil {
		return err
	}
	sources, err := f.seedSources()
	if err != nil {
		return err
	}
	if err := o.checkGenesis(ctx, k.ID); err != nil {
		return err
	}
	if !f.confirm {
		command := "matter ops kms-genesis --kek-id " + string(k.ID)
		if f.sources != "" {
			command += " --sources " + f.sources
		}
		return o.refuseUnconfirmed(fmt.Sprintf("tag KMS key %s with matter:stack=%s, register it as active with %s, and point at it", k.ID, o.stack.Config.Stack, describeSources(sources)), command)
	}
	if err := o.stack.TagKey(ctx, k.ID); err != nil {
		return err
	}
	last, err := o.stack.Steps.LastEpoch(ctx, sources)
	if err != nil {
		return err
	}
	p, err := o.stack.Steps.GenesisAfter(ctx, k.ID, f.label, sources, last)
	if err != nil {
		return err
	}
	registered, err := o.stack.Table.Sources(ctx)
	if err != nil {
		return err
	}
	command := "matter ops census"
	if len(registered) == 0 {
		command = "matter ops source add --file DEFINITION.json --confirm"
	}
	schedule, told := o.firstRotation(ctx)
	return o.console.PrintResult(map[string]any{
		"kek_id": p.KEKID, "epoch": p.Epoch, "sources": sourceNames(registered), "schedule": schedule, "told": told, "next": command,
	},
		fmt.Sprintf("pointer: KEK %s, epoch %d", p.KEKID, p.Epoch), "registered: "+describeSources(registered),
		"schedule: "+schedule, "told: "+told, nextLine(command))
}

// firstRotation says when the first rotation starts by itself and who is told of outcomes. The
// genesis is done: what cannot be read is said to be unknown.
func (o *operator) firstRotation(ctx context.Context) (schedule, told string) {
	s, err := o.stack.FindNextSchedule(ctx)
	schedule = strings.Join(describeSchedule(s), "; ")
	if err != nil {
		schedule = "unknown: " + advice.Explain(err)
	}
	if told, err = o.stack.DescribeReaders(ctx); err != nil {
		told = "unknown: " + advice.Explain(err)
	}
	return schedule, told
}

// seedSources reads the sources to begin with.
func (f keyFlags) seedSources() ([]kek.Source, error) {
	if f.sources != "" {
		return readDefinitions(f.sources)
	}
	return app.Seed(os.Getenv)
}

// sourceNames lists the names of sources; an empty list, not null, where there is none.
func sourceNames(sources []kek.Source) []string {
	out := []string{}
	for _, s := range sources {
		out = append(out, s.Name)
	}
	return out
}

// describeSources is how many sources there are, and their names.
func describeSources(sources []kek.Source) string {
	if len(sources) == 0 {
		return "no source"
	}
	return fmt.Sprintf("%d sources: %s", len(sources), strings.Join(sourceNames(sources), ", "))
}

// usableKey looks a key up by its id, ARN or alias, and refuses one that cannot wrap
// data keys, before anything is written.
func (o *operator) usableKey(ctx context.Context, name string) (keyring.Key, error) {
	k, err := o.stack.Steps.Keys.Admin.Describe(ctx, kek.ID(name))
	unusable := func(msg string) error {
		return &journal.Error{
			Kind: journal.KeyUnusable, Field: "--kek-id", Msg: msg, Next: journal.Next{Say: "give an enabled symmetric KMS key of usage ENCRYPT_DECRYPT in this account and Region"},
		}
	}
	switch {
	case errors.Is(err, journal.ErrNoKey):
		return k, unusable(fmt.Sprintf("KMS knows no key %q", name))
	case err != nil:
		return k, fmt.Errorf("describe KMS key %s: %w", name, err)
	case !k.Enabled || !k.Usable:
		return k, unusable(fmt.Sprintf("KMS key %s is in state %s and cannot wrap data keys", k.ID, k.State))
	}
	// Rows, registry and policies name KEKs by bare ids, which are of this account and Region.
	here, err := o.stack.Steps.Keys.Admin.Describe(ctx, k.ID)
	if err != nil && !errors.Is(err, journal.ErrNoKey) {
		return k, fmt.Errorf("describe KMS key %s: %w", k.ID, err)
	}
	if here.ARN != k.ARN {
		return k, unusable(fmt.Sprintf("KMS key %s is in another account or Region", k.ARN))
	}
	return k, nil
}

// checkGenesis refuses a genesis that the registry would refuse, before the key is tagged.
func (o *operator) checkGenesis(ctx context.Context, id kek.ID) error {
	v, err := o.stack.Table.LoadAll(ctx, "")
	switch {
	case err != nil:
		return err
	case v.Pointer != nil && v.Pointer.KEKID != id:
		return refusedError("--kek-id", fmt.Sprintf("the pointer names KEK %s already; only a rotation moves it", v.Pointer.KEKID), "matter ops kms-status")
	case v.Pointer == nil && (v.Registry > 0 || len(v.KEKs) > 0):
		return errPointerLost()
	}
	return nil
}

// errPointerLost refuses to begin again where a deployment was: the control table is
// damaged, and a genesis would set the epoch back to 1.
func errPointerLost() error {
	return &journal.Error{
		Kind: journal.PointerInvalid, Field: "POINTER", Msg: "the registry has KEKs but there is no pointer; another genesis would set the epoch back to 1 and orphan rows",
		Next: journal.Next{Say: restorePointer},
	}
}

const restorePointer = "matter ops doctor"

// newRegisterKEK returns the command matter ops kms-register-kek.
func newRegisterKEK() *cobra.Command {
	var f keyFlags
	cmd := &cobra.Command{
		Use:   "kms-register-kek --kek-id KEY --confirm",
		Short: "Register a historic KEK, under which rows were written before this deployment",
		Long: `Registers a KMS key under which rows were written before this deployment or without
it, and tags it with the stack. Nothing new can be written under it: it is sealed. The
next rotation moves its rows to the new KEK, and retires and disables it with the old
one. It is refused while a rotation runs.`,
		Example: `  matter ops kms-register-kek --kek-id 1234abcd-12ab-34cd-56ef-1234567890ab --label "before 2024" --confirm`,
	}
	cmd.Flags().StringVar(&f.key, "kek-id", "", "the KMS key: its id, ARN or alias")
	cmd.Flags().StringVar(&f.label, "label", "historic", "the operator's name for it")
	cmd.Flags().BoolVar(&f.confirm, "confirm", false, "do it")
	return newStepCommand(cmd, func(ctx context.Context, o *operator) error { return o.registerKEK(ctx, f) }, "kek-id")
}

// registerKEK tags a historic KEK and registers it. A KEK that is registered already is
// printed as it is, so the command may be repeated.
func (o *operator) registerKEK(ctx context.Context, f keyFlags) error {
	k, err := o.usableKey(ctx, f.key)
	if err != nil {
		return err
	}
	v, err := o.stack.Table.LoadAll(ctx, "")
	if err != nil {
		return err
	}
	if err := o.checkRegister(ctx, v); err != nil {
		return err
	}
	if known, ok := v.KEKs[k.ID]; ok {
		return o.registeredAs(known)
	}
	if !f.confirm {
		return o.refuseUnconfirmed(fmt.Sprintf("tag KMS key %s with matter:stack=%s and register it as a sealed KEK; the next rotation moves its rows, retires it and disables its KMS key", k.ID, o.stack.Config.Stack),
			fmt.Sprintf("matter ops kms-register-kek --kek-id %s --label %q", k.ID, f.label))
	}
	if err := o.stack.TagKey(ctx, k.ID); err != nil {
		return err
	}
	if err := o.stack.Steps.RegisterKEK(ctx, k.ID, f.label); err != nil {
		return err
	}
	now, err := o.registeredKEK(ctx, flagKEK, k.ID)
	if err != nil {
		return err
	}
	return o.registeredAs(now)
}

// checkRegister refuses what the registry would refuse, before the key is tagged.
func (o *operator) checkRegister(ctx context.Context, v kek.View) error {
	if v.Pointer == nil {
		return refusedError("POINTER", "there is no pointer", o.withoutPointer(v))
	}
	if v.Lock == "" {
		return nil
	}
	r, err := o.reloadRotation(ctx, v.Lock)
	if err != nil {
		return err
	}
	return &journal.Error{
		Kind: journal.RotationInProgress, Field: "LOCK", Msg: fmt.Sprintf("rotation %s is %s; it has counted rows without this KEK", r.ID, r.Phase), Next: journal.Next{Say: o.continueCommand(ctx, r)},
	}
}

// registeredAs prints a KEK as the registry has it.
func (o *operator) registeredAs(k kek.KEK) error {
	const command = "matter ops census"
	return o.console.PrintResult(map[string]any{"kek_id": k.ID, "state": k.State, "label": k.Label, "next": command},
		fmt.Sprintf("KEK %s is registered and %s (%s)", k.ID, k.State, k.Label), nextLine(command))
}

// withoutPointer is what comes next where there is no pointer: a genesis only if
// nothing was ever registered.
func (o *operator) withoutPointer(v kek.View) string {
	if v.Registry > 0 || len(v.KEKs) > 0 {
		return restorePointer
	}
	return "matter ops kms-genesis --kek-id KEY --confirm"
}
