package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
)

var at = time.Date(2026, 4, 1, 2, 0, 0, 123_999_999, time.FixedZone("CEST", 7200))

func event(id string) audit.Event {
	return audit.Event{
		ID: id, Type: "pointer_switched", Rotation: "Q2-2026-rotation", Step: "switch", Actor: "lambda/switch",
		Body: map[string]string{"z": "last", "a": "<first> & \"second\"\n", "é": "\u2028"},
	}
}

// link makes a chain of n records.
func link(tb testing.TB, chain string, n int) []audit.Entry {
	tb.Helper()
	head := audit.Genesis(chain)
	var out []audit.Entry
	for i := range n {
		e, err := audit.Next(chain, head, at, event(fmt.Sprintf("e%d", i)))
		if err != nil {
			tb.Fatal(err)
		}
		out, head = append(out, e), e.Head()
	}
	return out
}

// TestFormat pins the bytes and the hash of a record: verifiers elsewhere depend on
// every one of them.
func TestFormat(t *testing.T) {
	sum := sha256.Sum256([]byte("matter-ops/kms-rotation audit chain v1\x00prod"))
	genesis := hex.EncodeToString(sum[:])
	if got := audit.Genesis("prod"); got.Seq != 0 || got.Hash != genesis {
		t.Errorf("genesis %+v, want hash %s", got, genesis)
	}
	e := link(t, "prod", 1)[0]
	want := `{"actor":"lambda/switch","body":{"a":"<first> & \"second\"\n","z":"last","é":"\u2028"},"chain":"prod","id":"e0","prev":"` + genesis +
		`","rotation":"Q2-2026-rotation","seq":1,"step":"switch","time":"2026-04-01T00:00:00.123Z","type":"pointer_switched","v":1}`
	if diff := cmp.Diff(want, string(e.Bytes)); diff != "" {
		t.Errorf("bytes (-want +got):\n%s", diff)
	}
	sum = sha256.Sum256(append([]byte("matter-ops/kms-rotation audit record v1\x00"), e.Bytes...))
	if e.Hash != hex.EncodeToString(sum[:]) || e.Head() != (audit.Head{Seq: 1, Hash: e.Hash}) {
		t.Errorf("hash %s, head %+v", e.Hash, e.Head())
	}
	if got := audit.ObjectKey("prod", 42); got != "v1/prod/records/000000000042.json" {
		t.Errorf("object key %s", got)
	}
}

func TestNextParse(t *testing.T) {
	for name, ev := range map[string]audit.Event{
		"full": event("e"), "empty": {}, "no body": {ID: "e", Type: "heartbeat"},
		"not UTF-8": {ID: "e\xff", Actor: "m\xfcller", Body: map[string]string{"\xfe": "half a rune \xe2\x80", "ok": "\uFFFD"}},
		"controls":  {ID: "e", Body: map[string]string{"c": "\x00\x1b[31m\u2029\u007f</script>"}},
	} {
		e, err := audit.Next("prod", audit.Genesis("prod"), at, ev)
		if err != nil {
			t.Fatal(err)
		}
		got, err := audit.Parse(e.Bytes)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(e, got); diff != "" {
			t.Errorf("%s (-made +parsed):\n%s", name, diff)
		}
	}
}

// TestParseRefuses holds Parse to one encoding per record.
func TestParseRefuses(t *testing.T) {
	good := string(link(t, "prod", 1)[0].Bytes)
	if _, err := audit.Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	replaced := func(old, with string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("%q is not in the record", old)
		}
		return strings.Replace(good, old, with, 1)
	}
	for name, b := range map[string]string{
		"white space":      replaced(`"seq":1`, `"seq": 1`),
		"trailing newline": good + "\n",
		"trailing value":   good + "{}",
		"leading space":    " " + good,
		"escape":           replaced(`"id":"e0"`, `"id":"\u00650"`),
		"HTML escape":      replaced(`<first>`, `\u003cfirst>`),
		"other order":      replaced(`"seq":1,"step":"switch"`, `"step":"switch","seq":1`),
		"body order":       replaced(`"a":"<first> & \"second\"\n","z":"last"`, `"z":"last","a":"<first> & \"second\"\n"`),
		"unknown field":    replaced(`"v":1`, `"v":1,"w":2`),
		"missing field":    replaced(`"step":"switch",`, ``),
		"doubled field":    replaced(`"seq":1,`, `"seq":1,"seq":1,`),
		"other case":       replaced(`"seq"`, `"Seq"`),
		"null":             replaced(`"step":"switch"`, `"step":null`),
		"no body":          replaced(`{"a":"<first> & \"second\"\n","z":"last","é":"\u2028"}`, `null`),
		"float":            replaced(`"seq":1`, `"seq":1.0`),
		"negative zero":    replaced(`"seq":1`, `"seq":-0`),
		"string number":    replaced(`"seq":1`, `"seq":"1"`),
		"huge number":      replaced(`"seq":1`, `"seq":99999999999999999999`),
		"later version":    replaced(`"v":1`, `"v":2`),
		"no UTF-8":         replaced(`e0`, "e\xff"),
		"array":            "[" + good + "]",
		"null record":      "null",
		"nothing":          "",
		"half":             good[:len(good)/2],
	} {
		if e, err := audit.Parse([]byte(b)); err == nil {
			t.Errorf("%s: accepted as %+v", name, e.Record)
		} else if cmp.Diff(audit.Entry{}, e) != "" {
			t.Errorf("%s: refused, and returned %+v", name, e)
		}
	}
}

