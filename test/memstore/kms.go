package memstore

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// KMS is the key service: a [keyring.Admin] and a [keyring.Wrapper]. Blobs
// are AES-256-GCM under the key's own material, bound to the key and the
// encryption context; nonces, keys and DEKs come from counters, so that runs
// replay. It is no place for real secrets.
//
// A blob is a nonce and what AES-GCM makes:
//
//	0   4 bytes   number of the key
//	4   8 bytes   number of the blob
//	12  the DEK's length and 16 bytes
type KMS struct {
	w       *World
	keys    map[kek.ID]*material
	aliases map[alias]kek.ID
	made    uint32 // keys
	drawn   uint64 // nonces and DEKs
	events  uint64 // successful cryptographic operations
}

type (
	// material is a key. Its slices are shared with clones: they are only appended to
	// a copy, or replaced.
	material struct {
		key      keyring.Key
		number   uint32
		rotation string
		aead     cipher.AEAD

		grants, aliases, replicas, policy []string // as in [keyring.Use]
		used                              usage
	}
	// usage is the last successful cryptographic operation with a key.
	usage struct {
		operation string // "" for none
		at        time.Time
		event     uint64
	}
	alias struct {
		rotation string
		attempt  int
	}
)

func newKMS(w *World) *KMS {
	return &KMS{w: w, keys: map[kek.ID]*material{}, aliases: map[alias]kek.ID{}}
}

// Create implements [keyring.Admin]. Key ids count up: kek-0001, kek-0002, …
func (m *KMS) Create(ctx context.Context, rotationID string, attempt int, label string, old keyring.Key) (k keyring.Key, err error) {
	err = m.w.answer(ctx, "KMS.Create", func() (any, error) {
		m.made++
		id := keyID(m.made)
		aead, err := sealer(string(id))
		if err != nil {
			return nil, err
		}
		k = keyring.Key{
			ID: id, ARN: "arn:aws:kms:eu-central-1:000000000000:key/" + string(id),
			Enabled: true, Usable: true, State: "Enabled", Multi: old.Multi,
		}
		m.keys[k.ID] = &material{key: k, number: m.made, rotation: rotationID, aead: aead}
		return k.ID, nil
	}, rotationID, attempt, label, old.Multi)
	if err != nil {
		return keyring.Key{}, err
	}
	return k, nil
}

// keyID is the id of the key of a number.
func keyID(number uint32) kek.ID { return kek.ID(fmt.Sprintf("kek-%04d", number)) }

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
	var aead cipher.AEAD
	// Runs repeat only if the nonces are its own, which FIPS 140-3 mode refuses. It stands for
	// KMS, which is not in that mode's boundary.
	fips140.WithoutEnforcement(func() { aead, err = cipher.NewGCM(block) })
	if err != nil {
		return nil, err
	}
	sealers.Store(id, aead)
	return aead, nil
}

// Claim implements [keyring.Admin].
func (m *KMS) Claim(ctx context.Context, rotationID string, attempt int, id kek.ID) (owner kek.ID, err error) {
	err = m.w.answer(ctx, "KMS.Claim", func() (any, error) {
		a := alias{rotationID, attempt}
		if owner = m.aliases[a]; owner != "" || id == "" {
			return owner, nil
		}
		if m.keys[id] == nil {
			return nil, fmt.Errorf("claim for %s: %w", id, journal.ErrNoKey)
		}
		m.aliases[a], owner = id, id
		return owner, nil
	}, rotationID, attempt, id)
	if err != nil {
		return "", err
	}
	return owner, nil
}

// Describe implements [keyring.Admin].
func (m *KMS) Describe(ctx context.Context, id kek.ID) (k keyring.Key, err error) {
	err = m.w.call(ctx, "KMS.Describe", func() error {
		key := m.keys[id]
		if key == nil {
			return fmt.Errorf("describe %s: %w", id, journal.ErrNoKey)
		}
		k = key.key
		return nil
	}, id)
	return k, err
}

// Disable implements [keyring.Admin].
func (m *KMS) Disable(ctx context.Context, id kek.ID) error {
	return m.w.call(ctx, "KMS.Disable", func() error {
		key := m.keys[id]
		if key == nil {
			return fmt.Errorf("disable %s: %w", id, journal.ErrNoKey)
		}
		key.key.Enabled, key.key.State = false, "Disabled"
		return nil
	}, id)
}

