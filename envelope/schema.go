package envelope

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/kek"
)

// The formats of a table's payloads.
const (
	FormatMatter = "matter" // package aead; also ""
	FormatTink   = "tink"   // rows without a wrapped DEK of their own are Tink's KMSEnvelopeAEAD
)

// TableConfig describes a table whose rows are envelopes. Its JSON is an entry of
// MATTER_SOURCES: the application and the rotation are configured by the same text.
type TableConfig struct {
	Name       string            `json:"name"`                  // the rotation's name for it; not used here
	Table      string            `json:"table"`                 // table name or ARN
	KEKID      string            `json:"kek_id_attribute"`      // S
	WrappedDEK string            `json:"wrapped_dek_attribute"` // B
	Ciphertext string            `json:"ciphertext_attribute"`  // B
	Epoch      string            `json:"epoch_attribute"`       // N; default kek_epoch
	Version    string            `json:"version_attribute"`     // N; default version
	Context    map[string]string `json:"context"`               // key → literal, "$attribute", or "$$literal with one $"
	Format     string            `json:"format"`                // "", "matter" or "tink"

	Keys           []string          `json:"-"` // partition key, and sort key if any; default: the table is asked
	TinkAssociated func(Item) []byte `json:"-"` // associated data of a row that Tink wrote; default none
}

func (c TableConfig) withDefaults() TableConfig {
	if c.Epoch == "" {
		c.Epoch = "kek_epoch"
	}
	if c.Version == "" {
		c.Version = "version"
	}
	return c
}

// check reports everything that is wrong with c, each fault under the name of its
// JSON field. A rotation is stricter still: matter ops kms-preflight.
func (c TableConfig) check() error {
	var faults []error
	seen := map[string]string{}
	for _, a := range []struct{ field, value string }{
		{"table", c.Table},
		{"kek_id_attribute", c.KEKID},
		{"wrapped_dek_attribute", c.WrappedDEK},
		{"ciphertext_attribute", c.Ciphertext},
		{"epoch_attribute", c.Epoch},
		{"version_attribute", c.Version},
	} {
		if a.value == "" {
			faults = append(faults, fmt.Errorf("%s: is required", a.field))
		}
		if a.field == "table" {
			continue
		}
		if other := seen[a.value]; other != "" && a.value != "" {
			faults = append(faults, fmt.Errorf("%s: %q is already the %s", a.field, a.value, other))
		}
		seen[a.value] = a.field
	}
	for _, k := range slices.Sorted(maps.Keys(c.Context)) {
		v := c.Context[k]
		attr, ok := contextAttribute(v)
		switch {
		case k == "" || v == "" || strings.HasPrefix(k, "aws:"):
			faults = append(faults, fmt.Errorf("context: %q: %q: KMS takes no empty key or value and no key aws:…", k, v))
		case ok && (attr == "" || seen[attr] != ""):
			faults = append(faults, fmt.Errorf("context: key %q: attribute %q cannot be bound", k, attr))
		}
	}
	if c.Format != "" && c.Format != FormatMatter && c.Format != FormatTink {
		faults = append(faults, fmt.Errorf("format: %q is not known", c.Format))
	}
	return errors.Join(faults...)
}

// own lists the attributes that make a row an envelope; the caller's are others.
func (c TableConfig) own() []string {
	return []string{c.KEKID, c.WrappedDEK, c.Ciphertext, c.Epoch, c.Version}
}

func contextAttribute(v string) (string, bool) {
	if !strings.HasPrefix(v, "$") || strings.HasPrefix(v, "$$") {
		return "", false
	}
	return v[1:], true
}

// context makes the encryption context of a row, to the byte as the rotation does.
func (c TableConfig) context(row Item) (map[string]string, error) {
	out := make(map[string]string, len(c.Context))
	for k, v := range c.Context {
		attr, ok := contextAttribute(v)
		if !ok {
			out[k] = strings.TrimPrefix(v, "$")
			continue
		}
		switch a := row[attr].(type) {
		case *types.AttributeValueMemberS:
			out[k] = a.Value
		case *types.AttributeValueMemberN:
			out[k] = a.Value
		case nil:
			return nil, fmt.Errorf("encryption context %q: the row has no attribute %q", k, attr)
		default:
			return nil, fmt.Errorf("encryption context %q: attribute %q is neither a string nor a number", k, attr)
		}
	}
	return out, nil
}

// plainNumber is how DynamoDB gives back a number of common size.
var plainNumber = regexp.MustCompile(`^(0|-?[1-9][0-9]{0,36}|-?(0|[1-9][0-9]{0,17})\.[0-9]{0,17}[1-9])$`)

// sealContext is [TableConfig.context] of a row that is to be written. It refuses
// a number that DynamoDB would give back written differently, like 1.0 or 1e3: the
// row could not be opened again.
func (c TableConfig) sealContext(row Item) (map[string]string, error) {
	for k, v := range c.Context {
		attr, ok := contextAttribute(v)
		if !ok {
			continue
		}
		if n, ok := row[attr].(*types.AttributeValueMemberN); ok && !plainNumber.MatchString(n.Value) {
			return nil, fmt.Errorf("encryption context %q: attribute %q must be written as a plain decimal without needless zeros", k, attr)
		}
	}
	return c.context(row)
}

