package integration

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/test/plant"
)

// planted is a bug in one function that ships. All other functions are as they are.
type planted struct {
	plant.Bug
	function string
	at       string // what its run is rejected at
	during   func(t *testing.T, w *world)
	input    string // of the execution; {} if empty
	rows     string // the promise that the rows break afterwards, if they do
}

var plantedBugs = []planted{
	{Bug: plant.Bug{Name: "unconditional pointer write", File: "internal/ddb/apply.go", With: []string{
		"\t\tout = append(out, s.putItem(pkPointer, controltable.EncodePointer(c.Pointer.After), ifPointerUnchanged(*c.Pointer.Before)))",
		"\t\tif _, err := s.client.PutItem(context.Background(), &dynamodb.PutItemInput{TableName: &s.table, Item: controltable.EncodePointer(c.Pointer.After)}); err != nil {\n\t\t\treturn nil, err\n\t\t}",
	}}, function: "switch", at: "Store.Apply unrecorded"},
	{Bug: plant.Bug{Name: "the pointer is written whatever it was", File: "internal/ddb/apply.go", With: []string{
		"EncodePointer(c.Pointer.After), ifPointerUnchanged(*c.Pointer.Before))", "EncodePointer(c.Pointer.After), condition{expr: \"attribute_exists(#pk)\"})",
	}}, function: "switch", at: "Store.Apply unconditional"},
	{Bug: plant.Bug{Name: "retire does not ask where the pointer stands", File: "internal/ddb/apply.go", With: []string{
		"case c.Keeps != nil:", "case c.Keeps != nil && len(c.KEKs) == 0:",
	}}, function: "retire", at: "Store.Apply unconditional"},
	{Bug: plant.Bug{Name: "a step does not ask whose the lock is", File: "internal/ddb/apply.go", With: []string{
		"return []action{s.checkItem(pkLock, controltable.Key(pkLock, noSK), ours)}, nil", "return nil, nil",
	}}, function: "dualunwrap", at: "Store.Apply unconditional"},
	{Bug: plant.Bug{Name: "the seal does not ask for every shard", File: "internal/ddb/apply.go", With: []string{
		"if c.Sealed != \"\" {", "if c.Sealed != \"\" && i > 0 {",
	}}, function: "drain", at: "Store.Apply unconditional"},
	{Bug: plant.Bug{Name: "audit record outside the transaction", File: "internal/ddb/apply.go", With: []string{
		"again, err := s.sendTransaction(ctx, append(actions[:len(actions):len(actions)], s.appendRecord(h.Head, entry, b)...))",
		"again, err := s.sendTransaction(ctx, s.appendRecord(h.Head, entry, b))\n\t\tif err == nil && len(actions) > 0 {\n\t\t\tagain, err = s.sendTransaction(ctx, actions)\n\t\t}",
	}}, function: "switch", at: "Store.Apply unrecorded"},
	{Bug: plant.Bug{Name: "the old KEK's registry entry is left out", File: "internal/ddb/apply.go", With: []string{
		"for _, m := range c.KEKs {", "for _, m := range c.KEKs[:min(1, len(c.KEKs))] {",
	}}, function: "switch", at: "Store.Apply pointer_switched"},
	{Bug: plant.Bug{Name: "one fence shard of the new KEK stays shut", File: "internal/ddb/apply.go", With: []string{
		"if id := opens[pk]; id != \"\" {", "if id := opens[pk]; id != \"\" && i > 0 {",
	}}, function: "switch", at: "Store.Apply pointer_switched"},
	{Bug: plant.Bug{Name: "the lock is not released", File: "internal/ddb/apply.go", With: []string{
		"return []action{s.removeItem(pkLock, controltable.Key(pkLock, noSK), ours)}, nil", "return nil, nil",
	}}, function: "verify", at: "Store.Apply unconditional"},
	{Bug: plant.Bug{Name: "records are marked published before they are put", File: "rotation/journal/journal.go", With: []string{
		"for _, e := range entries {\n", "if len(entries) > 0 {\n\t\t_ = j.Outbox.MarkPublished(ctx, entries[len(entries)-1].Record.Seq)\n\t}\n\tfor _, e := range entries {\n",
	}}, function: "switch", at: "Store.MarkPublished"},
	{Bug: plant.Bug{Name: "the bucket gets other bytes than the outbox has", File: "internal/auditbucket/auditbucket.go", With: []string{
		"made, err := b.putIfAbsent(ctx, key, e.Bytes)", "made, err := b.putIfAbsent(ctx, key, append([]byte(nil), append(e.Bytes, '\\n')...))",
	}}, function: "switch", at: "Vault.Put"},
	{Bug: plant.Bug{Name: "mint without the arbiter", File: "internal/awskms/admin.go", With: []string{
		"\tif id != \"\" {\n\t\terr := a.createAlias(", "\tif id != \"\" {\n\t\treturn id, nil\n\t}\n\tif id != \"\" {\n\t\terr := a.createAlias(",
	}}, function: "mint", at: "Store.Apply kek_minted"},
	{Bug: plant.Bug{Name: "skip the seal", File: "rotation/drain.go", With: []string{
		"for i := range v.KEKs[id].FenceShards {", "for i := range v.KEKs[id].FenceShards * 0 {",
		"kek/view.go", "",
		"c.Sealed, c.Shards = draining[0], m.After.FenceShards", "_ = m",
	}}, function: "drain", at: "Store.Apply unconditional"},
	{Bug: plant.Bug{Name: "seal all fence shards but one", File: "rotation/drain.go", With: []string{
		"for i := range v.KEKs[id].FenceShards {", "for i := range v.KEKs[id].FenceShards - 1 {",
		"kek/view.go", "",
		"c.Sealed, c.Shards = draining[0], m.After.FenceShards", "c.Sealed, c.Shards = draining[0], m.After.FenceShards-1",
	}}, function: "drain", at: "Store.Apply unconditional"},
	{Bug: plant.Bug{Name: "drain trusts the clock", File: "internal/ddb/drainage.go", With: []string{
		"\t\"context\"\n", "\t\"context\"\n\t\"time\"\n",
		"\t\tout = append(out, l)", "\t\tif time.Now().Before(l.Expires) {\n\t\t\tout = append(out, l)\n\t\t}",
	}}, function: "drain", at: "Store.SealFence", during: expiredLease},
	{Bug: plant.Bug{Name: "a lease is revoked whatever has become of it", File: "internal/ddb/drainage.go", With: []string{
		"Key: controltable.Key(controltable.LeasePK(l.KEK), l.Holder), ConditionExpression: aws.String(cond),\n\t\tExpressionAttributeNames: names, ExpressionAttributeValues: vals,\n\t})\n\tif failedCondition(err) {\n\t\treturn false, nil\n\t}\n\tif err != nil {\n\t\treturn false, wrapError(\"DeleteItem",
		"Key: controltable.Key(controltable.LeasePK(l.KEK), l.Holder),\n\t})\n\t_, _, _ = aws.String(cond), names, vals\n\tif err != nil {\n\t\treturn false, wrapError(\"DeleteItem",
	}}, function: "drain", at: "Store.Revoke", during: expiredLease},
	{Bug: plant.Bug{Name: "drain looks at what may be stale", File: "internal/ddb/list.go", With: []string{
		"TableName: &s.table, ConsistentRead: aws.Bool(true), KeyConditionExpression: &expr,", "TableName: &s.table, ConsistentRead: aws.Bool(false), KeyConditionExpression: &expr,",
	}}, function: "drain", at: "Store.SealFence", during: returnedLease},
	{Bug: plant.Bug{Name: "rewrap overwrites a row that has changed", File: "source/dynamodb/source.go", With: []string{
		"c.cond, c.values[\":oldkek\"] = \"#held = :oldheld AND #kek = :oldkek\", h.kek", "c.cond, c.values[\":oldkek\"] = \"attribute_exists(#kek) OR #held = :oldheld AND #kek = :oldkek\", h.kek",
	}}, function: "rewrap", at: "Table.Replace"},
	{Bug: plant.Bug{Name: "rewrap leaves the row's epoch", File: "source/dynamodb/source.go", With: []string{
		"c.update = \"SET #kek = :kek, #held = :held, #epoch = :epoch\"", "c.update = \"SET #kek = :kek, #held = :held, #epoch = if_not_exists(#epoch, :epoch)\"",
	}}, function: "rewrap", at: "Table.Replace"},
	{Bug: plant.Bug{Name: "rewrap leaves rows out", File: "rotation/rewrap.go", With: []string{
		"if row.KEK == r.NewKEK {", "if row.ID[len(row.ID)-1] == '1' {\n\t\t\t\t\treturn kept, nil\n\t\t\t\t}\n\t\t\t\tif row.KEK == r.NewKEK {",
	}}, function: "rewrap", at: "Store.Apply rows_rewrapped"},
	{Bug: plant.Bug{Name: "an emergency only rewraps", File: "rotation/rewrap.go", With: []string{
		"if r.Mode != kek.Emergency || row.Whole {", "if true {",
	}}, function: "rewrap", at: "Table.Replace", input: `{"mode":"emergency","reason":"planted"}`, rows: "ExposedDeksGone"},
	{Bug: plant.Bug{Name: "retire without the second scan", File: "rotation/retire.go", With: []string{
		"confirmed, err = s.confirmRows(ctx, v, r)", "confirmed = SweepOutput{Done: true, read: s.Journal.Now()}",
	}}, function: "retire", at: "Store.Apply old_kek_retired"},
	{Bug: plant.Bug{Name: "disable before the registry", File: "rotation/retire.go", With: []string{
		"v, err = s.Journal.TransitionAll(ctx, \"retire\", id, func", "if err := s.Keys.Admin.Disable(ctx, r.OldKEK); err != nil {\n\t\treturn RetireOutput{}, journal.WrapUnavailable(\"KMS DisableKey\", err)\n\t}\n\tv, err = s.Journal.TransitionAll(ctx, \"retire\", id, func",
	}}, function: "retire", at: "KMS.Disable"},
	{Bug: plant.Bug{Name: "PreSwitchFailure after the switch", File: "kek/view.go", With: []string{
		"case !r.Phase.PreSwitch():", "case r.Phase.Final():",
		"moves, err := v.retireNew(r, \"pre-switch failure\", now)", "moves, err := []KEKMove(nil), error(nil)\n\tif r.Phase.PreSwitch() {\n\t\tmoves, err = v.retireNew(r, \"pre-switch failure\", now)\n\t}",
	}}, function: "retire", at: "Store.Apply rolled_back", during: rollBackLate},
	{Bug: plant.Bug{Name: "a forged checkpoint counts", File: "rotation/checkpointmac.go", With: []string{
		"if !hmac.Equal(want, c.MAC) {", "if len(want) == 0 {",
	}}, function: "verify", at: "Store.Apply kms_rotation_completed", during: forgeVerification},
}

// forgeVerification finishes the last pass before the rotation has begun, as somebody does who
// can write the control table.
func forgeVerification(t *testing.T, w *world) {
	t.Helper()
	v, err := w.Deployment.Table.LoadAll(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, src := range v.Sources {
		for segment := range 8 { // as template.yaml has it
			err := w.Deployment.Table.SaveCheckpoint(t.Context(), rotation.Checkpoint{
				RotationID: "planted", Source: rotation.ProgressName(src), Pass: "verify", Segment: segment,
				Done: true, SavedAt: time.Now(), MAC: append([]byte{1}, make([]byte, 32)...),
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
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
	_, err := dynamodb.NewFromConfig(w.ApplicationConfig()).PutItem(t.Context(), &dynamodb.PutItemInput{
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
	_, err := dynamodb.NewFromConfig(w.ApplicationConfig()).DeleteItem(t.Context(), &dynamodb.DeleteItemInput{
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

// build builds the function with the bug in it, as make build does without.
func (p planted) build(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	list, err := p.Overlay(root, dir)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bootstrap")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-overlay", list, "-trimpath", "-tags", "lambda.norpc", "-ldflags", "-s -w", "-o", bin, "./functions/"+p.function)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s does not build: %v\n%s", p.Name, err, out)
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
