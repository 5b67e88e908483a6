package main

import (
	"context"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestDoctor runs the scripts in which the control table is damaged, set back and rebuilt.
func TestDoctor(t *testing.T) {
	t.Parallel() // it waits more than it works
	w := deployedWith(t, "doctor", nil)
	w.repaired = true
	w.admit(t, "breakglass", w.ConfigWithMFA, breakGlassPolicies...)
	w.admit(t, "nomfa", w.ConfigWith, breakGlassPolicies...)
	scripts(t, "doctor", w)
	w.holds(t)
}

func (w *world) controlTable() *string { return aws.String(w.Env()["MATTER_CONTROL_TABLE"]) }

func controlKey(pk, sk string) map[string]types.AttributeValue {
	return map[string]types.AttributeValue{"pk": &types.AttributeValueMemberS{Value: pk}, "sk": &types.AttributeValueMemberS{Value: sk}}
}

func (w *world) deleteControl(ctx context.Context, pk, sk string) error {
	_, err := w.Set.Dynamo.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: w.controlTable(), Key: controlKey(pk, sk)})
	return err
}

// lose deletes an item of the control table.
func (w *world) lose(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: lose pk sk")
	}
	ts.Check(w.deleteControl(context.Background(), args[0], args[1]))
}

// damage gives every attribute of an item of the control table another type.
func (w *world) damage(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: damage pk sk")
	}
	out, err := w.Set.Dynamo.GetItem(context.Background(), &dynamodb.GetItemInput{TableName: w.controlTable(), Key: controlKey(args[0], args[1])})
	ts.Check(err)
	if len(out.Item) == 0 {
		ts.Fatalf("there is no item %s/%s", args[0], args[1])
	}
	for name := range out.Item {
		if name != "pk" && name != "sk" {
			out.Item[name] = &types.AttributeValueMemberBOOL{Value: true}
		}
	}
	_, err = w.Set.Dynamo.PutItem(context.Background(), &dynamodb.PutItemInput{TableName: w.controlTable(), Item: out.Item})
	ts.Check(err)
}

// keep-control remembers the control table, and restore-control puts it back, as a
// point-in-time recovery does.
func (w *world) keepControl(ts *testscript.TestScript, _ bool, _ []string) {
	var err error
	w.control, err = w.scanControl(context.Background())
	ts.Check(err)
}

func (w *world) restoreControl(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(w.putBackControl(context.Background()))
}

func (w *world) scanControl(ctx context.Context) (items []map[string]types.AttributeValue, err error) {
	pages := dynamodb.NewScanPaginator(w.Set.Dynamo, &dynamodb.ScanInput{TableName: w.controlTable(), ConsistentRead: aws.Bool(true)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		items = append(items, page.Items...)
	}
	return items, nil
}

func (w *world) putBackControl(ctx context.Context) error {
	now, err := w.scanControl(ctx)
	if err != nil {
		return err
	}
	for _, i := range now {
		_, err := w.Set.Dynamo.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: w.controlTable(), Key: map[string]types.AttributeValue{"pk": i["pk"], "sk": i["sk"]}})
		if err != nil {
			return err
		}
	}
	for _, i := range w.control {
		if _, err := w.Set.Dynamo.PutItem(ctx, &dynamodb.PutItemInput{TableName: w.controlTable(), Item: i}); err != nil {
			return err
		}
	}
	return nil
}
