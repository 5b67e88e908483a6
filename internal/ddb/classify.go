package ddb

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/itemsize"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Each item of a table is one of three. It has none of the envelope's attributes: other,
// or declared if the definition names it. Or it has one of them: then it is a row, with
// a flaw if it is not a sound envelope. None is left out.

// flaw is why a row is not a sound envelope.
type flaw struct {
	kind  rotation.Defect
	field string // of the definition that names the attribute
	text  string
}

// handle is where a row is and what a write of it conditions on.
type handle struct {
	key    item
	kek    types.AttributeValue // how it names its KEK; nil if it does not
	holder string               // the attribute that holds the wrapped bytes
	held   []byte               // its value; nil if it has none that can be used
	tink   bool                 // it is Tink's: the wrapped DEK is inside held
}

// rowReader reads rows of a table.
type rowReader struct{ rowschema.Schema }

// envelopeAttributes lists the attributes that make an item an envelope. The version is
// not one of them: it may be the application's own.
func (c rowReader) envelopeAttributes() []rowschema.Attribute { return c.Attributes()[:4] }

// hasEnvelope reports an item with any of the envelope's attributes.
func (c rowReader) hasEnvelope(i item) bool {
	return slices.ContainsFunc(c.envelopeAttributes(), func(a rowschema.Attribute) bool { return i[a.Name] != nil })
}

// readRow reads an item; false if it has none of the envelope's attributes, or if the
// definition declares it and it names neither a KEK nor a data key. A row with a
// flaw is filled in as far as it can be: adopting one needs its wrapped DEK and context.
// whole says that all attributes of the item are there.
func readRow(cfg SourceConfig, i item, keys []keyAttribute, payload, whole bool) (rotation.Row, *flaw, bool) {
	c := rowReader{cfg}
	bare := i[c.KEKID] == nil && i[c.WrappedDEK] == nil
	if !c.hasEnvelope(i) || bare && c.Other.Declares(i) { // what names a KEK or holds a DEK is a row, whatever is declared
		return rotation.Row{}, nil, false
	}
	h := handle{key: keyOf(i, keys), kek: i[c.KEKID], holder: c.WrappedDEK}
	h.tink = c.IsTink(i)
	if h.tink || c.Format == rowschema.FormatKMS {
		h.holder = c.Ciphertext
	}
	h.held = attr.Bytes(i[h.holder])
	row := rotation.Row{
		ID: rowID(i, keys), Epoch: integer(i[c.Epoch]), WrappedDEK: h.held,
		Whole: h.tink || c.Format == rowschema.FormatKMS || c.Payloads == rowschema.PayloadsOpaque,
	}
	row.KEK, row.KeyARN, _ = kek.ParseKeyRef(attr.Text(h.kek))
	unreadable := c.readBound(&row, i, h)
	if payload && !row.Whole {
		row.Ciphertext = attr.Bytes(i[c.Ciphertext])
	}
	row.Handle = h
	f := cmp.Or(c.checkAlone(i, h), c.checkTypes(i), unreadable, c.checkComplete(i, h), c.checkVersion(i), c.checkRoom(i, whole), c.checkKEK(h))
	if f != nil {
		row.Kind, row.Defect = f.kind, f.text
	}
	return row, f, true
}

// readBound fills in what the row's DEK and payload are bound to. Tink binds nothing to a DEK
// that it wraps; what it binds to the payload only the application knows.
func (c rowReader) readBound(row *rotation.Row, i item, h handle) *flaw {
	var err error
	if h.tink {
		if row.WrappedDEK, _, err = aead.ParseTink(h.held); err != nil && len(h.held) > 0 {
			return &flaw{rotation.Damaged, "ciphertext_attribute", fmt.Sprintf("attribute %s is not what Tink writes: %v", c.Ciphertext, err)}
		}
		return nil
	}
	if row.Context, err = c.ContextOf(i); err != nil {
		return &flaw{rotation.NoContext, "context", err.Error()}
	}
	if row.Bound, err = c.BoundOf(i); err != nil {
		return &flaw{rotation.NoContext, "bind", err.Error()}
	}
	return nil
}

// checkAlone finds an item that has one attribute of the envelope without those that
// would make sense of it.
func (c rowReader) checkAlone(i item, h handle) *flaw {
	switch {
	case i[c.KEKID] != nil || i[c.WrappedDEK] != nil:
		return nil
	case i[c.Ciphertext] == nil:
		return &flaw{rotation.EpochAlone, "epoch_attribute", fmt.Sprintf("it has attribute %s and nothing else of an envelope", c.Epoch)}
	case h.holder == c.Ciphertext: // with the wrapped bytes in it
		return nil
	}
	return &flaw{
		rotation.CipherAlone, "ciphertext_attribute",
		fmt.Sprintf("it has attribute %s, but neither %s nor %s, which say how to open it", c.Ciphertext, c.KEKID, c.WrappedDEK),
	}
}

