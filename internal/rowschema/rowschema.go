// Package rowschema defines what a DynamoDB table of envelopes looks like: which attribute
// of a row holds what, and what its data key and its payload are bound to. A rotation
// (internal/ddb), a restore and the applications' client (package envelope) read a row
// alike, to the byte.
//
// A row that is an envelope has these attributes, all of the top level, under names that
// the definition chooses:
//
//	kek_id_attribute       S  a KMS key id or key ARN
//	wrapped_dek_attribute  B  a KMS ciphertext blob; none in a table of format kms
//	ciphertext_attribute   B  the payload
//	epoch_attribute        N  of the pointer that the row was wrapped under
//	version_attribute      N  counted up with every write; optional
//
// Such a row is embedded: it carries its wrapped data key. A keyed row names its data key,
// which has a record in the key table (package keyrecord):
//
//	dek_id_attribute       S  the id of the data key
//	ciphertext_attribute   B  the payload, always of format matter
//	epoch_attribute        N  of the pointer that the data key was made under
//	version_attribute      N  counted up with every write; optional
//
// It has neither a kek_id_attribute nor a wrapped_dek_attribute. A definition that names
// the attributes of both kinds has rows of both, during a conversion; its field envelope
// says which kind is written.
//
// In a table of format tink, a row without a wrapped data key of its own is Tink's
// KMSEnvelopeAEAD: the wrapped data key is inside the ciphertext. In a table of format
// kms, KMS encrypted the data itself. A number must be a whole number of 64 bits, or the
// row is not a sound envelope.
//
// Invariants: the encryption context of a row is the same for every package, byte for byte;
// otherwise KMS would refuse to unwrap what another package wrapped. The payload of a keyed
// row is bound to the id of its data key and to the row's primary key, so it opens in no
// other row.
package rowschema

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/kek"
)

// Kind is the kind of such a table in definitions and in the control table.
const Kind = "dynamodb"

// Schema is the definition of a table whose rows are envelopes.
type Schema struct {
	Name       string            `json:"name"`                  // default: the table's
	Table      string            `json:"table"`                 // table name or ARN
	Envelope   string            `json:"envelope"`              // kind of the rows that are written: "", "embedded" or "keyed"
	DEKID      string            `json:"dek_id_attribute"`      // S; default dek_id if keyed; "" if no row is keyed
	KEKID      string            `json:"kek_id_attribute"`      // S, a KMS key id or key ARN; "" if no row is embedded
	WrappedDEK string            `json:"wrapped_dek_attribute"` // B, a KMS ciphertext blob; none for format kms, or if no row is embedded
	Ciphertext string            `json:"ciphertext_attribute"`  // B; "" if an emergency cannot re-encrypt payloads
	Epoch      string            `json:"epoch_attribute"`       // N; default kek_epoch
	Version    string            `json:"version_attribute"`     // N, counted up with every write; "" if rows have none
	Context    map[string]string `json:"context"`               // KMS encryption context: key → literal, "$attribute", or "$$literal with one $"
	Bind       map[string]string `json:"bind"`                  // as Context, but bound to the payload only and not sent to KMS
	Format     string            `json:"format"`                // of the ciphertext: "", "matter", "tink" or "kms"
	Payloads   string            `json:"payloads"`              // "opaque" if they are of a format of the application's own, else ""
	Other      *OtherItems       `json:"other"`                 // items that are none of the source's rows; may be nil
}

// OtherItems declares items by the value of an attribute of type S. An item that is
// declared and has an attribute of the envelope all the same is unaccounted.
type OtherItems struct {
	Attribute string   `json:"attribute"`
	Values    []string `json:"values"`
}

// The kinds of envelopes that are written into a table, and the formats of its payloads.
const (
	EnvelopeEmbedded = "embedded" // each row carries its wrapped data key; also ""
	EnvelopeKeyed    = "keyed"    // rows name data keys of the key table

	FormatMatter = "matter" // package aead; also ""
	FormatTink   = "tink"
	FormatKMS    = "kms"

	PayloadsOpaque = "opaque"

	// DefaultEpoch is the attribute of the epoch if the definition names none.
	DefaultEpoch = "kek_epoch"
	// DefaultDEKID is the attribute of the data key's id in a keyed table whose definition
	// names none.
	DefaultDEKID = "dek_id"

	// BoundKey is how the keys begin under which the attributes of a keyed row's primary key
	// are bound to its payload.
	BoundKey = keyrecord.Reserved + "key:"
)

