package envelope

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
)

// The formats of a table's payloads.
const (
	FormatMatter = rowschema.FormatMatter // package aead; also ""
	FormatTink   = rowschema.FormatTink   // rows without a wrapped DEK of their own are Tink's KMSEnvelopeAEAD
	FormatKMS    = rowschema.FormatKMS    // the ciphertext is KMS's, of the data itself; only a rotation reads such rows
)

// PayloadsOpaque says that the payloads of a table are not in the format of package
// aead: an emergency rotation rewraps the data keys of its rows and leaves their
// payloads.
const PayloadsOpaque = rowschema.PayloadsOpaque

// TableConfig describes a table whose rows are envelopes. Its JSON is the definition
// that the table is registered with as a source: the application and the rotation are
// configured by the same text.
type TableConfig struct {
	Name       string            `json:"name"`                  // the rotation's name for it; not used here
	Table      string            `json:"table"`                 // table name or ARN
	KEKID      string            `json:"kek_id_attribute"`      // S
	WrappedDEK string            `json:"wrapped_dek_attribute"` // B
	Ciphertext string            `json:"ciphertext_attribute"`  // B
	Epoch      string            `json:"epoch_attribute"`       // N; default kek_epoch
	Version    string            `json:"version_attribute"`     // N, counts the writes of a row; "": nothing does
	Context    map[string]string `json:"context"`               // encryption context: key → literal, "$attribute", or "$$literal with one $"
	Bind       map[string]string `json:"bind"`                  // as Context, but bound to the payload alone and not told to KMS
	Format     string            `json:"format"`                // "", "matter", "tink" or "kms"
	Payloads   string            `json:"payloads"`              // "" or "opaque"
	Other      *OtherItems       `json:"other"`                 // items that are not envelopes; may be nil

	Keys           []string          `json:"-"` // partition key, and sort key if any; default: the table is asked
	TinkAssociated func(Item) []byte `json:"-"` // associated data of a row that Tink wrote; default none
}

// OtherItems declares that items are not envelopes, by the value of an attribute of type
// S.
type OtherItems struct {
	Attribute string   `json:"attribute"`
	Values    []string `json:"values"`
}

// schema is the definition as a rotation has it.
func (c TableConfig) schema() rowschema.Schema {
	return rowschema.Schema{
		Name: c.Name, Table: c.Table, KEKID: c.KEKID, WrappedDEK: c.WrappedDEK, Ciphertext: c.Ciphertext, Epoch: c.Epoch, Version: c.Version,
		Context: c.Context, Bind: c.Bind, Format: c.Format, Payloads: c.Payloads, Other: (*rowschema.OtherItems)(c.Other),
	}
}

func (c TableConfig) withDefaults() TableConfig {
	if c.Epoch == "" {
		c.Epoch = rowschema.DefaultEpoch
	}
	return c
}

// check reports everything that is wrong with c, each fault under the name of its
// JSON field. A rotation is stricter still: matter ops kms-preflight.
func (c TableConfig) check() error {
	if c.Format == FormatKMS {
		return errors.New("format: the client neither reads nor writes rows of format kms; use matter or tink for the table that the application writes")
	}
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
			if a.field != "version_attribute" {
				faults = append(faults, fmt.Errorf("%s: is required", a.field))
			}
			continue
		}
		if !utf8.ValidString(a.value) {
			faults = append(faults, fmt.Errorf("%s: %q is not UTF-8", a.field, a.value))
		}
		if a.field == "table" {
			continue
		}
		if other := seen[a.value]; other != "" {
			faults = append(faults, fmt.Errorf("%s: %q is already the %s", a.field, a.value, other))
		}
		seen[a.value] = a.field
	}
	faults = append(faults, checkBound("context", c.Context, seen), checkBound("bind", c.Bind, seen))
	for _, k := range slices.Sorted(maps.Keys(c.Bind)) {
		if _, ok := c.Context[k]; ok {
			faults = append(faults, fmt.Errorf("bind: key %q is in context already, which is bound to the payload too", k))
		}
	}
	if c.Format != "" && c.Format != FormatMatter && c.Format != FormatTink {
		faults = append(faults, fmt.Errorf("format: %q is not known", c.Format))
	}
	if c.Payloads != "" && c.Payloads != PayloadsOpaque {
		faults = append(faults, fmt.Errorf("payloads: %q is not known", c.Payloads))
	}
	if o := c.Other; o != nil && (o.Attribute == "" || len(o.Values) == 0 || seen[o.Attribute] != "") {
		faults = append(faults, errors.New("other: an attribute that is none of the envelope's, and values of it, are required"))
	}
	return errors.Join(faults...)
}

