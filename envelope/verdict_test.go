package envelope

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/kek"
)

// answering is a DynamoDB that answers writes with errors.
type answering struct {
	DynamoDB
	err    error
	update *dynamodb.UpdateItemInput
	write  *dynamodb.TransactWriteItemsInput
}

func (a *answering) UpdateItem(_ context.Context, in *dynamodb.UpdateItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	a.update = in
	return nil, a.err
}

func (a *answering) TransactWriteItems(_ context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	a.write = in
	return nil, a.err
}

func (a *answering) table() *Table {
	cfg := TableConfig{Table: "orders", KEKID: "key", WrappedDEK: "dek", Ciphertext: "data", Version: "version", Keys: []string{"id"}}.withDefaults()
	return &Table{cfg: cfg, c: &Client{cfg: Config{ControlTable: "control", DynamoDB: a, Random: func(n int64) int64 { return n - 1 }}}}
}

func epochs(n int64, payload string) Item {
	return Item{"kek_epoch": attr.Num(n), "data": attr.Blob([]byte(payload))}
}

// TestInsertVerdicts: what the answer to an insert says: made, by this insert or by
// another, refused by the fence, or worth another try.
func TestInsertVerdicts(t *testing.T) {
	items := []Item{{"id": attr.Str("a"), "data": attr.Blob([]byte("mine a"))}, {"id": attr.Str("b"), "data": attr.Blob([]byte("mine b"))}}
	cancelled := func(codes ...string) error {
		e := &types.TransactionCanceledException{}
		for _, c := range codes {
			r := types.CancellationReason{Code: aws.String(c)}
			switch c {
			case "mine":
				r.Code, r.Item = aws.String("ConditionalCheckFailed"), Item{"data": attr.Blob([]byte("mine a"))}
			case "theirs":
				r.Code, r.Item = aws.String("ConditionalCheckFailed"), Item{"data": attr.Blob([]byte("theirs"))}
			case "nil":
				r.Code = nil
			}
			e.CancellationReasons = append(e.CancellationReasons, r)
		}
		return e
	}
	other := errors.New("other")
	for name, c := range map[string]struct {
		answer error
		want   refusal
		err    error // nil: none
	}{
		"made":                    {nil, refusal{}, nil},
		"made before":             {cancelled("mine", "None", "None"), refusal{}, nil},
		"made before, fence shut": {cancelled("mine", "None", "ConditionalCheckFailed"), refusal{}, nil},
		"exists":                  {cancelled("theirs", "None", "None"), refusal{}, ErrExists},
		"the second exists":       {cancelled("None", "theirs", "None"), refusal{}, ErrExists},
		"another's ciphertext":    {cancelled("None", "mine", "None"), refusal{}, ErrExists},
		"fenced":                  {cancelled("None", "None", "ConditionalCheckFailed"), refusal{fenced: true}, errAnswer},
		"fenced, in the way":      {cancelled("TransactionConflict", "nil", "ConditionalCheckFailed"), refusal{fenced: true, retry: true}, errAnswer},
		"in the way":              {cancelled("TransactionConflict", "None", "None"), refusal{retry: true}, errAnswer},
		"throttled":               {cancelled("None", "ThrottlingError", "None"), refusal{retry: true}, errAnswer},
		"too much":                {cancelled("None", "None", "ProvisionedThroughputExceeded"), refusal{retry: true}, errAnswer},
		"invalid":                 {cancelled("None", "ValidationError", "None"), refusal{}, errAnswer},
		"invalid, in the way":     {cancelled("TransactionConflict", "ValidationError", "None"), refusal{}, errAnswer},
		"no reason":               {cancelled("None", "nil", ""), refusal{}, errAnswer},
		"another transaction's":   {cancelled("ConditionalCheckFailed"), refusal{}, errAnswer},
		"one too many":            {cancelled("None", "None", "ConditionalCheckFailed", "None"), refusal{}, errAnswer},
		"conflict":                {&types.TransactionConflictException{}, refusal{retry: true}, errAnswer},
		"in progress":             {&types.TransactionInProgressException{}, refusal{retry: true}, errAnswer},
		"other":                   {other, refusal{}, other},
	} {
		a := &answering{err: c.answer}
		h := &heldLease{pointer: kek.Pointer{KEKID: "k"}, shards: 3}
		got, err := a.table().insertRows(t.Context(), h, items)
		want := c.err
		if errors.Is(want, errAnswer) {
			want = c.answer
		}
		if got != c.want || !errors.Is(err, want) || (err == nil) != (want == nil) || err != nil && !strings.Contains(err.Error(), "orders") {
			t.Errorf("%s: %+v, %v, want %+v, %v", name, got, err, c.want, want)
		}
		if errors.Is(err, ErrExists) != errors.Is(c.err, ErrExists) {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(a.write.TransactItems); n != 3 || *a.write.TransactItems[2].ConditionCheck.TableName != "control" ||
			!cmp.Equal(attr.Text(a.write.TransactItems[2].ConditionCheck.Key["sk"]), "02") || attr.Text(a.write.TransactItems[2].ConditionCheck.Key["pk"]) != "FENCE#k" {
			t.Errorf("%s: %d writes, fence %+v", name, n, a.write.TransactItems[2].ConditionCheck)
		}
		for i, w := range a.write.TransactItems[:2] {
			if *w.Put.TableName != "orders" || *w.Put.ConditionExpression != "attribute_not_exists(#key)" || w.Put.ExpressionAttributeNames["#key"] != "id" ||
				attr.Text(w.Put.Item["id"]) != attr.Text(items[i]["id"]) || w.Put.ReturnValuesOnConditionCheckFailure != "ALL_OLD" {
				t.Errorf("%s: put %+v", name, w.Put)
			}
		}
	}
}

var errAnswer = errors.New("the answer")

// TestUpdateVerdicts: what the answer to an update says.
func TestUpdateVerdicts(t *testing.T) {
	failed := func(i Item) error { return &types.ConditionalCheckFailedException{Item: i} }
	other := errors.New("other")
	for name, c := range map[string]struct {
		answer error
		want   refusal
		fails  bool
	}{
		"made":                {nil, refusal{}, false},
		"made before":         {failed(epochs(5, "mine")), refusal{}, false},
		"made, epoch raised":  {failed(epochs(6, "mine")), refusal{}, false},
		"another payload":     {failed(epochs(5, "theirs")), refusal{retry: true}, true},
		"of an earlier epoch": {failed(epochs(4, "theirs")), refusal{retry: true}, true},
		"of a later epoch":    {failed(epochs(6, "theirs")), refusal{retry: true, fenced: true}, true},
		"without an epoch":    {failed(Item{"data": attr.Blob([]byte("theirs"))}), refusal{retry: true}, true},
		"epoch not a number":  {failed(Item{"data": attr.Blob([]byte("theirs")), "kek_epoch": attr.Str("6")}), refusal{retry: true}, true},
		"epoch too large":     {failed(Item{"kek_epoch": &types.AttributeValueMemberN{Value: "9223372036854775808"}}), refusal{retry: true}, true},
		"gone":                {failed(nil), refusal{retry: true}, true},
		"conflict":            {&types.TransactionConflictException{}, refusal{retry: true}, true},
		"other":               {other, refusal{}, true},
	} {
		a := &answering{err: c.answer}
		old := storedRow{item: Item{"id": attr.Str("a"), "data": attr.Blob([]byte("old")), "kek_epoch": attr.Num(3)}}
		old.Epoch = 3
		set := epochs(5, "mine")
		got, err := a.table().updateRow(t.Context(), &heldLease{}, old, set, []string{"note"})
		if got != c.want || (err != nil) != c.fails || c.fails && (!errors.Is(err, c.answer) || !strings.Contains(err.Error(), "dynamodb UpdateItem orders")) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
		in := a.update
		expressions := []string{resolve(*in.ConditionExpression, in.ExpressionAttributeNames, in.ExpressionAttributeValues), resolve(*in.UpdateExpression, in.ExpressionAttributeNames, in.ExpressionAttributeValues)}
		want := []string{"data = old AND kek_epoch <= 5", "SET data = mine, kek_epoch = 5, version = if_not_exists(version, 0) + 1 REMOVE note"}
		if d := cmp.Diff(want, expressions); d != "" || *in.TableName != "orders" || !cmp.Equal(attr.Text(in.Key["id"]), "a") || in.ReturnValuesOnConditionCheckFailure != "ALL_OLD" {
			t.Errorf("%s: the request %+v (-want +got):\n%s", name, in, d)
		}
	}
}

// TestUpdateConditions: what an update asks for, for each kind of row that it finds and that
// it leaves.
func TestUpdateConditions(t *testing.T) {
	keyed := storedRow{item: Item{"id": attr.Str("a"), "data": attr.Blob([]byte("old")), "kek_epoch": attr.Num(3), "dek_id": attr.Str("d")}}
	keyed.Epoch, keyed.dekID = 3, "d"
	embedded := storedRow{item: Item{"id": attr.Str("a"), "data": attr.Blob([]byte("old")), "kek_epoch": attr.Num(3), "key": attr.Str("k"), "dek": attr.Blob([]byte("w"))}}
	embedded.Epoch = 3
	adopted := storedRow{item: Item{"id": attr.Str("a"), "data": attr.Blob([]byte("old")), "key": attr.Str("k"), "dek": attr.Blob([]byte("w"))}}
	for name, c := range map[string]struct {
		envelope string
		old      storedRow
		cond     string
		remove   []string
		fenced   bool
	}{
		"keyed":                        {EnvelopeKeyed, keyed, "data = old AND kek_epoch <= 5", nil, false},
		"embedded becomes keyed":       {EnvelopeKeyed, embedded, "data = old AND kek_epoch <= 5", []string{"key", "dek"}, false},
		"adopted becomes keyed":        {EnvelopeKeyed, adopted, "data = old AND attribute_not_exists(kek_epoch)", []string{"key", "dek"}, false},
		"embedded beside keyed rows":   {EnvelopeEmbedded, embedded, "data = old AND kek_epoch <= 5 AND attribute_not_exists(dek_id)", nil, false},
		"adopted beside keyed rows":    {EnvelopeEmbedded, adopted, "data = old AND attribute_not_exists(kek_epoch) AND attribute_not_exists(dek_id)", nil, true},
		"keyed becomes embedded again": {EnvelopeEmbedded, keyed, "data = old AND kek_epoch <= 5", []string{"dek_id"}, true},
	} {
		table := (&answering{}).table()
		table.cfg.Envelope, table.cfg.DEKID = c.envelope, "dek_id"
		u := table.updateOf(c.old, epochs(5, "mine"), table.otherKind(c.old))
		cond := resolve(*u.ConditionExpression, u.ExpressionAttributeNames, u.ExpressionAttributeValues)
		update := resolve(*u.UpdateExpression, u.ExpressionAttributeNames, u.ExpressionAttributeValues)
		want := "SET data = mine, kek_epoch = 5, version = if_not_exists(version, 0) + 1"
		if len(c.remove) > 0 {
			want += " REMOVE " + strings.Join(c.remove, ", ")
		}
		if cond != c.cond || update != want || table.needsFence(c.old) != c.fenced {
			t.Errorf("%s: %q, %q, fenced %t", name, cond, update, table.needsFence(c.old))
		}
	}
}

// resolve puts names and values into an expression.
func resolve(expr string, names map[string]string, values Item) string {
	for _, n := range slices.Backward(slices.Sorted(maps.Keys(names))) {
		expr = strings.ReplaceAll(expr, n, names[n])
	}
	for _, n := range slices.Backward(slices.Sorted(maps.Keys(values))) {
		v := attr.Text(values[n])
		switch a := values[n].(type) {
		case *types.AttributeValueMemberN:
			v = a.Value
		case *types.AttributeValueMemberB:
			v = string(a.Value)
		}
		expr = strings.ReplaceAll(expr, n, v)
	}
	return expr
}

// busyFence is a DynamoDB in which other transactions hold some shards of a fence.
type busyFence struct {
	answering
	busy  map[string]bool
	asked []string
}

func (b *busyFence) TransactWriteItems(_ context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	shard := attr.Text(in.TransactItems[len(in.TransactItems)-1].ConditionCheck.Key["sk"])
	b.asked = append(b.asked, shard)
	if !b.busy[shard] {
		return nil, b.err
	}
	reasons := make([]types.CancellationReason, len(in.TransactItems))
	reasons[len(reasons)-1].Code = aws.String("TransactionConflict")
	return nil, &types.TransactionCanceledException{CancellationReasons: reasons}
}

// TestBusyFence: an insert that only another transaction's check of its fence shard is in
// the way of asks another shard at once, as many times as there are shards; what else is wrong
// is for the caller.
func TestBusyFence(t *testing.T) {
	for name, c := range map[string]struct {
		shards int
		busy   []string
		err    error
		asked  []string
		want   refusal
	}{
		"free":         {shards: 3, asked: []string{"02"}},
		"the next":     {shards: 3, busy: []string{"02"}, asked: []string{"02", "01"}},
		"the last":     {shards: 3, busy: []string{"02", "01"}, asked: []string{"02", "01", "00"}},
		"all":          {shards: 3, busy: []string{"02", "01", "00"}, asked: []string{"02", "01", "00"}, want: refusal{retry: true}},
		"the only one": {shards: 1, busy: []string{"00"}, asked: []string{"00"}, want: refusal{retry: true}},
		"its row too": {
			shards: 3, asked: []string{"02"}, want: refusal{retry: true},
			err: &types.TransactionCanceledException{CancellationReasons: []types.CancellationReason{
				{Code: aws.String("TransactionConflict")}, {Code: aws.String("TransactionConflict")},
			}},
		},
		"fenced meanwhile": {
			shards: 3, busy: []string{"02"}, asked: []string{"02", "01"}, want: refusal{fenced: true},
			err: &types.TransactionCanceledException{CancellationReasons: []types.CancellationReason{
				{Code: aws.String("None")}, {Code: aws.String("ConditionalCheckFailed")},
			}},
		},
	} {
		b := &busyFence{answering: answering{err: c.err}, busy: map[string]bool{}}
		for _, shard := range c.busy {
			b.busy[shard] = true
		}
		table := b.table()
		table.c.cfg.DynamoDB = b
		got, err := table.insertRows(t.Context(), &heldLease{pointer: kek.Pointer{KEKID: "k"}, shards: c.shards}, []Item{{"id": attr.Str("a")}})
		if got != c.want || (err == nil) != (c.want == refusal{}) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
		if d := cmp.Diff(c.asked, b.asked); d != "" {
			t.Errorf("%s: shards (-want +got):\n%s", name, d)
		}
	}
}

// TestFencedUpdates: the update of a row that no epoch protects goes past the fence, on
// condition that it still has none; if the row is another one by now it is read again.
func TestFencedUpdates(t *testing.T) {
	for name, c := range map[string]struct {
		epoch types.AttributeValue
		cond  string
	}{
		"none": {nil, "data = old AND attribute_not_exists(kek_epoch)"},
		"zero": {attr.Num(0), "data = old AND kek_epoch = 0"},
	} {
		for code, want := range map[string]refusal{"theirs": {retry: true}, "mine": {}, "fence": {fenced: true}, "": {}} {
			e := &types.TransactionCanceledException{CancellationReasons: make([]types.CancellationReason, 2)}
			failed := aws.String("ConditionalCheckFailed")
			a := &answering{err: e}
			switch code {
			case "fence":
				e.CancellationReasons[1].Code = failed
			case "":
				a.err = nil
			default:
				e.CancellationReasons[0] = types.CancellationReason{Code: failed, Item: epochs(1, code)}
			}
			old := storedRow{item: Item{"id": attr.Str("a"), "data": attr.Blob([]byte("old"))}}
			if c.epoch != nil {
				old.item["kek_epoch"] = c.epoch
			}
			got, err := a.table().updateRow(t.Context(), &heldLease{pointer: kek.Pointer{KEKID: "k"}, shards: 1}, old, epochs(5, "mine"), nil)
			if got != want || (err == nil) != (want == refusal{}) || errors.Is(err, ErrExists) || errors.Is(err, ErrContended) != (code == "theirs") {
				t.Errorf("%s, %q: %+v, %v, want %+v", name, code, got, err, want)
			}
			u := a.write.TransactItems[0].Update
			if got := resolve(*u.ConditionExpression, u.ExpressionAttributeNames, u.ExpressionAttributeValues); got != c.cond || *u.TableName != "orders" ||
				attr.Text(u.Key["id"]) != "a" || u.ReturnValuesOnConditionCheckFailure != "ALL_OLD" {
				t.Errorf("%s: condition %s, %+v", name, got, u)
			}
			if got := resolve(*u.UpdateExpression, u.ExpressionAttributeNames, u.ExpressionAttributeValues); got != "SET data = mine, kek_epoch = 5, version = if_not_exists(version, 0) + 1" {
				t.Errorf("%s: %s", name, got)
			}
			if f := a.write.TransactItems[1].ConditionCheck; attr.Text(f.Key["pk"]) != "FENCE#k" || attr.Text(f.Key["sk"]) != "00" || *f.ConditionExpression != "#state = :open" ||
				f.ExpressionAttributeNames["#state"] != "state" || attr.Text(f.ExpressionAttributeValues[":open"]) != "open" {
				t.Errorf("%s: fence %+v", name, f)
			}
		}
	}
}

// TestExpression: an attribute has one name in an expression, a value one each time.
func TestExpression(t *testing.T) {
	e := expression{names: map[string]string{}, values: Item{}}
	if a, b, again := e.addName("a"), e.addName("b"), e.addName("a"); a == b || a != again || len(e.names) != 2 {
		t.Errorf("%s, %s, %s of %v", a, b, again, e.names)
	}
	first := map[string]string{}
	for _, a := range strings.Split("cdefghij", "") {
		first[a] = e.addName(a)
	}
	for a, n := range first {
		if again := e.addName(a); again != n || e.names[n] != a {
			t.Errorf("%s is %s and %s", a, n, again)
		}
	}
	if v, w := e.addValue(attr.Str("v")), e.addValue(attr.Str("v")); v == w || len(e.values) != 2 {
		t.Errorf("%s, %s of %v", v, w, e.values)
	}
	for _, c := range []struct {
		set    Item
		remove []string
		count  string
		want   string
	}{
		{Item{"b": attr.Str("2"), "a": attr.Str("1")}, nil, "", "SET a = 1, b = 2"},
		{Item{"a": attr.Str("1")}, []string{"x", "y"}, "", "SET a = 1 REMOVE x, y"},
		{Item{"a": attr.Str("1")}, nil, "n", "SET a = 1, n = if_not_exists(n, 0) + 1"},
	} {
		e := expression{names: map[string]string{}, values: Item{}}
		if got := resolve(e.buildUpdate(c.set, c.remove, c.count), e.names, e.values); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// TestInsertWithoutKeys: a row for which there is no data key is not written, and a table
// without versions writes none.
func TestInsertWithoutKeys(t *testing.T) {
	k := &refusingKMS{err: errHook}
	db := &answering{}
	newHooked(t, func(c *Config) { c.KMS, c.DynamoDB = k, db }, func(t *hooked) {
		table := db.table()
		table.c = t.c
		if err := table.Insert(t.Context(), Item{"id": attr.Str("a")}, []byte("x")); !errors.Is(err, errHook) || db.write != nil {
			t.Errorf("%v, %+v", err, db.write)
		}
		k.err = nil
		for version, attributes := range map[string]int{"version": 6, "": 5} {
			table.cfg.Version = version
			if err := table.Insert(t.Context(), Item{"id": attr.Str("a")}, []byte("x")); err != nil {
				t.Fatal(err)
			}
			if i := db.write.TransactItems[0].Put.Item; len(i) != attributes || (i["version"] != nil) != (version != "") {
				t.Errorf("version %q: %v", version, i)
			}
		}
	})
}

// TestNothingGiven: each field that is required is one fault.
func TestNothingGiven(t *testing.T) {
	err := TableConfig{}.checkConfig()
	for _, field := range []string{"table", "kek_id_attribute", "wrapped_dek_attribute", "ciphertext_attribute", "epoch_attribute"} {
		if err == nil || !strings.Contains(err.Error(), field+": is required") {
			t.Errorf("%v does not name %s", err, field)
		}
	}
	if n := strings.Count(err.Error(), "\n"); n != 4 {
		t.Errorf("%d faults: %v", n+1, err)
	}
}

// TestOnlyFenceBusy: a transaction is worth another shard if the fence's was in another's
// way, and nothing else was.
func TestOnlyFenceBusy(t *testing.T) {
	const busy, none, failed = "TransactionConflict", "None", "ConditionalCheckFailed"
	for codes, want := range map[string]bool{
		none + " " + busy: true, busy: true, none + " " + none + " " + busy: true, busy + " " + busy: false, failed + " " + busy: false,
		none + " " + failed: false, none + " " + none: false, none: false, none + " " + busy + " " + none: false, none + " " + busy + " " + busy: false,
	} {
		e := &types.TransactionCanceledException{}
		for code := range strings.FieldsSeq(codes) {
			e.CancellationReasons = append(e.CancellationReasons, types.CancellationReason{Code: &code})
		}
		rows := len(e.CancellationReasons) - 1
		if onlyFenceBusy(fmt.Errorf("wrapped: %w", e), rows) != want || onlyFenceBusy(e, rows+1) || onlyFenceBusy(e, rows-1) {
			t.Errorf("%s: %t", codes, !want)
		}
	}
	absent := &types.TransactionCanceledException{CancellationReasons: []types.CancellationReason{{}, {Code: aws.String(busy)}}}
	if !onlyFenceBusy(absent, 1) || onlyFenceBusy(errHook, 0) || onlyFenceBusy(nil, 0) {
		t.Error("a reason that is not given is none")
	}
}

// TestKeyOfItem: the key of an item has the attributes of the table's key that it has.
func TestKeyOfItem(t *testing.T) {
	table := (&answering{}).table()
	table.cfg.Keys = []string{"id", "sk"}
	if k := table.keyAttributes(Item{"id": attr.Str("a"), "note": attr.Str("x")}); len(k) != 1 || attr.Text(k["id"]) != "a" {
		t.Errorf("%v", k)
	}
	if k := table.keyAttributes(Item{"id": attr.Str("a"), "sk": attr.Str("b"), "note": attr.Str("x")}); len(k) != 2 || attr.Text(k["sk"]) != "b" {
		t.Errorf("%v", k)
	}
}

// TestWaits: the first try waits for nothing, the others twice as long as the one before,
// up to a second, of which the second half is chance; a context that ends is heeded.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for n, longest := range []time.Duration{
			0, 10 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond, 80 * time.Millisecond, 160 * time.Millisecond,
			320 * time.Millisecond, 640 * time.Millisecond, time.Second, time.Second,
		} {
			for chance, want := range map[int64]time.Duration{0: longest / 2, 1: longest} {
				c := Config{Random: func(n int64) int64 { return chance * (n - 1) }}
				began := time.Now()
				if err := c.waitForTry(t.Context(), n); err != nil || time.Since(began) != want {
					t.Errorf("try %d: %s, %v, want %s", n, time.Since(began), err, want)
				}
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		c := Config{Random: func(int64) int64 { return 0 }}
		if err := c.waitForTry(ctx, 5); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if err := c.waitForTry(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the first try of a context that has ended: %v", err)
		}
	})
}

// TestTries: a write is tried ten times while another try may help, at most, and what
// stopped the last one is told.
func TestTries(t *testing.T) {
	for name, c := range map[string]struct {
		v       refusal
		err     error
		tries   int
		want    error
		without error
	}{
		"made":        {refusal{}, nil, 1, nil, nil},
		"an error":    {refusal{}, errHook, 1, errHook, ErrContended},
		"contended":   {refusal{retry: true}, errHook, 10, ErrContended, ErrFenced},
		"fenced":      {refusal{fenced: true}, errHook, 10, ErrFenced, ErrContended},
		"both":        {refusal{retry: true, fenced: true}, errHook, 10, ErrFenced, ErrContended},
		"no data key": {refusal{}, errSealKey, 1, errSealKey, ErrFenced},
	} {
		newHooked(t, nil, func(t *hooked) {
			t.still()
			tries, reads := 0, t.table.count("pointer")
			err := t.c.retryWrite(t.Context(), func(h *heldLease, at time.Duration) (refusal, error) {
				tries++
				if h.refs.Load() != 1 || at != t.c.elapsedTime() {
					t.Errorf("%s: %d references, at %s", name, h.refs.Load(), at)
				}
				time.Sleep(time.Millisecond)
				return c.v, c.err
			})
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || tries != c.tries || c.without != nil && errors.Is(err, c.without) {
				t.Errorf("%s: %v after %d tries, want %v after %d", name, err, tries, c.want, c.tries)
			}
			if c.tries == 10 && (!errors.Is(err, errHook) || !strings.Contains(err.Error(), "gave up after 10 tries")) {
				t.Errorf("%s: %v", name, err)
			}
			refused := int64(0)
			if c.tries > 1 {
				refused = int64(c.tries)
			}
			if s := t.c.Stats(); s.RefusedWrites != refused || s.InFlight != 0 {
				t.Errorf("%s: %+v", name, s)
			}
			if n := t.table.count("pointer") - reads; n > 0 != (c.v.fenced || errors.Is(c.err, errSealKey)) {
				t.Errorf("%s: the pointer was read %d times", name, n)
			}
		})
	}
	newHooked(t, nil, func(t *hooked) {
		t.still()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		err := t.c.retryWrite(ctx, func(*heldLease, time.Duration) (refusal, error) { return refusal{retry: true}, errHook })
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errHook) {
			t.Errorf("%v, want the deadline and what went before", err)
		}
	})
	newHooked(t, nil, func(t *hooked) { // the KEK was disabled while the process slept: there is another by now
		t.still()
		t.table.move(2, kek.Normal)
		time.Sleep(time.Second)
		var under []kek.ID
		err := t.c.retryWrite(t.Context(), func(h *heldLease, _ time.Duration) (refusal, error) {
			under = append(under, h.pointer.KEKID)
			if h.pointer.Epoch == 1 {
				return refusal{}, errSealKey
			}
			return refusal{}, nil
		})
		if err != nil || !slices.Equal(under, []kek.ID{"kek-1", "kek-2"}) {
			t.Errorf("%v under %v", err, under)
		}
		t.c.renewAll(t.Context())
	})
}