// Enable undoes Disable, as a person at the console may. The hook does not see it,
// an observer does.
func (m *KMS) Enable(id kek.ID) {
	m.change("KMS.Enable", id, func(key *material) { key.key.Enabled, key.key.State = true, "Enabled" })
}

// AddGrant lets somebody else use a key. line is what [keyring.Use] says of the
// grant. As with Enable, the hook does not see it, an observer does.
func (m *KMS) AddGrant(id kek.ID, line string) {
	m.change("KMS.AddGrant", id, func(key *material) { key.grants = append(slices.Clip(key.grants), line) }, line)
}

// AddAlias gives a key an alias that is not the project's own. As with Enable, the
// hook does not see it, an observer does.
func (m *KMS) AddAlias(id kek.ID, name string) {
	m.change("KMS.AddAlias", id, func(key *material) { key.aliases = append(slices.Clip(key.aliases), name) }, name)
}

// SetMultiRegion makes a key a multi-Region primary with replicas in these Regions.
// As with Enable, the hook does not see it, an observer does.
func (m *KMS) SetMultiRegion(id kek.ID, replicas ...string) {
	m.change("KMS.SetMultiRegion", id, func(key *material) { key.key.Multi, key.replicas = true, slices.Clone(replicas) }, replicas)
}

// SetPolicy gives a key these statements beside the one that every new key has, by
// name. As with Enable, the hook does not see it, an observer does.
func (m *KMS) SetPolicy(id kek.ID, statements ...string) {
	m.change("KMS.SetPolicy", id, func(key *material) { key.policy = slices.Clone(statements) }, statements)
}

// change is what somebody else does to a key, if there is one of that id.
func (m *KMS) change(op string, id kek.ID, effect func(*material), args ...any) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if key := m.keys[id]; key != nil {
		effect(key)
	}
	if m.w.seen != nil {
		m.w.seen(person, op, nil, nil, append([]any{id}, args...)...)
	}
}

// Use implements [keyring.Admin], each list in order.
func (m *KMS) Use(ctx context.Context, id kek.ID) (use keyring.Use, err error) {
	err = m.w.call(ctx, "KMS.Use", func() error {
		key := m.keys[id]
		if key == nil {
			return fmt.Errorf("use of %s: %w", id, journal.ErrNoKey)
		}
		use = keyring.Use{
			Grants: slices.Sorted(slices.Values(key.grants)), Aliases: slices.Sorted(slices.Values(key.aliases)),
			MultiRegion: key.key.Multi, Replicas: slices.Sorted(slices.Values(key.replicas)),
			Policy: slices.Clone(key.policy),
		}
		if u := key.used; u.operation != "" {
			use.LastUse, use.LastUseAt, use.LastUseBy = u.operation, u.at, fmt.Sprintf("event-%06d", u.event)
		}
		return nil
	}, id)
	if err != nil {
		return keyring.Use{}, err
	}
	return use, nil
}

// PolicyDifferences implements [keyring.Admin]: the statements of SetPolicy.
func (m *KMS) PolicyDifferences(ctx context.Context, id kek.ID) (differences []string, err error) {
	err = m.w.call(ctx, "KMS.PolicyDifferences", func() error {
		key := m.keys[id]
		if key == nil {
			return fmt.Errorf("policy of %s: %w", id, journal.ErrNoKey)
		}
		for _, sid := range key.policy {
			differences = append(differences, "it has "+sid)
		}
		return nil
	}, id)
	return differences, err
}

