// Command matter-audit-verify verifies a copy of an audit bucket, for an auditor
// who trusts nobody: it needs a directory and a trust list, no AWS account, no
// network, and nothing of the program that wrote the chain but package audit.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/audit/replay"
	"github.com/matter-ops/kms-rotation/internal/version"
)

// The exit codes, those of matter ops audit verify.
const (
	exitGreen    = 0
	exitTampered = 1
	exitUsage    = 2 // the command line, the trust list or the directory is not what was meant
	exitForeign  = 3 // nothing was changed, and a record is not a step of the specification
	exitUnproven = 5 // also if reading failed
)

const usage = `usage: matter-audit-verify --trust FILE --chain NAME [flags] DIRECTORY

Verifies a copy of an audit bucket offline: every record and every anchor, their
links, their log entries, and, where the copy has them (matter ops audit export),
versions, delete markers and Object Lock. With --model it also checks that each
record is a step that the specification of a rotation allows (spec/evidence.tla).

Exit code: 0 green, 1 tampered, 2 the command line, the trust list or the directory
is not what was meant, 3 the chain is intact and a record is not a step of the
specification, 5 unproven. Only 1 says that something was changed.

`

// main verifies against the time of day: ages of anchors and locks are measured from now.
func main() { os.Exit(runCommand(os.Args[1:], os.Stdout, os.Stderr, time.Now())) }

// options are the parsed command line.
type options struct {
	dir, trust, output string
	policy             audit.Policy
	model              *replay.Run // nil: without --model
}

// runCommand is the command; now is what ages are measured against.
func runCommand(args []string, stdout, stderr io.Writer, now time.Time) int {
	o, err := parseFlags(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitGreen
	}
	if errors.Is(err, errVersion) {
		fmt.Fprintln(stdout, "matter-audit-verify version", version.Describe())
		return exitGreen
	}
	var dir *audit.Dir
	if err == nil {
		o.policy.Now = now
		dir, err = o.openCopy()
	}
	if errors.Is(err, errCopy) {
		fmt.Fprintln(stderr, "matter-audit-verify: nothing is proven:", err)
		return exitUnproven
	}
	if err != nil {
		fmt.Fprintln(stderr, "matter-audit-verify:", err)
		return exitUsage
	}
	if o.model != nil {
		o.policy.Replay = o.model.Take
	}
	report, err := audit.Verify(context.Background(), dir, o.policy)
	if err == nil {
		err = o.printReport(stdout, report)
	}
	if err != nil {
		fmt.Fprintln(stderr, "matter-audit-verify: nothing is proven:", err)
		return exitUnproven
	}
	return o.exitCode(report)
}

// exitCode is that of the worst that was found.
func (o *options) exitCode(r audit.Report) int {
	var model replay.Report
	if o.model != nil {
		model = o.model.Report()
	}
	switch {
	case r.Result == audit.Tampered:
		return exitTampered
	case len(model.Findings) > 0:
		return exitForeign
	case r.Result != audit.Green || model.Unchecked != "":
		return exitUnproven
	default:
		return exitGreen
	}
}

