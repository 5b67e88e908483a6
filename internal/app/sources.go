package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/internal/budget"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/source/deks"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	s3source "github.com/matter-ops/kms-rotation/source/s3"
)

// newRegistry returns the kinds of sources that this release supports. A new kind is one more
// line here. No driver sends a request before it is used. places are those of the deployment.
// Writes to tables spend the budgets that writes returns; nil for none.
func newRegistry(cfg aws.Config, places deks.Places, writes func(table string) *budget.Budget) *source.Registry {
	tables := dynamodb.NewFromConfig(cfg, func(o *dynamodb.Options) {
		if writes != nil {
			o.APIOptions = append(o.APIOptions, budget.SpendWrites(writes))
		}
	})
	objects := s3.NewFromConfig(cfg)
	return source.NewRegistry(dynamosource.Kind(tables, places.ControlTable), s3source.Kind(objects), deks.Kind(tables, objects, places))
}

// Seed reads the sources that genesis registers: MATTER_SOURCES, in the form that
// [ParseDefinitions] reads, and MATTER_CORPUS, s3://bucket/prefix/. Either may be empty. Later
// sources are registered with matter ops source add, so a change of these variables has no
// effect after genesis. It reports faults as [FromEnv] does.
func Seed(getenv func(string) string) ([]kek.Source, error) {
	e := env{get: getenv}
	var out []kek.Source
	if text := getenv("MATTER_SOURCES"); text != "" {
		defs, err := ParseDefinitions([]byte(text))
		if err != nil {
			e.addFault("MATTER_SOURCES", err)
		}
		out = defs
	}
	if url := getenv("MATTER_CORPUS"); url != "" {
		bucket, prefix, err := s3source.ParseURL(url)
		if err != nil {
			e.addFault("MATTER_CORPUS", err)
		}
		out = append(out, s3source.Config{Bucket: bucket, Prefix: prefix}.Source())
		if err := checkDistinct(out); err != nil {
			e.addFault("MATTER_CORPUS", err)
		}
	}
	return out, e.joinFaults()
}

// ParseDefinitions reads the definition of a source, or a list of definitions, as a person
// writes it. A definition is a JSON object whose "kind" names the driver; without it, the
// source is a DynamoDB table. It refuses unknown fields and two definitions of one name or
// place, and reports every fault.
func ParseDefinitions(text []byte) ([]kek.Source, error) {
	list := []json.RawMessage{text}
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("[")) {
		list = nil
		if err := json.Unmarshal(text, &list); err != nil {
			return nil, fmt.Errorf("is not a JSON list of definitions: %w", err)
		}
	}
	kinds := newRegistry(aws.Config{}, deks.Places{}, nil)
	var out []kek.Source
	var faults []error
	for i, one := range list {
		def, err := kinds.Parse(one)
		if err != nil {
			faults = append(faults, fmt.Errorf("definition %d: %w", i, err))
			continue
		}
		out = append(out, def)
	}
	return out, errors.Join(append(faults, checkDistinct(out))...)
}

// checkDistinct refuses two sources with one name or one place.
func checkDistinct(defs []kek.Source) error {
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
