package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

// Proof proves that a Rekor v2 log holds an entry: the entry, a checkpoint that the log
// signed, and the inclusion path between the two.
type Proof struct {
	Body       []byte `json:"body"`       // the entry: canonical JSON of a hashedrekord
	Checkpoint string `json:"checkpoint"` // signed note
	// Consistency leads from the checkpoint of the anchor before to this one (RFC 6962).
	// It is empty if they are in two logs or the trees are equal, and nil in anchors of
	// version 1.
	Consistency [][]byte `json:"consistency,omitzero"`
	Hashes      [][]byte `json:"hashes"` // inclusion path, leaf to root
	Index       int64    `json:"index"`  // of the entry in the log
}

// The ways in which a proof fails.
var (
	// ErrLogUnknown reports a checkpoint of a log that the trust list does not name,
	// or not for that time.
	ErrLogUnknown = errors.New("no trusted log has this origin at this time")
	// ErrCheckpoint reports a checkpoint that its log did not sign.
	ErrCheckpoint = errors.New("the log did not sign this checkpoint")
	// ErrBody reports a log entry that belongs to another statement.
	ErrBody = errors.New("the log entry is another one")
	// ErrInclusion reports an entry that is not in the tree of the checkpoint.
	ErrInclusion = errors.New("the log entry is not in the tree of the checkpoint")
)

// Checkpoint is the size and the root of a log's tree, as the log signed them.
type Checkpoint struct {
	Origin string
	Size   uint64
	Root   []byte
}

// Verify checks offline that a trusted log holds s: the entry has exactly the digest,
// signature and key of s, the checkpoint is signed under the pinned key of the log, and
// the entry is in the checkpoint's tree. The log must not have ended at the time of the
// statement, which is the signer's claim. It may have begun later, because a statement
// that waits for its log goes to the log's successor. Consistency is not checked here: see
// [Checkpoint.VerifyConsistency]. The errors are [ErrLogUnknown], [ErrCheckpoint],
// [ErrBody] and [ErrInclusion].
func (p Proof) Verify(s Signed, trust Trust) (Checkpoint, error) {
	_, c, err := p.verifyInLog(s, trust)
	return c, err
}

// verifyInLog is [Proof.Verify], and also returns the log.
func (p Proof) verifyInLog(s Signed, trust Trust) (Log, Checkpoint, error) {
	at, err := time.Parse(timeFormat, s.Statement.Time)
	if err != nil {
		return Log{}, Checkpoint{}, fmt.Errorf("statement time: %w", err)
	}
	if err := p.checkBody(s); err != nil {
		return Log{}, Checkpoint{}, err
	}
	l, c, err := openCheckpoint(p.Checkpoint, trust, at)
	if err != nil {
		return Log{}, Checkpoint{}, err
	}
	leaf := rfc6962.DefaultHasher.HashLeaf(p.Body)
	if p.Index < 0 {
		return l, c, fmt.Errorf("%w: index %d", ErrInclusion, p.Index)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(p.Index), c.Size, leaf, p.Hashes, c.Root); err != nil {
		return l, c, fmt.Errorf("%w: index %d, tree size %d: %w", ErrInclusion, p.Index, c.Size, err)
	}
	return l, c, nil
}

// Origin returns the name of the log that the checkpoint claims. It is not verified.
func (p Proof) Origin() string { return readOrigin(p.Checkpoint) }