// everyType is an item with every type of attribute.
func everyType() Item {
	return Item{
		"S": attr.Str("s"), "N": &types.AttributeValueMemberN{Value: "1.50"}, "B": attr.Blob([]byte("b")),
		"BOOL": &types.AttributeValueMemberBOOL{Value: true}, "NULL": &types.AttributeValueMemberNULL{Value: true},
		"SS": &types.AttributeValueMemberSS{Value: []string{"a", "b"}}, "NS": &types.AttributeValueMemberNS{Value: []string{"1", "2"}},
		"BS": &types.AttributeValueMemberBS{Value: [][]byte{{1}, {2}}},
		"L":  &types.AttributeValueMemberL{Value: []types.AttributeValue{attr.Str("l"), &types.AttributeValueMemberM{Value: Item{"x": attr.Blob([]byte{3})}}}},
		"M":  &types.AttributeValueMemberM{Value: Item{"m": &types.AttributeValueMemberL{Value: []types.AttributeValue{attr.Num(4)}}}},
	}
}

// TestCloneItem: a copy is equal, and shares nothing that can be changed.
func TestCloneItem(t *testing.T) {
	i := everyType()
	c := cloneItem(i)
	if set, remove := diffItems(i, c); len(set)+len(remove) > 0 {
		t.Fatalf("a copy differs in %v and lacks %v", set, remove)
	}
	i["S"].(*types.AttributeValueMemberS).Value = "x"
	i["N"].(*types.AttributeValueMemberN).Value = "x"
	i["B"].(*types.AttributeValueMemberB).Value[0] = 'x'
	i["BOOL"].(*types.AttributeValueMemberBOOL).Value = false
	i["SS"].(*types.AttributeValueMemberSS).Value[1] = "x"
	i["NS"].(*types.AttributeValueMemberNS).Value[1] = "x"
	i["BS"].(*types.AttributeValueMemberBS).Value[1][0] = 'x'
	i["L"].(*types.AttributeValueMemberL).Value[1].(*types.AttributeValueMemberM).Value["x"].(*types.AttributeValueMemberB).Value[0] = 'x'
	i["M"].(*types.AttributeValueMemberM).Value["m"].(*types.AttributeValueMemberL).Value[0] = attr.Str("x")
	set, remove := diffItems(c, everyType())
	if len(set)+len(remove) > 0 {
		t.Errorf("the copy changed with the item: %v, %v", slices.Sorted(maps.Keys(set)), remove)
	}
	set, remove = diffItems(c, i)
	if got := slices.Sorted(maps.Keys(set)); len(remove) > 0 || !slices.Equal(got, []string{"B", "BOOL", "BS", "L", "M", "N", "NS", "S", "SS"}) {
		t.Errorf("changed %v, removed %v", got, remove)
	}
	delete(i, "S")
	delete(i, "NULL")
	i["new"] = attr.Str("n")
	many := Item{}
	for _, name := range strings.Split("abcdefghij", "") {
		many[name] = attr.Str("x")
	}
	if set, remove := diffItems(many, Item{}); len(set) != 0 || strings.Join(remove, "") != "abcdefghij" {
		t.Errorf("in order: %v, %v", set, remove)
	}
	if set, remove := diffItems(c, i); !slices.Equal(remove, []string{"NULL", "S"}) || set["new"] == nil {
		t.Errorf("%v, %v", set, remove)
	}
}

