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

// Trust is what a verifier brings along and takes from nobody: which logs it
// believes and whose anchors it expects. It is kept where whoever can write the
// bucket cannot change it.
type Trust struct {
	Logs       []Log       `json:"logs"`
	AnchorKeys []PinnedKey `json:"anchor_keys,omitempty"`
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
	if err := strict(b, &t); err != nil {
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
		if _, err := l.verifier(); err != nil {
			faults = append(faults, fmt.Errorf("logs[%d]: %w", i, err))
		}
		if !ordered(l.From, l.To) {
			faults = append(faults, fmt.Errorf("logs[%d].valid_to: it is not after valid_from", i))
		}
	}
	for i, k := range t.AnchorKeys {
		if _, err := p256(k.Key); err != nil {
			faults = append(faults, fmt.Errorf("anchor_keys[%d]: %w", i, err))
		}
		if !ordered(k.From, k.To) {
			faults = append(faults, fmt.Errorf("anchor_keys[%d].valid_to: it is not after valid_from", i))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return Trust{}, fmt.Errorf("trust list: %w", err)
	}
	return t, nil
}

// Writable are the logs to write to at a moment, the one that became valid last first: an
// earlier one is for when that takes nothing.
func (t Trust) Writable(at time.Time) []Log {
	logs := slices.DeleteFunc(slices.Clone(t.Logs), func(l Log) bool { return !within(at, l.From, l.To) })
	slices.SortStableFunc(logs, func(a, b Log) int { return b.From.Compare(a.From) })
	return logs
}

// The public instance begins a shard about every year and freezes the one before
// (rekor-tiles, SHARDING.md), with its name in the Sigstore signing config.
const (
	shardDomain = ".rekor.sigstore.dev"
	shardLife   = 330 * 24 * time.Hour
)

// Aging warns of a list that may soon name no log that takes entries: its youngest is a
// shard of the public instance, as old as shards become, and no successor is named. "" if
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

// pinned returns the entry of a key that was an anchor key at a moment.
func (t Trust) pinned(key []byte, at time.Time) (PinnedKey, bool) {
	for _, k := range t.AnchorKeys {
		if bytes.Equal(k.Key, key) && within(at, k.From, k.To) {
			return k, true
		}
	}
	return PinnedKey{}, false
}

// logs returns the logs of an origin that had not ended at a moment.
func (t Trust) logs(origin string, at time.Time) []Log {
	var out []Log
	for _, l := range t.Logs {
		if l.Origin == origin && within(at, time.Time{}, l.To) {
			out = append(out, l)
		}
	}
	return out
}

func ordered(from, to time.Time) bool { return to.IsZero() || to.After(from) }

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
