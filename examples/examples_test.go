// Package examples_test holds the examples to what they deploy.
package examples_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
)

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// names are the names of the template's parameters, resources or outputs.
func names(t *testing.T, section string) []string {
	t.Helper()
	var tpl map[string]yaml.Node
	if err := yaml.Unmarshal([]byte(read(t, "../template.yaml")), &tpl); err != nil {
		t.Fatal(err)
	}
	node := tpl[section]
	var out []string
	for i := 0; i < len(node.Content); i += 2 {
		out = append(out, node.Content[i].Value)
	}
	if len(out) == 0 {
		t.Fatalf("template.yaml has no %s", section)
	}
	return out
}

// between is the part of a file from one text to the next occurrence of another.
func between(t *testing.T, name, from, to string) string {
	t.Helper()
	_, after, ok := strings.Cut(read(t, name), from)
	part, _, ends := strings.Cut(after, to)
	if !ok || !ends {
		t.Fatalf("%s has no %q ended by %q", name, from, to)
	}
	return part
}

// TestTerraformNames: what the configuration names is in template.yaml.
func TestTerraformNames(t *testing.T) {
	assigned, quoted := regexp.MustCompile(`\b([A-Z]\w+) +=`), regexp.MustCompile(`"([A-Z]\w+)"`)
	for _, c := range []struct {
		section, text string
		find          *regexp.Regexp
		least         int
	}{
		{"Parameters", between(t, "terraform/main.tf", "merge(var.parameters, {", "})"), assigned, 4},
		{"Parameters", between(t, "terraform/variables.tf", "setintersection(keys(var.parameters), [", "])"), quoted, 4},
		{"Parameters", between(t, "terraform/variables.tf", `variable "parameters"`, "type "), assigned, 2},
		{"Parameters", between(t, "terraform/terraform.tfvars.example", "parameters ", "}"), assigned, 3},
		{"Outputs", read(t, "terraform/main.tf") + read(t, "terraform/outputs.tf"), regexp.MustCompile(`outputs\["(\w+)"\]`), 6},
		{"Resources", read(t, "terraform/main.tf"), regexp.MustCompile(`LogicalResourceId/(\w+)`), 4},
	} {
		known := names(t, c.section)
		found := c.find.FindAllStringSubmatch(c.text, -1)
		if len(found) < c.least {
			t.Errorf("%s: %d names are found in %q", c.section, len(found), c.text)
		}
		for _, m := range found {
			if !slices.Contains(known, m[1]) {
				t.Errorf("template.yaml has no %s named %q", c.section, m[1])
			}
		}
	}
}

// TestTerraformSources: the variable has every field of a source, and no other but
// the ARN, which goes to the roles.
func TestTerraformSources(t *testing.T) {
	_, text, ok := strings.Cut(read(t, "terraform/variables.tf"), `variable "sources"`)
	if !ok {
		t.Fatal("no variable sources")
	}
	text, _, _ = strings.Cut(text, "}))")
	var have []string
	for _, m := range regexp.MustCompile(`(?m)^    (\w+) +=`).FindAllStringSubmatch(text, -1) {
		have = append(have, m[1])
	}
	want := []string{"table_arn"}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[dynamosource.Config]()) {
		want = append(want, f.Tag.Get("json"))
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("fields %q, want %q", have, want)
	}
}