func TestFollow(t *testing.T) {
	entries := link(t, "prod", 4)
	head := audit.Genesis("prod")
	for _, e := range entries {
		next, err := e.Follow("prod", head)
		if err != nil || next != e.Head() {
			t.Fatalf("record %d: %+v, %v", e.Record.Seq, next, err)
		}
		head = next
	}
	first, second, fourth := entries[0], entries[1], entries[3]
	fork, err := audit.Next("prod", first.Head(), at.Add(time.Second), event("e1"))
	if err != nil {
		t.Fatal(err)
	}
	foreign := link(t, "test", 1)[0]
	for name, tc := range map[string]struct {
		e     audit.Entry
		chain string
		head  audit.Head
		want  string
	}{
		"another chain's first record": {foreign, "prod", audit.Genesis("prod"), `record 1 belongs to chain "test", not "prod"`},
		"under another name":           {first, "test", audit.Genesis("test"), `record 1 belongs to chain "prod", not "test"`},
		"another chain's genesis":      {first, "prod", audit.Genesis("test"), "record 1 does not commit to record 0"},
		"a gap":                        {fourth, "prod", second.Head(), "record 4 follows record 2"},
		"the record itself":            {second, "prod", second.Head(), "record 2 follows record 2"},
		"one record back":              {first, "prod", second.Head(), "record 1 follows record 2"},
		"after a fork":                 {entries[2], "prod", fork.Head(), "record 3 does not commit to record 2"},
	} {
		got, err := tc.e.Follow(tc.chain, tc.head)
		if !errors.Is(err, audit.ErrBroken) || !strings.HasSuffix(err.Error(), tc.want) || got != tc.head {
			t.Errorf("%s: %+v, %v, want %s", name, got, err, tc.want)
		}
	}
}

// TestEveryBit flips each bit of a record: it no longer parses, or the one after it
// does not follow.
func TestEveryBit(t *testing.T) {
	entries := link(t, "prod", 3)
	target, after := entries[1], entries[2]
	for i := range len(target.Bytes) * 8 {
		b := bytes.Clone(target.Bytes)
		b[i/8] ^= 1 << (i % 8)
		e, err := audit.Parse(b)
		if err != nil {
			continue
		}
		head, err := e.Follow("prod", entries[0].Head())
		if err == nil {
			_, err = after.Follow("prod", head)
		}
		if !errors.Is(err, audit.ErrBroken) {
			t.Errorf("bit %d: %v", i, err)
		}
	}
}

// FuzzParse checks that bytes are a canonical record or refused: what is accepted
// encodes to the same bytes again, and a record made of it parses.
func FuzzParse(f *testing.F) {
	for _, e := range link(f, "prod", 2) {
		f.Add(e.Bytes)
	}
	empty, err := audit.Next("", audit.Head{}, time.Time{}, audit.Event{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(empty.Bytes)
	for _, s := range []string{
		"", "{}", "null", `{"v":1}`, string(empty.Bytes) + " ", strings.Replace(string(empty.Bytes), "{}", "null", 1),
		strings.Replace(string(empty.Bytes), `"v":1`, `"v":2`, 1), strings.Replace(string(empty.Bytes), `"id":""`, `"id":"\ud800"`, 1),
		strings.Replace(string(empty.Bytes), `"id":""`, `"id":"\ufffd"`, 1), strings.Replace(string(empty.Bytes), `"id":""`, "\"id\":\"\u2028\"", 1),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := audit.Parse(b)
		if err != nil {
			return
		}
		var again bytes.Buffer
		enc := json.NewEncoder(&again)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(e.Record); err != nil || !bytes.Equal(bytes.TrimSuffix(again.Bytes(), []byte("\n")), b) || !bytes.Equal(e.Bytes, b) {
			t.Errorf("%q is encoded again as %q, %v", b, again.Bytes(), err)
		}
		r := e.Record
		next, err := audit.Next(r.Chain, e.Head(), at, audit.Event{ID: r.ID, Type: r.Type, Rotation: r.Rotation, Step: r.Step, Actor: r.Actor, Body: r.Body})
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := audit.Parse(next.Bytes)
		if err != nil || parsed.Hash != next.Hash {
			t.Errorf("a record of the same content does not parse: %v", err)
		}
	})
}