var (
	tableName = regexp.MustCompile(`^[A-Za-z0-9_.-]{3,255}$`)
	tableARN  = regexp.MustCompile(`^arn:[a-z-]+:dynamodb:[a-z0-9-]+:[0-9]{12}:table/[A-Za-z0-9_.-]{3,255}$`)
)

// Parse decodes a definition strictly: with a misspelt field, a rotation could leave rows
// behind. It does not check the values of the fields: see [Schema.Validate].
func Parse(definition []byte) (Schema, error) {
	var c Schema
	if err := strictjson.Unmarshal(definition, &c); err != nil {
		return c, fmt.Errorf("the definition of a table: %w", err)
	}
	return c, nil
}

// Source returns the definition as the registry stores it: JSON in one form, with the
// given fields and without defaults, so that equal definitions are equal texts.
func (c Schema) Source() kek.Source {
	given := map[string]any{}
	b, err := json.Marshal(c)
	if err == nil {
		err = json.Unmarshal(b, &given)
	}
	if err != nil {
		panic("rowschema: strings do not encode: " + err.Error())
	}
	for name, v := range given {
		if m, ok := v.(map[string]any); v == nil || v == "" || ok && len(m) == 0 {
			delete(given, name)
		}
	}
	if b, err = json.Marshal(given); err != nil {
		panic("rowschema: strings do not encode: " + err.Error())
	}
	return kek.Source{Name: c.SourceName(), Kind: Kind, Definition: string(b), Place: c.TableName()}
}

// SourceName returns the name of the source in rotations, checkpoints and reports.
func (c Schema) SourceName() string { return c.WithDefaults().Name }

// TableName returns the table's name without the rest of its ARN.
func (c Schema) TableName() string { return c.Table[strings.LastIndexByte(c.Table, '/')+1:] }

// WithDefaults returns c with every default filled in.
func (c Schema) WithDefaults() Schema {
	if c.Name == "" {
		c.Name = c.TableName()
	}
	if c.Epoch == "" {
		c.Epoch = DefaultEpoch
	}
	if c.Keyed() && c.DEKID == "" {
		c.DEKID = DefaultDEKID
	}
	return c
}

// Keyed reports whether keyed rows are written into the table. Embedded rows may be in it
// too, if [Schema.HoldsEmbedded].
func (c Schema) Keyed() bool { return c.Envelope == EnvelopeKeyed }

// HoldsKeyed reports whether keyed rows may be in the table.
func (c Schema) HoldsKeyed() bool { return c.Keyed() || c.DEKID != "" }

// HoldsEmbedded reports whether embedded rows may be in the table.
func (c Schema) HoldsEmbedded() bool { return !c.Keyed() || c.KEKID != "" }

