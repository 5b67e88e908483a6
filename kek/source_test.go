package kek

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheckSourceName(t *testing.T) {
	for name, ok := range map[string]bool{
		"orders": true, "a": true, "9": true, "Orders_2.eu-1": true, strings.Repeat("x", 255): true,
		"": false, "-a": false, ".a": false, "_a": false, strings.Repeat("x", 256): false, "a b": false, "a#b": false, "a~1": false, "a/b": false,
		"a:b": false, "a\n": false, "\na": false, "é": false, "a\x00": false,
	} {
		if err := CheckSourceName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		} else if err != nil && !strings.Contains(err.Error(), "source name") {
			t.Errorf("%q: the error does not name the field: %v", name, err)
		}
	}
}

// TestDigest: any difference in name, kind, definition, order or number shows, also one
// that moves a character over a boundary; what a rotation does not depend on does not.
func TestDigest(t *testing.T) {
	a, b := Source{Name: "a", Kind: "dynamodb", Definition: `{"x":1}`}, Source{Name: "b", Kind: "corpus", Definition: "{}"}
	seen := map[string]string{}
	for what, sources := range map[string][]Source{
		"none": nil, "a": {a}, "b": {b}, "a and b": {a, b}, "b and a": {b, a}, "a twice": {a, a},
		"another name": {{Name: "c", Kind: a.Kind, Definition: a.Definition}}, "another kind": {{Name: a.Name, Kind: "corpus", Definition: a.Definition}},
		"another definition": {{Name: a.Name, Kind: a.Kind, Definition: `{"x":2}`}},
		"shifted into kind":  {{Name: "adyn", Kind: "amodb", Definition: a.Definition}}, "shifted into name": {{Name: "ad", Kind: "ynamodb", Definition: a.Definition}},
		"empty": {{}},
	} {
		d := Digest(sources)
		if len(d) != 64 || strings.Trim(d, "0123456789abcdef") != "" {
			t.Errorf("%s: %q is no hex SHA-256", what, d)
		}
		if other, ok := seen[d]; ok {
			t.Errorf("%s and %s have the same digest", what, other)
		}
		seen[d] = what
	}
	later := a
	later.Generation, later.AddedBy, later.AddedAt = 7, "bob", now
	if Digest([]Source{later}) != Digest([]Source{a}) {
		t.Error("who registered a source when is part of the digest")
	}
	// sha256("1:a8:dynamodb7:{\"x\":1}"), computed by another program: approvals name it
	if got := Digest([]Source{a}); got != "c5d2eee9e70eee5acf29b6ae23f86552af47983ea8fe7efee5842aa48b5a60eb" {
		t.Errorf("the digest changed: %s", got)
	}
}

func TestForgotten(t *testing.T) {
	marks := []Mark{{Table: "b", Holder: "h1"}, {Table: "table-a", Holder: "h2"}, {Table: "a", Holder: "h3"}}
	sources := []Source{src("a", "{}"), {Name: "b", Place: "bucket/b"}} // by place, not by name
	if diff := cmp.Diff([]Mark{marks[0], marks[2]}, Forgotten(marks, sources)); diff != "" {
		t.Error(diff)
	}
	if got := Forgotten(nil, sources); got != nil {
		t.Errorf("without marks: %v", got)
	}
	if got := Forgotten(marks, nil); !slices.Equal(got, marks) {
		t.Errorf("without sources: %v", got)
	}
}

func TestParseKeyRef(t *testing.T) {
	const key = "12345678-1234-1234-1234-123456789012"
	for text, want := range map[string]struct {
		id  ID
		arn string
		ok  bool
	}{
		key: {key, "", true}, "mrk-0123456789abcdef0123456789abcdef": {"mrk-0123456789abcdef0123456789abcdef", "", true}, "kek-old": {"kek-old", "", true},
		"arn:aws:kms:eu-central-1:123456789012:key/" + key:         {key, "arn:aws:kms:eu-central-1:123456789012:key/" + key, true},
		"arn:aws-us-gov:kms:us-gov-west-1:123456789012:key/mrk-0a": {"mrk-0a", "arn:aws-us-gov:kms:us-gov-west-1:123456789012:key/mrk-0a", true},
		"arn:aws-cn:kms:cn-north-1:123456789012:key/" + key:        {key, "arn:aws-cn:kms:cn-north-1:123456789012:key/" + key, true},
		"arn:aws:kms:eu-central-1:123456789012:alias/prod":         {},
		"alias/prod": {},
		"arn:aws:kms:eu-central-1:12345678901:key/" + key:               {}, // eleven digits
		"arn:aws:kms:eu-central-1:123456789012:key/":                    {},
		"arn:aws:kms:eu-central-1:123456789012:key/" + key + "/x":       {},
		"arn:aws:kms:eu-central-1:123456789012:key/" + key + "\n":       {},
		"x\narn:aws:kms:eu-central-1:123456789012:key/" + key:           {},
		"arn:aws:s3:eu-central-1:123456789012:key/" + key:               {},
		"arn:aws:kms:eu-central-1:123456789012:key/a_b":                 {},
		"arn:aws:kms:eu-central-1:123456789012:key/" + repeat('a', 128): {ID(repeat('a', 128)), "arn:aws:kms:eu-central-1:123456789012:key/" + repeat('a', 128), true},
		"arn:aws:kms:eu-central-1:123456789012:key/" + repeat('a', 129): {},
		"": {}, "a:b": {}, "a/b": {},
	} {
		id, arn, ok := ParseKeyRef(text)
		if id != want.id || arn != want.arn || ok != want.ok {
			t.Errorf("%q: %q, %q, %t", text, id, arn, ok)
		}
	}
}

func repeat(c byte, n int) string { return strings.Repeat(string(c), n) }
