package keystest

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// dekSize is the size of a DEK: an AES-256 key.
const dekSize = 32

// TestWrapper runs the suite of [keyring.Wrapper].
func TestWrapper(t *testing.T, newService func(t *testing.T) Service) {
	t.Run("Roundtrip", func(t *testing.T) { testRoundtrip(t, newService(t)) })
	t.Run("ReEncrypt", func(t *testing.T) { testReEncrypt(t, newService(t)) })
	t.Run("Identify", func(t *testing.T) { testIdentify(t, newService(t)) })
	t.Run("Refused", func(t *testing.T) { testRefused(t, newService(t)) })
	t.Run("Disabled", func(t *testing.T) { testWrapDisabled(t, newService(t)) })
	t.Run("UnknownKey", func(t *testing.T) { testWrapUnknown(t, newService(t)) })
	t.Run("Cancelled", func(t *testing.T) { testCancelled(t, newService(t)) })
}

func row(id string) map[string]string { return map[string]string{"table": "orders", "id": id} }

// dataKey makes a DEK.
func (s Service) dataKey(t *testing.T, id kek.ID, encctx map[string]string) (dek, wrapped []byte) {
	t.Helper()
	dek, wrapped, err := s.KMS.GenerateDataKey(t.Context(), id, encctx)
	if err != nil {
		t.Fatal(err)
	}
	return dek, wrapped
}

// unwraps checks that a wrapped DEK opens to the one that was made.
func (s Service) unwraps(t *testing.T, id kek.ID, wrapped []byte, encctx map[string]string, want []byte) {
	t.Helper()
	got, err := s.KMS.Decrypt(t.Context(), id, wrapped, encctx)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("it unwraps to another DEK")
	}
}

func testRoundtrip(t *testing.T, s Service) {
	k := s.create(t, spring, 1)
	var deks, blobs [][]byte
	for _, encctx := range []map[string]string{row("a"), row("a"), {"only": "one"}, {}, nil} {
		dek, wrapped := s.dataKey(t, k.ID, encctx)
		if len(dek) != dekSize || bytes.Equal(dek, make([]byte, dekSize)) {
			t.Errorf("the DEK has %d bytes", len(dek))
		}
		if bytes.Contains(wrapped, dek) {
			t.Error("the wrapped DEK shows the DEK")
		}
		for i := range deks {
			if bytes.Equal(dek, deks[i]) || bytes.Equal(wrapped, blobs[i]) {
				t.Error("a DEK came twice")
			}
		}
		deks, blobs = append(deks, dek), append(blobs, wrapped)
		s.unwraps(t, k.ID, wrapped, encctx, dek)
		s.unwraps(t, k.ID, wrapped, encctx, dek)
	}
}

