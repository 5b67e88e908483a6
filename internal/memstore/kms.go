package memstore

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// KMS is the key service: a [rotation.KeyAdmin] and a [rotation.Wrapper]. Blobs
// are AES-256-GCM under the key's own material, bound to the key and the
// encryption context; nonces, keys and DEKs come from counters, so that runs
// replay. It is no place for real secrets.
type KMS struct {
	w       *World
	keys    map[kek.ID]*material
	aliases map[alias]kek.ID
	made    uint64 // keys
	drawn   uint64 // nonces and DEKs
}

type (
	material struct {
		key      rotation.Key
		rotation string
		aead     cipher.AEAD
	}
	alias struct {
		rotation string
		attempt  int
	}
)

func newKMS(w *World) *KMS {
	return &KMS{w: w, keys: map[kek.ID]*material{}, aliases: map[alias]kek.ID{}}
}

// Create implements [rotation.KeyAdmin]. Key ids count up: kek-0001, kek-0002, …
func (m *KMS) Create(_ context.Context, rotationID string, attempt int, label string) (k rotation.Key, err error) {
	err = m.w.answer("KMS.Create", func() (any, error) {
		m.made++
		id := fmt.Sprintf("kek-%04d", m.made)
		aead, err := sealer(id)
		if err != nil {
			return nil, err
		}
		k = rotation.Key{
			ID: kek.ID(id), ARN: "arn:aws:kms:eu-central-1:000000000000:key/" + id,
			Enabled: true, Usable: true, State: "Enabled",
		}
		m.keys[k.ID] = &material{key: k, rotation: rotationID, aead: aead}
		return k.ID, nil
	}, rotationID, attempt, label)
	if err != nil {
		return rotation.Key{}, err
	}
	return k, nil
}

var sealers sync.Map // key id → its cipher.AEAD, the same in every world

// sealer is a key's material, which follows from its id.
func sealer(id string) (cipher.AEAD, error) {
	if made, ok := sealers.Load(id); ok {
		return made.(cipher.AEAD), nil
	}
	secret := sha256.Sum256([]byte(id))
	block, err := aes.NewCipher(secret[:])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	sealers.Store(id, aead)
	return aead, nil
}

// Claim implements [rotation.KeyAdmin].
func (m *KMS) Claim(_ context.Context, rotationID string, attempt int, id kek.ID) (owner kek.ID, err error) {
	err = m.w.answer("KMS.Claim", func() (any, error) {
		a := alias{rotationID, attempt}
		if owner = m.aliases[a]; owner != "" || id == "" {
			return owner, nil
		}
		if m.keys[id] == nil {
			return nil, fmt.Errorf("claim for %s: %w", id, rotation.ErrNoKey)
		}
		m.aliases[a], owner = id, id
		return owner, nil
	}, rotationID, attempt, id)
	if err != nil {
		return "", err
	}
	return owner, nil
}

// Describe implements [rotation.KeyAdmin].
func (m *KMS) Describe(_ context.Context, id kek.ID) (k rotation.Key, err error) {
	err = m.w.call("KMS.Describe", func() error {
		key := m.keys[id]
		if key == nil {
			return fmt.Errorf("describe %s: %w", id, rotation.ErrNoKey)
		}
		k = key.key
		return nil
	}, id)
	return k, err
}

// Disable implements [rotation.KeyAdmin].
func (m *KMS) Disable(_ context.Context, id kek.ID) error {
	return m.w.call("KMS.Disable", func() error {
		key := m.keys[id]
		if key == nil {
			return fmt.Errorf("disable %s: %w", id, rotation.ErrNoKey)
		}
		key.key.Enabled, key.key.State = false, "Disabled"
		return nil
	}, id)
}

// Enable undoes Disable, as a person at the console may. The hook does not see it,
// an observer does.
func (m *KMS) Enable(id kek.ID) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if key := m.keys[id]; key != nil {
		key.key.Enabled, key.key.State = true, "Enabled"
	}
	if m.w.seen != nil {
		m.w.seen("KMS.Enable", nil, nil, id)
	}
}

