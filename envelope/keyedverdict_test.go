package envelope

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/kek"
)

func testRecord() keyrecord.Record {
	return keyrecord.Record{
		DEKID: keyrecord.NewID([16]byte{1}), WrappedDEK: []byte("wrapped"), KEKID: "kek-1", KEKEpoch: 2, BornEpoch: 1,
		Context: map[string]string{"table": "orders"}, CreatedAt: time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC),
	}
}

// TestRecordVerdicts: what the answer to the transaction that stores a record says.
func TestRecordVerdicts(t *testing.T) {
	r, other := testRecord(), testRecord()
	other.WrappedDEK = []byte("another's")
	cancelled := func(codes ...string) error {
		e := &types.TransactionCanceledException{}
		for _, c := range codes {
			reason := types.CancellationReason{Code: aws.String(c)}
			switch c {
			case "mine":
				reason.Code, reason.Item = aws.String("ConditionalCheckFailed"), keyrecord.Encode(r)
			case "theirs":
				reason.Code, reason.Item = aws.String("ConditionalCheckFailed"), keyrecord.Encode(other)
			case "damaged":
				reason.Code, reason.Item = aws.String("ConditionalCheckFailed"), Item{}
			}
			e.CancellationReasons = append(e.CancellationReasons, reason)
		}
		return e
	}
	for name, c := range map[string]struct {
		answer error
		want   refusal
		stored bool
	}{
		"stored":                {nil, refusal{}, true},
		"stored before":         {cancelled("mine", "None"), refusal{}, true},
		"stored before, sealed": {cancelled("mine", "ConditionalCheckFailed"), refusal{}, true},
		"another's":             {cancelled("theirs", "None"), refusal{retry: true}, false},
		"damaged":               {cancelled("damaged", "None"), refusal{retry: true}, false},
		"sealed":                {cancelled("None", "ConditionalCheckFailed"), refusal{fenced: true}, false},
		"the record is held":    {cancelled("TransactionConflict", "None"), refusal{retry: true}, false},
		"the shard is held":     {cancelled("None", "TransactionConflict"), refusal{retry: true}, false},
		"throttled":             {cancelled("None", "ThrottlingError"), refusal{retry: true}, false},
		"invalid":               {cancelled("ValidationError", "None"), refusal{}, false},
		"another transaction's": {cancelled("ConditionalCheckFailed"), refusal{}, false},
		"a reason too many":     {cancelled("None", "ConditionalCheckFailed", "None"), refusal{}, false},
		"conflict":              {&types.TransactionConflictException{}, refusal{retry: true}, false},
		"in progress":           {&types.TransactionInProgressException{}, refusal{retry: true}, false},
		"lost":                  {errDown, refusal{}, false},
	} {
		a := &answering{err: c.answer}
		client := a.table().c
		client.cfg.Keys = &KeyTable{Table: "keys"}
		got, err := client.storeRecord(t.Context(), &heldLease{pointer: kek.Pointer{KEKID: "kek-1"}, shards: 1}, r)
		if got != c.want || (err == nil) != c.stored || err != nil && (!errors.Is(err, c.answer) || !strings.Contains(err.Error(), "dynamodb TransactWriteItems keys")) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
		if n := len(a.write.TransactItems); n != 2 || *a.write.TransactItems[0].Put.TableName != "keys" || *a.write.TransactItems[1].ConditionCheck.TableName != "control" {
			t.Errorf("%s: %d writes", name, n)
		}
	}
}

// scriptedKMS answers as it is told, and keeps the requests.
type scriptedKMS struct {
	generated *kms.GenerateDataKeyInput
	decrypted *kms.DecryptInput
	dek       []byte
	err       error
	calls     int
}

func (k *scriptedKMS) GenerateDataKey(_ context.Context, in *kms.GenerateDataKeyInput, _ ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error) {
	k.generated = in
	k.calls++
	return &kms.GenerateDataKeyOutput{Plaintext: k.dek, CiphertextBlob: []byte("wrapped")}, k.err
}

func (k *scriptedKMS) Decrypt(_ context.Context, in *kms.DecryptInput, _ ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	k.decrypted = in
	k.calls++
	return &kms.DecryptOutput{Plaintext: k.dek}, k.err
}