// testReEncrypt: a rewrapped DEK is the same DEK under the other KEK alone, and
// the old blob opens as before.
func testReEncrypt(t *testing.T, s Service) {
	from, to := s.create(t, spring, 1), s.create(t, summer, 1)
	dek, old := s.dataKey(t, from.ID, row("a"))
	rewrapped, err := s.KMS.ReEncrypt(t.Context(), from.ID, to.ID, old, row("a"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(rewrapped, old) {
		t.Error("the blob is what it was")
	}
	s.unwraps(t, to.ID, rewrapped, row("a"), dek)
	s.unwraps(t, from.ID, old, row("a"), dek)
	s.refuses(t, "the rewrapped DEK under the old KEK", from.ID, rewrapped, row("a"), journal.ErrUnwrap)
	s.refuses(t, "the rewrapped DEK in another context", to.ID, rewrapped, row("b"), journal.ErrUnwrap)
}

// identifies checks that a blob tells its key.
func (s Service) identifies(t *testing.T, wrapped []byte, encctx map[string]string, want keyring.Key) {
	t.Helper()
	id, arn, err := s.KMS.Identify(t.Context(), wrapped, encctx)
	if err != nil || id != want.ID || arn != want.ARN {
		t.Errorf("identified as %q, %q, %v, want %s", id, arn, err, want.ARN)
	}
}

// testIdentify: a blob tells its own key, to who knows its context.
func testIdentify(t *testing.T, s Service) {
	a, b := s.create(t, spring, 1), s.create(t, spring, 2)
	_, underA := s.dataKey(t, a.ID, row("a"))
	_, underB := s.dataKey(t, b.ID, nil)
	moved, err := s.KMS.ReEncrypt(t.Context(), a.ID, b.ID, underA, row("a"))
	if err != nil {
		t.Fatal(err)
	}
	s.identifies(t, underA, row("a"), a)
	s.identifies(t, underB, nil, b)
	s.identifies(t, moved, row("a"), b)

	changed := bytes.Clone(underA)
	changed[len(changed)-1] ^= 1
	s.disable(t, b.ID)
	for what, c := range map[string]struct {
		wrapped []byte
		encctx  map[string]string
		want    error
	}{
		"a blob without its context":  {underA, nil, journal.ErrUnwrap},
		"a blob in another context":   {underA, row("b"), journal.ErrUnwrap},
		"a changed blob":              {changed, row("a"), journal.ErrUnwrap},
		"half a blob":                 {underA[:len(underA)/2], row("a"), journal.ErrUnwrap},
		"nothing":                     {nil, row("a"), journal.ErrUnwrap},
		"a blob of another maker":     {[]byte(foreign), row("a"), journal.ErrUnwrap},
		"a blob without an end":       {bytes.Repeat([]byte("x"), 8192), row("a"), journal.ErrUnwrap},
		"a blob under a disabled KEK": {underB, nil, journal.ErrKeyDisabled},
		"a rewrapped blob under it":   {moved, row("a"), journal.ErrKeyDisabled},
	} {
		id, arn, err := s.KMS.Identify(t.Context(), c.wrapped, c.encctx)
		if !errors.Is(err, c.want) || id != "" || arn != "" {
			t.Errorf("%s: %q, %q, %v, want %v and no key", what, id, arn, err, c.want)
		}
	}
	s.identifies(t, underA, row("a"), a)
}

// foreign is no blob of any key service.
const foreign = "this is no ciphertext of any key service, however long it may be made to look: 0123456789"

// refuses checks that neither Decrypt nor ReEncrypt takes a blob, and why.
func (s Service) refuses(t *testing.T, what string, id kek.ID, wrapped []byte, encctx map[string]string, want error) {
	t.Helper()
	if dek, err := s.KMS.Decrypt(t.Context(), id, wrapped, encctx); !errors.Is(err, want) || dek != nil {
		t.Errorf("Decrypt of %s: %v, want %v and no DEK", what, err, want)
	}
	to := s.create(t, summer, 9)
	if out, err := s.KMS.ReEncrypt(t.Context(), id, to.ID, wrapped, encctx); !errors.Is(err, want) || out != nil {
		t.Errorf("ReEncrypt of %s: %v, want %v and no blob", what, err, want)
	}
}

func testRefused(t *testing.T, s Service) {
	k, other := s.create(t, spring, 1), s.create(t, spring, 2)
	dek, wrapped := s.dataKey(t, k.ID, row("a"))
	for what, encctx := range map[string]map[string]string{
		"a blob without its context":      nil,
		"a blob in another row's context": row("b"),
		"a blob with less context":        {"table": "orders"},
		"a blob with more context":        {"table": "orders", "id": "a", "more": "x"},
		"a blob with its context moved":   {"tableo": "rders", "id": "a"},
		"a blob with its context swapped": {"id": "orders", "table": "a"},
	} {
		s.refuses(t, what, k.ID, wrapped, encctx, journal.ErrUnwrap)
	}
	s.refuses(t, "a blob of another KEK", other.ID, wrapped, row("a"), journal.ErrUnwrap)

	changed := bytes.Clone(wrapped)
	changed[len(changed)-1] ^= 1
	for what, blob := range map[string][]byte{
		"nothing":                 nil,
		"a short blob":            []byte("x"),
		"a blob of another maker": []byte(foreign),
		"a changed blob":          changed,
		"half a blob":             wrapped[:len(wrapped)/2],
		"a blob with a byte more": append(bytes.Clone(wrapped), 0),
		"a blob without an end":   bytes.Repeat([]byte("x"), 8192),
	} {
		s.refuses(t, what, k.ID, blob, row("a"), journal.ErrUnwrap)
	}
	s.unwraps(t, k.ID, wrapped, row("a"), dek)
}

// testWrapDisabled: a disabled KEK neither wraps nor unwraps, nor takes over.
func testWrapDisabled(t *testing.T, s Service) {
	k, on := s.create(t, spring, 1), s.create(t, spring, 2)
	_, wrapped := s.dataKey(t, k.ID, row("a"))
	dek, good := s.dataKey(t, on.ID, row("a"))
	s.disable(t, k.ID)
	if dek, blob, err := s.KMS.GenerateDataKey(t.Context(), k.ID, row("a")); !errors.Is(err, journal.ErrKeyDisabled) || dek != nil || blob != nil {
		t.Errorf("GenerateDataKey: %v, want ErrKeyDisabled and no DEK", err)
	}
	s.refuses(t, "a blob of a disabled KEK", k.ID, wrapped, row("a"), journal.ErrKeyDisabled)
	if out, err := s.KMS.ReEncrypt(t.Context(), on.ID, k.ID, good, row("a")); !errors.Is(err, journal.ErrKeyDisabled) || out != nil {
		t.Errorf("ReEncrypt to a disabled KEK: %v, want ErrKeyDisabled and no blob", err)
	}
	s.unwraps(t, on.ID, good, row("a"), dek)
}

func testWrapUnknown(t *testing.T, s Service) {
	k := s.create(t, spring, 1)
	_, wrapped := s.dataKey(t, k.ID, row("a"))
	if dek, blob, err := s.KMS.GenerateDataKey(t.Context(), unknown, row("a")); !errors.Is(err, journal.ErrNoKey) || dek != nil || blob != nil {
		t.Errorf("GenerateDataKey: %v, want ErrNoKey and no DEK", err)
	}
	s.refuses(t, "a blob under an unknown KEK", unknown, wrapped, row("a"), journal.ErrNoKey)
	if out, err := s.KMS.ReEncrypt(t.Context(), k.ID, unknown, wrapped, row("a")); !errors.Is(err, journal.ErrNoKey) || out != nil {
		t.Errorf("ReEncrypt to an unknown KEK: %v, want ErrNoKey and no blob", err)
	}
}

// testCancelled: a call whose context has ended says so, or is done; it is never
// taken for a verdict on the key.
func testCancelled(t *testing.T, s Service) {
	k := s.create(t, spring, 1)
	_, wrapped := s.dataKey(t, k.ID, row("a"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.KMS.Decrypt(ctx, k.ID, wrapped, row("a"))
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	for _, verdict := range []error{journal.ErrUnwrap, journal.ErrNoKey, journal.ErrKeyDisabled, journal.ErrDenied} {
		if errors.Is(err, verdict) {
			t.Errorf("%v, which is no verdict on the key", err)
		}
	}
}
