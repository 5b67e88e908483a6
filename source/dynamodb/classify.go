package dynamodb

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
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/internal/rowschema"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
)

// Each item of a table is one of three kinds. An item without any of the envelope's attributes
// is other, or declared if the definition says so. Every other item is a row, with a flaw if
// it is not a sound envelope. A row that names a data key is keyed, every other one is
// embedded. No item is left out, since a row that is left out would be
// orphaned when its KEK is retired.

// flaw is why a row is not a sound envelope.
type flaw struct {
	kind  source.Defect
	field string // of the definition that names the attribute
	text  string
}

// handle is the key of a row, and the values that a write of it is conditional on.
type handle struct {
	key    item
	kek    types.AttributeValue // how it names its KEK; nil if it does not
	holder string               // the attribute that holds the wrapped bytes
	held   []byte               // its value; nil if it has none that can be used
	tink   bool                 // Tink wrote the row: the wrapped DEK is inside held
	dek    types.AttributeValue // how a keyed row names its data key; nil if it is embedded
}

// rowReader decodes the rows of a table by its schema.
type rowReader struct{ rowschema.Schema }

// envelopeAttributes lists the attributes that make an item an envelope. The version is
// not one of them: it may be the application's own.
func (c rowReader) envelopeAttributes() []rowschema.Attribute {
	return slices.Concat(c.Attributes()[:4], c.Attributes()[5:])
}

// attributeTypes are the types of envelopeAttributes.
var attributeTypes = []string{"S", "B", "B", "N", "S"}

// hasEnvelope reports whether an item has any of the envelope's attributes.
func (c rowReader) hasEnvelope(i item) bool {
	return slices.ContainsFunc(c.envelopeAttributes(), func(a rowschema.Attribute) bool { return i[a.Name] != nil })
}