// Tagged implements [rotation.KeyAdmin], in order of id.
func (m *KMS) Tagged(_ context.Context, rotationID string) (ids []kek.ID, err error) {
	err = m.w.call("KMS.Tagged", func() error {
		for id, k := range m.keys {
			if k.rotation == rotationID {
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		return nil
	}, rotationID)
	return ids, err
}

// GenerateDataKey implements [rotation.Wrapper].
func (m *KMS) GenerateDataKey(_ context.Context, id kek.ID, encctx map[string]string) (dek, wrapped []byte, err error) {
	err = m.w.call("KMS.GenerateDataKey", func() error {
		key, err := m.usable(id)
		if err != nil {
			return err
		}
		secret := sha256.Sum256(binary.BigEndian.AppendUint64([]byte("dek"), m.drawn))
		dek, wrapped = secret[:], m.wrap(key, secret[:], encctx)
		return nil
	}, id, encctx)
	if err != nil {
		return nil, nil, err
	}
	return dek, wrapped, nil
}

// Decrypt implements [rotation.Wrapper].
func (m *KMS) Decrypt(_ context.Context, id kek.ID, wrapped []byte, encctx map[string]string) (dek []byte, err error) {
	err = m.w.call("KMS.Decrypt", func() (err error) {
		dek, err = m.unwrap(id, wrapped, encctx)
		return err
	}, id, wrapped, encctx)
	if err != nil {
		return nil, err
	}
	return dek, nil
}

// ReEncrypt implements [rotation.Wrapper].
func (m *KMS) ReEncrypt(_ context.Context, from, to kek.ID, wrapped []byte, encctx map[string]string) (out []byte, err error) {
	err = m.w.call("KMS.ReEncrypt", func() error {
		dek, err := m.unwrap(from, wrapped, encctx)
		if err != nil {
			return err
		}
		key, err := m.usable(to)
		if err != nil {
			return err
		}
		out = m.wrap(key, dek, encctx)
		return nil
	}, from, to, wrapped, encctx)
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (m *KMS) usable(id kek.ID) (*material, error) {
	key := m.keys[id]
	switch {
	case key == nil:
		return nil, fmt.Errorf("KMS key %s: %w", id, rotation.ErrNoKey)
	case !key.key.Enabled:
		return nil, fmt.Errorf("KMS key %s: %w", id, rotation.ErrKeyDisabled)
	}
	return key, nil
}

func (m *KMS) wrap(key *material, dek []byte, encctx map[string]string) []byte {
	m.drawn++
	nonce := make([]byte, key.aead.NonceSize(), key.aead.NonceSize()+len(dek)+key.aead.Overhead())
	binary.BigEndian.PutUint64(nonce[4:], m.drawn)
	return key.aead.Seal(nonce, nonce, dek, associated(encctx))
}

func (m *KMS) unwrap(id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	key, err := m.usable(id)
	if err != nil {
		return nil, err
	}
	n := key.aead.NonceSize()
	if len(wrapped) < n {
		return nil, fmt.Errorf("KMS key %s: %w", id, rotation.ErrUnwrap)
	}
	dek, err := key.aead.Open(nil, wrapped[:n], wrapped[n:], associated(encctx))
	if err != nil {
		return nil, fmt.Errorf("KMS key %s: %w", id, rotation.ErrUnwrap)
	}
	return dek, nil
}

// associated encodes an encryption context, sorted and with lengths.
func associated(encctx map[string]string) []byte {
	b := make([]byte, 0, 128)
	put := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	if len(encctx) == 1 {
		for k, v := range encctx {
			put(k)
			put(v)
		}
		return b
	}
	var few [4]string
	keys := few[:0]
	for k := range encctx {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		put(k)
		put(encctx[k])
	}
	return b
}