// TestFaults: everything that is wrong with a table's description is named by its field,
// and nothing else; the table's own name may be that of an attribute.
func TestFaults(t *testing.T) {
	good := TableConfig{Table: "orders", KEKID: "key", WrappedDEK: "dek", Ciphertext: "data", Epoch: "epoch", Version: "version", Payloads: "opaque", Format: "matter"}
	same := good
	same.Table, same.Version = "key", ""
	tink := good
	tink.Format, tink.Payloads = "tink", ""
	plain := good
	plain.Format = ""
	for _, c := range []TableConfig{good, same, tink, plain} {
		if err := c.checkConfig(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	other := func(attribute string, values ...string) func(*TableConfig) {
		return func(c *TableConfig) { c.Other = &OtherItems{Attribute: attribute, Values: values} }
	}
	for want, change := range map[string]func(*TableConfig){
		"table: is required":                                                 func(c *TableConfig) { c.Table = "" },
		"kek_id_attribute: is required":                                      func(c *TableConfig) { c.KEKID = "" },
		"wrapped_dek_attribute: is required":                                 func(c *TableConfig) { c.WrappedDEK = "" },
		"ciphertext_attribute: is required":                                  func(c *TableConfig) { c.Ciphertext = "" },
		"epoch_attribute: is required":                                       func(c *TableConfig) { c.Epoch = "" },
		`table: "\xff" is not UTF-8`:                                         func(c *TableConfig) { c.Table = "\xff" },
		`epoch_attribute: "\xff" is not UTF-8`:                               func(c *TableConfig) { c.Epoch = "\xff" },
		`version_attribute: "\xff" is not UTF-8`:                             func(c *TableConfig) { c.Version = "\xff" },
		`wrapped_dek_attribute: "key" is already the kek_id_attribute`:       func(c *TableConfig) { c.WrappedDEK = "key" },
		`epoch_attribute: "dek" is already the wrapped_dek_attribute`:        func(c *TableConfig) { c.Epoch = "dek" },
		`version_attribute: "data" is already the ciphertext_attribute`:      func(c *TableConfig) { c.Version = "data" },
		`version_attribute: "epoch" is already the epoch_attribute`:          func(c *TableConfig) { c.Version = "epoch" },
		`context: key "k": attribute "version" cannot be bound`:              func(c *TableConfig) { c.Context = map[string]string{"k": "$version"} },
		`context: key "k": attribute "" cannot be bound`:                     func(c *TableConfig) { c.Context = map[string]string{"k": "$"} },
		`bind: key "k" is in context already, which is bound to the payload`: func(c *TableConfig) { c.Context = map[string]string{"k": "x"}; c.Bind = map[string]string{"k": "$id"} },
		`format: "x" is not known`:                                           func(c *TableConfig) { c.Format = "x" },
		`payloads: "x" is not known`:                                         func(c *TableConfig) { c.Payloads = "x" },
		"other: an attribute that is none of the envelope's, and":            other("", "x"),
		"other: an attribute that is none of the envelope's, and values":     other("kind"),
		"other: an attribute that is none of the envelope's":                 other("version", "x"),
	} {
		c := good
		change(&c)
		err := c.checkConfig()
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want %s alone", err, want)
		}
	}
	twice := good
	twice.Context = map[string]string{"a": "1", "b": "2", "c": "3"}
	twice.Bind = twice.Context
	for k := range twice.Bind {
		if err := twice.checkConfig(); err == nil || !strings.Contains(err.Error(), `bind: key "`+k+`" is in context already`) {
			t.Errorf("%v does not name %q", err, k)
		}
	}
	for _, values := range []map[string]string{{"k": "$$x"}, {"k": "x"}, {"k": "$other"}, {"k": "$kind"}} {
		c := good
		c.Context, c.Other = values, &OtherItems{Attribute: "kind", Values: []string{"x"}}
		if err := c.checkConfig(); err != nil {
			t.Errorf("%v: %v", values, err)
		}
	}
	if c := (TableConfig{}).withDefaults(); c.Epoch != "kek_epoch" || c.Version != "" {
		t.Errorf("%+v", c)
	}
	if c := (TableConfig{Epoch: "e"}).withDefaults(); c.Epoch != "e" {
		t.Errorf("%+v", c)
	}
}

// TestDecode: an item that lacks an attribute of the envelope, or has it in another type,
// says which; one that is whole has all of it.
func TestDecode(t *testing.T) {
	cfg := TableConfig{KEKID: "key", WrappedDEK: "dek", Ciphertext: "data", Version: "version"}.withDefaults()
	good := Item{"key": attr.Str("k"), "dek": attr.Blob([]byte("w")), "data": attr.Blob([]byte("c")), "kek_epoch": attr.Num(3), "version": attr.Num(7)}
	s, err := cfg.decodeRow(good)
	if err != nil || s.KEKID != "k" || string(s.WrappedDEK) != "w" || string(s.Ciphertext) != "c" || s.Epoch != 3 || s.version != 7 || s.tink != nil {
		t.Errorf("%+v, %v", s, err)
	}
	for _, attribute := range []string{"kek_epoch", "version"} {
		i := maps.Clone(good)
		delete(i, attribute)
		if _, err := cfg.decodeRow(i); err != nil {
			t.Errorf("without %s: %v", attribute, err)
		}
		for _, v := range []types.AttributeValue{attr.Str("1"), &types.AttributeValueMemberN{Value: "1.5"}} {
			i[attribute] = v
			if _, err := cfg.decodeRow(i); !errors.Is(err, ErrNoEnvelope) || !strings.Contains(err.Error(), "attribute "+attribute) {
				t.Errorf("%s is %T: %v", attribute, v, err)
			}
		}
	}
	for _, attribute := range []string{"key", "dek", "data"} {
		for name, v := range map[string]types.AttributeValue{"missing": nil, "another type": attr.Num(1), "empty": attr.Str(""), "no bytes": attr.Blob(nil)} {
			i := maps.Clone(good)
			if i[attribute] = v; v == nil {
				delete(i, attribute)
			}
			if _, err := cfg.decodeRow(i); !errors.Is(err, ErrNoEnvelope) || !strings.Contains(err.Error(), "attribute "+attribute+" is missing") {
				t.Errorf("%s is %s: %v", attribute, name, err)
			}
		}
	}
	cfg.Format = FormatTink
	if s, err := cfg.decodeRow(good); err != nil || s.tink != nil {
		t.Errorf("a row of this package in a table of Tink's: %+v, %v", s, err)
	}
	i := maps.Clone(good)
	delete(i, "dek")
	if _, err := cfg.decodeRow(i); !errors.Is(err, ErrNoEnvelope) || !strings.Contains(err.Error(), "attribute data") {
		t.Errorf("no payload of Tink's: %v", err)
	}
}

// fleeting is a DynamoDB in which a row is there when it is inserted and gone when it is
// read, or whose reads fail.
type fleeting struct {
	noDynamoDB
	inserts, reads int
	err            error
	item           Item
}

func (f *fleeting) TransactWriteItems(context.Context, *dynamodb.TransactWriteItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	f.inserts++
	return nil, &types.TransactionCanceledException{CancellationReasons: []types.CancellationReason{
		{Code: aws.String("ConditionalCheckFailed"), Item: epochs(1, "theirs")}, {Code: aws.String("None")},
	}}
}

func (f *fleeting) GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	f.reads++
	return &dynamodb.GetItemOutput{Item: f.item}, f.err
}

