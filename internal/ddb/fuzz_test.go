package ddb

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// anyItem makes an item of bytes: pairs of names, of which the first byte of a value says
// what type it has.
func anyItem(b []byte) item {
	i := item{}
	next := func() []byte {
		n := 0
		for n < len(b) && b[n] != 0 {
			n++
		}
		part := b[:n]
		b = b[min(n+1, len(b)):]
		return part
	}
	for len(b) > 0 && len(i) < 40 {
		name, v := string(next()), next()
		if len(v) == 0 {
			continue
		}
		switch text := v[1:]; v[0] {
		case 'N':
			i[name] = attr.Num(int64(len(text)) - 3)
		case 'B':
			i[name] = attr.Blob(text)
		case 'T':
			i[name] = attr.Bool(true)
		default:
			i[name] = attr.Str(string(text))
		}
	}
	return i
}

// itemBytes is what anyItem makes an item of, for seeds.
func itemBytes(pairs ...string) []byte {
	var b []byte
	for _, p := range pairs {
		b = append(append(b, p...), 0)
	}
	return b
}

// roundTrip checks that what decodes is encoded to what decodes to the same.
func roundTrip[T any](t *testing.T, i item, decode func(item) (T, error), encode func(T) item) {
	t.Helper()
	v, err := decode(i)
	if err != nil {
		return
	}
	again, err := decode(encode(v))
	if err != nil {
		t.Fatalf("%+v does not decode again: %v", v, err)
	}
	if d := cmp.Diff(v, again); d != "" {
		t.Fatal(d)
	}
}

// FuzzItems: no item of the control table, by any writer, brings a decoder down, and
// what decodes keeps its meaning when it is written again.
func FuzzItems(f *testing.F) {
	f.Add(itemBytes("pk", "SPOINTER", "kek_id", "Sk", "epoch", "N1234", "switched_at", "S2026-04-01T02:00:00.000Z"))
	f.Add(itemBytes("pk", "SKEK#k", "state", "Sactive", "fence_shards", "N12345", "created_at", "S2026-04-01T02:00:00.000Z"))
	f.Add(itemBytes("pk", "SROTATION#r", "mode", "Snormal", "phase", "Sstarted", "settings", "S{}", "sources", "S[]", "rev", "N1234"))
	f.Add(itemBytes("pk", "SAUDIT", "sk", "S000000000001", "record", "B{}", "hash", "Sx"))
	f.Add(itemBytes("chain", "Sc", "seq", "N1234", "generations", "S13=g1-0123456789abcdef"))
	f.Add(itemBytes("pk", "SSOURCE", "sk", "Sorders", "definition", "S{}", "generation", "N1234"))
	f.Add(itemBytes("pk", "SLEASE#k", "sk", "Sweb", "expires_at", "N123456", "refs", "N123"))
	f.Fuzz(func(t *testing.T, b []byte) {
		i := anyItem(b)
		roundTrip(t, i, decodePointer, controltable.EncodePointer)
		roundTrip(t, i, func(i item) (kek.KEK, error) { return decodeKEK(i) }, controltable.EncodeKEK)
		roundTrip(t, i, decodeRotation, encodeRotation)
		roundTrip(t, i, controltable.DecodeLease, controltable.EncodeLease)
		if e, err := decodeEntry(i); err == nil {
			if _, err := audit.Parse(e.Bytes); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = decodeAnchor(i)
		_, _ = decodeSource(i)
		_, _ = decodeMark(i)
		_, _ = decodeHealth("2026-04-01", i)
		_, _ = decodeCheckpoint(i, rotation.Checkpoint{})
		_, _ = decodeView([]item{i})
	})
}
