package strictjson_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/internal/strictjson"
)

type value struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels"`
	Inner  *inner            `json:"inner"`
}

type inner struct {
	Values []string `json:"values"`
}

func TestUnmarshal(t *testing.T) {
	for in, want := range map[string]value{
		`{}`:            {},
		` {"name":"a"}`: {Name: "a"},
		`{"labels":{"a":"1","A":"2"},"inner":{"values":["x"]}}`: {Labels: map[string]string{"a": "1", "A": "2"}, Inner: &inner{[]string{"x"}}},
		`{"inner":null}`: {},
	} {
		var got value
		if err := strictjson.Unmarshal([]byte(in), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for in, mention := range map[string]string{
		``:                                  "EOF",
		`{`:                                 "EOF",
		`[]`:                                "array",
		`{"name":1}`:                        "name",
		`{"name":"a"} {}`:                   "follows",
		`{"other":"a"}`:                     `"other" is unknown`,
		`{"Name":"a"}`:                      `"Name" is unknown`,
		`{"name":"a","name":"a"}`:           `"name" is there twice`,
		`{"labels":{"a":"1","a":"2"}}`:      `"a" is there twice`,
		`{"inner":{"values":[],"value":1}}`: `"value" is unknown`,
	} {
		if err := strictjson.Unmarshal([]byte(in), &value{}); err == nil || !strings.Contains(err.Error(), mention) {
			t.Errorf("%s: %v, want %s", in, err, mention)
		}
	}
}