// TestPutGivesUp: a row that comes and goes is contended, in the end.
func TestPutGivesUp(t *testing.T) {
	f := &fleeting{}
	newHooked(t, func(c *Config) { c.DynamoDB = f }, func(t *hooked) {
		table := (&answering{}).table()
		table.c = t.c
		err := table.Put(t.Context(), Item{"id": attr.Str("a")}, []byte("x"))
		if !errors.Is(err, ErrContended) || f.inserts != 10 || f.reads != 10 || !strings.Contains(err.Error(), "came and went 10 times") {
			t.Errorf("%v after %d inserts and %d reads", err, f.inserts, f.reads)
		}
		if err := table.Update(t.Context(), Item{"id": attr.Str("a")}, nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("update: %v", err)
		}
		f.item = Item{"id": attr.Str("a"), "key": attr.Str("kek-1"), "dek": attr.Blob([]byte("w")), "data": attr.Blob(t.keys.seal(t))}
		if r, err := table.Get(t.Context(), Item{"id": attr.Str("a")}); err != nil || string(r.Plaintext) != "x" {
			t.Errorf("%+v, %v", r, err)
		}
		if err := t.c.Close(); err != nil {
			t.Error(err)
		}
		if r, err := table.Get(t.Context(), Item{"id": attr.Str("a")}); !errors.Is(err, ErrClosed) || r.Item != nil {
			t.Errorf("of a closed client: %+v, %v", r, err)
		}
		if r, err := table.Open(t.Context(), f.item); !errors.Is(err, ErrClosed) || r.Item != nil {
			t.Errorf("of a closed client: %+v, %v", r, err)
		}
	})
}

