// Package rowcheck holds stored rows to what was written into them. It unwraps every data
// key and opens every payload, and believes nothing that a row, a record or a step says of
// itself. The simulator looks with it after every effect, and the tests of the built
// functions before and after a rotation.
//
// What it finds is named after the promise that is broken (spec/rotation.tla):
//
//   - NoRowComesBack: a row is there that nobody wrote, or that was deleted;
//   - NoLostWrite: a row is gone, or has another payload than was written last;
//   - RowIntegrity: a row does not open under the KEK that it names;
//   - ExposedDeksGone: after an emergency a row has a data key that a KEK wrapped which the
//     emergency left.
package rowcheck

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
)

// Finding is a promise that the rows break.
type Finding struct{ Promise, Detail string }

func (f Finding) String() string { return f.Promise + ": " + f.Detail }

// Unwrapper is what is needed of KMS.
type Unwrapper interface {
	Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) (dek []byte, err error)
}

// Checker remembers of the rows that it has opened what the promises speak of. Its
// methods may be called at once; its maps may be read only while no method runs.
type Checker struct {
	KMS    Unwrapper
	Cipher keyring.Cipher

	mu      sync.Mutex
	Opened  map[string][]byte // row → what it was opened from
	Payload map[string]string // row → what it opened to; absent if it did not open
	DEK     map[string]string // row → its data key
	First   map[string]kek.ID // data key → the KEK that it was first seen under
}

// New returns a checker that has seen nothing.
func New(kms Unwrapper, cipher keyring.Cipher) *Checker {
	return &Checker{
		KMS: kms, Cipher: cipher,
		Opened: map[string][]byte{}, Payload: map[string]string{}, DEK: map[string]string{}, First: map[string]kek.ID{},
	}
}

// Resolve returns a keyed row with what opens it: the KEK, the wrapped data key and the
// encryption context of its data key's record, which [Checker] unwraps as those of an embedded
// row. A row that does not agree with its record has a Defect.
func Resolve(ctx context.Context, records source.Keeper, row source.Row) (source.Row, error) {
	record, born, ok, err := records.FindKey(ctx, row.DEKID)
	switch {
	case err != nil:
		return row, err
	case !ok:
		row.Defect = "its data key " + row.DEKID + " has no record"
	case record.Defect != "":
		row.Defect = "the record of its data key: " + record.Defect
	case born != row.Epoch:
		row.Defect = fmt.Sprintf("its data key is of epoch %d, and it says %d", born, row.Epoch)
	}
	row.KEK, row.WrappedDEK, row.Context = record.KEK, record.WrappedDEK, record.Context
	return row, nil
}

// Clone returns a checker that has seen the same.
func (c *Checker) Clone() *Checker {
	return &Checker{
		KMS: c.KMS, Cipher: c.Cipher,
		Opened: maps.Clone(c.Opened), Payload: maps.Clone(c.Payload), DEK: maps.Clone(c.DEK), First: maps.Clone(c.First),
	}
}

// Forget forgets the rows, so that each is opened again, and none of the data keys.
func (c *Checker) Forget() {
	clear(c.Opened)
	clear(c.Payload)
	clear(c.DEK)
}

// opening is what a row is opened from.
func opening(row source.Row) []byte {
	return slices.Concat([]byte(row.KEK), row.WrappedDEK, row.Ciphertext)
}

// Seen reports whether a row is as it was when it was last opened.
func (c *Checker) Seen(row source.Row) bool {
	c.mu.Lock()
	was := c.Opened[row.ID]
	c.mu.Unlock()
	n, m := len(row.KEK), len(row.KEK)+len(row.WrappedDEK)
	return len(was) == m+len(row.Ciphertext) && string(was[:n]) == string(row.KEK) &&
		string(was[n:m]) == string(row.WrappedDEK) && string(was[m:]) == string(row.Ciphertext)
}

// Open unwraps the row's data key through KMS and opens its payload.
func (c *Checker) Open(ctx context.Context, row source.Row) (payload []byte, err error) {
	c.mu.Lock()
	c.Opened[row.ID] = opening(row)
	delete(c.DEK, row.ID)
	delete(c.Payload, row.ID)
	c.mu.Unlock()
	if row.Defect != "" {
		return nil, fmt.Errorf("defect: %s", row.Defect)
	}
	dek, err := c.KMS.Decrypt(ctx, row.KEK, row.WrappedDEK, row.Context)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if _, ok := c.First[string(dek)]; !ok {
		c.First[string(dek)] = row.KEK
	}
	c.DEK[row.ID] = string(dek)
	c.mu.Unlock()
	if payload, err = c.Cipher.Open(dek, row.Ciphertext, row.Bound); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.Payload[row.ID] = string(payload)
	c.mu.Unlock()
	return payload, nil
}

// Row holds one row to the payloads that were written last, by row. A row that is as it
// was when it was last opened is not opened again; that it did not open is said once.
func (c *Checker) Row(ctx context.Context, row source.Row, want map[string]string) *Finding {
	written, ok := want[row.ID]
	if !ok {
		return &Finding{"NoRowComesBack", fmt.Sprintf("row %s came back, or out of nothing", row.ID)}
	}
	if !c.Seen(row) {
		if _, err := c.Open(ctx, row); err != nil {
			return &Finding{"RowIntegrity", fmt.Sprintf("row %s under %s: %v", row.ID, row.KEK, err)}
		}
	}
	c.mu.Lock()
	payload, opened := c.Payload[row.ID]
	c.mu.Unlock()
	if opened && payload != written {
		return &Finding{"NoLostWrite", fmt.Sprintf("row %s opens to %q, acknowledged was %q", row.ID, payload, written)}
	}
	return nil
}

// Missing finds fewer rows than were written.
func Missing(there int, want map[string]string) *Finding {
	if there < len(want) {
		return &Finding{"NoLostWrite", fmt.Sprintf("%d rows are there, %d were acknowledged", there, len(want))}
	}
	return nil
}

// Exposed finds a row, of those that are wanted, with a data key that was first seen under
// one of the KEKs that an emergency left.
func (c *Checker) Exposed(rotationID string, left []kek.ID, want map[string]string) *Finding {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, dek := range c.DEK {
		if _, there := want[id]; there && slices.Contains(left, c.First[dek]) {
			return &Finding{"ExposedDeksGone", fmt.Sprintf("after %s row %s still has a DEK that was wrapped under %s", rotationID, id, c.First[dek])}
		}
	}
	return nil
}