// stored is a row as it was read.
type stored struct {
	record
	item    Item // everything, the envelope's attributes too
	version int64
}

// decode reads an item. [ErrNoEnvelope] says what is wrong with it.
func (c TableConfig) decode(i Item) (stored, error) {
	s := stored{item: i}
	s.KEKID, s.WrappedDEK, s.Ciphertext = kek.ID(text(i[c.KEKID])), bytesOf(i[c.WrappedDEK]), bytesOf(i[c.Ciphertext])
	var err error
	if s.version, err = number(i[c.Version]); err != nil {
		return s, fmt.Errorf("%w: attribute %s: %w", ErrNoEnvelope, c.Version, err)
	}
	if s.Epoch, err = number(i[c.Epoch]); err != nil {
		return s, fmt.Errorf("%w: attribute %s: %w", ErrNoEnvelope, c.Epoch, err)
	}
	if c.Format == FormatTink && i[c.WrappedDEK] == nil {
		s.tink = &tinkFormat{}
		if c.TinkAssociated != nil {
			s.tink.associated = c.TinkAssociated(maps.Clone(i))
		}
		if s.WrappedDEK, s.Ciphertext, err = aead.ParseTink(s.Ciphertext); err != nil {
			return s, fmt.Errorf("%w: attribute %s: %w", ErrNoEnvelope, c.Ciphertext, err)
		}
	}
	for name, missing := range map[string]bool{
		c.KEKID: s.KEKID == "", c.WrappedDEK: len(s.WrappedDEK) == 0, c.Ciphertext: len(s.Ciphertext) == 0,
	} {
		if missing {
			return s, fmt.Errorf("%w: attribute %s is missing, empty or of another type", ErrNoEnvelope, name)
		}
	}
	return s, nil
}

// encode is the attributes that make a row an envelope.
func (c TableConfig) encode(s Sealed, version int64) Item {
	return Item{
		c.KEKID: str(string(s.KEKID)), c.WrappedDEK: blob(s.WrappedDEK), c.Ciphertext: blob(s.Ciphertext),
		c.Epoch: numeric(s.Epoch), c.Version: numeric(version),
	}
}

// without returns a copy of i less the envelope's attributes.
func (c TableConfig) without(i Item) Item {
	out := maps.Clone(i)
	for _, a := range c.own() {
		delete(out, a)
	}
	return out
}

func bytesOf(v types.AttributeValue) []byte {
	b, ok := v.(*types.AttributeValueMemberB)
	if !ok {
		return nil
	}
	return b.Value
}

// changes lists the attributes to set and to remove that make old into with, key
// attributes aside: they cannot change, and DynamoDB may write a number differently
// from the caller.
func changes(old, with Item, keys []string) (set Item, remove []string) {
	set = Item{}
	for name, v := range with {
		if was, ok := old[name]; !ok || !reflect.DeepEqual(was, v) {
			set[name] = v
		}
	}
	for name := range old {
		if _, ok := with[name]; !ok && !slices.Contains(keys, name) {
			remove = append(remove, name)
		}
	}
	for _, k := range keys {
		delete(set, k)
	}
	slices.Sort(remove)
	return set, remove
}

// cloneItem copies an item all the way down, so that a change made in place shows.
func cloneItem(i Item) Item {
	out := make(Item, len(i))
	for name, v := range i {
		out[name] = cloneValue(v)
	}
	return out
}

func cloneValue(v types.AttributeValue) types.AttributeValue {
	switch v := v.(type) {
	case *types.AttributeValueMemberS:
		return str(v.Value)
	case *types.AttributeValueMemberN:
		return &types.AttributeValueMemberN{Value: v.Value}
	case *types.AttributeValueMemberB:
		return blob(slices.Clone(v.Value))
	case *types.AttributeValueMemberBOOL:
		return &types.AttributeValueMemberBOOL{Value: v.Value}
	case *types.AttributeValueMemberSS:
		return &types.AttributeValueMemberSS{Value: slices.Clone(v.Value)}
	case *types.AttributeValueMemberNS:
		return &types.AttributeValueMemberNS{Value: slices.Clone(v.Value)}
	case *types.AttributeValueMemberBS:
		out := &types.AttributeValueMemberBS{}
		for _, b := range v.Value {
			out.Value = append(out.Value, slices.Clone(b))
		}
		return out
	case *types.AttributeValueMemberL:
		out := &types.AttributeValueMemberL{Value: make([]types.AttributeValue, len(v.Value))}
		for n, e := range v.Value {
			out.Value[n] = cloneValue(e)
		}
		return out
	case *types.AttributeValueMemberM:
		return &types.AttributeValueMemberM{Value: cloneItem(v.Value)}
	default:
		return v // NULL, which has no two values
	}
}