// TestRereadFails: a row whose KEK does not resolve is read again; what that says is
// told, and the row opened as it is then.
func TestRereadFails(t *testing.T) {
	f := &fleeting{}
	newHooked(t, func(c *Config) { c.DynamoDB = f }, func(t *hooked) {
		table := (&answering{}).table()
		table.c = t.c
		t.table.unknown = map[kek.ID]bool{"gone": true}
		stale := Item{"id": attr.Str("a"), "key": attr.Str("gone"), "dek": attr.Blob([]byte("w")), "data": attr.Blob(t.keys.seal(t)), "version": attr.Num(1), "note": attr.Str("old")}
		f.err = errHook
		if r, err := table.Open(t.Context(), stale); !errors.Is(err, errHook) || r.Item != nil || r.Plaintext != nil {
			t.Errorf("%+v, %v", r, err)
		}
		f.err = nil
		if r, err := table.Open(t.Context(), stale); !errors.Is(err, ErrNotFound) || errors.Is(err, errSuspect) || r.Item != nil {
			t.Errorf("%+v, %v", r, err)
		}
		f.item = maps.Clone(stale)
		f.item["key"], f.item["version"], f.item["note"] = attr.Str("kek-1"), attr.Num(2), attr.Str("new")
		r, err := table.Open(t.Context(), stale)
		if err != nil || string(r.Plaintext) != "x" || r.Version != 2 || attr.Text(r.Item["note"]) != "new" || len(r.Item) != 2 {
			t.Errorf("%+v, %v", r, err)
		}
		f.item = Item{"id": attr.Str("a")}
		if r, err := table.Open(t.Context(), stale); !errors.Is(err, ErrNoEnvelope) || r.Item != nil {
			t.Errorf("it is not an envelope any more: %+v, %v", r, err)
		}
		if r, err := table.Get(t.Context(), Item{"id": attr.Str("a")}); !errors.Is(err, ErrNoEnvelope) || r.Item != nil || !strings.Contains(err.Error(), "table orders") {
			t.Errorf("%+v, %v", r, err)
		}
		table.cfg.Context = map[string]string{"id": "$missing"}
		if r, err := table.Open(t.Context(), stale); err == nil || !strings.Contains(err.Error(), `the row has no attribute "missing"`) || r.Item != nil {
			t.Errorf("without what it is bound to: %+v, %v", r, err)
		}
	})
}

