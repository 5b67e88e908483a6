package second

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudformation"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sfn"

	"github.com/matter-ops/kms-rotation/test/acceptance"
	"github.com/matter-ops/kms-rotation/test/localaws/rekorlocal"
)

// target is the second AWS as the acceptance sees it: sam deploy of the template without
// what the list names, and its repairs.
type target struct {
	*acceptance.SAM
	t     *testing.T
	w     *world
	lives int
}

func (a *target) Deploy(ctx context.Context, stack string, parameters map[string]string) ([]string, error) {
	a.lives++
	a.w.template(a.t, fmt.Sprintf("accepted-%d", a.lives))
	env, err := a.SAM.Deploy(ctx, stack, parameters)
	if err != nil {
		return nil, err
	}
	a.w.outputs = outputs(ctx, a.t, a.w.cfn, stack)
	a.w.repair(a.t)
	return env, nil
}

func (a *target) Delete(ctx context.Context, stack string) error {
	return deleteStack(ctx, a.w.cfn, stack)
}

func outputs(ctx context.Context, t *testing.T, cfn *cloudformation.Client, stack string) map[string]string {
	t.Helper()
	out, err := cfn.DescribeStacks(ctx, &cloudformation.DescribeStacksInput{StackName: &stack})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, o := range out.Stacks[0].Outputs {
		all[aws.ToString(o.OutputKey)] = aws.ToString(o.OutputValue)
	}
	return all
}

// TestAcceptance makes the run of make aws-acceptance on the second AWS, all stages of it.
func TestAcceptance(t *testing.T) {
	t.Parallel() // it waits more than it works
	if testing.Short() {
		t.Skip("it starts a server")
	}
	s := start(t)
	log, err := rekorlocal.Start(t.Context(), rekorlocal.Options{Dir: filepath.Join(s.home, "rekor")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(log.Stop)
	cfg := config(s.url)
	w := &world{
		server: s, dir: t.TempDir(), cfn: cloudformation.NewFromConfig(cfg), dynamo: dynamodb.NewFromConfig(cfg),
		kms: kms.NewFromConfig(cfg), s3: s3.NewFromConfig(cfg), sfn: sfn.NewFromConfig(cfg),
	}
	w.layOut(t)
	tool := filepath.Join(s.root, "bin", "matter")
	settings := map[string]string{}
	for _, p := range more(t, log) {
		name, value, _ := strings.Cut(p, "=")
		settings[name] = strings.ReplaceAll(strings.Trim(value, `"`), `\"`, `"`)
	}
	a := &target{t: t, w: w, SAM: &acceptance.SAM{
		Config: cfg, Root: w.dir, Command: filepath.Join(s.root, ".venv", "bin", "sam"), Tool: tool, Env: s.env(), Args: []string{"--resolve-s3"}, Out: testLog{t},
	}}
	var text bytes.Buffer
	table, left, err := acceptance.Run(t.Context(), a, acceptance.Options{
		Stack: acceptance.Prefix + "second", Account: account, Region: region, Tool: tool, Evidence: filepath.Join(s.home, "evidence"),
		Load: 8 * time.Second, Lease: 25 * time.Second, Poll: 500 * time.Millisecond, Out: testLog{t}, Settings: settings,
	})
	if err != nil {
		t.Error(err)
	}
	if err := acceptance.Print(&text, table); err != nil {
		t.Error(err)
	}
	t.Log("\n" + text.String())
	lines, err := acceptance.Clean(t.Context(), cfg, left)
	if err != nil || len(left.ControlTables) != 2 {
		t.Errorf("%+v, %v", left, err)
	}
	t.Log(strings.Join(lines, "\n"))
	if i := slices.IndexFunc(table, func(s acceptance.Stage) bool { return s.Outcome != acceptance.Passed }); i >= 0 {
		t.Errorf("%+v", table[i])
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}
