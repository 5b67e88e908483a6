package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/kek"
)

// planted is a bug in one function that ships: texts of its sources that are
// replaced, each of which must be there exactly once. All other functions are as
// they are.
type planted struct {
	name     string
	function string
	file     string
	with     []string // old, new, old, new, …; a word that ends in .go changes the file
	at       string   // what its run is rejected at
	during   func(t *testing.T, w *world)
	input    string // of the execution; {} if empty
}

var plantedBugs = []planted{
	{name: "unconditional pointer write", function: "switch", file: "internal/ddb/apply.go", with: []string{
		"\t\tout = append(out, s.put(pkPointer, encodePointer(c.Pointer.After), pointsAt(*c.Pointer.Before)))",
		"\t\tif _, err := s.client.PutItem(context.Background(), &dynamodb.PutItemInput{TableName: &s.table, Item: encodePointer(c.Pointer.After)}); err != nil {\n\t\t\treturn nil, err\n\t\t}",
	}, at: "Store.Apply unrecorded"},
	{name: "the pointer is written whatever it was", function: "switch", file: "internal/ddb/apply.go", with: []string{
		"encodePointer(c.Pointer.After), pointsAt(*c.Pointer.Before))", "encodePointer(c.Pointer.After), condition{expr: \"attribute_exists(#pk)\"})",
	}, at: "Store.Apply unconditional"},
	{name: "retire does not ask where the pointer stands", function: "retire", file: "internal/ddb/apply.go", with: []string{
		"case c.Keeps != nil:", "case c.Keeps != nil && len(c.KEKs) == 0:",
	}, at: "Store.Apply unconditional"},
	{name: "a step does not ask whose the lock is", function: "dualunwrap", file: "internal/ddb/apply.go", with: []string{
		"return []action{s.check(pkLock, key(pkLock, noSK), ours)}, nil", "return nil, nil",
	}, at: "Store.Apply unconditional"},
	{name: "the seal does not ask for every shard", function: "drain", file: "internal/ddb/apply.go", with: []string{
		"if c.Sealed != \"\" {", "if c.Sealed != \"\" && i > 0 {",
	}, at: "Store.Apply unconditional"},
	{name: "audit record outside the transaction", function: "switch", file: "internal/ddb/apply.go", with: []string{
		"again, err := s.transact(ctx, append(actions[:len(actions):len(actions)], s.appends(h.Head, entry)...))",
		"again, err := s.transact(ctx, s.appends(h.Head, entry))\n\t\tif err == nil && len(actions) > 0 {\n\t\t\tagain, err = s.transact(ctx, actions)\n\t\t}",
	}, at: "Store.Apply unrecorded"},
	{name: "the old KEK's registry entry is left out", function: "switch", file: "internal/ddb/apply.go", with: []string{
		"for _, m := range c.KEKs {", "for _, m := range c.KEKs[:min(1, len(c.KEKs))] {",
	}, at: "Store.Apply pointer_switched"},
	{name: "one fence shard of the new KEK stays shut", function: "switch", file: "internal/ddb/apply.go", with: []string{
		"if c.Opens != \"\" {", "if c.Opens != \"\" && i > 0 {",
	}, at: "Store.Apply pointer_switched"},
	{name: "the lock is not released", function: "verify", file: "internal/ddb/apply.go", with: []string{
		"return []action{s.remove(pkLock, key(pkLock, noSK), ours)}, nil", "return nil, nil",
	}, at: "Store.Apply kms_rotation_completed"},
	{name: "records are marked published before they are put", function: "switch", file: "rotation/steps.go", with: []string{
		"for _, e := range entries {\n", "if len(entries) > 0 {\n\t\t_ = s.Outbox.MarkPublished(ctx, entries[len(entries)-1].Record.Seq)\n\t}\n\tfor _, e := range entries {\n",
	}, at: "Store.MarkPublished"},
	{name: "the bucket gets other bytes than the outbox has", function: "switch", file: "internal/worm/worm.go", with: []string{
		"made, err := v.put(ctx, key, e.Bytes)", "made, err := v.put(ctx, key, append([]byte(nil), append(e.Bytes, '\\n')...))",
	}, at: "Vault.Put"},
	{name: "mint without the arbiter", function: "mint", file: "internal/awskms/admin.go", with: []string{
		"\tif id != \"\" {\n\t\t_, err := a.client.CreateAlias(", "\tif id != \"\" {\n\t\treturn id, nil\n\t}\n\tif id != \"\" {\n\t\t_, err := a.client.CreateAlias(",
	}, at: "Store.Apply kek_minted"},
	{name: "the sweep disables the new KEK", function: "mint", file: "rotation/mint.go", with: []string{
		"keep = append(keep, r.NewKEK)", "_ = keep",
	}, at: "KMS.Disable"},
	{name: "skip the seal", function: "drain", file: "rotation/drain.go", with: []string{
		"for i := range v.KEKs[r.OldKEK].FenceShards {", "for i := range v.KEKs[r.OldKEK].FenceShards * 0 {",
		"kek/view.go", "",
		"c.Sealed, c.Shards = r.OldKEK, m.After.FenceShards", "_ = m",
	}, at: "Store.Apply old_kek_sealed"},
	{name: "seal all fence shards but one", function: "drain", file: "rotation/drain.go", with: []string{
		"for i := range v.KEKs[r.OldKEK].FenceShards {", "for i := range v.KEKs[r.OldKEK].FenceShards - 1 {",
		"kek/view.go", "",
		"c.Sealed, c.Shards = r.OldKEK, m.After.FenceShards", "c.Sealed, c.Shards = r.OldKEK, m.After.FenceShards-1",
	}, at: "Store.Apply old_kek_sealed"},
	{name: "drain trusts the clock", function: "drain", file: "internal/ddb/drainage.go", with: []string{
		"\t\tout = append(out, l)", "\t\tif time.Now().Before(l.Expires) {\n\t\t\tout = append(out, l)\n\t\t}",
	}, at: "Store.SealFence", during: expiredLease},
	{name: "a lease is revoked whatever has become of it", function: "drain", file: "internal/ddb/drainage.go", with: []string{
		"Key: key(leasePK(l.KEK), l.Holder), ConditionExpression: aws.String(cond),\n\t\tExpressionAttributeNames: names, ExpressionAttributeValues: vals,\n\t})\n\tif failedCondition(err) {\n\t\treturn false, nil\n\t}\n\tif err != nil {\n\t\treturn false, wrap(\"DeleteItem",
		"Key: key(leasePK(l.KEK), l.Holder),\n\t})\n\t_, _ = names, vals\n\tif err != nil {\n\t\treturn false, wrap(\"DeleteItem",
	}, at: "Store.Revoke", during: expiredLease},
	{name: "drain looks at what may be stale", function: "drain", file: "internal/ddb/list.go", with: []string{
		"TableName: &s.table, ConsistentRead: aws.Bool(true), KeyConditionExpression: &expr,", "TableName: &s.table, ConsistentRead: aws.Bool(false), KeyConditionExpression: &expr,",
	}, at: "Store.SealFence", during: returnedLease},
	{name: "rewrap overwrites a row that has changed", function: "rewrap", file: "internal/ddb/source.go", with: []string{
		"cond := \"#kek = :oldkek AND #dek = :olddek\"", "cond := \"attribute_exists(#kek) OR #kek = :oldkek AND #dek = :olddek\"",
	}, at: "Table.Replace"},
	{name: "rewrap leaves the row's epoch", function: "rewrap", file: "internal/ddb/source.go", with: []string{
		"update := \"SET #kek = :kek, #dek = :dek, #epoch = :epoch,", "update := \"SET #kek = :kek, #dek = :dek, #epoch = if_not_exists(#epoch, :epoch),",
	}, at: "Table.Replace"},
	{name: "rewrap leaves rows out", function: "rewrap", file: "rotation/rewrap.go", with: []string{
		"case row.KEK == r.NewKEK:", "case row.KEK == r.NewKEK || row.ID[len(row.ID)-1] == '1':",
	}, at: "Store.Apply rows_rewrapped"},
	{name: "an emergency only rewraps", function: "rewrap", file: "rotation/rewrap.go", with: []string{
		"if r.Mode != kek.Emergency {\n\t\tvar err error", "if true {\n\t\tvar err error",
	}, at: "Table.Replace", input: `{"mode":"emergency","reason":"planted"}`},
	{name: "retire without the second scan", function: "retire", file: "rotation/retire.go", with: []string{
		"confirmed, err = s.confirm(ctx, r)", "confirmed.Done = true",
	}, at: "Store.Apply old_kek_retired"},
	{name: "disable before the registry", function: "retire", file: "rotation/retire.go", with: []string{
		"v, err := s.transition(ctx, \"retire\", id, func", "if err := s.Keys.Disable(ctx, r.OldKEK); err != nil {\n\t\treturn RetireOutput{}, unavailable(\"KMS DisableKey\", err)\n\t}\n\tv, err := s.transition(ctx, \"retire\", id, func",
	}, at: "KMS.Disable"},
	{name: "PreSwitchFailure after the switch", function: "retire", file: "kek/view.go", with: []string{
		"case !r.Phase.PreSwitch():", "case r.Phase.Final():",
		"moves, err := v.retireNew(r, \"pre-switch failure\", now)", "moves, err := []KEKMove(nil), error(nil)\n\tif r.Phase.PreSwitch() {\n\t\tmoves, err = v.retireNew(r, \"pre-switch failure\", now)\n\t}",
	}, at: "Store.Apply rolled_back", during: rollBackLate},
}