// TestBatches: a transaction takes 99 rows, and says which of them cannot be written.
func TestBatches(t *testing.T) {
	a := &answering{}
	newHooked(t, func(c *Config) { c.DynamoDB = a }, func(t *hooked) {
		table := a.table()
		table.c = t.c
		for n, ok := range map[int]bool{0: false, 1: true, 99: true, 100: false} {
			rows := make([]Row, n)
			for i := range rows {
				rows[i].Item = Item{"id": attr.Num(int64(i))}
			}
			a.write = nil
			err := table.InsertAll(t.Context(), rows)
			if (err == nil) != ok || ok != (a.write != nil) || ok && len(a.write.TransactItems) != n+1 {
				t.Errorf("%d rows: %v, written %t", n, err, a.write != nil)
			}
			if ok {
				i := a.write.TransactItems[0].Put.Item
				if attr.Text(i["key"]) != "kek-1" || i["version"].(*types.AttributeValueMemberN).Value != "1" || i["kek_epoch"].(*types.AttributeValueMemberN).Value != "1" {
					t.Errorf("%d rows: %v", n, i)
				}
			}
		}
		a.write = nil
		rows := []Row{{Item: Item{"id": attr.Str("a")}}, {Item: Item{"id": attr.Str("b"), "note": attr.Str("\xff")}}}
		if err := table.InsertAll(t.Context(), rows); !errors.Is(err, ErrInvalidItem) || !strings.Contains(err.Error(), "row 2 of 2") || a.write != nil {
			t.Errorf("%v, written %t", err, a.write != nil)
		}
		if len(rows[0].Item) != 1 {
			t.Errorf("the caller's item is changed: %v", rows[0].Item)
		}
	})
}

