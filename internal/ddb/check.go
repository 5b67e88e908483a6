package ddb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/rotation"
)

// sampleSize is how many rows Check looks at.
const sampleSize = 1000

// Check implements [rotation.Source]. It describes the table and reads up to 1,000
// of its items: an attribute that is configured but that none of them has is a
// mistake in the configuration. One broken row among good ones is not its
// business; rewrap quarantines it.
func (t *TableSource) Check(ctx context.Context) error {
	d, err := t.describe(ctx)
	var missing *types.ResourceNotFoundException
	if errors.As(err, &missing) {
		return t.misconfigured("table", fmt.Sprintf("there is no table %q", t.cfg.Table), "create it or correct MATTER_SOURCES")
	}
	if err != nil {
		return err
	}
	// A table that changes its throughput or an index is UPDATING and in full use.
	if s := d.TableStatus; s != types.TableStatusActive && s != types.TableStatusUpdating {
		return t.misconfigured("table", fmt.Sprintf("table %q is %s", t.cfg.Table, s), "wait until it is ACTIVE or take it out of MATTER_SOURCES")
	}
	keys, err := keySchema(d)
	if err != nil {
		return t.misconfigured("table", err.Error(), "take it out of MATTER_SOURCES")
	}
	for _, k := range keys {
		for _, a := range t.cfg.attributes() {
			if a.name == k.name {
				return t.misconfigured(a.field, fmt.Sprintf("attribute %q is part of the table's key, which rewrap cannot change", k.name), "correct MATTER_SOURCES")
			}
		}
	}
	return t.checkSample(ctx, keys)
}

func (t *TableSource) checkSample(ctx context.Context, keys []keyAttribute) error {
	total, have, err := t.sample(ctx, keys)
	if err != nil || total == 0 {
		return err
	}
	for _, a := range t.cfg.attributes()[:3] { // the epoch and the version are made by the first rewrap
		if t.cfg.Format == formatTink && a.name == t.cfg.WrappedDEK {
			continue // Tink's rows have it in the ciphertext
		}
		if a.name != "" && have[a.name] == 0 {
			return t.misconfigured(a.field, fmt.Sprintf("none of the %d rows looked at has the attribute %q", total, a.name), "correct MATTER_SOURCES")
		}
	}
	for _, k := range slices.Sorted(maps.Keys(t.cfg.Context)) {
		if a, ok := contextAttribute(t.cfg.Context[k]); ok && have[a] == 0 {
			return t.misconfigured("context", fmt.Sprintf("%q is the attribute %q, which none of the %d rows looked at has", k, a, total), "correct MATTER_SOURCES")
		}
	}
	return nil
}

// sample counts, among the first items of the table, how many have each of the
// attributes that the configuration names. The context is counted among envelopes
// alone, for other items may share the table.
func (t *TableSource) sample(ctx context.Context, keys []keyAttribute) (total int, have map[string]int, err error) {
	have = map[string]int{}
	in := t.scanInput(keys, rotation.ScanRequest{Total: 1, Limit: sampleSize, Payload: true})
	for total < sampleSize {
		out, err := t.client.Scan(ctx, in)
		if err != nil {
			return 0, nil, awserr.Wrap("dynamodb Scan "+t.cfg.Table, err)
		}
		for _, i := range out.Items {
			total++
			envelope := i[t.cfg.KEKID] != nil || i[t.cfg.WrappedDEK] != nil
			for a := range i {
				if envelope {
					have[a]++
				}
			}
		}
		if in.ExclusiveStartKey = out.LastEvaluatedKey; len(in.ExclusiveStartKey) == 0 {
			break
		}
	}
	return total, have, nil
}

func (t *TableSource) misconfigured(field, msg, next string) error {
	return &rotation.Error{
		Kind: rotation.SourceMisconfigured, Field: fmt.Sprintf("sources[%s].%s", t.cfg.Name, field), Msg: msg, Next: next,
	}
}