// Validate returns every fault of c, each with the name of its JSON field.
func (c Schema) Validate() error {
	var faults []error
	fault := func(field, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	switch {
	case c.Table == "":
		fault("table", "is required")
	case !tableName.MatchString(c.Table) && !tableARN.MatchString(c.Table):
		fault("table", "%q is neither a table name (3 to 255 letters, digits, _ . -) nor a table ARN", c.Table)
	}
	c = c.WithDefaults()
	if err := kek.CheckSourceName(c.Name); c.Table != "" && err != nil {
		fault("name", "%v", err)
	}
	if c.KEKID == "" && c.HoldsEmbedded() {
		fault("kek_id_attribute", "is required")
	}
	c.checkKeyed(fault)
	used := map[string]string{}
	for _, a := range c.Attributes() {
		if other, ok := used[a.Name]; ok && a.Name != "" {
			fault(a.Field, "%q is already the %s", a.Name, other)
		}
		if len(a.Name) > 65535 {
			fault(a.Field, "is longer than 65535 bytes")
		}
		used[a.Name] = a.Field
	}
	c.checkFormat(fault)
	c.checkBound(fault)
	c.checkOther(fault)
	return errors.Join(faults...)
}

// checkKeyed checks what a table with keyed rows needs.
func (c Schema) checkKeyed(fault func(field, format string, args ...any)) {
	switch {
	case c.Envelope != "" && c.Envelope != EnvelopeEmbedded && !c.Keyed():
		fault("envelope", `%q is not known; use "keyed", "embedded" or leave it out`, c.Envelope)
		return
	case !c.HoldsKeyed():
		return
	case c.Format == FormatKMS:
		fault("format", "rows of format kms have no data key: a table of them has no keyed rows")
		return
	}
	if c.Ciphertext == "" && c.Format != FormatTink {
		fault("ciphertext_attribute", "is required for keyed rows")
	}
	if c.Payloads != "" {
		fault("payloads", "the payloads of keyed rows are of format matter: leave it out")
	}
	if !c.HoldsEmbedded() {
		if c.WrappedDEK != "" {
			fault("wrapped_dek_attribute", "needs a kek_id_attribute: name both if embedded rows may be in the table, else neither")
		}
		if c.Format == FormatTink {
			fault("format", "tink is a format of embedded rows: name their kek_id_attribute and wrapped_dek_attribute")
		}
	}
}

// checkFormat checks the attributes against the format of the payloads.
func (c Schema) checkFormat(fault func(field, format string, args ...any)) {
	switch c.Format {
	case "", FormatMatter, FormatTink:
		if c.WrappedDEK == "" && c.HoldsEmbedded() {
			fault("wrapped_dek_attribute", "is required")
		}
		if c.Format == FormatTink && c.Ciphertext == "" {
			fault("ciphertext_attribute", "is required for format tink: the wrapped data key is in it")
		}
	case FormatKMS:
		if c.WrappedDEK != "" {
			fault("wrapped_dek_attribute", "rows of format kms have none: leave it out")
		}
		if c.Ciphertext == "" {
			fault("ciphertext_attribute", "is required for format kms: it is what KMS encrypted")
		}
		if len(c.Bind) > 0 {
			fault("bind", "KMS binds nothing but the context to a row of format kms: leave it out")
		}
	default:
		fault("format", `%q is not known; use "matter", "tink", "kms" or leave it out`, c.Format)
	}
	if c.Payloads != "" && c.Payloads != PayloadsOpaque {
		fault("payloads", `%q is not known; use "opaque" or leave it out`, c.Payloads)
	}
}

// checkBound checks the values that payloads are bound to.
func (c Schema) checkBound(fault func(field, format string, args ...any)) {
	for _, m := range c.Bound() {
		for _, k := range slices.Sorted(maps.Keys(m.Values)) {
			if err := checkContext(k, m.Values[k], c); err != nil {
				fault(m.Field, "%v", err)
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(c.Bind)) {
		if _, ok := c.Context[k]; ok {
			fault("bind", "key %q is in the context already", k)
		}
	}
}

// checkOther checks the rule that declares items which are not rows.
func (c Schema) checkOther(fault func(field, format string, args ...any)) {
	if c.Other == nil {
		return
	}
	if c.Other.Attribute == "" || len(c.Other.Values) == 0 {
		fault("other", "names an attribute and at least one of its values")
	}
	for _, a := range c.Attributes() {
		if a.Name != "" && a.Name == c.Other.Attribute {
			fault("other", "%q is the %s, which such an item does not have", a.Name, a.Field)
		}
	}
}

// checkContext refuses an entry that KMS would refuse, or whose value a rewrap changes.
func checkContext(k, v string, c Schema) error {
	switch {
	case k == "":
		return errors.New("a key is empty")
	case strings.HasPrefix(k, "aws:"):
		return fmt.Errorf("key %q: the prefix aws: is reserved", k)
	case strings.HasPrefix(k, "matter:"): // of canaries and probes; roles tell them from rows by it
		return fmt.Errorf("key %q: the prefix matter: is reserved", k)
	case v == "":
		return fmt.Errorf("key %q has no value", k)
	}
	name, ok := ContextAttribute(v)
	if !ok {
		return nil
	}
	if name == "" {
		return fmt.Errorf("key %q: $ names no attribute; a literal $ is written $$", k)
	}
	for _, a := range c.Attributes() {
		if a.Name == name {
			return fmt.Errorf("key %q: attribute %q changes with every rewrap, so it cannot be bound", k, name)
		}
	}
	return nil
}

// BoundValues are the values to which one field of the definition binds payloads.
type BoundValues struct {
	Field  string
	Values map[string]string
}

// Bound returns the values to which payloads are bound, field by field.
func (c Schema) Bound() []BoundValues {
	return []BoundValues{{"context", c.Context}, {"bind", c.Bind}}
}

// Attribute is one of the envelope's attributes.
type Attribute struct {
	Field string // of the definition that names it
	Name  string // "" if there is none
}

// Attributes lists the attributes of envelopes and the version: those of embedded rows
// first, in the order kek_id, wrapped_dek, ciphertext, epoch, version, then dek_id.
func (c Schema) Attributes() []Attribute {
	return []Attribute{
		{"kek_id_attribute", c.KEKID},
		{"wrapped_dek_attribute", c.WrappedDEK},
		{"ciphertext_attribute", c.Ciphertext},
		{"epoch_attribute", c.Epoch},
		{"version_attribute", c.Version},
		{"dek_id_attribute", c.DEKID},
	}
}

// ContextAttribute returns the attribute that a context value names; false if it
// is a literal.
func ContextAttribute(v string) (string, bool) {
	if !strings.HasPrefix(v, "$") || strings.HasPrefix(v, "$$") {
		return "", false
	}
	return v[1:], true
}

// ContextOf returns the KMS encryption context of a row: literals unchanged, attributes of
// type S by value, of type N as DynamoDB writes the number. It fails if the row does not
// have an attribute, or has it with another type.
func (c Schema) ContextOf(row attr.Item) (map[string]string, error) {
	return resolveValues("encryption context", c.Context, row)
}

// BindOf returns the values to which only the payload of a row is bound, as
// [Schema.ContextOf] does.
func (c Schema) BindOf(row attr.Item) (map[string]string, error) {
	return resolveValues("bind", c.Bind, row)
}

// BoundOf returns everything to which a row's payload is bound as associated data: its
// encryption context and its bind values.
func (c Schema) BoundOf(row attr.Item) (map[string]string, error) {
	out, err := c.ContextOf(row)
	if err != nil {
		return nil, err
	}
	bound, err := c.BindOf(row)
	if err != nil {
		return nil, err
	}
	maps.Copy(out, bound)
	return out, nil
}

// resolveValues resolves all values. If several fail, the error is that of the first key in
// order, so that a bad row fails the same way each time.
func resolveValues(what string, from map[string]string, row attr.Item) (map[string]string, error) {
	out := make(map[string]string, len(from))
	failed, fault := "", error(nil)
	for k, v := range from {
		text, err := resolveValue(v, row)
		if err != nil && (fault == nil || k < failed) {
			failed, fault = k, err
		}
		out[k] = text
	}
	if fault != nil { // of the first key, so that a row fails alike each time
		return nil, fmt.Errorf("%s %q: %w", what, failed, fault)
	}
	return out, nil
}

// resolveValue resolves a literal, or the attribute that v names.
func resolveValue(v string, row attr.Item) (string, error) {
	name, ok := ContextAttribute(v)
	if !ok {
		return strings.TrimPrefix(v, "$"), nil // "$$x" is the literal "$x"
	}
	return AttributeText(name, row[name])
}

// AttributeText returns the value of an attribute as payloads are bound to it: a string as it
// is, a number as DynamoDB returns it. Other types cannot be bound.
func AttributeText(name string, v types.AttributeValue) (string, error) {
	switch a := v.(type) {
	case *types.AttributeValueMemberS:
		return a.Value, nil
	case *types.AttributeValueMemberN:
		return a.Value, nil
	case nil:
		return "", fmt.Errorf("the row has no attribute %q", name)
	default:
		return "", fmt.Errorf("attribute %q is neither a string nor a number", name)
	}
}

// KeyText is [AttributeText] for an attribute of the row's primary key, which may also be
// binary: then it is its base64, as in DynamoDB's JSON.
func KeyText(name string, v types.AttributeValue) (string, error) {
	if b, ok := v.(*types.AttributeValueMemberB); ok {
		return base64.StdEncoding.EncodeToString(b.Value), nil
	}
	return AttributeText(name, v)
}

// KeyedBoundOf returns everything to which the payload of a keyed row is bound: what
// [Schema.BoundOf] returns, the id of its data key, and the attributes of its primary key,
// which keys names.
func (c Schema) KeyedBoundOf(row attr.Item, keys []string, dekID string) (map[string]string, error) {
	out, err := c.BoundOf(row)
	if err != nil {
		return nil, err
	}
	bound, err := KeyBoundOf(row, keys)
	if err != nil {
		return nil, err
	}
	maps.Copy(out, bound)
	out[keyrecord.ContextDEKID] = dekID
	return out, nil
}

// KeyBoundOf returns the attributes of a row's primary key, which keys names, as the payload
// of a keyed row is bound to them.
func KeyBoundOf(row attr.Item, keys []string) (map[string]string, error) {
	out := make(map[string]string, len(keys)+1)
	for _, name := range keys {
		text, err := KeyText(name, row[name])
		if err != nil {
			return nil, fmt.Errorf("primary key: %w", err)
		}
		out[BoundKey+name] = text
	}
	return out, nil
}

// IsTink reports whether Tink wrote the row: its wrapped data key is inside the ciphertext.
func (c Schema) IsTink(row attr.Item) bool {
	return c.Format == FormatTink && row[c.WrappedDEK] == nil
}

// Declares reports whether the definition declares that an item is not a row.
func (o *OtherItems) Declares(i attr.Item) bool {
	if o == nil {
		return false
	}
	s, ok := i[o.Attribute].(*types.AttributeValueMemberS)
	return ok && slices.Contains(o.Values, s.Value)
}