// Tagged implements [keyring.Admin], in order of id.
func (m *KMS) Tagged(ctx context.Context, rotationID string) (ids []kek.ID, err error) {
	err = m.w.call(ctx, "KMS.Tagged", func() error {
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

// GenerateDataKey implements [keyring.Wrapper].
func (m *KMS) GenerateDataKey(ctx context.Context, id kek.ID, encctx map[string]string) (dek, wrapped []byte, err error) {
	err = m.w.answer(ctx, "KMS.GenerateDataKey", func() (any, error) {
		key, err := m.usable(id)
		if err != nil {
			return nil, err
		}
		secret := sha256.Sum256(binary.BigEndian.AppendUint64([]byte("dek"), m.drawn))
		dek, wrapped = secret[:], m.wrap(key, secret[:], encctx)
		m.note("GenerateDataKey", key)
		return DataKey{dek, wrapped}, nil
	}, id, encctx)
	if err != nil {
		return nil, nil, err
	}
	return dek, wrapped, nil
}

// Decrypt implements [keyring.Wrapper].
func (m *KMS) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) (dek []byte, err error) {
	err = m.w.answer(ctx, "KMS.Decrypt", func() (any, error) {
		key, secret, err := m.unwrap(id, wrapped, encctx)
		if err != nil {
			return nil, err
		}
		dek = secret
		m.note("Decrypt", key)
		return DataKey{dek, wrapped}, nil
	}, id, wrapped, encctx)
	if err != nil {
		return nil, err
	}
	return dek, nil
}

// Identify implements [keyring.Wrapper].
func (m *KMS) Identify(ctx context.Context, wrapped []byte, encctx map[string]string) (id kek.ID, arn string, err error) {
	err = m.w.call(ctx, "KMS.Identify", func() error {
		if len(wrapped) < 4 {
			return fmt.Errorf("identify the key of a blob: %w", journal.ErrUnwrap)
		}
		named := keyID(binary.BigEndian.Uint32(wrapped))
		if m.keys[named] == nil {
			return fmt.Errorf("identify the key of a blob: %w", journal.ErrUnwrap)
		}
		key, _, err := m.unwrap(named, wrapped, encctx)
		if err != nil {
			return err
		}
		id, arn = key.key.ID, key.key.ARN
		m.note("Decrypt", key)
		return nil
	}, wrapped, encctx)
	if err != nil {
		return "", "", err
	}
	return id, arn, nil
}

// ReEncrypt implements [keyring.Wrapper].
func (m *KMS) ReEncrypt(ctx context.Context, from, to kek.ID, wrapped []byte, encctx map[string]string) (out []byte, err error) {
	err = m.w.answer(ctx, "KMS.ReEncrypt", func() (any, error) {
		source, dek, err := m.unwrap(from, wrapped, encctx)
		if err != nil {
			return nil, err
		}
		destination, err := m.usable(to)
		if err != nil {
			return nil, err
		}
		out = m.wrap(destination, dek, encctx)
		m.note("ReEncrypt", source, destination)
		return DataKey{dek, out}, nil
	}, from, to, wrapped, encctx)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// note remembers a successful operation as the last use of its keys.
func (m *KMS) note(operation string, keys ...*material) {
	m.events++
	for _, key := range keys {
		key.used = usage{operation, m.w.now(), m.events}
	}
}

// Opened is what a blob wraps and which key does, whatever the key's state; false if none
// does. It is for observers: it takes no lock, and nobody sees it.
func (m *KMS) Opened(wrapped []byte, encctx map[string]string) (id kek.ID, dek []byte, ok bool) {
	if len(wrapped) < 4 {
		return "", nil, false
	}
	id = keyID(binary.BigEndian.Uint32(wrapped))
	key := m.keys[id]
	if key == nil || len(wrapped) < key.aead.NonceSize() {
		return "", nil, false
	}
	n := key.aead.NonceSize()
	dek, err := key.aead.Open(nil, wrapped[:n], wrapped[n:], associated(encctx))
	return id, dek, err == nil
}

func (m *KMS) usable(id kek.ID) (*material, error) {
	key := m.keys[id]
	switch {
	case key == nil:
		return nil, fmt.Errorf("KMS key %s: %w", id, journal.ErrNoKey)
	case !key.key.Enabled:
		return nil, fmt.Errorf("KMS key %s: %w", id, journal.ErrKeyDisabled)
	}
	return key, nil
}

func (m *KMS) wrap(key *material, dek []byte, encctx map[string]string) []byte {
	m.drawn++
	nonce := make([]byte, key.aead.NonceSize(), key.aead.NonceSize()+len(dek)+key.aead.Overhead())
	binary.BigEndian.PutUint32(nonce, key.number)
	binary.BigEndian.PutUint64(nonce[4:], m.drawn)
	return key.aead.Seal(nonce, nonce, dek, associated(encctx))
}

func (m *KMS) unwrap(id kek.ID, wrapped []byte, encctx map[string]string) (key *material, dek []byte, err error) {
	key, err = m.usable(id)
	if err != nil {
		return nil, nil, err
	}
	n := key.aead.NonceSize()
	if len(wrapped) < n {
		return nil, nil, fmt.Errorf("KMS key %s: %w", id, journal.ErrUnwrap)
	}
	dek, err = key.aead.Open(nil, wrapped[:n], wrapped[n:], associated(encctx))
	if err != nil {
		return nil, nil, fmt.Errorf("KMS key %s: %w", id, journal.ErrUnwrap)
	}
	return key, dek, nil
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
