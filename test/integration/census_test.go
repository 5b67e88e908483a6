package integration

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/sfn"
	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
)

// rolledBack runs an execution that must be rolled back for the given error, with
// mints keys minted, all of them disabled again, and people told why.
func (w *world) rolledBack(t *testing.T, name, wantError, mention string, mints int) {
	t.Helper()
	before, minted := w.view(t, "").Pointer, w.calls(t, "kms", "CreateKey")
	arn := w.start(t, name, "{}")
	o := w.finish(t, arn)
	if o.Status != types.ExecutionStatusFailed || o.Error != wantError || !strings.Contains(o.Cause, mention) || slices.Contains(o.States, "Switch") {
		t.Fatalf("%s\nwant %s that names %q", describe(o), wantError, mention)
	}
	if n := w.calls(t, "kms", "CreateKey") - minted; n != mints {
		t.Errorf("%s: %d keys were minted, want %d", name, n, mints)
	}
	v := w.view(t, name)
	if *v.Pointer != *before || v.Rotation.Phase != kek.RolledBack || v.Lock != "" || !strings.Contains(v.Rotation.Err, wantError) {
		t.Errorf("%s: pointer %+v, rotation %+v, lock %q", name, v.Pointer, v.Rotation, v.Lock)
	}
	if got := w.enabledKEKs(t); !slices.Equal(got, []string{string(before.KEKID)}) {
		t.Errorf("%s: enabled KMS keys %v, want the old one alone", name, got)
	}
	told := w.told(t, arn)
	if told.Event != journal.NotifyRolledBack || told.Error != wantError || !strings.Contains(told.Cause, mention) {
		t.Errorf("%s: people were told %+v", name, told)
	}
}

// told is what notify was last sent by an execution.
func (w *world) told(t *testing.T, arn string) (last journal.Notice) {
	t.Helper()
	pages := sfn.NewGetExecutionHistoryPaginator(w.sfn, &sfn.GetExecutionHistoryInput{ExecutionArn: &arn, MaxResults: 1000})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Events {
			if e.TaskScheduledEventDetails == nil {
				continue
			}
			var in struct {
				FunctionName string
				Payload      json.RawMessage
			}
			if err := json.Unmarshal([]byte(aws.ToString(e.TaskScheduledEventDetails.Parameters)), &in); err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(in.FunctionName, "-notify") {
				continue
			}
			last = journal.Notice{}
			if err := json.Unmarshal(in.Payload, &last); err != nil {
				t.Fatal(err)
			}
		}
	}
	return last
}

// TestBeforeTheSwitch: what a rotation could not move is known before its switch. An
// item that nobody can place ends it with no key minted, in preflight if it is among
// the first, else in the census; a definition that does not
// fit the rows ends it in the rehearsal; a table that is written into and is no source
// refuses it. Once each is corrected, everything is rotated.
func TestBeforeTheSwitch(t *testing.T) {
	w := up(t, nil)
	client := dynamodb.NewFromConfig(w.AWSConfig())
	sources := w.Set.Sources()

	symbol := map[string]ddbtypes.AttributeValue{
		"block": &ddbtypes.AttributeValueMemberS{Value: "a stray"}, "number": &ddbtypes.AttributeValueMemberN{Value: "7"},
	}
	stray := maps.Clone(symbol)
	put := func(attribute string, v ddbtypes.AttributeValue) {
		t.Helper()
		stray[attribute] = v
		if _, err := client.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &sources[1].Table, Item: stray}); err != nil {
			t.Fatal(err)
		}
	}
	put(sources[1].Ciphertext, &ddbtypes.AttributeValueMemberB{Value: []byte("raw")})
	w.refused(t, "raw", "{}", string(journal.RowsUnaccounted), "sources[symbols]") // preflight looks at a sample
	put(sources[1].WrappedDEK, &ddbtypes.AttributeValueMemberB{Value: []byte("wrapped elsewhere")})
	put(sources[1].KEKID, &ddbtypes.AttributeValueMemberS{Value: "00000000-0000-0000-0000-000000000000"})
	put(sources[1].Epoch, &ddbtypes.AttributeValueMemberN{Value: "1"})
	w.rolledBack(t, "unknown", string(journal.RowsUnaccounted), string(source.UnknownKEK), 0)
	if _, err := client.DeleteItem(t.Context(), &dynamodb.DeleteItemInput{TableName: &sources[1].Table, Key: symbol}); err != nil {
		t.Fatal(err)
	}

	w.traced(t) // the model calls the stray an orphan, which it was
	wrong := sources[0]
	wrong.Context = map[string]string{"table": "renamed", "codepoint": "$codepoint"}
	w.define(t, wrong)
	w.rolledBack(t, "unfit", string(journal.RehearsalFailed), "characters", 1)
	w.define(t, sources[0])

	mark := map[string]ddbtypes.AttributeValue{
		"pk": &ddbtypes.AttributeValueMemberS{Value: "MARK"}, "sk": &ddbtypes.AttributeValueMemberS{Value: "it-forgotten"},
	}
	if _, err := dynamodb.NewFromConfig(w.ApplicationConfig()).PutItem(t.Context(), &dynamodb.PutItemInput{TableName: aws.String(w.Env()["MATTER_CONTROL_TABLE"]), Item: mark}); err != nil {
		t.Fatal(err)
	}
	w.refused(t, "forgotten", "{}", string(journal.SourceForgotten), "it-forgotten")
	if err := w.Deployment.Steps.ForgetMark(t.Context(), "it-forgotten", "its writers are gone"); err != nil {
		t.Fatal(err)
	}

	if o := w.rotate(t, "corrected", "{}"); o.Status != types.ExecutionStatusSucceeded {
		t.Fatal(describe(o))
	}
	w.mustHold(t)
}

// define gives a source another definition.
func (w *world) define(t *testing.T, c dynamosource.Config) {
	t.Helper()
	if _, err := w.Deployment.Steps.AddSource(t.Context(), c.Source()); err != nil {
		t.Fatal(err)
	}
}