// TestTerraform runs terraform itself. It is skipped where terraform or the provider
// is not installed, unless MATTER_REQUIRE_TERRAFORM=1. MATTER_TERRAFORM_PLUGINS names
// a directory of providers for a machine that reaches no registry of them.
func TestTerraform(t *testing.T) {
	required := os.Getenv("MATTER_REQUIRE_TERRAFORM") == "1"
	if _, err := exec.LookPath("terraform"); err != nil {
		if required {
			t.Fatal(err)
		}
		t.Skip("terraform is not installed")
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("terraform")); err != nil {
		t.Fatal(err)
	}
	for _, leftover := range []string{".terraform", ".terraform.lock.hcl"} {
		if err := os.RemoveAll(filepath.Join(dir, leftover)); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "terraform", append([]string{"-chdir=" + dir}, args...)...)
		cmd.Env = append(os.Environ(), "CHECKPOINT_DISABLE=1", "TF_IN_AUTOMATION=1", "AWS_EC2_METADATA_DISABLED=true")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("fmt", "-check", "-diff", "-recursive", "-no-color"); err != nil {
		t.Errorf("fmt: %v\n%s", err, out)
	}
	init := []string{"init", "-backend=false", "-input=false", "-no-color"}
	if plugins := os.Getenv("MATTER_TERRAFORM_PLUGINS"); plugins != "" {
		init = append(init, "-plugin-dir="+plugins)
	}
	if out, err := run(init...); err != nil {
		if required {
			t.Fatalf("init: %v\n%s", err, out)
		}
		t.Skipf("the provider cannot be had: %v", err)
	}
	if out, err := run("validate", "-no-color"); err != nil {
		t.Errorf("validate: %v\n%s", err, out)
	}
	out, err := run("test", "-no-color")
	if err != nil || !strings.Contains(out, "0 failed") || strings.Contains(out, " 0 passed") {
		t.Errorf("test: %v\n%s", err, out)
	}
}

type workflow struct {
	Permissions map[string]string
	Jobs        map[string]struct {
		Needs       string
		If          string
		Environment string
		Permissions map[string]string
		Steps       []struct {
			Uses, Run string
			With      map[string]any
		}
	}
}

// TestDeployWorkflow: only the deploying job, behind the reviewed environment and
// the tests, gets a token; there is no long-lived secret; what it runs exists.
func TestDeployWorkflow(t *testing.T) {
	text := read(t, "github-actions/deploy.yml")
	var w workflow
	if err := yaml.Unmarshal([]byte(text), &w); err != nil {
		t.Fatal(err)
	}
	deploy := w.Jobs["deploy"]
	if deploy.Needs != "test" || deploy.Environment != "production" || deploy.Permissions["id-token"] != "write" ||
		!strings.Contains(deploy.If, "refs/heads/main") {
		t.Errorf("deploy: %+v", deploy)
	}
	if _, ok := w.Permissions["id-token"]; ok || len(w.Jobs["test"].Permissions) > 0 {
		t.Error("a job that runs code of a pull request gets more than to read")
	}
	if m := regexp.MustCompile(`(?i)secrets\.|aws-access-key|aws-secret`).FindString(text); m != "" {
		t.Errorf("the workflow uses %q", m)
	}
	makefile := read(t, "../Makefile")
	ran := map[string]bool{}
	for _, job := range w.Jobs {
		for _, s := range job.Steps {
			for _, m := range regexp.MustCompile(`\bmake (\w+)`).FindAllStringSubmatch(s.Run, -1) {
				ran[m[1]] = true
				if !strings.Contains(makefile, "\n"+m[1]+":") {
					t.Errorf("the Makefile has no target %q", m[1])
				}
			}
		}
	}
	if !ran["test"] || !ran["package"] {
		t.Errorf("it runs make %v", ran)
	}
}

