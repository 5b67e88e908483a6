package audit

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// AnchorVersion is the version of anchors and their statements that this package
// writes. Since version 2 an anchor proves that its log's tree has grown from the tree of
// the anchor before. The signed statement has the version too, so that only the holder of
// the anchor key can make an anchor of version 1, which needs no such proof.
const AnchorVersion = 2

const (
	anchorDomain     = "matter-ops/kms-rotation audit anchor v1"
	anchorGenesis    = "matter-ops/kms-rotation audit anchors v1"
	maxSignedMessage = 4096 // bytes that KMS hashes and signs itself (KMS API reference, Sign)
)

// Statement is what an anchor says of a chain: record Seq has the hash Head. This fixes
// every record up to Seq, because each record commits to the one before. Anchors are a
// chain of their own. Fields are declared in the order of their JSON names, which makes
// the encoding canonical.
type Statement struct {
	Chain string `json:"chain"`
	Head  string `json:"head"` // hash of record Seq
	N     int64  `json:"n"`    // from 1
	Prev  string `json:"prev"` // digest of statement N-1
	Seq   int64  `json:"seq"`
	Time  string `json:"time"` // UTC, RFC 3339, milliseconds: the signer's claim
	V     int    `json:"v"`
}

// AnchorGenesis returns the Prev of the first statement of a chain.
func AnchorGenesis(chain string) string { return hashInDomain(anchorGenesis, []byte(chain)) }

// NewStatement returns statement n of a chain. It follows the statement whose digest is
// prev, and covers the records up to head.
func NewStatement(chain string, n int64, prev string, head Head, at time.Time) Statement {
	return Statement{
		V: AnchorVersion, Chain: chain, N: n, Prev: prev, Seq: head.Seq, Head: head.Hash,
		Time: at.UTC().Format(timeFormat),
	}
}

// Message returns what the anchor key signs: domain ‖ 0 ‖ canonical encoding. It fails if
// that is longer than KMS signs.
func (s Statement) Message() ([]byte, error) {
	b, err := encodeCanonical(s)
	if err != nil {
		return nil, err
	}
	msg := append([]byte(anchorDomain+"\x00"), b...)
	if len(msg) > maxSignedMessage {
		return nil, fmt.Errorf("audit statement has %d bytes, more than the %d that KMS signs", len(msg), maxSignedMessage)
	}
	return msg, nil
}

// Digest is the hex SHA-256 of [Statement.Message]: the digest in the log, and
// what the next statement has for Prev.
func (s Statement) Digest() (string, error) {
	b, err := encodeCanonical(s)
	if err != nil {
		return "", err
	}
	return hashInDomain(anchorDomain, b), nil
}

// Signed is a statement signed by an anchor key.
type Signed struct {
	Key       []byte    `json:"key"`       // public key, PKIX DER
	Signature []byte    `json:"signature"` // ECDSA P-256 over SHA-256, ASN.1
	Statement Statement `json:"statement"`
}

var errSignature = errors.New("the signature is not the key's over the statement")

// Verify checks the signature under the key that Signed itself names. It does not check
// that this key is an anchor key: see [Trust].
func (s Signed) Verify() error {
	key, err := parseP256(s.Key)
	if err != nil {
		return err
	}
	msg, err := s.Statement.Message()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(msg)
	if !ecdsa.VerifyASN1(key, sum[:], s.Signature) {
		return errSignature
	}
	return nil
}

// parseP256 decodes a public key in PKIX DER and refuses any other curve.
func parseP256(der []byte) (*ecdsa.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("anchor key: %w", err)
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("anchor key: it is not ECDSA on P-256")
	}
	return key, nil
}

// Anchor is a signed statement with the proof that a public log holds it.
type Anchor struct {
	Proof  Proof  `json:"proof"`
	Signed Signed `json:"signed"`
	V      int    `json:"v"`
}

// Encode returns the one encoding of an anchor, as it is stored.
func (a Anchor) Encode() ([]byte, error) {
	if a.Proof.Hashes == nil {
		a.Proof.Hashes = [][]byte{} // the tree of one entry: a path, an empty one
	}
	return encodeCanonical(a)
}

// ParseAnchor decodes a stored anchor and refuses any other encoding of it.
func ParseAnchor(b []byte) (Anchor, error) {
	var a Anchor
	if err := decodeStrict(b, &a); err != nil {
		return Anchor{}, fmt.Errorf("audit anchor: %w", err)
	}
	again, err := a.Encode()
	if err != nil {
		return Anchor{}, err
	}
	s := a.Signed.Statement
	switch {
	case !bytes.Equal(again, b):
		return Anchor{}, fmt.Errorf("audit anchor: %w", ErrNotCanonical)
	case a.V < 1 || a.V > AnchorVersion:
		return Anchor{}, fmt.Errorf("audit anchor %d has version %d, this program knows 1 to %d", s.N, a.V, AnchorVersion)
	case s.V != a.V:
		return Anchor{}, fmt.Errorf("audit anchor %d has version %d, its statement %d", s.N, a.V, s.V)
	case a.V == 1 && a.Proof.Consistency != nil:
		return Anchor{}, fmt.Errorf("audit anchor %d has version 1 and a consistency proof", s.N)
	}
	return a, nil
}

// AnchorKey returns the key of an anchor in the bucket: v1/<chain>/anchors/<12 digits>.json.
func AnchorKey(chain string, n int64) string {
	return fmt.Sprintf("v1/%s/anchors/%012d.json", chain, n)
}

// encodeCanonical returns the only accepted encoding of v: fields in the order of their
// declaration, no white space, no HTML escapes.
func encodeCanonical(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
