package rotation_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// secrets remembers every plaintext that the steps were handed: data keys and payloads.
type secrets struct {
	keyring.Wrapper
	keyring.Cipher

	mu   sync.Mutex
	seen [][]byte
}

func (k *secrets) keep(secret []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen = append(k.seen, secret)
}

func (k *secrets) GenerateDataKey(ctx context.Context, id kek.ID, encctx map[string]string) (dek, wrapped []byte, err error) {
	dek, wrapped, err = k.Wrapper.GenerateDataKey(ctx, id, encctx)
	k.keep(dek)
	return dek, wrapped, err
}

func (k *secrets) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	dek, err := k.Wrapper.Decrypt(ctx, id, wrapped, encctx)
	k.keep(dek)
	return dek, err
}

func (k *secrets) Open(dek, sealed []byte, bound map[string]string) ([]byte, error) {
	plain, err := k.Cipher.Open(dek, sealed, bound)
	if !strings.HasPrefix(string(plain), "known plaintext") { // a canary is not a secret
		k.keep(plain)
	}
	return plain, err
}

// TestSecretsAreCleared: when a step is over, no data key and no payload that it was handed
// is left in its memory.
func TestSecretsAreCleared(t *testing.T) {
	for name, in := range map[string]rotation.ExecutionInput{"normal": {}, "emergency": emergency} {
		s := newSite(t)
		s.Config.Deep = true
		k := &secrets{Wrapper: s.kms, Cipher: s.Keys.Cipher}
		s.Keys.Wrapper, s.Keys.Cipher = k, k
		clean := func(step string) {
			t.Helper()
			if len(k.seen) == 0 {
				t.Errorf("%s, %s: it was handed no secret", name, step)
			}
			for _, secret := range k.seen {
				if slices.ContainsFunc(secret, func(b byte) bool { return b != 0 }) {
					t.Errorf("%s, %s: a secret of %d bytes is left", name, step, len(secret))
				}
			}
			k.seen = nil
		}
		must(s.CheckRows(t.Context(), kek.Emergency))
		clean("a sample of rows")
		must(s.Health(t.Context(), rotation.HealthInput{}))
		clean("health")
		s.advance(spring, in, kek.Minted)
		s.must(s.rehearse(spring))
		clean("rehearsal")
		s.must(s.test(spring))
		clean("dual unwrap")
		s.advance(spring, in, kek.Rewrapped)
		if in.Mode != "" { // a normal rotation rewraps within KMS
			clean("rewrap")
		}
		s.advance(spring, in, kek.KEKRetired)
		if len(k.seen) > 0 { // it proves within KMS
			t.Errorf("%s, retirement: it was handed %d secrets", name, len(k.seen))
		}
		s.Keys.Wrapper = unlocked{k}
		if s.verify(spring) == nil {
			t.Error("a KEK that unwraps was taken for dead")
		}
		clean("verify")
	}
}

// unlocked is KMS in which every key unwraps.
type unlocked struct{ *secrets }

func (u unlocked) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	dek, err := u.secrets.Decrypt(ctx, id, wrapped, encctx)
	if err != nil {
		dek = []byte("a data key")
		u.keep(dek)
	}
	return dek, nil
}