// TestDeployRefuses runs the workflow's check before a deployment against an aws that answers for
// a stack: it refuses while an execution runs, and while a rotation without one holds the lock.
func TestDeployRefuses(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	var w workflow
	if err := yaml.Unmarshal([]byte(read(t, "github-actions/deploy.yml")), &w); err != nil {
		t.Fatal(err)
	}
	check := ""
	for _, s := range w.Jobs["deploy"].Steps {
		if strings.Contains(s.Run, "list-executions") {
			check = s.Run
		}
	}
	lock := fmt.Sprintf(`{"pk":{"S":%q},"sk":{"S":%q}}`, controltable.PKLock, controltable.NoSK)
	for name, c := range map[string]struct {
		stack, running, lock, want string
	}{
		"no stack yet":    {"", "0", "None", ""},
		"a free lock":     {"yes", "0", "None", ""},
		"it runs":         {"yes", "1", "r1", "1 rotation(s) running"},
		"it is halted":    {"yes", "0", "r1", "rotation r1 holds the lock"},
		"nothing to read": {"yes", "0", "", "holds the lock"},
	} {
		t.Run(name, func(t *testing.T) {
			bin := t.TempDir()
			aws := `#!/bin/sh
case "$*" in
*describe-stacks*StateMachineArn*) test -n "` + c.stack + `" && echo arn:one arn:two;;
*describe-stacks*ControlTableName*) test -n "` + c.stack + `" && echo control;;
*list-executions*--status-filter\ RUNNING*) echo ` + c.running + `;;
*get-item*--table-name\ control*'` + lock + `'*) echo ` + c.lock + `;;
*) echo "unexpected: $*" >&2; exit 9;;
esac
`
			if err := os.WriteFile(filepath.Join(bin, "aws"), []byte(aws), 0o700); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), bash, "-e", "-o", "pipefail", "-c", check) // as the runner does
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "STACK=matter")
			out, err := cmd.CombinedOutput()
			if refused := err != nil; refused != (c.want != "") || !strings.Contains(string(out), c.want) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// TestTrustPolicy: the role trusts one environment of one repository.
func TestTrustPolicy(t *testing.T) {
	var p struct {
		Statement []struct {
			Action    string
			Condition map[string]map[string]string
		}
	}
	if err := json.Unmarshal([]byte(read(t, "github-actions/trust-policy.json")), &p); err != nil {
		t.Fatal(err)
	}
	if len(p.Statement) != 1 || len(p.Statement[0].Condition) != 1 {
		t.Fatalf("%+v", p)
	}
	c := p.Statement[0].Condition["StringEquals"]
	sub := c["token.actions.githubusercontent.com:sub"]
	if c["token.actions.githubusercontent.com:aud"] != "sts.amazonaws.com" || !strings.HasSuffix(sub, ":environment:production") || strings.Contains(sub, "*") {
		t.Errorf("conditions %v", c)
	}
}

// TestSamDeploy: sam accepts the workflow's command line beside samconfig.toml. It
// is refused for want of credentials, not of syntax.
func TestSamDeploy(t *testing.T) {
	sam, err := filepath.Abs("../.venv/bin/sam")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(sam); errors.Is(err, os.ErrNotExist) {
		t.Skip("sam is not installed: make venv")
	}
	m := regexp.MustCompile(`(?s)\n +sam (deploy .*)\z`).FindStringSubmatch(read(t, "github-actions/deploy.yml"))
	if m == nil {
		t.Fatal("the workflow does not deploy")
	}
	args := strings.NewReplacer("\\\n", " ", `"`, "", "$STACK", "matter", "$ARCH", "arm64").Replace(m[1])
	cmd := exec.CommandContext(t.Context(), sam, strings.Fields(args)...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "SAM_CLI_TELEMETRY=0", "AWS_REGION=eu-central-1", "AWS_DEFAULT_REGION=eu-central-1",
		"AWS_ACCESS_KEY_ID=none", "AWS_SECRET_ACCESS_KEY=none", "AWS_ENDPOINT_URL=http://127.0.0.1:9", "AWS_MAX_ATTEMPTS=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "127.0.0.1:9") {
		t.Errorf("sam %s: %v\n%s", args, err, out)
	}
}

// TestSourcesOfTheDocuments: each list of sources that a new user is told to write is one that
// genesis reads.
func TestSourcesOfTheDocuments(t *testing.T) {
	list := regexp.MustCompile(`(?m)^ *(\[\{"(?:kind|table)"[^\]]*\}\])$`)
	kinds := map[string]int{}
	for _, name := range []string{"../README.md", "../docs/install.md"} {
		for _, m := range list.FindAllStringSubmatch(read(t, name), -1) {
			defs, err := app.ParseDefinitions([]byte(m[1]))
			if err != nil {
				t.Errorf("%s: %s: %v", name, m[1], err)
			}
			for _, def := range defs {
				kinds[name+" "+def.Kind]++
			}
		}
	}
	if kinds["../README.md deks"] != 1 || kinds["../docs/install.md deks"] != 1 || kinds["../README.md dynamodb"] < 2 || kinds["../docs/install.md dynamodb"] < 2 {
		t.Errorf("the documents have sources of the kinds %v", kinds)
	}
}
