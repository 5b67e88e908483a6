package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"
	"github.com/spf13/cobra"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/audit/replay"
	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/console"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/localaws"
	"github.com/matter-ops/kms-rotation/test/sample"
)

const (
	demoTimeout = 5 * time.Minute
	watchEvery  = 250 * time.Millisecond
)

func newDemo() *cobra.Command {
	var rows int
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Adopt rows and rotate real rows twice on a local AWS of its own, and prove what happened",
		Long: `Starts a local AWS of its own and seals real rows. A table of rows that boto3 wrote
without this project (KMS ciphertexts that name no KEK) is registered: the census
refuses it, a dry run says what the rows are, and they are adopted. Then the KEK of all
rows is rotated twice through the shipped state machine and the built Lambda binaries:
once to the end, and once with a corrupted known cipher, so that PreSwitchFailure rolls
it back.
All the while traffic as an application's inserts, updates, deletes and reads rows,
embedded and keyed ones, through package envelope, and checks every read.
Then it proves what it says; the exit code is 1 if anything of it is false.`,
		Example: "  matter-local demo --rows 200",
		Args:    console.RefuseArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), demoTimeout)
			defer cancel()
			dir, err := localDir()
			if err != nil {
				return err
			}
			l, err := sample.Up(ctx, sample.Options{Rows: rows, Tables: []string{letters}, Options: localaws.Options{
				StackName: "demo", Dir: filepath.Join(dir, "demo"),
			}})
			if err != nil {
				return err
			}
			defer l.Close()
			d := &demo{Local: l, out: cmd.OutOrStdout(), live: console.IsTerminal(cmd.OutOrStdout())}
			if err := d.run(ctx); err != nil {
				return err
			}
			proven := d.proof.print(d.out)
			d.say("\n%s\n", d.verdict)
			if !proven {
				return console.Exit(console.ExitFailed)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&rows, "rows", 0, "rows to seed in the two tables; 0 for all there are")
	return cmd
}

// demo is one run of the demonstration.
type demo struct {
	*sample.Local
	out   io.Writer
	live  bool // draw over the last line
	proof proof

	verdict string        // on the audit chain
	load    *demoLoad     // nil before it runs
	note    envelope.Item // a keyed row that nobody writes again
}

func (d *demo) run(ctx context.Context) error {
	old, err := d.pointer(ctx)
	if err != nil {
		return err
	}
	before, err := d.Set.Check(ctx, d.Rows)
	if err != nil {
		return err
	}
	d.say("%d rows sealed under KEK %s: two tables and the known-cipher corpus\n", d.Seeded, old.KEKID)
	d.proof.claim("before", "every row opens under the first KEK", d.all(before, old.KEKID), describe(before))
	if err := d.adopt(ctx, old); err != nil {
		return err
	}
	if err := d.AddKeyed(ctx); err != nil {
		return err
	}
	if d.load, err = startDemoLoad(ctx, d.Deployment); err != nil {
		return err
	}
	defer d.load.stop()
	d.say("traffic: %s\n", d.load)
	if err := d.writeNote(ctx); err != nil {
		return err
	}
	if err := d.green(ctx, old, before.Sample); err != nil {
		return err
	}
	current, err := d.pointer(ctx)
	if err != nil {
		return err
	}
	if err := d.rolledBack(ctx, current); err != nil {
		return err
	}
	d.traffic(d.load.stop(), current)
	return d.audit(ctx)
}

// all reports whether every row of the set is right and under one KEK, and so are
// the rows of the load.
func (d *demo) all(r sample.Report, id kek.ID) bool {
	guests := 0
	for _, n := range r.Guests {
		guests += n
	}
	return r.Opened == d.Seeded && r.ByKEK[id] == d.Seeded && len(r.Wrong) == 0 && r.Guests[id] == guests
}

