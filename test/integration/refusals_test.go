package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"
)

// refused runs an execution that preflight must refuse with the given error, whose
// message names the field and a next step, without a key minted or anything
// changed.
func (w *world) refused(t *testing.T, name, input, wantError, wantField string) {
	t.Helper()
	before, minted := w.snapshot(t), w.calls(t, "kms", "CreateKey")
	o := w.rotate(t, name, input)
	if o.Status != types.ExecutionStatusFailed || o.Error != wantError || slices.Contains(o.States, "Mint") {
		t.Errorf("input %s: %s; want %s from Preflight", input, describe(o), wantError)
	}
	if !strings.Contains(o.Cause, wantField) || !strings.Contains(o.Cause, "next: ") {
		t.Errorf("input %s: cause %q does not name %q and a next step", input, o.Cause, wantField)
	}
	if n := w.calls(t, "kms", "CreateKey") - minted; n != 0 {
		t.Errorf("input %s: %d keys were minted", input, n)
	}
	if after := w.snapshot(t); after != before {
		t.Errorf("input %s: the control table changed\nbefore %s\nafter  %s", input, before, after)
	}
}

// snapshot is everything in the control table.
func (w *world) snapshot(t *testing.T) string {
	t.Helper()
	return w.dump(t, w.Env()["MATTER_CONTROL_TABLE"])
}

// dump is everything in a table, to the byte, with the type of each value: base64 text
// is no binary.
func (w *world) dump(t *testing.T, table string) string {
	t.Helper()
	pages := dynamodb.NewScanPaginator(w.Set.Dynamo, &dynamodb.ScanInput{TableName: &table, ConsistentRead: aws.Bool(true)})
	var items []string
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		var gone *ddbtypes.ResourceNotFoundException
		if errors.As(err, &gone) {
			return "no table"
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range page.Items {
			typed := map[string]string{}
			for name, v := range i {
				b, err := json.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				typed[name] = fmt.Sprintf("%T %s", v, b)
			}
			b, err := json.Marshal(typed)
			if err != nil {
				t.Fatal(err)
			}
			items = append(items, string(b))
		}
	}
	slices.Sort(items)
	return strings.Join(items, "\n")
}

// TestRefusals: bad input fails in preflight with an error that names the field
// and the fix.
func TestRefusals(t *testing.T) {
	w := up(t, nil)
	for _, c := range []struct{ name, input, want, field string }{
		{"unknown-field", `{"mood":"normal"}`, "InvalidInput", "mood"},
		{"not-an-object", `[]`, "InvalidInput", "input"},
		{"bad-mode", `{"mode":"urgent"}`, "InvalidInput", "mode"},
		{"no-reason", `{"mode":"emergency"}`, "InvalidInput", "reason"},
		{"bad-label", `{"label":"Q2/2026\n<script>"}`, "InvalidInput", "label"},
		{"bad-window", `{"window":"2am to 4am"}`, "InvalidInput", "window"},
		{"empty-window", `{"window":"02:00-02:00"}`, "InvalidInput", "window"},
		{"resume-nothing", `{"resume":"no-such-rotation"}`, "Refused", "rotation_id"},
	} {
		w.refused(t, c.name, c.input, c.want, c.field)
	}
	w.refusedPointer(t)
	w.mustHold(t)
	w.traced(t)
	if o := w.rotate(t, "after-all", "{}"); o.Status != types.ExecutionStatusSucceeded {
		t.Errorf("after the refusals: %s", describe(o))
	}
}

// refusedPointer breaks the pointer, and mends it again.
func (w *world) refusedPointer(t *testing.T) {
	t.Helper()
	client, table := dynamodb.NewFromConfig(w.AWSConfig()), aws.String(w.Env()["MATTER_CONTROL_TABLE"])
	key := map[string]ddbtypes.AttributeValue{
		"pk": &ddbtypes.AttributeValueMemberS{Value: "POINTER"}, "sk": &ddbtypes.AttributeValueMemberS{Value: "-"},
	}
	set := func(id string) {
		_, err := client.UpdateItem(t.Context(), &dynamodb.UpdateItemInput{
			TableName: table, Key: key, UpdateExpression: aws.String("SET kek_id = :k"),
			ExpressionAttributeValues: map[string]ddbtypes.AttributeValue{":k": &ddbtypes.AttributeValueMemberS{Value: id}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	good := string(w.view(t, "").Pointer.KEKID)
	set("00000000-0000-0000-0000-000000000000")
	w.refused(t, "bad-pointer", "{}", "PointerInvalid", "POINTER")
	set(good)
}

// TestSourceMisconfigured: a source whose table is not there is refused, and one of
// which no item has the attribute ends in the census, before anything is minted.
func TestSourceMisconfigured(t *testing.T) {
	w := up(t, nil)
	client := dynamodb.NewFromConfig(w.AWSConfig())
	table := w.Set.Sources()[1].Table
	if _, err := client.DeleteTable(t.Context(), &dynamodb.DeleteTableInput{TableName: &table}); err != nil {
		t.Fatal(err)
	}
	w.refused(t, "no-table", "{}", "SourceMisconfigured", table)
	if err := w.Set.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := client.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &table, Item: map[string]ddbtypes.AttributeValue{
		"block": &ddbtypes.AttributeValueMemberS{Value: "b"}, "number": &ddbtypes.AttributeValueMemberN{Value: "1"},
		"kek_id": &ddbtypes.AttributeValueMemberS{Value: "named otherwise than configured"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	w.rolledBack(t, "no-attribute", "SourceMisconfigured", "sources[symbols]", 0)
}

// TestControlTableMissing: without its table preflight names it.
func TestControlTableMissing(t *testing.T) {
	w := up(t, nil)
	client, table := dynamodb.NewFromConfig(w.AWSConfig()), aws.String(w.Env()["MATTER_CONTROL_TABLE"])
	_, err := client.UpdateTable(t.Context(), &dynamodb.UpdateTableInput{TableName: table, DeletionProtectionEnabled: aws.Bool(false)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.DeleteTable(t.Context(), &dynamodb.DeleteTableInput{TableName: table}); err != nil {
		t.Fatal(err)
	}
	w.refused(t, "no-control-table", "{}", "ControlTableMissing", "MATTER_CONTROL_TABLE")
}