// checkBound reports what is wrong with a context or a bind. taken has the attributes
// that make a row an envelope, which change when it is rewrapped.
func checkBound(field string, m, taken map[string]string) error {
	var faults []error
	for _, k := range slices.Sorted(maps.Keys(m)) {
		v := m[k]
		name, ok := rowschema.ContextAttribute(v)
		switch {
		case k == "" || v == "" || strings.HasPrefix(k, "aws:"):
			faults = append(faults, fmt.Errorf("%s: %q: %q: KMS takes no empty key or value and no key aws:…", field, k, v))
		case !utf8.ValidString(k) || !utf8.ValidString(v):
			faults = append(faults, fmt.Errorf("%s: %q: %q is not UTF-8", field, k, v))
		case ok && (name == "" || taken[name] != ""):
			faults = append(faults, fmt.Errorf("%s: key %q: attribute %q cannot be bound", field, k, name))
		}
	}
	return errors.Join(faults...)
}

// own lists the attributes that make a row an envelope, and the version; the caller's
// are others.
func (c TableConfig) own() []string {
	return []string{c.KEKID, c.WrappedDEK, c.Ciphertext, c.Epoch, c.Version} // no attribute is called ""
}

// bound is what a row is bound to: the encryption context, and what is bound to its
// payload alone.
func (c TableConfig) bound(row Item) (encctx, bind map[string]string, err error) {
	s := c.schema()
	if encctx, err = s.ContextOf(row); err != nil {
		return nil, nil, err
	}
	bind, err = s.BindOf(row)
	return encctx, bind, err
}

// plainNumber is how DynamoDB gives back a number of common size.
var plainNumber = regexp.MustCompile(`^(0|-?[1-9][0-9]{0,36}|-?(0|[1-9][0-9]{0,17})\.[0-9]{0,17}[1-9])$`)

// sealBound is [TableConfig.bound] of a row that is to be written. It refuses a number
// that DynamoDB would give back written differently, like 1.0 or 1e3: the row could
// not be opened again.
func (c TableConfig) sealBound(row Item) (encctx, bind map[string]string, err error) {
	for _, m := range []map[string]string{c.Context, c.Bind} {
		for k, v := range m {
			name, _ := rowschema.ContextAttribute(v) // "" of a literal, which no attribute is called
			if n, ok := row[name].(*types.AttributeValueMemberN); ok && !plainNumber.MatchString(n.Value) {
				return nil, nil, fmt.Errorf("%w: attribute %q, which is bound as %q, must be written as a plain decimal without needless zeros", ErrInvalidItem, name, k)
			}
		}
	}
	if encctx, bind, err = c.bound(row); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrInvalidItem, err)
	}
	return encctx, bind, nil
}

// stored is a row as it was read.
type stored struct {
	record
	item    Item // everything, the envelope's attributes too
	version int64
}

// decode reads an item. [ErrNoEnvelope] says what is wrong with it. What the record is
// bound to is left to [Table.load].
func (c TableConfig) decode(i Item) (stored, error) {
	s := stored{record: newRecord(Sealed{
		KEKID: kek.ID(attr.Text(i[c.KEKID])), WrappedDEK: attr.Bytes(i[c.WrappedDEK]), Ciphertext: attr.Bytes(i[c.Ciphertext]),
	}), item: i}
	var err error
	if s.version, err = attr.Int(i[c.Version]); err != nil { // no attribute is called ""
		return s, fmt.Errorf("%w: attribute %s: %w", ErrNoEnvelope, c.Version, err)
	}
	if s.Epoch, err = attr.Int(i[c.Epoch]); err != nil {
		return s, fmt.Errorf("%w: attribute %s: %w", ErrNoEnvelope, c.Epoch, err)
	}
	if c.schema().IsTink(i) {
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

// encode is the attributes that make a row an envelope, the version aside.
func (c TableConfig) encode(s Sealed) Item {
	return Item{
		c.KEKID: attr.Str(string(s.KEKID)), c.WrappedDEK: attr.Blob(s.WrappedDEK), c.Ciphertext: attr.Blob(s.Ciphertext),
		c.Epoch: attr.Num(s.Epoch),
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

// changes lists the attributes to set and to remove that make old into with.
func changes(old, with Item) (set Item, remove []string) {
	set = Item{}
	for name, v := range with {
		if !reflect.DeepEqual(old[name], v) {
			set[name] = v
		}
	}
	for name := range old {
		if _, ok := with[name]; !ok {
			remove = append(remove, name)
		}
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
		return attr.Str(v.Value)
	case *types.AttributeValueMemberN:
		return &types.AttributeValueMemberN{Value: v.Value}
	case *types.AttributeValueMemberB:
		return attr.Blob(slices.Clone(v.Value))
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