// green rotates to the end.
func (d *demo) green(ctx context.Context, old kek.Pointer, row source.Row) error {
	const id = "demo-green"
	d.say("\nrotation 1, as the schedule starts it: {}\n")
	o, err := d.rotate(ctx, id, `{}`)
	if err != nil {
		return err
	}
	p := &d.proof
	p.claim(id, "the execution succeeded", o.Status == types.ExecutionStatusSucceeded, string(o.Status)+" "+o.Error+" "+o.Cause)
	now, err := d.pointer(ctx)
	if err != nil {
		return err
	}
	p.claim(id, "the pointer moved once", now.KEKID != old.KEKID && now.Epoch == old.Epoch+1,
		fmt.Sprintf("%s epoch %d → %s epoch %d", old.KEKID, old.Epoch, now.KEKID, now.Epoch))
	after, err := d.Set.Check(ctx, d.Rows)
	if err != nil {
		return err
	}
	p.claim(id, "every record decrypts to its original bytes, under the new KEK alone", d.all(after, now.KEKID), describe(after))
	if err := d.readLetters(ctx, id, now.KEKID); err != nil {
		return err
	}
	if err := d.readNote(ctx, id, now.KEKID); err != nil {
		return err
	}
	if err := d.dead(ctx, id, old.KEKID); err != nil {
		return err
	}
	dek, err := d.Set.KMS.Decrypt(ctx, row.KEK, row.WrappedDEK, row.Context)
	clear(dek)
	p.claim(id, "a data key wrapped under the old KEK before the rotation does not unwrap any more",
		errors.Is(err, journal.ErrKeyDisabled), "Decrypt: "+refusal(err))
	return nil
}

// rolledBack rotates with a corrupted known cipher.
func (d *demo) rolledBack(ctx context.Context, current kek.Pointer) error {
	const id = "demo-corrupt-corpus"
	d.say("\nrotation 2, with one bit of the known-cipher corpus flipped\n")
	restore, err := d.Set.CorruptCorpus(ctx)
	if err != nil {
		return err
	}
	o, err := d.rotate(ctx, id, `{}`)
	if err != nil {
		return err
	}
	p := &d.proof
	p.claim(id, "dual unwrap noticed, and PreSwitchFailure ran",
		o.Status == types.ExecutionStatusFailed && o.Error == "CorpusCorrupted" && slices.Contains(o.States, "PreSwitchFailure"),
		fmt.Sprintf("%s %s, states %s", o.Status, o.Error, strings.Join(o.States, " → ")))
	now, err := d.pointer(ctx)
	if err != nil {
		return err
	}
	p.claim(id, "the pointer never moved", now.KEKID == current.KEKID && now.Epoch == current.Epoch, fmt.Sprintf("%s epoch %d", now.KEKID, now.Epoch))
	if err := restore(ctx); err != nil {
		return err
	}
	after, err := d.Set.Check(ctx, d.Rows)
	if err != nil {
		return err
	}
	p.claim(id, "every record still decrypts to its original bytes (the flipped bit restored)", d.all(after, now.KEKID), describe(after))
	v, err := d.Deployment.Table.Load(ctx, id)
	if err != nil {
		return err
	}
	if v.Rotation == nil || v.Rotation.NewKEK == "" {
		p.claim(id, "the rotation's record names the KEK that was given up", false, "")
		return nil
	}
	p.claim(id, "it is rolled back, and the lock is free", v.Rotation.Phase == kek.RolledBack && v.Lock == "", string(v.Rotation.Phase))
	return d.dead(ctx, id, v.Rotation.NewKEK)
}

// dead claims that a KEK is retired in the registry and disabled in KMS.
func (d *demo) dead(ctx context.Context, about string, id kek.ID) error {
	keks, err := d.Deployment.Table.KEKs(ctx)
	if err != nil {
		return err
	}
	state := kek.State("unknown")
	for _, k := range keks {
		if k.ID == id {
			state = k.State
		}
	}
	dek, _, err := d.Set.KMS.GenerateDataKey(ctx, id, map[string]string{"demo": "dead"})
	clear(dek)
	d.proof.claim(about, fmt.Sprintf("KEK %s is retired and its KMS key is disabled", id),
		state == kek.Retired && errors.Is(err, journal.ErrKeyDisabled), fmt.Sprintf("registry: %s; GenerateDataKey: %s", state, refusal(err)))
	return nil
}

// refusal says in short what KMS answered.
func refusal(err error) string {
	switch {
	case err == nil:
		return "NOT refused"
	case errors.Is(err, journal.ErrKeyDisabled):
		return "refused, DisabledException"
	default:
		return err.Error()
	}
}

