package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
)

// letters is a table of rows that were written without this project: KMS ciphertexts of
// the payloads themselves, by boto3 (examples/adopt).
const (
	letters     = "letters"
	lettersRows = 40
)

func (d *demo) lettersTable() string { return d.Name + "-" + letters }

// adopt brings the letters in: the census refuses them, a dry run says what they are, and
// adopting gives each the id of its KEK.
func (d *demo) adopt(ctx context.Context, first kek.Pointer) error {
	const about = "adopted rows"
	d.say("\n%d rows in another table, written by boto3: KMS ciphertexts under KEK %s, which no row names\n", lettersRows, first.KEKID)
	if err := d.writeLetters(ctx, first.KEKID); err != nil {
		return err
	}
	if err := d.registerLetters(ctx); err != nil {
		return err
	}
	before, err := d.census(ctx)
	if err != nil {
		return err
	}
	t, p := before.Sources[letters], &d.proof
	p.claim(about, "the census refuses a table of rows that name no KEK, before anything depends on it",
		strings.HasPrefix(before.Problem, string(journal.RowsUnaccounted)) && t.ByKind[string(source.NoKEK)] == lettersRows, before.Problem[:min(len(before.Problem), 110)]+"…")
	steps := d.Deployment.Steps
	dry, err := steps.Adopt(ctx, d.Deployment.Table, rotation.AdoptInput{Source: letters})
	if err != nil {
		return err
	}
	if err := d.matter(ctx, "ops", "adopt", "--source", letters); err != nil {
		return err
	}
	after, err := steps.TakeCensus(ctx, "", nil)
	if err != nil {
		return err
	}
	class := string(source.NoKEK) + " under " + string(first.KEKID)
	p.claim(about, "a dry run asks KMS for the key of each row, and writes nothing",
		dry.Found[class] == lettersRows && dry.Written == 0 && after.Problem == before.Problem, fmt.Sprintf("found %v, wrote %d", dry.Found, dry.Written))
	if err := d.matter(ctx, "ops", "adopt", "--source", letters, "--confirm"); err != nil {
		return err
	}
	if after, err = d.census(ctx); err != nil {
		return err
	}
	p.claim(about, "adopted, every item is accounted for", after.Problem == "" && after.Sources[letters].ByKEK[string(first.KEKID)] == lettersRows,
		fmt.Sprintf("%d rows under %s, problem %q", after.Sources[letters].ByKEK[string(first.KEKID)], first.KEKID, after.Problem))
	return nil
}

// matter runs a command of the operator's tool, which is built beside this program, and
// shows what it prints. A command that refuses is one that has run.
func (d *demo) matter(ctx context.Context, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(self), "matter"), args...) //nolint:gosec // this project's own program
	cmd.Env = d.environment()
	out, err := cmd.CombinedOutput()
	var refused *exec.ExitError
	if err != nil && !errors.As(err, &refused) {
		return fmt.Errorf("matter %s: %w", strings.Join(args, " "), err)
	}
	d.say("$ matter %s\n  %s\n", strings.Join(args, " "), strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", "\n  "))
	return nil
}

// environment is this process's, with the settings of the stack.
func (d *demo) environment() []string {
	env := os.Environ()
	for k, v := range d.Env() {
		env = append(env, k+"="+v)
	}
	return env
}

// census takes a census and shows what it says of the letters.
func (d *demo) census(ctx context.Context) (rotation.Census, error) {
	c, err := d.Deployment.Steps.TakeCensus(ctx, "", nil)
	if err != nil {
		return c, err
	}
	if err := d.matter(ctx, "ops", "census", "--source", letters); err != nil {
		return c, err
	}
	return c, nil
}

// writeLetters makes the table and has boto3 write its rows.
func (d *demo) writeLetters(ctx context.Context, id kek.ID) error {
	_, err := d.Set.Dynamo.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName: aws.String(d.lettersTable()), BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("id"), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("id"), KeyType: types.KeyTypeHash}},
	})
	if err != nil {
		return fmt.Errorf("create table %s: %w", d.lettersTable(), err)
	}
	_, err = d.boto3(ctx, "write", "--key-id", string(id))
	return err
}

// registerLetters registers the table by the definition of the example.
func (d *demo) registerLetters(ctx context.Context) error {
	root, err := backend.Root()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(root, "examples", "adopt", "letters.json"))
	if err != nil {
		return err
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		return fmt.Errorf("examples/adopt/letters.json: %w", err)
	}
	fields["table"] = d.lettersTable()
	if text, err = json.Marshal(fields); err != nil {
		return err
	}
	defs, err := app.ParseDefinitions(text)
	if err != nil {
		return fmt.Errorf("examples/adopt/letters.json: %w", err)
	}
	_, err = d.Deployment.Steps.AddSource(ctx, defs[0])
	return err
}

// readLetters claims that the rows which boto3 wrote still open for boto3, which knows
// nothing of this project, and under which KEK they are.
func (d *demo) readLetters(ctx context.Context, about string, id kek.ID) error {
	said, err := d.boto3(ctx, "check")
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		return err
	}
	c, cerr := d.Deployment.Steps.TakeCensus(ctx, letters, nil)
	if cerr != nil {
		return cerr
	}
	t := c.Sources[letters]
	d.proof.claim(about, "the adopted rows decrypt for boto3 as it wrote them, under the current KEK alone",
		err == nil && t.ByKEK[string(id)] == lettersRows && t.Scanned == lettersRows, fmt.Sprintf("%s open; %d of %d name %s", said, t.ByKEK[string(id)], t.Scanned, id))
	return nil
}

// boto3 runs the example's script.
func (d *demo) boto3(ctx context.Context, what string, more ...string) (string, error) {
	root, err := backend.Root()
	if err != nil {
		return "", err
	}
	args := append([]string{filepath.Join(root, "examples", "adopt", "letters.py"), what, "--table", d.lettersTable(), "--rows", fmt.Sprint(lettersRows)}, more...)
	cmd := exec.CommandContext(ctx, filepath.Join(root, ".venv", "bin", "python"), args...) //nolint:gosec // this project's own script
	cmd.Env = d.environment()
	var out, diagnosis bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diagnosis
	if err := cmd.Run(); err != nil {
		return strings.TrimSpace(out.String()), fmt.Errorf("examples/adopt/letters.py %s: %w: %s", what, err, strings.TrimSpace(diagnosis.String()))
	}
	return strings.TrimSpace(out.String()), nil
}
