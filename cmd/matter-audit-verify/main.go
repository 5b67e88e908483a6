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
	"strconv"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
)

// The exit codes, those of matter ops audit verify.
const (
	exitGreen    = 0
	exitTampered = 1 // or it could not be looked at
	exitUsage    = 2
	exitUnproven = 5
)

const usage = `usage: matter-audit-verify --trust FILE --chain NAME [flags] DIRECTORY

Verifies a copy of an audit bucket offline: every record and every anchor, their
links, their log entries, and, where the copy has them (matter ops audit export),
versions, delete markers and Object Lock.

Exit code: 0 green, 1 tampered, 2 usage, 5 unproven.

`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr, time.Now())) }

type options struct {
	dir, trust, output string
	policy             audit.Policy
}

// run is the command; now is what ages are measured against.
func run(args []string, stdout, stderr io.Writer, now time.Time) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitGreen
	}
	if err != nil {
		fmt.Fprintln(stderr, "matter-audit-verify:", err)
		return exitUsage
	}
	o.policy.Now = now
	report, err := verify(o)
	if err != nil {
		fmt.Fprintln(stderr, "matter-audit-verify:", err)
		return exitTampered
	}
	if err := show(stdout, o.output, report); err != nil {
		fmt.Fprintln(stderr, "matter-audit-verify:", err)
		return exitTampered
	}
	switch report.Result {
	case audit.Green:
		return exitGreen
	case audit.Unproven:
		return exitUnproven
	default:
		return exitTampered
	}
}

func parse(args []string, stderr io.Writer) (options, error) {
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
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, errors.New("see --help")
	}
	o.policy.Retention = time.Duration(days) * 24 * time.Hour
	o.dir = f.Arg(0)
	switch {
	case f.NArg() != 1:
		return o, errors.New("name one directory; flags go before it")
	case o.trust == "" || o.policy.Chain == "":
		return o, errors.New("--trust and --chain are required")
	case o.output != "text" && o.output != "json":
		return o, fmt.Errorf("-o %s: use text or json", o.output)
	}
	return o, nil
}

func parseHead(s string) (*audit.Head, error) {
	seq, hash, ok := strings.Cut(s, ":")
	n, err := strconv.ParseInt(seq, 10, 64)
	if err != nil || !ok || n < 0 {
		return nil, fmt.Errorf("%q: want a sequence number, a colon and a hash", s)
	}
	return &audit.Head{Seq: n, Hash: hash}, nil
}

func verify(o options) (audit.Report, error) {
	b, err := os.ReadFile(o.trust)
	if err != nil {
		return audit.Report{}, err
	}
	if o.policy.Trust, err = audit.ParseTrust(b); err != nil {
		return audit.Report{}, err
	}
	if len(o.policy.Trust.AnchorKeys) == 0 {
		return audit.Report{}, fmt.Errorf("%s: anchor_keys: at least one is required", o.trust)
	}
	if info, err := os.Stat(o.dir); err != nil || !info.IsDir() {
		return audit.Report{}, errors.Join(err, fmt.Errorf("%s is not a directory", o.dir))
	}
	dir, err := audit.OpenDir(os.DirFS(o.dir))
	if err != nil {
		return audit.Report{}, err
	}
	return audit.Verify(context.Background(), dir, o.policy)
}

func show(w io.Writer, format string, r audit.Report) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.Print(w)
}
