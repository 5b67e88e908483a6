package app

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/internal/corpus"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// sourceOpener returns what opens a registered source by its kind.
func sourceOpener(tables *dynamodb.Client, objects *s3.Client) func(kek.Source) (rotation.Source, error) {
	return func(def kek.Source) (rotation.Source, error) {
		switch def.Kind {
		case kek.KindDynamoDB:
			return ddb.OpenTable(tables, def)
		case kek.KindCorpus:
			return corpus.Open(objects, def)
		}
		return nil, fmt.Errorf("kind %q is not known to this release; it knows %s and %s", def.Kind, kek.KindDynamoDB, kek.KindCorpus)
	}
}

// Sources returns the registered sources by name.
func (d *Deployment) Sources(ctx context.Context) ([]kek.Source, error) { return d.Table.Sources(ctx) }

// Seed reads the sources that genesis registers first: MATTER_SOURCES, as
// [ParseDefinitions] takes it, and MATTER_CORPUS, s3://bucket/prefix/. Either may be
// empty. Every fault is reported at once, under the name of its variable, as one
// [*rotation.Error] of kind Misconfigured.
func Seed(getenv func(string) string) ([]kek.Source, error) {
	e := env{get: getenv}
	var out []kek.Source
	if text := getenv("MATTER_SOURCES"); text != "" {
		defs, err := ParseDefinitions([]byte(text))
		if err != nil {
			e.fault("MATTER_SOURCES", err)
		}
		out = defs
	}
	if url := getenv("MATTER_CORPUS"); url != "" {
		bucket, prefix, err := corpus.ParseURL(url)
		if err != nil {
			e.fault("MATTER_CORPUS", err)
		}
		out = append(out, corpus.SourceConfig{Bucket: bucket, Prefix: prefix}.Source())
		if err := distinct(out); err != nil {
			e.fault("MATTER_CORPUS", err)
		}
	}
	return out, e.err()
}

// ParseDefinitions reads the definition of a source, or a list of them, as a person
// writes it: a JSON object, for a corpus with "kind": "corpus". It refuses fields that
// it does not know, and two definitions of one name or place, and names every fault.
func ParseDefinitions(text []byte) ([]kek.Source, error) {
	list := []json.RawMessage{text}
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("[")) {
		list = nil
		if err := json.Unmarshal(text, &list); err != nil {
			return nil, fmt.Errorf("is no JSON list of definitions: %w", err)
		}
	}
	var out []kek.Source
	var faults []error
	for i, one := range list {
		def, err := parseDefinition(one)
		if err != nil {
			faults = append(faults, fmt.Errorf("definition %d: %w", i, err))
			continue
		}
		out = append(out, def)
	}
	return out, errors.Join(append(faults, distinct(out))...)
}

func parseDefinition(text []byte) (kek.Source, error) {
	var is struct{ Kind string }
	if err := json.Unmarshal(text, &is); err != nil {
		return kek.Source{}, fmt.Errorf("is no JSON object: %w", err)
	}
	switch is.Kind {
	case "", kek.KindDynamoDB:
		var d struct {
			Kind string `json:"kind"`
			ddb.SourceConfig
		}
		if err := strictjson.Unmarshal(text, &d); err != nil {
			return kek.Source{}, err
		}
		return d.Source(), d.Validate()
	case kek.KindCorpus:
		var d struct {
			Kind string `json:"kind"`
			Name string `json:"name"`
			corpus.SourceConfig
		}
		if err := strictjson.Unmarshal(text, &d); err != nil {
			return kek.Source{}, err
		}
		def := d.Source()
		def.Name = cmp.Or(d.Name, def.Name)
		return def, errors.Join(kek.CheckSourceName(def.Name), d.Validate())
	}
	return kek.Source{}, fmt.Errorf("kind: %q is not known; use %q or %q", is.Kind, kek.KindDynamoDB, kek.KindCorpus)
}

// distinct refuses sources of one name or one place.
func distinct(defs []kek.Source) error {
	var faults []error
	names, places := map[string]bool{}, map[string]bool{}
	for _, def := range defs {
		if names[def.Name] {
			faults = append(faults, fmt.Errorf("name %q is there twice", def.Name))
		}
		if places[def.Place] {
			faults = append(faults, fmt.Errorf("%s is there twice", strings.TrimSpace(def.Kind+" "+def.Place)))
		}
		names[def.Name], places[def.Place] = true, true
	}
	return errors.Join(faults...)
}