// TestKeyedKMS: what KMS is asked for, that the bytes of a data key are cleared, and that what
// is not a data key makes none.
func TestKeyedKMS(t *testing.T) {
	bubble(t, func(b *bubbled) {
		k := &scriptedKMS{dek: make([]byte, aead.KeySize)}
		k.dek[0] = 1
		a := &answering{}
		synctest.Wait() // the background work is asleep
		b.c.cfg.KMS, b.c.cfg.DynamoDB = k, a
		b.c.cfg.Keys = &KeyTable{Table: "keys", Bucket: "audit", S3: takesAll{}}
		h := b.c.current.Load()
		h.pointer.KeyARN = "arn:key"
		encctx := map[string]string{"table": "orders"}
		made, v, err := b.c.createKeyUnder(b.Context(), h, encctx)
		if err != nil || v != (refusal{}) || made.bornEpoch != 1 || made.aead == nil {
			t.Fatalf("%+v, %+v, %v", made, v, err)
		}
		want := map[string]string{"table": "orders", "matter:dek_id": made.id, "matter:born_epoch": "1"}
		if in := k.generated; *in.KeyId != "arn:key" || in.KeySpec != kmstypes.DataKeySpecAes256 || !cmp.Equal(in.EncryptionContext, want) {
			t.Errorf("%+v", in)
		}
		if slices.ContainsFunc(k.dek, func(b byte) bool { return b != 0 }) {
			t.Error("the data key is still in memory")
		}
		r := testRecord()
		k.dek = append([]byte{1}, make([]byte, aead.KeySize-1)...)
		_, err = b.c.openUnder(b.Context(), record{dekID: r.DEKID}, r, "arn:key")
		if !errors.Is(err, ErrBadRecord) { // it is of another epoch and context
			t.Error(err)
		}
		want["matter:dek_id"] = r.DEKID
		if in := k.decrypted; *in.KeyId != "arn:key" || string(in.CiphertextBlob) != "wrapped" || !cmp.Equal(in.EncryptionContext, want) {
			t.Errorf("%+v", in)
		}
		if slices.ContainsFunc(k.dek, func(b byte) bool { return b != 0 }) {
			t.Error("the data key is still in memory")
		}
		r.DEKID = keyrecord.NewID([16]byte{2})
		k.dek = make([]byte, 16)
		if _, _, err := b.c.createKeyUnder(b.Context(), h, encctx); !errors.Is(err, aead.ErrKeySize) {
			t.Errorf("a short data key: %v", err)
		}
		if _, err := b.c.openUnder(b.Context(), record{dekID: r.DEKID}, r, ""); !errors.Is(err, aead.ErrKeySize) {
			t.Errorf("a short data key: %v", err)
		}
		a.write = nil
		k.err = errDown
		if _, v, err := b.c.createKeyUnder(b.Context(), h, encctx); !errors.Is(err, errDown) || errors.Is(err, errSealKey) || v != (refusal{}) {
			t.Errorf("%+v, %v", v, err)
		}
		k.err = &kmstypes.DisabledException{}
		if _, v, err := b.c.createKeyUnder(b.Context(), h, encctx); !errors.Is(err, errSealKey) || !errors.Is(err, ErrKeyUnusable) || v != (refusal{}) {
			t.Errorf("%+v, %v", v, err)
		}
		k.err, k.dek = nil, make([]byte, aead.KeySize)
		if _, _, err := b.c.createKeyUnder(b.Context(), h, map[string]string{"tenant": ""}); !errors.Is(err, ErrInvalidItem) {
			t.Errorf("an empty value in the context: %v", err)
		}
		if a.write != nil {
			t.Errorf("a record was stored: %+v", a.write)
		}
	})
}

type takesAll struct{ S3 }

func (takesAll) PutObject(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error) {
	return &s3.PutObjectOutput{}, nil
}

// recordDB answers reads of records in turn; after the last one there is none.
type recordDB struct {
	DynamoDB
	answers []any // a record, nil or an error
	reads   int
}

func (d *recordDB) GetItem(_ context.Context, in *dynamodb.GetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	d.reads++
	if !*in.ConsistentRead || len(d.answers) == 0 {
		return &dynamodb.GetItemOutput{}, nil
	}
	answer := d.answers[0]
	d.answers = d.answers[1:]
	switch v := answer.(type) {
	case keyrecord.Record:
		return &dynamodb.GetItemOutput{Item: keyrecord.Encode(v)}, nil
	case error:
		return nil, v
	}
	return &dynamodb.GetItemOutput{}, nil
}

// TestSuspectRecords: a record is read until it stays the same or opens the row; what it comes
// to then, and which of it is counted as an orphan.
func TestSuspectRecords(t *testing.T) {
	disabled := error(&kmstypes.DisabledException{})
	version := func(n string) keyrecord.Record {
		r := testRecord()
		r.WrappedDEK = []byte(n)
		return r
	}
	foreign := version("a")
	foreign.KEKID = "kek-9"
	for name, c := range map[string]struct {
		answers []any
		kms     error
		want    error
		orphans int64
		reads   int
		asked   int
	}{
		"gone":                  {nil, nil, ErrUnknownDEK, 1, 1, 0},
		"not read":              {[]any{errDown}, nil, errDown, 0, 1, 0},
		"there":                 {[]any{version("a")}, nil, ErrBadRecord, 0, 1, 1}, // decided by the row, not by the record
		"disabled":              {[]any{version("a"), version("a")}, disabled, ErrKeyUnusable, 0, 2, 2},
		"disabled, then others": {[]any{version("a"), version("b"), version("b")}, disabled, ErrKeyUnusable, 0, 3, 3},
		"disabled, then gone":   {[]any{version("a"), nil}, disabled, ErrUnknownDEK, 1, 2, 1},
		"of a foreign KEK":      {[]any{foreign, foreign}, nil, ErrUnknownKEK, 1, 2, 0},
		"foreign, then ours":    {[]any{foreign, version("a")}, nil, ErrBadRecord, 0, 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bubbled) {
				b.table.unknown = map[kek.ID]bool{"kek-9": true}
				db, k := &recordDB{answers: c.answers}, &scriptedKMS{dek: make([]byte, aead.KeySize), err: c.kms}
				synctest.Wait() // the background work is asleep
				b.c.cfg.DynamoDB, b.c.cfg.KMS, b.c.cfg.Keys = db, k, &KeyTable{Table: "keys"}
				_, err := b.c.openKeyedSuspect(b.Context(), record{dekID: testRecord().DEKID})
				if !errors.Is(err, c.want) || b.c.Stats().OrphanedKeys != c.orphans || db.reads != c.reads || k.calls != c.asked {
					t.Errorf("%v after %d reads and %d calls of KMS, %d orphans", err, db.reads, k.calls, b.c.Stats().OrphanedKeys)
				}
				if errors.Is(c.want, ErrUnknownKEK) && !strings.Contains(err.Error(), "kek-9") {
					t.Errorf("%v names no KEK", err)
				}
			})
		})
	}
}