// TestSameKey: key attributes are the same by type and value; what is not a key attribute
// is never the same.
func TestSameKey(t *testing.T) {
	n := func(v string) types.AttributeValue { return &types.AttributeValueMemberN{Value: v} }
	yes := &types.AttributeValueMemberBOOL{Value: true}
	for _, c := range []struct {
		a, b types.AttributeValue
		same bool
	}{
		{attr.Str("a"), attr.Str("a"), true},
		{attr.Str("a"), attr.Str("b"), false},
		{attr.Str("1"), n("1"), false},
		{n("1"), attr.Str("1"), false},
		{n("1"), n("1.0"), true},
		{n("1"), n("2"), false},
		{n("x"), n("x"), false},
		{n("x"), n("1"), false},
		{n("1"), n("x"), false},
		{attr.Blob([]byte("a")), attr.Blob([]byte("a")), true},
		{attr.Blob([]byte("a")), attr.Blob([]byte("b")), false},
		{attr.Blob([]byte("a")), attr.Str("a"), false},
		{attr.Str("a"), nil, false},
		{nil, attr.Str("a"), false},
		{nil, nil, false},
		{yes, yes, false},
	} {
		if sameScalar(c.a, c.b) != c.same {
			t.Errorf("%T %v, %T %v: same %t", c.a, c.a, c.b, c.b, !c.same)
		}
	}
}