// OpenCheckpoint verifies the signature of this log on a checkpoint and decodes it. Its
// error is [ErrCheckpoint], unless the log's own name or key cannot be used.
func (l Log) OpenCheckpoint(text string) (Checkpoint, error) {
	v, err := l.newVerifier()
	if err != nil {
		return Checkpoint{}, err
	}
	n, err := note.Open([]byte(text), note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	return parseCheckpoint(n.Text, l.Origin)
}

// openCheckpoint finds the trusted log of a checkpoint and verifies it.
func openCheckpoint(text string, trust Trust, at time.Time) (Log, Checkpoint, error) {
	logs := trust.findLogs(readOrigin(text), at)
	if len(logs) == 0 {
		return Log{}, Checkpoint{}, fmt.Errorf("%w: %q at %s", ErrLogUnknown, readOrigin(text), at.Format(timeFormat))
	}
	var last error
	for _, l := range logs { // more than one while a log changes its key
		c, err := l.OpenCheckpoint(text)
		if err == nil {
			return l, c, nil
		}
		last = err
	}
	return Log{}, Checkpoint{}, last
}

// readOrigin returns the name that a checkpoint claims for its log: its first line.
func readOrigin(checkpoint string) string {
	name, _, _ := strings.Cut(checkpoint, "\n")
	return name
}

// parseCheckpoint reads the text of a checkpoint (https://c2sp.org/tlog-checkpoint):
// origin, size, root, and extensions that do not matter here, a line each.
func parseCheckpoint(text, origin string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 || lines[0] != origin {
		return Checkpoint{}, fmt.Errorf("%w: it is not one of %q", ErrCheckpoint, origin)
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: tree size: %w", ErrCheckpoint, err)
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(root) != rfc6962.DefaultHasher.Size() {
		return Checkpoint{}, fmt.Errorf("%w: root hash %q", ErrCheckpoint, lines[2])
	}
	return Checkpoint{Origin: origin, Size: size, Root: root}, nil
}

// How the entry of a statement was signed, in a hashedrekord's terms.
const (
	keyDetails    = "PKIX_ECDSA_P256_SHA_256"
	hashAlgorithm = "SHA2_256"
)

// rekord is the entry of a Rekor v2 log, its fields in the order of canonical JSON
// (RFC 8785).
type rekord struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		HashedRekord hashedRekord `json:"hashedRekordV002"`
	} `json:"spec"`
}

// hashedRekord has the digest of a statement, its signature and the public key.
type hashedRekord struct {
	Data struct {
		Algorithm string `json:"algorithm"`
		Digest    []byte `json:"digest"`
	} `json:"data"`
	Signature struct {
		Content  []byte `json:"content"`
		Verifier struct {
			KeyDetails string `json:"keyDetails"`
			PublicKey  struct {
				RawBytes []byte `json:"rawBytes"`
			} `json:"publicKey"`
		} `json:"verifier"`
	} `json:"signature"`
}

// LogEntry returns the entry that a log makes of s, byte for byte. Only so can a verifier
// be sure that the entry is not for another statement.
func (s Signed) LogEntry() ([]byte, error) {
	hexed, err := s.Statement.Digest()
	if err != nil {
		return nil, err
	}
	sum, err := hex.DecodeString(hexed)
	if err != nil {
		return nil, err
	}
	r := rekord{APIVersion: "0.0.2", Kind: "hashedrekord"}
	h := &r.Spec.HashedRekord
	h.Data.Algorithm, h.Data.Digest = hashAlgorithm, sum
	h.Signature.Content = s.Signature
	h.Signature.Verifier.KeyDetails = keyDetails
	h.Signature.Verifier.PublicKey.RawBytes = s.Key
	return encodeCanonical(r)
}

// checkBody compares the entry with the one that a log makes of s. The error says what
// differs.
func (p Proof) checkBody(s Signed) error {
	want, err := s.LogEntry()
	if err != nil {
		return err
	}
	if bytes.Equal(p.Body, want) {
		return nil
	}
	var got, must rekord
	if err := decodeStrict(want, &must); err != nil {
		return err
	}
	if err := decodeStrict(p.Body, &got); err != nil {
		return fmt.Errorf("%w: %w", ErrBody, err)
	}
	g, w := got.Spec.HashedRekord, must.Spec.HashedRekord
	switch {
	case got.APIVersion != must.APIVersion || got.Kind != must.Kind:
		return fmt.Errorf("%w: it is %s %s, this program knows %s %s", ErrBody, got.Kind, got.APIVersion, must.Kind, must.APIVersion)
	case g.Data.Algorithm != w.Data.Algorithm || !bytes.Equal(g.Data.Digest, w.Data.Digest):
		return fmt.Errorf("%w: its digest is that of another statement", ErrBody)
	case !bytes.Equal(g.Signature.Content, w.Signature.Content):
		return fmt.Errorf("%w: it has another signature", ErrBody)
	case !bytes.Equal(g.Signature.Verifier.PublicKey.RawBytes, w.Signature.Verifier.PublicKey.RawBytes):
		return fmt.Errorf("%w: it has another key", ErrBody)
	default:
		return fmt.Errorf("%w: it is not encoded canonically", ErrBody)
	}
}
