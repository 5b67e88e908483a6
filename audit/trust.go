package audit

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Trust is what a verifier brings along and takes from nobody: which logs it
// believes and whose anchors it expects. It is kept where whoever can write the
// bucket cannot change it.
type Trust struct {
	Logs       []Log       `json:"logs"`
	AnchorKeys []PinnedKey `json:"anchor_keys"`
}

// Log is a transparency log: a Rekor v2 instance, or one of its shards.
type Log struct {
	URL    string    `json:"url"`    // base of its API
	Origin string    `json:"origin"` // first line of its checkpoints
	Key    []byte    `json:"key"`    // public key, PKIX DER: Ed25519 or ECDSA
	From   time.Time `json:"valid_from"`
	To     time.Time `json:"valid_to,omitzero"` // zero: still valid
}

// PinnedKey is a public key that signed anchors from one moment to another.
type PinnedKey struct {
	Key  []byte    `json:"key"` // PKIX DER, ECDSA on P-256
	From time.Time `json:"valid_from"`
	To   time.Time `json:"valid_to,omitzero"` // zero: still valid
}

// ParseTrust decodes a trust list strictly: an unknown field, an unusable key or
// a log without a name is an error.
func ParseTrust(b []byte) (Trust, error) {
	var t Trust
	if err := strict(b, &t); err != nil {
		return Trust{}, fmt.Errorf("trust list: %w", err)
	}
	var faults []error
	for i, l := range t.Logs {
		if l.URL == "" {
			faults = append(faults, fmt.Errorf("logs[%d].url: is required", i))
		}
		if _, err := l.verifier(); err != nil {
			faults = append(faults, fmt.Errorf("logs[%d]: %w", i, err))
		}
	}
	for i, k := range t.AnchorKeys {
		if _, err := p256(k.Key); err != nil {
			faults = append(faults, fmt.Errorf("anchor_keys[%d]: %w", i, err))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return Trust{}, fmt.Errorf("trust list: %w", err)
	}
	return t, nil
}

// Current is the log to write to: of those valid at t the one that became so last.
func (t Trust) Current(at time.Time) (Log, bool) {
	var best Log
	found := false
	for _, l := range t.Logs {
		if within(at, l.From, l.To) && (!found || l.From.After(best.From)) {
			best, found = l, true
		}
	}
	return best, found
}

// pins reports whether key was an anchor key at a moment.
func (t Trust) pins(key []byte, at time.Time) bool {
	for _, k := range t.AnchorKeys {
		if bytes.Equal(k.Key, key) && within(at, k.From, k.To) {
			return true
		}
	}
	return false
}

// logs returns the logs of an origin that were valid at a moment.
func (t Trust) logs(origin string, at time.Time) []Log {
	var out []Log
	for _, l := range t.Logs {
		if l.Origin == origin && within(at, l.From, l.To) {
			out = append(out, l)
		}
	}
	return out
}

func within(at, from, to time.Time) bool {
	return !at.Before(from) && (to.IsZero() || at.Before(to))
}

// verifier checks the log's signatures on signed notes
// (https://c2sp.org/signed-note).
func (l Log) verifier() (note.Verifier, error) {
	if l.Origin == "" || strings.ContainsAny(l.Origin, "+ \n\t") {
		return nil, fmt.Errorf("origin %q is not a log's name", l.Origin)
	}
	pub, err := x509.ParsePKIXPublicKey(l.Key)
	if err != nil {
		return nil, fmt.Errorf("log key: %w", err)
	}
	v := &logVerifier{name: l.Origin}
	switch k := pub.(type) {
	case ed25519.PublicKey:
		v.hash = keyHash(append([]byte(l.Origin+"\n\x01"), k...))
		v.verify = func(msg, sig []byte) bool { return ed25519.Verify(k, msg, sig) }
	case *ecdsa.PublicKey:
		v.hash = keyHash(l.Key)
		v.verify = func(msg, sig []byte) bool {
			sum := sha256.Sum256(msg)
			return ecdsa.VerifyASN1(k, sum[:], sig)
		}
	default:
		return nil, fmt.Errorf("log key: %T is neither Ed25519 nor ECDSA", pub)
	}
	return v, nil
}

func keyHash(b []byte) uint32 {
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint32(sum[:])
}

// logVerifier is a [note.Verifier].
type logVerifier struct {
	name   string
	hash   uint32
	verify func(msg, sig []byte) bool
}

// Name implements [note.Verifier].
func (v *logVerifier) Name() string { return v.name }

// KeyHash implements [note.Verifier].
func (v *logVerifier) KeyHash() uint32 { return v.hash }

// Verify implements [note.Verifier].
func (v *logVerifier) Verify(msg, sig []byte) bool { return v.verify(msg, sig) }
