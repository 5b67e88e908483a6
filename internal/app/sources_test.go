package app

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source/deks"
	s3source "github.com/matter-ops/kms-rotation/source/s3"
)

const (
	orders = `{"table":"orders","kek_id_attribute":"kek_id","wrapped_dek_attribute":"dek","ciphertext_attribute":"ct","context":{"table":"orders"},"bind":{"id":"$id"}}`
	people = `{"name":"people","table":"arn:aws:dynamodb:eu-central-1:123456789012:table/users","kek_id_attribute":"kek_id","wrapped_dek_attribute":"dek"}`
	known  = `{"kind":"corpus","bucket":"forensics","prefix":"known/"}`
)

// TestSeed: what the variables describe becomes sources, in their order.
func TestSeed(t *testing.T) {
	got, err := Seed(env2("["+orders+","+people+"]", "s3://forensics/known/"))
	if err != nil {
		t.Fatal(err)
	}
	want := []kek.Source{
		{Name: "orders", Kind: rowschema.Kind, Place: "orders"},
		{Name: "people", Kind: rowschema.Kind, Place: "users"},
		{Name: "corpus", Kind: s3source.KindName, Place: "s3://forensics/known/"},
	}
	open := newRegistry(aws.Config{}, deks.Places{}, nil).Open
	for i := range got {
		src, err := open(got[i]) // the driver reads the definition that is kept
		if err != nil || src.Name() != got[i].Name {
			t.Errorf("%s: %v, %v", got[i].Name, src, err)
		}
		got[i].Definition = ""
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("sources (-want +got):\n%s", d)
	}
	for _, none := range []string{"", "[]"} {
		if got, err := Seed(env2(none, "")); err != nil || len(got) != 0 {
			t.Errorf("%q: %v, %v", none, got, err)
		}
	}
}

// env2 is an environment of the two variables.
func env2(sources, corpus string) func(string) string {
	return func(name string) string {
		return map[string]string{"MATTER_SOURCES": sources, "MATTER_CORPUS": corpus}[name]
	}
}

// TestSeedNamesEveryFault: both variables, and in a list every definition.
func TestSeedNamesEveryFault(t *testing.T) {
	_, err := Seed(env2(`[{"table":"orders"},`+people+`,{"tables":"x"}]`, "s3://forensics"))
	var typed *journal.Error
	if !errors.As(err, &typed) || typed.Kind != journal.Misconfigured || typed.Field != "MATTER_SOURCES" {
		t.Fatalf("%v", err)
	}
	for _, mention := range []string{"definition 0: ", "kek_id_attribute", "definition 2: ", "tables", "s3://bucket/prefix/"} {
		if !strings.Contains(err.Error(), mention) {
			t.Errorf("%v does not name %s", err, mention)
		}
	}
}

// TestSeedTakesNoNameTwice: the corpus has one too.
func TestSeedTakesNoNameTwice(t *testing.T) {
	_, err := Seed(env2(strings.Replace("["+people+"]", `"people"`, `"corpus"`, 1), "s3://forensics/known/"))
	if err == nil || !strings.Contains(err.Error(), `MATTER_CORPUS: name "corpus" is there twice`) {
		t.Errorf("%v", err)
	}
}

// TestParseDefinitions takes one definition or a list, and refuses what would leave
// rows behind in silence.
func TestParseDefinitions(t *testing.T) {
	for text, names := range map[string][]string{
		orders:                             {"orders"},
		" " + known:                        {"corpus"},
		"\n[" + orders + "," + known + "]": {"orders", "corpus"},
		strings.Replace(known, "{", `{"name":"old",`, 1):                                        {"old"},
		strings.Replace(people, "{", `{"kind":"dynamodb",`, 1):                                  {"people"},
		`[` + known + `,{"kind":"corpus","name":"b","bucket":"forensics","prefix":"known-b/"}]`: {"corpus", "b"},
	} {
		got, err := ParseDefinitions([]byte(text))
		var have []string
		for _, def := range got {
			have = append(have, def.Name)
		}
		if err != nil || !slices.Equal(have, names) {
			t.Errorf("%s: %q, %v", text, have, err)
		}
	}
	for text, mention := range map[string]string{
		``:                                "not a JSON object",
		`7`:                               "not a JSON object",
		orders + orders:                   "not a JSON object",
		`[` + orders:                      "not a JSON list",
		`["orders"]`:                      "not a JSON object",
		`{"kind":"queue"}`:                `kind: "queue" is not known`,
		`[` + orders + `,` + orders + `]`: `name "orders" is there twice`,
		`[` + people + `,` + strings.Replace(people, `"people"`, `"again"`, 1) + `]`:     "dynamodb users is there twice",
		`[` + orders + `,` + strings.Replace(known, "{", `{"name":"orders",`, 1) + `]`:   `name "orders" is there twice`,
		strings.Replace(orders, `"bind"`, `"bound"`, 1):                                  `"bound"`,
		strings.Replace(known, `"prefix":"known/"`, `"prefix":"known/","bucket":"b"`, 1): `"bucket"`,
		strings.Replace(known, "known/", "known", 1):                                     "prefix",
		strings.Replace(known, "{", `{"name":"a b",`, 1):                                 "name",
		strings.Replace(known, "{", `{"table":"orders",`, 1):                             `"table"`,
	} {
		if _, err := ParseDefinitions([]byte(text)); err == nil || !strings.Contains(err.Error(), mention) {
			t.Errorf("%s: %v, want %s", text, err, mention)
		}
	}
}
