package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/rotation"
)

type doctorFlags struct{ repair, confirm bool }

func newDoctor() *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor [--repair --confirm]",
		Short: "Find lost, damaged or restored items of the control table, and rebuild them",
		Long: `Reads every item of the control table, the audit chain from the bucket, and what KMS
says of every KEK, and names each item that is lost, damaged, or of an earlier time than
the chain. Without --repair it changes nothing.

With --repair --confirm it rebuilds what it can: the pointer, the KEKs and their fences,
the lock, the registry and the head of the chain from the audit chain and KMS, each as a
transaction on exactly what was read, with a record control_repaired. The pointer is set
only to a KEK whose KMS key is enabled, and its epoch never goes back. No KEK is retired,
no key disabled: a KEK of which nothing is certain becomes sealed, so that rows under it
can be read and the next rotation moves them. A rotation that depends on what was lost
ends as superseded; start a new one, or an emergency, afterwards. A damaged lease,
checkpoint, mark, drill, approval or announcement is removed, and the command says what
that costs. It can be repeated.

Exit code: 0 nothing is wrong, or all of it is repaired; 1 something is wrong that is not
repaired, each with its next step; 2 usage.`,
		Example: "  matter ops doctor\n  matter ops doctor --repair --confirm",
	}
	cmd.Flags().BoolVar(&f.repair, "repair", false, "rebuild what can be rebuilt")
	cmd.Flags().BoolVar(&f.confirm, "confirm", false, "do it")
	return newOp(cmd, func(ctx context.Context, o *operator) error { return o.doctor(ctx, f) })
}

func (o *operator) doctor(ctx context.Context, f doctorFlags) error {
	if !f.repair || !f.confirm {
		d, err := o.Steps.Doctor(ctx)
		if err != nil {
			return err
		}
		if err := o.sayDiagnosis(d); err != nil {
			return err
		}
		switch {
		case f.repair && len(d.Findings) > len(d.Open()):
			return console.UsageError{Err: fmt.Errorf("nothing was done without --confirm (next: %s)", repairCommand)}
		case len(d.Findings) > 0:
			return console.Exit(console.ExitFailed)
		}
		return nil
	}
	if err := o.checkShell(ctx); err != nil {
		return err
	}
	d, err := o.Steps.RepairControl(ctx)
	if serr := o.sayDiagnosis(d); err == nil {
		err = serr
	}
	if err == nil && len(d.Findings) > 0 {
		return console.Exit(console.ExitFailed)
	}
	return err
}

const repairCommand = "matter ops doctor --repair --confirm"

// sayDiagnosis prints what was found, and what was repaired.
func (o *operator) sayDiagnosis(d rotation.Diagnosis) error {
	var lines []string
	if d.SetBack != "" {
		lines = append(lines, console.Paint(o.Out, console.Red, "SET BACK")+"  "+d.SetBack)
	}
	for _, f := range d.Repaired {
		lines = append(lines, fmt.Sprintf("%s  %s: %s; done: %s", console.Paint(o.Out, console.Green, "repaired"), f.Item, f.Fault, f.Repair))
	}
	for _, f := range d.Findings {
		line := fmt.Sprintf("%s  %s: %s", console.Paint(o.Out, console.Red, "NO"), f.Item, f.Fault)
		switch {
		case f.Repair == "":
			line += "; next: " + f.Next
		case f.From == "":
			line += "; doctor would " + f.Repair
		default:
			line += fmt.Sprintf("; doctor would %s, from %s", f.Repair, f.From)
		}
		lines = append(lines, line)
	}
	for _, n := range d.Notes {
		lines = append(lines, "note: "+n)
	}
	if d.Chain != "" {
		lines = append(lines, "read: "+d.Chain)
	}
	return o.Result(diagnosis{d, nextOf(d)}, append(lines, next(nextOf(d)))...)
}

// diagnosis is what a program reads.
type diagnosis struct {
	rotation.Diagnosis
	Next string `json:"next"`
}

// nextOf is what comes next: the repairs, then what doctor cannot do.
func nextOf(d rotation.Diagnosis) string {
	open := d.Open()
	switch {
	case len(d.Findings) > len(open):
		return repairCommand
	case len(open) > 0:
		return open[0].Next
	case len(d.Repaired) > 0:
		return "matter ops kms-status; then, if a key may be compromised or a rotation was ended: matter ops kms-rotate"
	}
	return "nothing; the control table is whole"
}
