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
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Trust is what a verifier brings along and takes from nobody: which logs it trusts and
// which keys sign anchors. Keep it where a person who can write to the bucket cannot change
// it; otherwise the verification proves nothing.
type Trust struct {
	Logs       []Log       `json:"logs"`
	AnchorKeys []PinnedKey `json:"anchor_keys,omitempty"`
}

// Log is a transparency log: a Rekor v2 instance, or one of its shards.
type Log struct {
	URL    string    `json:"url"`                 // base of its API
	Origin string    `json:"origin"`              // first line of its checkpoints
	Key    []byte    `json:"key"`                 // public key, PKIX DER: Ed25519 or ECDSA
	From   time.Time `json:"valid_from,omitzero"` // zero: from the beginning
	To     time.Time `json:"valid_to,omitzero"`   // zero: still valid
}

// PinnedKey is a public key that signed anchors from one moment to another.
type PinnedKey struct {
	Key  []byte    `json:"key"`                 // PKIX DER, ECDSA on P-256
	From time.Time `json:"valid_from,omitzero"` // zero: from the beginning
	To   time.Time `json:"valid_to,omitzero"`   // zero: still valid
}

// trustFields are the fields of a trust list.
var trustFields = fields{
	"logs":        {"url": nil, "origin": nil, "key": nil, "valid_from": nil, "valid_to": nil},
	"anchor_keys": {"key": nil, "valid_from": nil, "valid_to": nil},
}

// ParseTrust decodes a trust list strictly: an unknown, misspelt, doubled or null field,
// anything after the list, an unusable key, a log without a name, a time that ends before
// it begins, or no log at all is an error, which names the field. A list without anchor
// keys is one for writing: the deployment has its key from KMS.
func ParseTrust(b []byte) (Trust, error) {
	var t Trust
	if err := checkFields(b, trustFields); err != nil {
		return Trust{}, fmt.Errorf("trust list: %w", err)
	}
	if err := decodeStrict(b, &t); err != nil {
		return Trust{}, fmt.Errorf("trust list: %w", err)
	}
	var faults []error
	if len(t.Logs) == 0 {
		faults = append(faults, errors.New("logs: at least one is required"))
	}
	for i, l := range t.Logs {
		if l.URL == "" {
			faults = append(faults, fmt.Errorf("logs[%d].url: is required", i))
		}
		if _, err := l.newVerifier(); err != nil {
			faults = append(faults, fmt.Errorf("logs[%d]: %w", i, err))
		}
		if !isOrdered(l.From, l.To) {
			faults = append(faults, fmt.Errorf("logs[%d].valid_to: it is not after valid_from", i))
		}
	}
	for i, k := range t.AnchorKeys {
		if _, err := parseP256(k.Key); err != nil {
			faults = append(faults, fmt.Errorf("anchor_keys[%d]: %w", i, err))
		}
		if !isOrdered(k.From, k.To) {
			faults = append(faults, fmt.Errorf("anchor_keys[%d].valid_to: it is not after valid_from", i))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return Trust{}, fmt.Errorf("trust list: %w", err)
	}
	return t, nil
}

// Writable returns the logs that are valid at a time, the latest first. A writer uses an
// earlier one only if the latest accepts no entries.
func (t Trust) Writable(at time.Time) []Log {
	logs := slices.DeleteFunc(slices.Clone(t.Logs), func(l Log) bool { return !isWithin(at, l.From, l.To) })
	slices.SortStableFunc(logs, func(a, b Log) int { return b.From.Compare(a.From) })
	return logs
}

// The public Rekor instance begins a new shard about every year, names it in the Sigstore
// signing config, and freezes the shard before (rekor-tiles, SHARDING.md).
const (
	shardDomain = ".rekor.sigstore.dev"
	shardLife   = 330 * 24 * time.Hour
)

// Aging returns a warning if the list may soon name no log that accepts entries: its
// latest log is a shard of the public instance that is nearly a year old. It returns "" if
// there is nothing to warn of.
func (t Trust) Aging(at time.Time) string {
	var young Log
	for _, l := range t.Logs {
		if l.From.After(young.From) {
			young = l
		}
	}
	u, err := url.Parse(young.URL)
	if err != nil || !strings.HasSuffix(u.Hostname(), shardDomain) || at.Sub(young.From) < shardLife {
		return ""
	}
	return fmt.Sprintf("%s began %d days ago and shards are frozen about yearly: name its successor (matter ops audit trust --help)",
		u.Hostname(), int(at.Sub(young.From).Hours()/24))
}

// findPinnedKey returns the entry of a key that was an anchor key at a time.
func (t Trust) findPinnedKey(key []byte, at time.Time) (PinnedKey, bool) {
	for _, k := range t.AnchorKeys {
		if bytes.Equal(k.Key, key) && isWithin(at, k.From, k.To) {
			return k, true
		}
	}
	return PinnedKey{}, false
}

// findLogs returns the logs of an origin that had not ended at a time.
func (t Trust) findLogs(origin string, at time.Time) []Log {
	var out []Log
	for _, l := range t.Logs {
		if l.Origin == origin && isWithin(at, time.Time{}, l.To) {
			out = append(out, l)
		}
	}
	return out
}

// isOrdered reports whether a validity ends after it begins; a zero to has no end.
func isOrdered(from, to time.Time) bool { return to.IsZero() || to.After(from) }

// isWithin reports whether at is in [from, to); a zero to has no end.
func isWithin(at, from, to time.Time) bool {
	return !at.Before(from) && (to.IsZero() || at.Before(to))
}

// newVerifier returns the verifier of the log's signatures on signed notes
// (https://c2sp.org/signed-note). It fails if the log's name or key cannot be used.
func (l Log) newVerifier() (note.Verifier, error) {
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
		v.hash = hashKey(append([]byte(l.Origin+"\n\x01"), k...))
		v.verify = func(msg, sig []byte) bool { return ed25519.Verify(k, msg, sig) }
	case *ecdsa.PublicKey:
		v.hash = hashKey(l.Key)
		v.verify = func(msg, sig []byte) bool {
			sum := sha256.Sum256(msg)
			return ecdsa.VerifyASN1(k, sum[:], sig)
		}
	default:
		return nil, fmt.Errorf("log key: %T is neither Ed25519 nor ECDSA", pub)
	}
	return v, nil
}

// hashKey returns the first four bytes of SHA-256, which a signed note carries to name the
// key.
func hashKey(b []byte) uint32 {
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
