package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
)

// doctorFlags are the flags of doctor. It repairs only with both.
type doctorFlags struct{ repair, confirm bool }

// newDoctorCommand returns the command matter ops doctor.
func newDoctorCommand() *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor [--repair --confirm]",
		Short: "Find lost, damaged or restored items of the control table and records of data keys, and rebuild them",
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

It also compares the records of the key tables with their copies in the audit bucket. A
record that is missing, or under a KEK that is retired, is put back from its newest copy,
rewrapped to the pointer's KEK.

Exit code: 0 nothing is wrong, or all of it is repaired; 1 something is wrong that is not
repaired, each with its next step; 2 usage.`,
		Example: "  matter ops doctor\n  matter ops doctor --repair --confirm",
	}
	cmd.Flags().BoolVar(&f.repair, "repair", false, "rebuild what can be rebuilt")
	cmd.Flags().BoolVar(&f.confirm, "confirm", false, "do it")
	return newOpsCommand(cmd, func(ctx context.Context, o *operator) error { return o.examineTable(ctx, f) })
}

// examineTable prints a diagnosis, or repairs and prints what is left. It compares the shell
// with the deployment before a repair only: the diagnosis must also be possible when the
// deployment is damaged.
func (o *operator) examineTable(ctx context.Context, f doctorFlags) error {
	if !f.repair || !f.confirm {
		d, err := o.stack.Doctor.ExamineTable(ctx)
		if err != nil {
			return err
		}
		o.stack.ExamineRecords(ctx, &d, false)
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
	d, err := o.stack.Doctor.RepairTable(ctx)
	if err == nil {
		o.stack.ExamineRecords(ctx, &d, true)
	}
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
func (o *operator) sayDiagnosis(d doctor.Diagnosis) error {
	var shown diagnosis
	for i := range d.Findings {
		d.Findings[i].Advice = advice.Command(d.Findings[i].Next)
	}
	for i := range d.Repaired {
		d.Repaired[i].Advice = advice.Command(d.Repaired[i].Next)
	}
	for _, n := range d.Notes {
		shown.Notes = append(shown.Notes, advice.Describe(n.Text, n.Next))
	}
	shown.Diagnosis, shown.Next = d, nextOfDiagnosis(d)
	var lines []string
	if d.SetBack != "" {
		lines = append(lines, console.PaintText(o.console.Out, console.Red, "SET BACK")+"  "+d.SetBack)
	}
	for _, f := range d.Repaired {
		lines = append(lines, fmt.Sprintf("%s  %s: %s; done: %s", console.PaintText(o.console.Out, console.Green, "repaired"), f.Item, f.Fault, f.Repair))
	}
	for _, f := range d.Findings {
		line := fmt.Sprintf("%s  %s: %s", console.PaintText(o.console.Out, console.Red, "NO"), f.Item, f.Fault)
		switch {
		case f.Repair == "":
			line += "; next: " + f.Advice
		case f.From == "":
			line += "; doctor would " + f.Repair
		default:
			line += fmt.Sprintf("; doctor would %s, from %s", f.Repair, f.From)
		}
		lines = append(lines, line)
	}
	for _, n := range shown.Notes {
		lines = append(lines, "note: "+n)
	}
	if d.Chain != "" {
		lines = append(lines, "read: "+d.Chain)
	}
	return o.console.PrintResult(shown, append(lines, nextLine(shown.Next))...)
}

// diagnosis is what a program reads.
type diagnosis struct {
	doctor.Diagnosis
	Notes []string `json:"notes,omitempty"` // with what to do about them
	Next  string   `json:"next"`
}

// nextOfDiagnosis is what comes next: the repairs, then what doctor cannot do.
func nextOfDiagnosis(d doctor.Diagnosis) string {
	open := d.Open()
	switch {
	case len(d.Findings) > len(open):
		return repairCommand
	case len(open) > 0:
		return open[0].Advice
	case len(d.Repaired) > 0:
		return "matter ops kms-status; then, if a key may be compromised or a rotation was ended: matter ops kms-rotate"
	}
	return "nothing; the control table is whole"
}
