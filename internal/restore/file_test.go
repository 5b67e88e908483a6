package restore

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/envelope"
)

const everyType = `{"s":{"S":"a\u00e9"},"n":{"N":"1.50"},"b":{"B":"AAEC"},"t":{"BOOL":true},"z":{"NULL":true},` +
	`"ss":{"SS":["a","b"]},"ns":{"NS":["1","2"]},"bs":{"BS":["AA==","AQ=="]},` +
	`"m":{"M":{"x":{"N":"3"}}},"l":{"L":[{"S":"y"},{"L":[]}]}}`

func TestParseItem(t *testing.T) {
	want := envelope.Item{
		"s":  &types.AttributeValueMemberS{Value: "aé"},
		"n":  &types.AttributeValueMemberN{Value: "1.50"},
		"b":  &types.AttributeValueMemberB{Value: []byte{0, 1, 2}},
		"t":  &types.AttributeValueMemberBOOL{Value: true},
		"z":  &types.AttributeValueMemberNULL{Value: true},
		"ss": &types.AttributeValueMemberSS{Value: []string{"a", "b"}},
		"ns": &types.AttributeValueMemberNS{Value: []string{"1", "2"}},
		"bs": &types.AttributeValueMemberBS{Value: [][]byte{{0}, {1}}},
		"m":  &types.AttributeValueMemberM{Value: envelope.Item{"x": &types.AttributeValueMemberN{Value: "3"}}},
		"l": &types.AttributeValueMemberL{Value: []types.AttributeValue{
			&types.AttributeValueMemberS{Value: "y"}, &types.AttributeValueMemberL{Value: []types.AttributeValue{}},
		}},
	}
	for name, in := range map[string]string{"bare": everyType, "export": `{"Item":` + everyType + `}`} {
		got, err := ParseItem([]byte(in))
		if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(
			types.AttributeValueMemberS{}, types.AttributeValueMemberN{}, types.AttributeValueMemberB{}, types.AttributeValueMemberBOOL{},
			types.AttributeValueMemberNULL{}, types.AttributeValueMemberSS{}, types.AttributeValueMemberNS{}, types.AttributeValueMemberBS{},
			types.AttributeValueMemberM{}, types.AttributeValueMemberL{})); d != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, d)
		}
	}
	got, err := ParseItem([]byte(`{"Item":{"S":"an attribute of that name"}}`))
	if s, ok := got["Item"].(*types.AttributeValueMemberS); !ok || err != nil || s.Value != "an attribute of that name" {
		t.Errorf("an attribute called Item: %v, %v", got, err)
	}
	for _, in := range []string{
		``, `[]`, `{`, `{"a":1}`, `{"a":{}}`, `{"a":{"S":"x","N":"1"}}`, `{"a":{"X":"x"}}`, `{"a":{"S":1}}`, `{"a":{"S":null}}`,
		`{"a":{"B":"no base64"}}`, `{"a":{"L":[{"N":1}]}}`, `{"a":{"M":{"b":"c"}}}`, `{"a":{"S":"x"}} {}`,
	} {
		if got, err := ParseItem([]byte(in)); err == nil {
			t.Errorf("%s: read as %v", in, got)
		}
	}
}

// TestFile: plain and packed files give the same items, and the digest of the file
// as it is; a line that is not an item is named, and nothing of it is quoted.
func TestFile(t *testing.T) {
	text := everyType + "\n\n" + `{"Item":{"k":{"S":"2"}}}` + "\n" + `{"k":{"S":"3"}}`
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"rows.ndjson": []byte(text), "rows.json.gz": packed.Bytes()} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		var lines []int
		digest, err := File{path}.Each(func(line int, _ envelope.Item) error {
			lines = append(lines, line)
			return nil
		})
		sum := sha256.Sum256(content)
		if want := hex.EncodeToString(sum[:]); err != nil || digest != want || !cmp.Equal(lines, []int{1, 3, 4}) {
			t.Errorf("%s: lines %v, digest %s, %v; want 1, 3, 4 and %s", name, lines, digest, err, want)
		}
	}
	path := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(path, []byte(`{"k":{"S":"1"}}`+"\n"+`{"k":"secret"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := File{path}.Each(func(int, envelope.Item) error { return nil })
	if !errors.Is(err, ErrFormat) || !strings.Contains(fmt.Sprint(err), "line 2") || strings.Contains(fmt.Sprint(err), "secret") {
		t.Errorf("a bad line: %v", err)
	}
}

// FuzzParseItem: no input makes the parser panic, and what it takes has no
// attribute without a value.
func FuzzParseItem(f *testing.F) {
	f.Add([]byte(everyType))
	f.Add([]byte(`{"Item":{"k":{"S":"2"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		item, err := ParseItem(b)
		for name, v := range item {
			if err == nil && v == nil {
				t.Errorf("attribute %q has no value", name)
			}
		}
	})
}
