package audit

import (
	"bytes"
	"testing"
	"testing/quick"

	"github.com/google/go-cmp/cmp"
)

// hard are texts that have more than one encoding in JSON, or none.
var hard = []string{
	"", "plain", "ARN arn:aws:iam::1:role/x", `a"b`, `a\b`, `\`, `","body":{`, "<&>", "\x00", "\x1f", "\x7f", "tab\t", "line\n", "ü", "日本",
	"\u2028", "\u2029", "\uFFFD", "\xff", "a\xc3", "😀", "\xed\xa0\x80",
}

// sameEncoding holds encode to encoding/json, and Parse to decode of what it wrote.
func sameEncoding(t *testing.T, r Record) bool {
	t.Helper()
	want, err := encodeCanonical(r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.canonicalBytes()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%+v: %v\n got %s\nwant %s", r, err, got, want)
		return false
	}
	return sameParse(t, got)
}

// sameParse: what plain reads, decode reads too, and the same; Parse refuses what
// decode refuses, with its error.
func sameParse(t *testing.T, b []byte) bool {
	t.Helper()
	want, refused := decodeRecord(b)
	got, ok := parsePlain(b)
	if ok && (refused != nil || !cmp.Equal(got, want)) {
		t.Errorf("%s:\n got %+v\nwant %+v, %v", b, got, want, refused)
		return false
	}
	_, err := Parse(b)
	if refused != nil && (err == nil || err.Error() != refused.Error()) {
		t.Errorf("%s: %v, want %v", b, err, refused)
		return false
	}
	return true
}

func TestEncode(t *testing.T) {
	for _, s := range hard {
		sameEncoding(t, Record{Actor: s, Body: map[string]string{}, V: Version})
		sameEncoding(t, Record{Type: s, V: -1, Seq: -1 << 63})
		body := map[string]string{s: s, "k": s}
		for _, other := range hard {
			body[other] = s
		}
		sameEncoding(t, Record{Chain: s, ID: s, Prev: s, Rotation: s, Step: s, Time: s, Body: body, Seq: 1<<63 - 1, V: Version})
	}
	if err := quick.Check(func(r Record) bool { return sameEncoding(t, r) }, nil); err != nil {
		t.Error(err)
	}
	r := Record{Body: map[string]string{"a": "b", "c": ""}, Seq: 7, V: Version}
	b, err := r.canonicalBytes()
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := parsePlain(b); !ok || !cmp.Equal(got, r) {
		t.Errorf("plain reads %+v, %v", got, ok) // else it would be of no use
	}
}

// TestPlainIsTight changes every byte of a record, and puts something in and takes
// something out everywhere.
func TestPlainIsTight(t *testing.T) {
	r := Record{Actor: "a", Body: map[string]string{"a": "b", "c": ""}, Chain: "c", Seq: 10, V: Version}
	b, err := r.canonicalBytes()
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		sameParse(t, b[:i])
		sameParse(t, append(bytes.Clone(b[:i]), b[i+1:]...))
		for c := range 256 {
			other := bytes.Clone(b)
			other[i] = byte(c)
			sameParse(t, other)
			sameParse(t, append(append(bytes.Clone(b[:i]), byte(c)), b[i:]...))
		}
	}
	for _, with := range []string{
		`{"a":"b","a":"b","c":""}`, `{"c":"","a":"b"}`, `{"a":"b","c":"",}`, `{,"a":"b","c":""}`, `{}`, `null`, `{"a":"b" ,"c":""}`, `{"a":null,"c":""}`,
		`{"a":"\u0062","c":""}`,
	} {
		sameParse(t, bytes.Replace(b, []byte(`{"a":"b","c":""}`), []byte(with), 1))
	}
	for _, with := range []string{"-0", "+1", "01", "1.0", "1e1", "9223372036854775808", "-", "", "1-1"} {
		sameParse(t, bytes.Replace(b, []byte(`"seq":10`), []byte(`"seq":`+with), 1))
	}
}

func FuzzEncode(f *testing.F) {
	for _, s := range hard {
		f.Add(s, s, "value", int64(1), 1)
	}
	f.Fuzz(func(t *testing.T, a, key, value string, seq int64, v int) {
		sameEncoding(t, Record{Actor: a, Body: map[string]string{key: value, a: key}, ID: value, Time: key, Seq: seq, V: v})
	})
}

func FuzzPlain(f *testing.F) {
	for _, s := range hard {
		b, err := Record{Actor: s, Body: map[string]string{s: "x", "y": s}, Seq: 1, V: Version}.canonicalBytes()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { sameParse(t, b) })
}
