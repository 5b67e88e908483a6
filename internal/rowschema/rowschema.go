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
// In a table of format tink a row without a wrapped data key of its own is Tink's
// KMSEnvelopeAEAD: the wrapped data key is inside the ciphertext. In a table of format kms
// the ciphertext is KMS's, of the data itself. A number is a whole number of 64 bits, or
// the row is not a sound envelope.
package rowschema

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/kek"
)

// Schema is the definition of a table whose rows are envelopes.
type Schema struct {
	Name       string            `json:"name"`                  // default: the table's
	Table      string            `json:"table"`                 // table name or ARN
	KEKID      string            `json:"kek_id_attribute"`      // S, a KMS key id or key ARN
	WrappedDEK string            `json:"wrapped_dek_attribute"` // B, a KMS ciphertext blob; none for format kms
	Ciphertext string            `json:"ciphertext_attribute"`  // B; "" if an emergency cannot re-encrypt payloads
	Epoch      string            `json:"epoch_attribute"`       // N; default kek_epoch
	Version    string            `json:"version_attribute"`     // N, counted up with every write; "" if rows have none
	Context    map[string]string `json:"context"`               // KMS encryption context: key → literal, "$attribute", or "$$literal with one $"
	Bind       map[string]string `json:"bind"`                  // bound to the payload beside the context, not told to KMS; written like it
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

// The formats of a table's payloads.
const (
	FormatMatter = "matter" // package aead; also ""
	FormatTink   = "tink"
	FormatKMS    = "kms"

	PayloadsOpaque = "opaque"

	// DefaultEpoch is the attribute of the epoch if the definition names none.
	DefaultEpoch = "kek_epoch"
)

var (
	tableName = regexp.MustCompile(`^[A-Za-z0-9_.-]{3,255}$`)
	tableARN  = regexp.MustCompile(`^arn:[a-z-]+:dynamodb:[a-z0-9-]+:[0-9]{12}:table/[A-Za-z0-9_.-]{3,255}$`)
)

// Parse reads a definition strictly, for a misspelt field would leave rows
// behind. It does not check what the fields say: see [Schema.Validate].
func Parse(definition []byte) (Schema, error) {
	var c Schema
	if err := strictjson.Unmarshal(definition, &c); err != nil {
		return c, fmt.Errorf("the definition of a table: %w", err)
	}
	return c, nil
}

// Source is the definition as the registry keeps it: JSON in one form, with the fields
// that were given and no defaults.
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
	return kek.Source{Name: c.SourceName(), Kind: kek.KindDynamoDB, Definition: string(b), Place: c.TableName()}
}

// SourceName is the name that rotations know the source by.
func (c Schema) SourceName() string { return c.WithDefaults().Name }

// TableName is the table's name, without the rest of its ARN.
func (c Schema) TableName() string { return c.Table[strings.LastIndexByte(c.Table, '/')+1:] }

// WithDefaults returns c with every default filled in.
func (c Schema) WithDefaults() Schema {
	if c.Name == "" {
		c.Name = c.TableName()
	}
	if c.Epoch == "" {
		c.Epoch = DefaultEpoch
	}
	return c
}

// Validate reports everything that is wrong with c, each fault under the name of
// its JSON field.
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
	if c.KEKID == "" {
		fault("kek_id_attribute", "is required")
	}
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

// checkFormat holds the attributes against the format of the payloads.
func (c Schema) checkFormat(fault func(field, format string, args ...any)) {
	switch c.Format {
	case "", FormatMatter, FormatTink:
		if c.WrappedDEK == "" {
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

// checkBound checks what the rows' payloads are bound to.
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

// checkOther checks the rule that declares items.
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

// checkContext refuses an entry that KMS would, or that rewrap itself changes.
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

// BoundValues are what one field of the definition binds payloads to.
type BoundValues struct {
	Field  string
	Values map[string]string
}

// Bound lists what payloads are bound to.
func (c Schema) Bound() []BoundValues {
	return []BoundValues{{"context", c.Context}, {"bind", c.Bind}}
}

// Attribute is an attribute of an envelope.
type Attribute struct {
	Field string // of the definition that names it
	Name  string // "" if there is none
}

// Attributes lists the attributes that a rewrap writes, the version last.
func (c Schema) Attributes() []Attribute {
	return []Attribute{
		{"kek_id_attribute", c.KEKID},
		{"wrapped_dek_attribute", c.WrappedDEK},
		{"ciphertext_attribute", c.Ciphertext},
		{"epoch_attribute", c.Epoch},
		{"version_attribute", c.Version},
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

// ContextOf makes the KMS encryption context of a row: literals as they stand, attributes
// of type S by value, of type N as DynamoDB writes the number. It fails if the row lacks
// an attribute or has it in another type.
func (c Schema) ContextOf(row attr.Item) (map[string]string, error) {
	return valuesOf("encryption context", c.Context, row)
}

// BindOf makes, as [Schema.ContextOf] does, the values that the payload of a row is bound
// to beside the encryption context.
func (c Schema) BindOf(row attr.Item) (map[string]string, error) {
	return valuesOf("bind", c.Bind, row)
}

// BoundOf makes what a row's payload is bound to as associated data: its encryption
// context and the values that the definition binds beside it.
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

func valuesOf(what string, from map[string]string, row attr.Item) (map[string]string, error) {
	out := make(map[string]string, len(from))
	failed, fault := "", error(nil)
	for k, v := range from {
		text, err := valueOf(v, row)
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

func valueOf(v string, row attr.Item) (string, error) {
	name, ok := ContextAttribute(v)
	if !ok {
		return strings.TrimPrefix(v, "$"), nil // "$$x" is the literal "$x"
	}
	switch a := row[name].(type) {
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

// IsTink reports a row that Tink wrote: its wrapped data key is inside the ciphertext.
func (c Schema) IsTink(row attr.Item) bool {
	return c.Format == FormatTink && row[c.WrappedDEK] == nil
}

// Declares reports an item that the definition says is something else than a row.
func (o *OtherItems) Declares(i attr.Item) bool {
	if o == nil {
		return false
	}
	s, ok := i[o.Attribute].(*types.AttributeValueMemberS)
	return ok && slices.Contains(o.Values, s.Value)
}