// checkTypes finds an attribute of the envelope that is of another type.
func (c rowReader) checkTypes(i item) *flaw {
	for n, a := range c.envelopeAttributes() {
		v, want := i[a.Name], []string{"S", "B", "B", "N"}[n]
		if v != nil && typeOf(v) != want {
			return &flaw{rotation.WrongType, a.Field, fmt.Sprintf("attribute %s is of type %s, not %s", a.Name, typeOf(v), want)}
		}
	}
	if !isInteger(i[c.Epoch]) {
		return &flaw{rotation.WrongType, "epoch_attribute", fmt.Sprintf("attribute %s is not a whole number", c.Epoch)}
	}
	return nil
}

// checkComplete finds an attribute of the envelope that is missing or empty. The KEK is not
// one of them: adopting brings it in.
func (c rowReader) checkComplete(i item, h handle) *flaw {
	switch {
	case h.holder != c.Ciphertext && len(h.held) == 0:
		return &flaw{rotation.NoWrappedDEK, "wrapped_dek_attribute", missing(c.WrappedDEK)}
	case c.Ciphertext != "" && len(attr.Bytes(i[c.Ciphertext])) == 0:
		return &flaw{rotation.NoCiphertext, "ciphertext_attribute", missing(c.Ciphertext)}
	}
	return nil
}

func missing(name string) string { return fmt.Sprintf("attribute %s is missing or empty", name) }

// checkVersion finds a version that a write cannot count up.
func (c rowReader) checkVersion(i item) *flaw {
	if !isInteger(i[c.Version]) {
		return &flaw{rotation.ForeignNumber, "version_attribute", fmt.Sprintf("attribute %s is not a whole number: it is not the version of an envelope", c.Version)}
	}
	return nil
}

const (
	keyIDLength = 36 // of a KMS key id (KMS API reference, KeyMetadata; UUID, or mrk- and 32 digits)

	// wrappedGrowth is how many bytes longer a ciphertext of KMS may be under another key.
	// KMS documents no more of its length than that it is at most 6,144 (API reference,
	// ReEncrypt). A wrapped DEK has about 184 bytes today, so this allows for a format
	// that is two thirds longer.
	wrappedGrowth = 128

	// rewrapSets is how many attributes one rewrap sets: KEK id, wrapped DEK, epoch,
	// version and, in an emergency, payload.
	rewrapSets = 5
)

// checkRoom finds an item that a rewrap could make larger than DynamoDB allows.
func (c rowReader) checkRoom(i item, whole bool) *flaw {
	if !whole {
		return nil
	}
	after := maps.Clone(i)
	after[c.KEKID] = attr.Str(strings.Repeat("x", keyIDLength))
	after[c.Epoch] = attr.Num(math.MaxInt64)
	if c.Version != "" {
		after[c.Version] = attr.Num(integer(i[c.Version]) + 1)
	}
	if n := itemsize.Of(after) + wrappedGrowth + itemsize.UpdateCost(rewrapSets, 0); n > itemsize.Max {
		return &flaw{
			rotation.NoRoom, "table",
			fmt.Sprintf("it has %d bytes and can have %d after a rewrap, but DynamoDB takes at most %d: make it smaller", itemsize.Of(i), n, itemsize.Max),
		}
	}
	return nil
}

// checkKEK finds a row that does not name its KEK in a form that says which it is.
func (c rowReader) checkKEK(h handle) *flaw {
	text := attr.Text(h.kek)
	if text == "" {
		return &flaw{rotation.NoKEK, "kek_id_attribute", missing(c.KEKID)}
	}
	if _, _, ok := kek.ParseKeyRef(text); !ok {
		return &flaw{
			rotation.UnknownForm, "kek_id_attribute",
			fmt.Sprintf("attribute %s is %.100q, which is neither a key id nor a key ARN", c.KEKID, text),
		}
	}
	return nil
}

// integer is the value of a whole number; 0 of anything else.
func integer(v types.AttributeValue) int64 {
	n, _ := attr.Int(v)
	return n
}

// isInteger reports a whole number, or no attribute.
func isInteger(v types.AttributeValue) bool {
	_, err := attr.Int(v)
	return err == nil
}

// typeOf is the name that DynamoDB gives to an attribute's type.
func typeOf(v types.AttributeValue) string {
	return strings.TrimPrefix(fmt.Sprintf("%T", v), "*types.AttributeValueMember")
}