// putLease puts a lease on the pointer's KEK and returns its key.
func putLease(t *testing.T, w *world, expires time.Time) map[string]ddbtypes.AttributeValue {
	t.Helper()
	n := func(i int64) ddbtypes.AttributeValue { return &ddbtypes.AttributeValueMemberN{Value: fmt.Sprint(i)} }
	key := map[string]ddbtypes.AttributeValue{
		"pk": &ddbtypes.AttributeValueMemberS{Value: "LEASE#" + string(w.view(t, "").Pointer.KEKID)}, "sk": &ddbtypes.AttributeValueMemberS{Value: "holder"},
	}
	item := maps.Clone(key)
	item["refs"], item["pid"], item["expires_at"] = n(1), n(1), n(expires.UnixMilli())
	_, err := dynamodb.NewFromConfig(w.AWSConfig()).PutItem(t.Context(), &dynamodb.PutItemInput{
		TableName: aws.String(w.Env()["MATTER_CONTROL_TABLE"]), Item: item,
	})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// expiredLease leaves a lease behind whose holder is dead, or paused.
func expiredLease(t *testing.T, w *world) {
	t.Helper()
	putLease(t, w, time.Now().Add(-time.Hour))
}

// returnedLease has a holder come and go.
func returnedLease(t *testing.T, w *world) {
	t.Helper()
	_, err := dynamodb.NewFromConfig(w.AWSConfig()).DeleteItem(t.Context(), &dynamodb.DeleteItemInput{
		TableName: aws.String(w.Env()["MATTER_CONTROL_TABLE"]), Key: putLease(t, w, time.Now().Add(time.Hour)),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// rollBackLate has a late call of PreSwitchFailure come while drain is held up.
func rollBackLate(t *testing.T, w *world) {
	t.Helper()
	w.inject(t, map[string]any{"service": "dynamodb", "operation": "TransactGetItems", "function": "drain", "mode": "delay", "delay_ms": 3000})
	go func() {
		client := lambda.NewFromConfig(w.AWSConfig())
		for ctx := t.Context(); ctx.Err() == nil; time.Sleep(watchEvery) {
			v, err := w.Deployment.Table.Load(ctx, "planted")
			if err != nil || v.Rotation == nil || !v.Rotation.Phase.Reached(kek.Switched) {
				continue
			}
			_, _ = client.Invoke(ctx, &lambda.InvokeInput{
				FunctionName: aws.String(w.Name + "-retire"), Payload: []byte(`{"rotation_id":"planted","action":"pre_switch_failure","error":"late"}`),
			})
			return
		}
	}()
}

// files applies a bug to the sources.
func (p planted) files(root string) (map[string]string, error) {
	out, file := map[string]string{}, p.file
	for i := 0; i < len(p.with); i += 2 {
		old, with := p.with[i], p.with[i+1]
		if strings.HasSuffix(old, ".go") && with == "" {
			file = old
			continue
		}
		if _, ok := out[file]; !ok {
			b, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				return nil, err
			}
			out[file] = string(b)
		}
		if n := strings.Count(out[file], old); n != 1 {
			return nil, fmt.Errorf("%s: %q is in %s %d times, not once: mend the bug", p.name, old, file, n)
		}
		out[file] = strings.Replace(out[file], old, with, 1)
	}
	return out, nil
}

// build builds the function with the bug in it, as make build does without.
func (p planted) build(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	files, err := p.files(root)
	if err != nil {
		t.Fatal(err)
	}
	overlay := map[string]map[string]string{"Replace": {}}
	for file, text := range files {
		path := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay["Replace"][filepath.Join(root, file)] = path
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	list, bin := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "bootstrap")
	if err := os.WriteFile(list, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-overlay", list, "-trimpath", "-tags", "lambda.norpc", "-ldflags", "-s -w", "-o", bin, "./functions/"+p.function)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s does not build: %v\n%s", p.name, err, out)
	}
	return bin
}

const rejectWithin = time.Minute

// settle waits until an execution has ended, or long enough: a rotation with a bug
// in it may do anything.
func (w *world) settle(t *testing.T, arn string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rejectWithin/2)
	defer cancel()
	for ; ctx.Err() == nil; time.Sleep(watchEvery) {
		d, err := w.sfn.DescribeExecution(ctx, &sfn.DescribeExecutionInput{ExecutionArn: &arn})
		if err == nil && d.Status != types.ExecutionStatusRunning {
			return
		}
	}
}
