package ddb

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// SourceConfig describes one table whose rows are envelopes: which attributes
// hold what, and how a row's encryption context is made.
type SourceConfig struct {
	Name       string            `json:"name"`                  // default: the table's
	Table      string            `json:"table"`                 // table name or ARN
	KEKID      string            `json:"kek_id_attribute"`      // S
	WrappedDEK string            `json:"wrapped_dek_attribute"` // B, a KMS ciphertext blob
	Ciphertext string            `json:"ciphertext_attribute"`  // B; "" if an emergency cannot re-encrypt payloads
	Epoch      string            `json:"epoch_attribute"`       // N; default kek_epoch
	Version    string            `json:"version_attribute"`     // N; default version
	Context    map[string]string `json:"context"`               // key → literal, "$attribute", or "$$literal with one $"
	Format     string            `json:"format"`                // of the ciphertext: "", "matter" or "tink"
}

// The formats of a source's payloads. In a table of format tink, rows without a
// wrapped DEK of their own are Tink's KMSEnvelopeAEAD.
const (
	formatMatter = "matter"
	formatTink   = "tink"
)

var (
	tableName  = regexp.MustCompile(`^[A-Za-z0-9_.-]{3,255}$`)
	tableARN   = regexp.MustCompile(`^arn:[a-z-]+:dynamodb:[a-z0-9-]+:[0-9]{12}:table/[A-Za-z0-9_.-]{3,255}$`)
	sourceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,254}$`)
)

// SourceName is the name that rotations know the source by.
func (c SourceConfig) SourceName() string { return c.withDefaults().Name }

// withDefaults returns c with every default filled in.
func (c SourceConfig) withDefaults() SourceConfig {
	if c.Name == "" {
		c.Name = c.Table[strings.LastIndexByte(c.Table, '/')+1:]
	}
	if c.Epoch == "" {
		c.Epoch = "kek_epoch"
	}
	if c.Version == "" {
		c.Version = "version"
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
	if c.Table != "" && !sourceName.MatchString(c.Name) {
		fault("name", "%q: use 1 to 255 letters, digits, _ . and -, starting with a letter or digit", c.Name)
	}
	if c.KEKID == "" {
		fault("kek_id_attribute", "is required")
	}
	if c.WrappedDEK == "" {
		fault("wrapped_dek_attribute", "is required")
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
	for _, k := range slices.Sorted(maps.Keys(c.Context)) {
		if err := checkContext(k, c.Context[k], c); err != nil {
			fault("context", "%v", err)
		}
	}
	switch c.Format {
	case "", formatMatter:
	case formatTink:
		if c.Ciphertext == "" {
			fault("ciphertext_attribute", "is required for format tink: the wrapped data key is in it")
		}
	default:
		fault("format", `%q is not known; use "matter", "tink" or leave it out`, c.Format)
	}
	return errors.Join(faults...)
}

// checkContext refuses an entry that KMS would, or that rewrap itself changes.
func checkContext(k, v string, c SourceConfig) error {
	switch {
	case k == "":
		return errors.New("an encryption context key is empty")
	case strings.HasPrefix(k, "aws:"):
		return fmt.Errorf("key %q: the prefix aws: is reserved", k)
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

// ContextOf makes the encryption context of a row: literals as they stand,
// attributes of type S by value, of type N as DynamoDB writes the number. It
// fails if the row lacks an attribute or has it in another type. Data plane and
// rotation must agree on it to the byte.
func ContextOf(cfg SourceConfig, row map[string]types.AttributeValue) (map[string]string, error) {
	out := make(map[string]string, len(cfg.Context))
	for _, k := range slices.Sorted(maps.Keys(cfg.Context)) {
		v := cfg.Context[k]
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
			return nil, fmt.Errorf("encryption context %q: the row has no attribute %q", k, attr)
		default:
			return nil, fmt.Errorf("encryption context %q: attribute %q is neither a string nor a number", k, attr)
		}
	}
	return out, nil
}
