// Matter-acceptance runs the whole life of a deployment on AWS, in the account and Region of
// the caller's credentials: make aws-acceptance. It says what that costs and how long it
// takes before it begins, and asks.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/matter-ops/kms-rotation/test/acceptance"
)

const forecast = `
This deploys stack %s in account %s, Region %s, and rotates keys of its own:
%s.

It takes about 40 minutes and costs about $1, most of it for some ten KMS keys, which AWS
charges by the hour until their deletion is scheduled. It makes two tables of its own, and
touches no other table, key or stack. The heads of its audit chain, which are a hash and a
signature, go to a public transparency log.

It removes what it made, but for two audit buckets: their records are locked for one day.
Everything it does is in %s.

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "matter-acceptance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	name := acceptance.Prefix + time.Now().UTC().Format("20060102150405")
	flags := flag.NewFlagSet("matter-acceptance", flag.ContinueOnError)
	yes := flags.Bool("yes", false, "do not ask")
	root := flags.String("root", ".", "the project, with build/functions made by make package")
	evidence := flags.String("evidence", name, "directory for reports, the audit chain and the table")
	if err := flags.Parse(args); err != nil {
		return err
	}
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return err
	}
	if cfg.Region == "" {
		return errors.New("no Region: set AWS_REGION")
	}
	who, err := sts.NewFromConfig(cfg).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return fmt.Errorf("no usable credentials: %w", err)
	}
	account := aws.ToString(who.Account)
	fmt.Fprintf(out, forecast, name, account, cfg.Region, strings.Join(acceptance.Names(), ", "), *evidence)
	if !*yes && !asked(in, out) {
		return errors.New("nothing was done")
	}
	tool := filepath.Join(*root, "bin", "matter")
	target := &acceptance.SAM{Config: cfg, Root: *root, Command: "sam", Tool: tool, Args: []string{"--resolve-s3"}, Out: out}
	table, left, failed := acceptance.Run(ctx, target, acceptance.Options{
		Stack: name, Account: account, Region: cfg.Region, Tool: tool, Evidence: *evidence,
		Load: 5 * time.Minute, Lease: 90 * time.Second, Poll: 2 * time.Second, Out: out,
	})
	fmt.Fprintln(out)
	if err := acceptance.Print(out, table); err != nil {
		return err
	}
	// A run that was interrupted or has failed leaves its stack: it holds what shows why.
	if failed != nil {
		return fmt.Errorf("%w\nstack %s is left for a look; then: sam delete --stack-name %[2]s", failed, name)
	}
	lines, err := acceptance.Clean(ctx, cfg, left)
	for _, line := range lines {
		fmt.Fprintln(out, line)
	}
	return err
}

// asked reports whether the person says yes.
func asked(in io.Reader, out io.Writer) bool {
	fmt.Fprint(out, "Begin? [y/N] ")
	answer, _ := bufio.NewReader(in).ReadString('\n')
	return strings.EqualFold(strings.TrimSpace(answer), "y")
}
