package ddb

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/kek"
)

// SourceConfig is the definition of a table whose rows are envelopes: which attributes
// hold what, and what each payload is bound to. Attribute names are of the top level.
type SourceConfig struct {
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

// The formats of a source's payloads. In a table of format tink, rows without a
// wrapped DEK of their own are Tink's KMSEnvelopeAEAD. In one of format kms the payload
// is a KMS ciphertext of the data itself.
const (
	formatMatter = "matter"
	formatTink   = "tink"
	formatKMS    = "kms"

	payloadsOpaque = "opaque"
)

var (
	tableName = regexp.MustCompile(`^[A-Za-z0-9_.-]{3,255}$`)
	tableARN  = regexp.MustCompile(`^arn:[a-z-]+:dynamodb:[a-z0-9-]+:[0-9]{12}:table/[A-Za-z0-9_.-]{3,255}$`)
)

// ParseSource reads a definition strictly, for a misspelt field would leave rows
// behind. It does not check what the fields say: see [SourceConfig.Validate].
func ParseSource(definition []byte) (SourceConfig, error) {
	var c SourceConfig
	if err := strictjson.Unmarshal(definition, &c); err != nil {
		return c, fmt.Errorf("the definition of a table: %w", err)
	}
	return c, nil
}

// Source is the definition as the registry keeps it: JSON in one form, with the fields
// that were given and no defaults.
func (c SourceConfig) Source() kek.Source {
	given := map[string]any{}
	b, err := json.Marshal(c)
	if err == nil {
		err = json.Unmarshal(b, &given)
	}
	if err != nil {
		panic("ddb: strings do not encode: " + err.Error())
	}
	for name, v := range given {
		if m, ok := v.(map[string]any); v == nil || v == "" || ok && len(m) == 0 {
			delete(given, name)
		}
	}
	if b, err = json.Marshal(given); err != nil {
		panic("ddb: strings do not encode: " + err.Error())
	}
	return kek.Source{Name: c.SourceName(), Kind: kek.KindDynamoDB, Definition: string(b), Place: c.tableName()}
}

// SourceName is the name that rotations know the source by.
func (c SourceConfig) SourceName() string { return c.withDefaults().Name }

// tableName is the table's name, without the rest of its ARN.
func (c SourceConfig) tableName() string { return c.Table[strings.LastIndexByte(c.Table, '/')+1:] }

// withDefaults returns c with every default filled in.
func (c SourceConfig) withDefaults() SourceConfig {
	if c.Name == "" {
		c.Name = c.tableName()
	}
	if c.Epoch == "" {
		c.Epoch = "kek_epoch"
	}
	return c
}

// Validate reports everything that is wrong with c, each fault under the name of
// its JSON field.
func (c SourceConfig) Validate() error {
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
	c = c.withDefaults()
	if err := kek.CheckSourceName(c.Name); c.Table != "" && err != nil {
		fault("name", "%v", err)
	}
	if c.KEKID == "" {
		fault("kek_id_attribute", "is required")
	}
	used := map[string]string{}
	for _, a := range c.attributes() {
		if other, ok := used[a.name]; ok && a.name != "" {
			fault(a.field, "%q is already the %s", a.name, other)
		}
		if len(a.name) > 65535 {
			fault(a.field, "is longer than 65535 bytes")
		}
		used[a.name] = a.field
	}
	c.checkFormat(fault)
	c.checkBound(fault)
	c.checkOther(fault)
	return errors.Join(faults...)
}

// checkFormat holds the attributes against the format of the payloads.
func (c SourceConfig) checkFormat(fault func(field, format string, args ...any)) {
	switch c.Format {
	case "", formatMatter, formatTink:
		if c.WrappedDEK == "" {
			fault("wrapped_dek_attribute", "is required")
		}
		if c.Format == formatTink && c.Ciphertext == "" {
			fault("ciphertext_attribute", "is required for format tink: the wrapped data key is in it")
		}
	case formatKMS:
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
	if c.Payloads != "" && c.Payloads != payloadsOpaque {
		fault("payloads", `%q is not known; use "opaque" or leave it out`, c.Payloads)
	}
}

// checkBound checks what the rows' payloads are bound to.
func (c SourceConfig) checkBound(fault func(field, format string, args ...any)) {
	for _, m := range c.bound() {
		for _, k := range slices.Sorted(maps.Keys(m.values)) {
			if err := checkContext(k, m.values[k], c); err != nil {
				fault(m.field, "%v", err)
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
func (c SourceConfig) checkOther(fault func(field, format string, args ...any)) {
	if c.Other == nil {
		return
	}
	if c.Other.Attribute == "" || len(c.Other.Values) == 0 {
		fault("other", "names an attribute and at least one of its values")
	}
	for _, a := range c.attributes() {
		if a.name != "" && a.name == c.Other.Attribute {
			fault("other", "%q is the %s, which such an item does not have", a.name, a.field)
		}
	}
}

// checkContext refuses an entry that KMS would, or that rewrap itself changes.
func checkContext(k, v string, c SourceConfig) error {
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
	attr, ok := contextAttribute(v)
	if !ok {
		return nil
	}
	if attr == "" {
		return fmt.Errorf("key %q: $ names no attribute; a literal $ is written $$", k)
	}
	for _, a := range c.attributes() {
		if a.name == attr {
			return fmt.Errorf("key %q: attribute %q changes with every rewrap, so it cannot be bound", k, attr)
		}
	}
	return nil
}

// boundValues are those of one field that payloads are bound to.
type boundValues struct {
	field  string
	values map[string]string
}

func (c SourceConfig) bound() []boundValues {
	return []boundValues{{"context", c.Context}, {"bind", c.Bind}}
}

type configured struct{ field, name string }

// attributes lists the attributes that a rewrap writes.
func (c SourceConfig) attributes() []configured {
	return []configured{
		{"kek_id_attribute", c.KEKID},
		{"wrapped_dek_attribute", c.WrappedDEK},
		{"ciphertext_attribute", c.Ciphertext},
		{"epoch_attribute", c.Epoch},
		{"version_attribute", c.Version},
	}
}

// contextAttribute returns the attribute that a context value names; false if it
// is a literal.
func contextAttribute(v string) (string, bool) {
	if !strings.HasPrefix(v, "$") || strings.HasPrefix(v, "$$") {
		return "", false
	}
	return v[1:], true
}

// ContextOf makes the KMS encryption context of a row: literals as they stand,
// attributes of type S by value, of type N as DynamoDB writes the number. It fails if
// the row lacks an attribute or has it in another type. Data plane and rotation must
// agree on it to the byte.
func ContextOf(cfg SourceConfig, row map[string]types.AttributeValue) (map[string]string, error) {
	return valuesOf("encryption context", cfg.Context, row)
}

// BoundOf makes what a row's payload is bound to as associated data: its encryption
// context and the values that the definition binds beside it.
func BoundOf(cfg SourceConfig, row map[string]types.AttributeValue) (map[string]string, error) {
	out, err := ContextOf(cfg, row)
	if err != nil {
		return nil, err
	}
	bound, err := valuesOf("bind", cfg.Bind, row)
	if err != nil {
		return nil, err
	}
	maps.Copy(out, bound)
	return out, nil
}

func valuesOf(what string, from map[string]string, row map[string]types.AttributeValue) (map[string]string, error) {
	out := make(map[string]string, len(from))
	for _, k := range slices.Sorted(maps.Keys(from)) {
		v := from[k]
		attr, ok := contextAttribute(v)
		if !ok {
			out[k] = strings.TrimPrefix(v, "$") // "$$x" is the literal "$x"
			continue
		}
		switch a := row[attr].(type) {
		case *types.AttributeValueMemberS:
			out[k] = a.Value
		case *types.AttributeValueMemberN:
			out[k] = a.Value
		case nil:
			return nil, fmt.Errorf("%s %q: the row has no attribute %q", what, k, attr)
		default:
			return nil, fmt.Errorf("%s %q: attribute %q is neither a string nor a number", what, k, attr)
		}
	}
	return out, nil
}
