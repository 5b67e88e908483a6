package envelope

import "github.com/matter-ops/kms-rotation/internal/rowschema"

// Schema is the definition as a rotation has it.
func (c TableConfig) Schema() rowschema.Schema { return c.rowSchema() }

// Decode reads an item as a row.
func (c TableConfig) Decode(i Item) (Sealed, error) {
	s, err := c.withDefaults().decodeRow(i)
	return s.Sealed, err
}

// ExpandTink reads a DEK of Tink's.
func ExpandTink(dek []byte) error {
	_, err := expandTink(dek)
	return err
}

// SameNumber reports whether two texts are one number.
func SameNumber(a, b string) bool { return sameNumber(a, b) }

// Config is the description of the table.
func (t *Table) Config() TableConfig { return t.cfg }