// audit claims what the locked bucket and the transparency log hold, and has a copy
// verified by somebody who has nothing but a trust list.
func (d *demo) audit(ctx context.Context) error {
	if _, err := d.Deployment.Steps.Anchor.AnchorChain(ctx, anchor.Input{}); err != nil {
		return err
	}
	_, err := d.Deployment.Steps.Anchor.VerifyAnchored(ctx)
	if err != nil {
		return err
	}
	r, err := d.Deployment.Steps.Anchor.VerifyAudit(ctx, anchor.AuditOptions{}) // from the first record on, as the auditor reads it
	if err == nil {
		err = anchor.AuditVerdict(r)
	}
	p := &d.proof
	p.claim("audit", "the hash chain in the locked bucket is whole, ends at the control table's head, and is in the transparency log",
		err == nil, fmt.Sprintf("%s; %v", r, orOK(err)))
	var model replay.Run
	copied, err := d.audited(ctx, model.Take)
	p.claim("audit", "an auditor with a copy of the bucket and a trust list comes to the same verdict",
		err == nil && copied.String() == r.String(), fmt.Sprintf("%s; %v", copied, orOK(err)))
	m := model.Report()
	p.claim("audit", "what the records say is a run of the specification, record by record",
		m.Conforms() && m.Completed > 0 && m.Records == copied.Records, fmt.Sprintf("%s %v", m, m.Findings))
	d.verdict = r.String()
	return nil
}

// audited verifies a copy of the bucket with the log's key and the anchor key alone, and calls
// each for every record.
func (d *demo) audited(ctx context.Context, each func(audit.Entry)) (audit.Report, error) {
	a := d.Deployment.Steps.Anchor
	dir, err := os.MkdirTemp("", "matter-audit-")
	if err != nil {
		return audit.Report{}, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	if err := audit.Copy(ctx, a.Bucket, dir); err != nil {
		return audit.Report{}, err
	}
	files, err := audit.OpenDir(os.DirFS(dir))
	if err != nil {
		return audit.Report{}, err
	}
	key, err := a.Signer.PublicKey(ctx)
	if err != nil {
		return audit.Report{}, err
	}
	return audit.Verify(ctx, files, audit.Policy{
		Chain: d.Name, Retention: a.Retention, Now: time.Now(), Replay: each,
		Trust: audit.Trust{Logs: []audit.Log{d.Log.Trust()}, AnchorKeys: []audit.PinnedKey{{Key: key}}},
	})
}

func orOK(err error) string {
	if err == nil {
		return "verified"
	}
	return err.Error()
}

func (d *demo) pointer(ctx context.Context) (kek.Pointer, error) {
	v, err := d.Deployment.Table.Load(ctx, "")
	if err != nil {
		return kek.Pointer{}, err
	}
	if v.Pointer == nil {
		return kek.Pointer{}, kek.ErrNoPointer
	}
	return *v.Pointer, nil
}

// rotate starts an execution and shows its progress.
func (d *demo) rotate(ctx context.Context, id, input string) (console.Outcome, error) {
	client := sfn.NewFromConfig(d.AWSConfig())
	machine := d.Env()["MATTER_STATE_MACHINE_ARN"]
	out, err := client.StartExecution(ctx, &sfn.StartExecutionInput{StateMachineArn: &machine, Name: &id, Input: &input})
	if err != nil {
		return console.Outcome{}, fmt.Errorf("start the execution: %w", err)
	}
	w := console.Watcher{SFN: client, Table: d.Deployment.Table, Every: watchEvery, Rotation: id, Prove: d.Deployment.Steps.ProveCheckpoint}
	view := &console.LiveView{Out: d.out, Live: d.live, Rows: int64(d.Seeded + lettersRows + demoLoadRows), More: d.load.now}
	o, err := w.Follow(ctx, aws.ToString(out.ExecutionArn), view.Show)
	view.End()
	return o, err
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format, args...) }

func describe(r sample.Report) string {
	var parts []string
	for id, n := range r.ByKEK {
		parts = append(parts, fmt.Sprintf("%s: %d rows", id, n))
	}
	for id, n := range r.Guests {
		parts = append(parts, fmt.Sprintf("%s: %d rows of the traffic", id, n))
	}
	slices.Sort(parts)
	if len(r.Wrong) > 0 {
		parts = append(parts, fmt.Sprintf("%d wrong, first: %s", len(r.Wrong), r.Wrong[0]))
	}
	return strings.Join(parts, "; ")
}
