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
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
)

// The kinds of envelopes that are written into a table, and the formats of its payloads.
const (
	EnvelopeEmbedded = rowschema.EnvelopeEmbedded // each row carries its wrapped data key; also ""
	EnvelopeKeyed    = rowschema.EnvelopeKeyed    // rows name data keys of the key table

	FormatMatter = rowschema.FormatMatter // package aead; also ""
	FormatTink   = rowschema.FormatTink   // a row without wrapped_dek_attribute is Tink's KMSEnvelopeAEAD
	FormatKMS    = rowschema.FormatKMS    // KMS encrypted the data itself; only a rotation reads such rows
)

// PayloadsOpaque says that the payloads of a table are not in the format of package
// aead: an emergency rotation rewraps the data keys of its rows and leaves their
// payloads.
const PayloadsOpaque = rowschema.PayloadsOpaque

// TableConfig describes a table whose rows are envelopes. Its JSON is the definition with
// which the table is registered as a source, so one text configures the application and
// the rotation.
type TableConfig struct {
	Name       string            `json:"name"`                  // the rotation's name for it; not used here
	Table      string            `json:"table"`                 // table name or ARN
	Envelope   string            `json:"envelope"`              // kind of the rows that are written: "", "embedded" or "keyed"
	DEKID      string            `json:"dek_id_attribute"`      // S; default dek_id if keyed; "" if no row is keyed
	KEKID      string            `json:"kek_id_attribute"`      // S; "" if no row is embedded
	WrappedDEK string            `json:"wrapped_dek_attribute"` // B; "" if no row is embedded
	Ciphertext string            `json:"ciphertext_attribute"`  // B
	Epoch      string            `json:"epoch_attribute"`       // N; default kek_epoch
	Version    string            `json:"version_attribute"`     // N, counts the writes of a row; "" if no attribute does
	Context    map[string]string `json:"context"`               // encryption context: key → literal, "$attribute", or "$$literal with one $"
	Bind       map[string]string `json:"bind"`                  // as Context, but bound to the payload only and not sent to KMS
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

// rowSchema returns the definition as the rotation uses it.
func (c TableConfig) rowSchema() rowschema.Schema {
	return rowschema.Schema{
		Name: c.Name, Table: c.Table, Envelope: c.Envelope, DEKID: c.DEKID, KEKID: c.KEKID, WrappedDEK: c.WrappedDEK, Ciphertext: c.Ciphertext, Epoch: c.Epoch, Version: c.Version,
		Context: c.Context, Bind: c.Bind, Format: c.Format, Payloads: c.Payloads, Other: (*rowschema.OtherItems)(c.Other),
	}
}

func (c TableConfig) withDefaults() TableConfig {
	s := c.rowSchema().WithDefaults()
	c.Epoch, c.DEKID = s.Epoch, s.DEKID
	return c
}

// checkConfig returns every fault of c, each with the name of its JSON field. A rotation
// checks more: matter ops kms-preflight.
func (c TableConfig) checkConfig() error {
	if c.Format == FormatKMS {
		return errors.New("format: the client neither reads nor writes rows of format kms; use matter or tink for the table that the application writes")
	}
	var faults []error
	seen := map[string]string{}
	embedded := c.rowSchema().HoldsEmbedded()
	for _, a := range []struct {
		field, value string
		optional     bool
	}{
		{"table", c.Table, false},
		{"kek_id_attribute", c.KEKID, !embedded},
		{"wrapped_dek_attribute", c.WrappedDEK, !embedded},
		{"ciphertext_attribute", c.Ciphertext, false},
		{"epoch_attribute", c.Epoch, false},
		{"version_attribute", c.Version, true},
		{"dek_id_attribute", c.DEKID, true},
	} {
		if a.value == "" {
			if !a.optional {
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
	faults = append(faults, checkBoundValues("context", c.Context, seen), checkBoundValues("bind", c.Bind, seen))
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
	faults = append(faults, c.checkKeyed())
	if o := c.Other; o != nil && (o.Attribute == "" || len(o.Values) == 0 || seen[o.Attribute] != "") {
		faults = append(faults, errors.New("other: an attribute that is none of the envelope's, and values of it, are required"))
	}
	return errors.Join(faults...)
}

// checkKeyed returns the faults of a definition that concern keyed rows.
func (c TableConfig) checkKeyed() error {
	s := c.rowSchema()
	if c.Envelope != "" && c.Envelope != EnvelopeEmbedded && !s.Keyed() {
		return fmt.Errorf("envelope: %q is not known", c.Envelope)
	}
	if !s.HoldsKeyed() {
		return nil
	}
	var faults []error
	if c.Payloads != "" {
		faults = append(faults, errors.New("payloads: those of keyed rows are of format matter: leave it out"))
	}
	if !s.HoldsEmbedded() && c.WrappedDEK != "" {
		faults = append(faults, errors.New("wrapped_dek_attribute: needs a kek_id_attribute: name both if embedded rows may be in the table, else neither"))
	}
	if !s.HoldsEmbedded() && c.Format == FormatTink {
		faults = append(faults, errors.New("format: tink is a format of embedded rows: name their kek_id_attribute and wrapped_dek_attribute"))
	}
	for _, m := range s.Bound() {
		for _, k := range slices.Sorted(maps.Keys(m.Values)) {
			if strings.HasPrefix(k, keyrecord.Reserved) {
				faults = append(faults, fmt.Errorf("%s: key %q: the prefix %s is reserved", m.Field, k, keyrecord.Reserved))
			}
		}
	}
	return errors.Join(faults...)
}

// checkBoundValues returns the faults of a context or a bind. taken has the envelope's
// attributes, which cannot be bound because a rewrap changes them.
func checkBoundValues(field string, m, taken map[string]string) error {
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

// envelopeAttributes returns the attributes that make a row an envelope, and the version.
// All others belong to the caller.
func (c TableConfig) envelopeAttributes() []string {
	return []string{c.KEKID, c.WrappedDEK, c.Ciphertext, c.Epoch, c.Version, c.DEKID} // no attribute is called ""
}

// boundValues returns what a row is bound to: the encryption context, and the values that
// are bound to its payload only.
func (c TableConfig) boundValues(row Item) (encctx, bind map[string]string, err error) {
	s := c.rowSchema()
	if encctx, err = s.ContextOf(row); err != nil {
		return nil, nil, err
	}
	bind, err = s.BindOf(row)
	return encctx, bind, err
}

// plainNumber matches the form in which DynamoDB returns a number of common size.
var plainNumber = regexp.MustCompile(`^(0|-?[1-9][0-9]{0,36}|-?(0|[1-9][0-9]{0,17})\.[0-9]{0,17}[1-9])$`)

// sealBound is boundValues for a row that is to be written. It refuses a number that
// DynamoDB would return in another form, such as 1.0 or 1e3: the row could not be opened
// again.
func (c TableConfig) sealBound(row Item) (encctx, bind map[string]string, err error) {
	for _, m := range []map[string]string{c.Context, c.Bind} {
		for k, v := range m {
			name, _ := rowschema.ContextAttribute(v) // "" of a literal, which no attribute is called
			if n, ok := row[name].(*types.AttributeValueMemberN); ok && !plainNumber.MatchString(n.Value) {
				return nil, nil, fmt.Errorf("%w: attribute %q, which is bound as %q, must be written as a plain decimal without needless zeros", ErrInvalidItem, name, k)
			}
		}
	}
	if encctx, bind, err = c.boundValues(row); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrInvalidItem, err)
	}
	return encctx, bind, nil
}

// checkKeyNumbers refuses a number in the primary key of a new keyed row, to which its payload
// is bound, that DynamoDB would return in another form.
func (c TableConfig) checkKeyNumbers(row Item) error {
	for _, name := range c.Keys {
		if n, ok := row[name].(*types.AttributeValueMemberN); ok && !plainNumber.MatchString(n.Value) {
			return fmt.Errorf("%w: key attribute %q, which is bound, must be written as a plain decimal without needless zeros", ErrInvalidItem, name)
		}
	}
	return nil
}

// storedRow is a row as DynamoDB returned it.
type storedRow struct {
	record
	item    Item // with the envelope's attributes
	version int64
}

// decodeKeyed decodes a keyed row.
func (c TableConfig) decodeKeyed(i Item) (storedRow, error) {
	s := storedRow{item: i, record: record{dekID: attr.Text(i[c.DEKID]), Sealed: Sealed{Ciphertext: attr.Bytes(i[c.Ciphertext])}}}
	for _, name := range []string{c.KEKID, c.WrappedDEK} {
		if i[name] != nil {
			return s, fmt.Errorf("%w: attribute %s names a data key, and attribute %s is of an embedded row", ErrNoEnvelope, c.DEKID, name)
		}
	}
	if err := keyrecord.CheckID(s.dekID); err != nil {
		return s, fmt.Errorf("%w: attribute %s: %w", ErrNoEnvelope, c.DEKID, err)
	}
	var err error
	if s.version, err = attr.Int(i[c.Version]); err != nil {
		return s, fmt.Errorf("%w: attribute %s: %w", ErrNoEnvelope, c.Version, err)
	}
	if s.Epoch, err = attr.Int(i[c.Epoch]); err != nil || s.Epoch < 1 {
		return s, fmt.Errorf("%w: attribute %s is not the epoch of a data key", ErrNoEnvelope, c.Epoch)
	}
	if len(s.Ciphertext) == 0 {
		return s, fmt.Errorf("%w: attribute %s is missing, empty or of another type", ErrNoEnvelope, c.Ciphertext)
	}
	return s, nil
}

// decodeRow decodes an item, except for what it is bound to, which [Table.decodeRow] adds.
// The error is [ErrNoEnvelope] and names the attribute.
func (c TableConfig) decodeRow(i Item) (storedRow, error) {
	if i[c.DEKID] != nil {
		return c.decodeKeyed(i)
	}
	s := storedRow{record: newRecord(Sealed{
		KEKID: kek.ID(attr.Text(i[c.KEKID])), WrappedDEK: attr.Bytes(i[c.WrappedDEK]), Ciphertext: attr.Bytes(i[c.Ciphertext]),
	}), item: i}
	var err error
	if s.version, err = attr.Int(i[c.Version]); err != nil { // no attribute is called ""
		return s, fmt.Errorf("%w: attribute %s: %w", ErrNoEnvelope, c.Version, err)
	}
	if s.Epoch, err = attr.Int(i[c.Epoch]); err != nil {
		return s, fmt.Errorf("%w: attribute %s: %w", ErrNoEnvelope, c.Epoch, err)
	}
	if c.rowSchema().IsTink(i) {
		s.tink = &tinkFormat{}
		if c.TinkAssociated != nil {
			s.tink.associated = c.TinkAssociated(maps.Clone(i))
		}
		if s.WrappedDEK, s.Ciphertext, err = aead.ParseTink(s.Ciphertext); err != nil {
			return s, fmt.Errorf("%w: attribute %s: %w", ErrNoEnvelope, c.Ciphertext, err)
		}
	}
	if !c.rowSchema().HoldsEmbedded() {
		return s, fmt.Errorf("%w: attribute %s is missing", ErrNoEnvelope, c.DEKID)
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

// encodeKeyed returns the attributes that make a row a keyed one, without the version.
func (c TableConfig) encodeKeyed(k *dataKey, ciphertext []byte) Item {
	return Item{c.DEKID: attr.Str(k.id), c.Ciphertext: attr.Blob(ciphertext), c.Epoch: attr.Num(k.bornEpoch)}
}

// encodeEnvelope returns the attributes that make a row an envelope, without the version.
func (c TableConfig) encodeEnvelope(s Sealed) Item {
	return Item{
		c.KEKID: attr.Str(string(s.KEKID)), c.WrappedDEK: attr.Blob(s.WrappedDEK), c.Ciphertext: attr.Blob(s.Ciphertext),
		c.Epoch: attr.Num(s.Epoch),
	}
}

// withoutEnvelope returns a copy of i without the envelope's attributes.
func (c TableConfig) withoutEnvelope(i Item) Item {
	out := maps.Clone(i)
	for _, a := range c.envelopeAttributes() {
		delete(out, a)
	}
	return out
}

// diffItems returns the attributes to set and to remove so that old becomes with.
func diffItems(old, with Item) (set Item, remove []string) {
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

// cloneItem returns a deep copy, so that a caller's change in place can be found by
// comparison.
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
		return v // NULL, which has only one value
	}
}