// parseFlags parses the command line. Its error is a usage error.
func parseFlags(args []string, stderr io.Writer) (options, error) {
	var o options
	days := 0
	f := flag.NewFlagSet("matter-audit-verify", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
	}
	f.StringVar(&o.trust, "trust", "", "`file` with the trust list: logs and anchor keys, see docs/audit.md")
	f.StringVar(&o.policy.Chain, "chain", "", "`name` of the chain: the stack's")
	f.IntVar(&days, "retention-days", 0, "least Object Lock that every object must have had, in `days` from its own time")
	f.DurationVar(&o.policy.MaxTail, "max-tail", audit.DefaultMaxTail, "how long a record may wait for its anchor")
	f.StringVar(&o.output, "o", "text", "output `format`: text or json")
	f.Func("known-anchor", "anchor seen before, `n:digest`; may be repeated", func(s string) error {
		k, err := audit.ParseKnown(s)
		o.policy.Known = append(o.policy.Known, k)
		return err
	})
	f.Func("known-head", "head that the control table had, `seq:hash`", func(s string) (err error) {
		o.policy.Head, err = parseHead(s)
		return err
	})
	model := f.Bool("model", false, "check too that each record is a step of the specification")
	showVersion := f.Bool("version", false, "print the program's version")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, errors.New("see --help")
	}
	if *model {
		o.model = &replay.Run{}
	}
	o.policy.Retention = time.Duration(days) * 24 * time.Hour
	o.dir = f.Arg(0)
	switch {
	case *showVersion:
		return o, errVersion
	case f.NArg() != 1:
		return o, errors.New("name one directory; flags go before it")
	case o.trust == "" || o.policy.Chain == "":
		return o, errors.New("--trust and --chain are required")
	case o.output != "text" && o.output != "json":
		return o, fmt.Errorf("-o %s: use text or json", o.output)
	}
	return o, nil
}

// parseHead parses "<seq>:<hash>", the head of the chain in the control table.
func parseHead(s string) (*audit.Head, error) {
	seq, hash, ok := strings.Cut(s, ":")
	n, err := strconv.ParseInt(seq, 10, 64)
	if err != nil || !ok || n < 0 {
		return nil, fmt.Errorf("%q: want a sequence number, a colon and a hash", s)
	}
	return &audit.Head{Seq: n, Hash: hash}, nil
}

// errCopy is a copy that cannot be read, such as one whose manifest is damaged.
var errCopy = errors.New("the copy cannot be read")

// openCopy reads the trust list and opens the copy. But for [errCopy] its errors are mistakes of the
// command line, not signs of tampering.
func (o *options) openCopy() (*audit.Dir, error) {
	b, err := os.ReadFile(o.trust)
	if err != nil {
		return nil, fmt.Errorf("--trust: %w", err)
	}
	if o.policy.Trust, err = audit.ParseTrust(b); err != nil {
		return nil, fmt.Errorf("--trust %s: %w", o.trust, err)
	}
	if len(o.policy.Trust.AnchorKeys) == 0 {
		return nil, fmt.Errorf("--trust %s: anchor_keys: at least one is required", o.trust)
	}
	if info, err := os.Stat(o.dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", o.dir)
	}
	dir, err := audit.OpenDir(os.DirFS(o.dir))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCopy, err)
	}
	versions, err := dir.Versions(context.Background())
	if err != nil {
		return nil, err
	}
	return dir, checkChain(versions, o.policy.Chain)
}

// checkChain refuses a copy that has objects and none of the chain: every one of them would be a
// finding. The keys of a chain begin with v1/ and its name, see [audit.ObjectKey].
func checkChain(versions []audit.ObjectVersion, chain string) error {
	var others []string
	for _, v := range versions {
		parts := strings.Split(v.Key, "/")
		if len(parts) < 3 || parts[0] != "v1" {
			continue
		}
		if parts[1] == chain {
			return nil
		}
		if !slices.Contains(others, parts[1]) {
			others = append(others, parts[1])
		}
	}
	switch {
	case len(versions) == 0:
		return nil
	case len(others) == 0:
		return fmt.Errorf("--chain %s: the directory has files and no chain; name the copy that matter ops audit export made", chain)
	default:
		return fmt.Errorf("--chain %s: the copy has no object of that chain; it has %s", chain, audit.Visible(strings.Join(others[:min(len(others), 5)], ", ")))
	}
}

// errVersion asks for the version.
var errVersion = errors.New("version")

// printReport prints the report as text or as JSON, with what the replay found before it.
func (o *options) printReport(w io.Writer, r audit.Report) error {
	out := struct {
		audit.Report
		Model *replay.Report `json:"model,omitempty"`
	}{Report: r}
	if o.model != nil {
		m := o.model.Report()
		out.Model = &m
	}
	if o.output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(out)
	}
	if out.Model != nil {
		if err := out.Model.Print(w); err != nil {
			return err
		}
	}
	return r.Print(w)
}