// readRow decodes an item. It returns false if the item has none of the envelope's attributes,
// or if the definition declares it and it names neither a KEK nor a data key. A row with a
// flaw is filled in as far as possible: adopting it needs its wrapped DEK and context. whole
// means that the item was read with all its attributes, so its size is known.
func readRow(cfg Config, i item, keys []keyAttribute, payload, whole bool) (source.Row, *flaw, bool) {
	c := rowReader{cfg}
	bare := i[c.KEKID] == nil && i[c.WrappedDEK] == nil && i[c.DEKID] == nil
	if !c.hasEnvelope(i) || bare && c.Other.Declares(i) { // what names a KEK or holds a DEK is a row, whatever is declared
		return source.Row{}, nil, false
	}
	if i[c.DEKID] != nil {
		row, f := c.readKeyed(i, keys, payload, whole)
		return row, f, true
	}
	h := handle{key: keyOf(i, keys), kek: i[c.KEKID], holder: c.WrappedDEK}
	h.tink = c.IsTink(i)
	if h.tink || c.Format == rowschema.FormatKMS {
		h.holder = c.Ciphertext
	}
	h.held = attr.Bytes(i[h.holder])
	row := source.Row{
		ID: rowID(i, keys), Epoch: parseInteger(i[c.Epoch]), WrappedDEK: h.held,
		Whole: h.tink || c.Format == rowschema.FormatKMS || c.Payloads == rowschema.PayloadsOpaque,
	}
	row.KEK, row.KeyARN, _ = kek.ParseKeyRef(attr.Text(h.kek))
	unreadable := c.readBound(&row, i, h, keys)
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

// readKeyed decodes an item that names a data key.
func (c rowReader) readKeyed(i item, keys []keyAttribute, payload, whole bool) (source.Row, *flaw) {
	row := source.Row{
		ID: rowID(i, keys), DEKID: attr.Text(i[c.DEKID]), Epoch: parseInteger(i[c.Epoch]),
		Handle: handle{key: keyOf(i, keys), kek: i[c.KEKID], dek: i[c.DEKID]},
	}
	if payload {
		row.Ciphertext = attr.Bytes(i[c.Ciphertext])
	}
	unreadable := c.readKeyedBound(&row, i, keys)
	f := cmp.Or(c.checkOneKind(i), c.checkTypes(i), unreadable, c.checkKeyed(row, i), c.checkVersion(i), c.checkRoom(i, whole))
	if f != nil {
		row.Kind, row.Defect = f.kind, f.text
	}
	return row, f
}

// readKeyedBound fills in what the row's payload is bound to.
func (c rowReader) readKeyedBound(row *source.Row, i item, keys []keyAttribute) *flaw {
	var err error
	if row.Context, err = c.ContextOf(i); err != nil {
		return &flaw{source.NoContext, "context", err.Error()}
	}
	if row.Bound, err = c.KeyedBoundOf(i, namesOf(keys), row.DEKID); err != nil {
		return &flaw{source.NoContext, "bind", err.Error()}
	}
	return nil
}

// namesOf lists the attributes of a primary key.
func namesOf(keys []keyAttribute) []string {
	var names []string
	for _, k := range keys {
		names = append(names, k.name)
	}
	return names
}

// checkOneKind finds an item that is a keyed row and an embedded one at once: nobody can say
// which data key opens it.
func (c rowReader) checkOneKind(i item) *flaw {
	for _, a := range c.Attributes()[:2] {
		if i[a.Name] != nil {
			return &flaw{source.BothKinds, "dek_id_attribute", fmt.Sprintf("it has attribute %s, which names a data key, and attribute %s of an embedded row", c.DEKID, a.Name)}
		}
	}
	return nil
}

// checkKeyed finds an attribute of a keyed row that is missing, empty or of another form.
func (c rowReader) checkKeyed(row source.Row, i item) *flaw {
	if err := keyrecord.CheckID(row.DEKID); err != nil {
		return &flaw{source.DEKIDForm, "dek_id_attribute", fmt.Sprintf("attribute %s: %v", c.DEKID, err)}
	}
	switch {
	case len(attr.Bytes(i[c.Ciphertext])) == 0:
		return &flaw{source.NoCiphertext, "ciphertext_attribute", describeMissing(c.Ciphertext)}
	case row.Epoch < 1:
		return &flaw{source.NoEpoch, "epoch_attribute", fmt.Sprintf("attribute %s is missing or is not an epoch", c.Epoch)}
	}
	return nil
}

// readBound fills in what the row's DEK and payload are bound to. Tink binds nothing to a DEK
// that it wraps, and only the application knows what Tink bound to the payload.
func (c rowReader) readBound(row *source.Row, i item, h handle, keys []keyAttribute) *flaw {
	var err error
	if h.tink {
		if row.WrappedDEK, _, err = aead.ParseTink(h.held); err != nil && len(h.held) > 0 {
			return &flaw{source.Damaged, "ciphertext_attribute", fmt.Sprintf("attribute %s is not what Tink writes: %v", c.Ciphertext, err)}
		}
		return nil
	}
	if row.Context, err = c.ContextOf(i); err != nil {
		return &flaw{source.NoContext, "context", err.Error()}
	}
	if row.Bound, err = c.BoundOf(i); err != nil {
		return &flaw{source.NoContext, "bind", err.Error()}
	}
	if !c.HoldsKeyed() {
		return nil
	}
	if row.KeyBound, err = rowschema.KeyBoundOf(i, namesOf(keys)); err != nil {
		return &flaw{source.NoContext, "bind", err.Error()}
	}
	return nil
}

// checkAlone finds an item that has one attribute of the envelope without those that are
// needed to open it.
func (c rowReader) checkAlone(i item, h handle) *flaw {
	switch {
	case i[c.KEKID] != nil || i[c.WrappedDEK] != nil:
		return nil
	case i[c.Ciphertext] == nil:
		return &flaw{source.EpochAlone, "epoch_attribute", fmt.Sprintf("it has attribute %s and nothing else of an envelope", c.Epoch)}
	case h.holder == c.Ciphertext: // the wrapped bytes are in it
		return nil
	}
	return &flaw{
		source.CipherAlone, "ciphertext_attribute",
		fmt.Sprintf("it has attribute %s, but %s", c.Ciphertext, c.describeWanting()),
	}
}

// describeWanting names the attributes of which a payload needs some.
func (c rowReader) describeWanting() string {
	embedded := fmt.Sprintf("neither %s nor %s", c.KEKID, c.WrappedDEK)
	switch {
	case !c.HoldsKeyed():
		return embedded + ", which say how to open it"
	case c.HoldsEmbedded():
		return fmt.Sprintf("%s, nor %s, which say how to open it", embedded, c.DEKID)
	}
	return fmt.Sprintf("no %s, which says how to open it", c.DEKID)
}

// checkTypes finds an attribute of the envelope that has the wrong type.
func (c rowReader) checkTypes(i item) *flaw {
	for n, a := range c.envelopeAttributes() {
		v, want := i[a.Name], attributeTypes[n]
		if v != nil && typeOf(v) != want {
			return &flaw{source.WrongType, a.Field, fmt.Sprintf("attribute %s is of type %s, not %s", a.Name, typeOf(v), want)}
		}
	}
	if !isInteger(i[c.Epoch]) {
		return &flaw{source.WrongType, "epoch_attribute", fmt.Sprintf("attribute %s is not a whole number", c.Epoch)}
	}
	return nil
}

// checkComplete finds an attribute of the envelope that is missing or empty. The KEK is not
// one of them: adopting brings it in.
func (c rowReader) checkComplete(i item, h handle) *flaw {
	switch {
	case h.holder != c.Ciphertext && len(h.held) == 0:
		return &flaw{source.NoWrappedDEK, "wrapped_dek_attribute", describeMissing(c.WrappedDEK)}
	case c.Ciphertext != "" && len(attr.Bytes(i[c.Ciphertext])) == 0:
		return &flaw{source.NoCiphertext, "ciphertext_attribute", describeMissing(c.Ciphertext)}
	}
	return nil
}

// describeMissing says that an attribute is missing or empty.
func describeMissing(name string) string {
	return fmt.Sprintf("attribute %s is missing or empty", name)
}

// checkVersion finds a version that a write cannot increment.
func (c rowReader) checkVersion(i item) *flaw {
	if !isInteger(i[c.Version]) {
		return &flaw{source.ForeignNumber, "version_attribute", fmt.Sprintf("attribute %s is not a whole number: it is not the version of an envelope", c.Version)}
	}
	return nil
}

const (
	keyIDLength = 36 // of a KMS key id (KMS API reference, KeyMetadata; UUID, or mrk- and 32 digits)

	// wrappedGrowth is how many bytes longer a ciphertext of KMS may be under another key.
	// KMS documents only that a ciphertext has at most 6,144 bytes (API reference,
	// ReEncrypt). A wrapped DEK has about 184 bytes today, so this allows for a format that
	// is two thirds longer.
	wrappedGrowth = 128

	// rewrapSets is how many attributes one rewrap sets: KEK id, wrapped DEK, epoch,
	// version and, in an emergency, payload.
	rewrapSets = 5
)

// checkRoom finds an item that a rewrap could make larger than the 400 KB that DynamoDB allows
// (developer guide, "Service, account, and table quotas"). It is found before the switch,
// because after it the row could not leave its KEK.
func (c rowReader) checkRoom(i item, whole bool) *flaw {
	if !whole {
		return nil
	}
	after := maps.Clone(i)
	if i[c.DEKID] == nil {
		after[c.KEKID] = attr.Str(strings.Repeat("x", keyIDLength))
	}
	after[c.Epoch] = attr.Num(math.MaxInt64)
	if c.Version != "" {
		after[c.Version] = attr.Num(parseInteger(i[c.Version]) + 1)
	}
	if n := attr.ItemSize(after) + wrappedGrowth + attr.UpdateCost(rewrapSets, 0); n > attr.MaxItemSize {
		return &flaw{
			source.NoRoom, "table",
			fmt.Sprintf("it has %d bytes and can have %d after a rewrap, but DynamoDB takes at most %d: make it smaller", attr.ItemSize(i), n, attr.MaxItemSize),
		}
	}
	return nil
}

// checkKEK finds a row that does not name its KEK, or names it in a form that does not identify
// one KMS key, such as an alias.
func (c rowReader) checkKEK(h handle) *flaw {
	text := attr.Text(h.kek)
	if text == "" {
		return &flaw{source.NoKEK, "kek_id_attribute", describeMissing(c.KEKID)}
	}
	if _, _, ok := kek.ParseKeyRef(text); !ok {
		return &flaw{
			source.UnknownForm, "kek_id_attribute",
			fmt.Sprintf("attribute %s is %.100q, which is neither a key id nor a key ARN", c.KEKID, text),
		}
	}
	return nil
}

// parseInteger returns the value of a whole number; 0 for anything else.
func parseInteger(v types.AttributeValue) int64 {
	n, _ := attr.Int(v)
	return n
}

// isInteger reports whether an attribute is a whole number or absent.
func isInteger(v types.AttributeValue) bool {
	_, err := attr.Int(v)
	return err == nil
}

// typeOf returns DynamoDB's name of an attribute's type, such as S.
func typeOf(v types.AttributeValue) string {
	return strings.TrimPrefix(fmt.Sprintf("%T", v), "*types.AttributeValueMember")
}