// TestFlushCounts: every metric but the level is what was counted since the last flush.
func TestFlushCounts(t *testing.T) {
	var out strings.Builder
	e := NewEMF(&out, "s", func() time.Time { return time.UnixMilli(1) })
	first := Stats{InFlight: 1, CacheHits: 2, CacheMisses: 3, RefusedWrites: 4, OrphanedKeys: 5, RevokedLeases: 6, PointerErrors: 7}
	second := Stats{InFlight: 10, CacheHits: 22, CacheMisses: 33, RefusedWrites: 44, OrphanedKeys: 55, RevokedLeases: 66, PointerErrors: 77}
	if err := errors.Join(e.Flush(first), e.Flush(second)); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	for n, want := range []map[string]float64{
		{MetricInFlight: 1, MetricCacheHits: 2, MetricCacheMisses: 3, MetricRefusedWrites: 4, MetricOrphanedKey: 5, MetricRevokedLeases: 6, MetricPointerErrors: 7},
		{MetricInFlight: 10, MetricCacheHits: 20, MetricCacheMisses: 30, MetricRefusedWrites: 40, MetricOrphanedKey: 50, MetricRevokedLeases: 60, MetricPointerErrors: 70},
	} {
		var got map[string]any
		if err := json.Unmarshal([]byte(lines[n]), &got); err != nil {
			t.Fatal(err)
		}
		for name, v := range want {
			if got[name] != v {
				t.Errorf("flush %d: %s is %v, want %v", n+1, name, got[name], v)
			}
		}
	}
}
