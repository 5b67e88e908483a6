// Package rekortest is a Rekor v2 log in memory, for fault schedules and for
// forging: it builds the same trees, proofs and signed checkpoints, answers the
// same statuses, and integrates at once. internal/rekor holds it and the real
// server to one suite.
package rekortest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/matter-ops/kms-rotation/audit"
)

// Origin is the name of the log.
const Origin = "rekor.test"

// URL is its address, which only [Log.Client] reaches.
const URL = "http://" + Origin

// Log is one log.
type Log struct {
	origin string
	key    ed25519.PrivateKey

	mu     sync.Mutex
	hashes []tlog.Hash // as tlog stores them
	bodies [][]byte
}

// New returns an empty log with a key of its own.
func New(tb testing.TB) *Log {
	tb.Helper()
	return Named(tb, Origin)
}

// Named is New for a log of another name.
func Named(tb testing.TB, origin string) *Log {
	tb.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return &Log{origin: origin, key: key}
}

// Fork returns an empty log with the key of this one: what a log could show to
// somebody else.
func (l *Log) Fork() *Log { return &Log{origin: l.origin, key: l.key} }

// Trust is the log as a trust list names it.
func (l *Log) Trust() audit.Log {
	der, err := x509.MarshalPKIXPublicKey(l.key.Public())
	if err != nil {
		panic(err) // an Ed25519 key can always be encoded
	}
	return audit.Log{URL: "http://" + l.origin, Origin: l.origin, Key: der}
}

// Entries returns the entries of the log.
func (l *Log) Entries() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([][]byte(nil), l.bodies...)
}

// Client returns an HTTP client whose requests all end at this log. Each goes
// through wire, if that is not nil, which may do without calling next.
func (l *Log) Client(wire func(r *http.Request, next func() *http.Response) (*http.Response, error)) *http.Client {
	return &http.Client{Transport: trip(func(r *http.Request) (*http.Response, error) {
		next := func() *http.Response {
			w := httptest.NewRecorder()
			l.ServeHTTP(w, r)
			return w.Result()
		}
		if wire == nil {
			return next(), nil
		}
		return wire(r, next)
	})}
}

type trip func(*http.Request) (*http.Response, error)

// RoundTrip implements [http.RoundTripper].
func (f trip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// ServeHTTP implements the log's API.
func (l *Log) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	path, reads := strings.CutPrefix(r.URL.Path, "/api/v2/")
	switch {
	case r.Method == http.MethodPost && path == "log/entries":
		l.create(w, r)
	case r.Method == http.MethodGet && reads && path == "checkpoint":
		_, _ = w.Write([]byte(l.checkpoint(int64(len(l.bodies)))))
	case r.Method == http.MethodGet && reads:
		l.tile(w, path)
	default:
		http.Error(w, "no such method", http.StatusNotImplemented)
	}
}

type request struct {
	Rekord struct {
		Digest    []byte `json:"digest"`
		Signature struct {
			Content  []byte `json:"content"`
			Verifier struct {
				PublicKey struct {
					RawBytes []byte `json:"rawBytes"`
				} `json:"publicKey"`
				KeyDetails string `json:"keyDetails"`
			} `json:"verifier"`
		} `json:"signature"`
	} `json:"hashedRekordRequestV002"`
}

func (l *Log) create(w http.ResponseWriter, r *http.Request) {
	var in request
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s := in.Rekord.Signature
	pub, err := x509.ParsePKIXPublicKey(s.Verifier.PublicKey.RawBytes)
	key, ok := pub.(*ecdsa.PublicKey)
	if err != nil || !ok || key.Curve != elliptic.P256() || !ecdsa.VerifyASN1(key, in.Rekord.Digest, s.Content) {
		http.Error(w, `{"code":3, "message":"invalid hashedrekord request"}`, http.StatusBadRequest)
		return
	}
	body := Body(in.Rekord.Digest, s.Content, s.Verifier.PublicKey.RawBytes)
	for i, b := range l.bodies {
		if bytes.Equal(b, body) {
			w.Header().Set("X-Log-Index", strconv.Itoa(i))
			http.Error(w, `{"code":6, "message":"an equivalent entry already exists"}`, http.StatusConflict)
			return
		}
	}
	index := l.append(body)
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(l.answer(index))
}

// Body is the canonical JSON of a hashedrekord: maps are encoded sorted.
func Body(digest, signature, key []byte) []byte {
	type object = map[string]any
	b, err := json.Marshal(object{
		"apiVersion": "0.0.2", "kind": "hashedrekord",
		"spec": object{"hashedRekordV002": object{
			"data": object{"algorithm": "SHA2_256", "digest": digest},
			"signature": object{
				"content":  signature,
				"verifier": object{"keyDetails": "PKIX_ECDSA_P256_SHA_256", "publicKey": object{"rawBytes": key}},
			},
		}},
	})
	if err != nil {
		panic(err) // strings and bytes can always be encoded
	}
	return b
}

// Append puts any bytes into the log, as one who owns it could, and returns their
// index.
func (l *Log) Append(body []byte) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.append(body)
}

func (l *Log) append(body []byte) int64 {
	n := int64(len(l.bodies))
	hashes, err := tlog.StoredHashes(n, body, l.reader())
	if err != nil {
		panic(err) // every hash is in memory
	}
	l.hashes, l.bodies = append(l.hashes, hashes...), append(l.bodies, body)
	return n
}

func (l *Log) reader() tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, n := range indexes {
			if n >= int64(len(l.hashes)) {
				return nil, fmt.Errorf("no hash %d", n)
			}
			out[i] = l.hashes[n]
		}
		return out, nil
	})
}

// Prove returns the proof that entry index is in the tree of now.
func (l *Log) Prove(index int64) audit.Proof {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.prove(index)
}

func (l *Log) prove(index int64) audit.Proof {
	size := int64(len(l.bodies))
	path, err := tlog.ProveRecord(size, index, l.reader())
	if err != nil {
		panic(err)
	}
	p := audit.Proof{Body: l.bodies[index], Checkpoint: l.checkpoint(size), Hashes: [][]byte{}, Index: index}
	for _, h := range path {
		p.Hashes = append(p.Hashes, h[:])
	}
	return p
}

// Consistency returns the proof that the tree of a size holds that of an earlier size.
func (l *Log) Consistency(earlier, size int64) [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	proof, err := tlog.ProveTree(size, earlier, l.reader())
	if err != nil {
		panic(err)
	}
	out := [][]byte{}
	for _, h := range proof {
		out = append(out, h[:])
	}
	return out
}

func (l *Log) answer(index int64) any {
	type object = map[string]any
	p := l.prove(index)
	return object{
		"logIndex": strconv.FormatInt(index, 10), "integratedTime": "0", "inclusionPromise": nil,
		"kindVersion": object{"kind": "hashedrekord", "version": "0.0.2"},
		"inclusionProof": object{
			"logIndex": strconv.FormatInt(index, 10), "hashes": p.Hashes, "checkpoint": object{"envelope": p.Checkpoint},
		},
		"canonicalizedBody": p.Body,
	}
}

func (l *Log) checkpoint(size int64) string {
	root, err := tlog.TreeHash(size, l.reader())
	if err != nil {
		panic(err)
	}
	return l.Sign(size, root[:])
}

// Sign signs a checkpoint of any tree, as one who owns the log could.
func (l *Log) Sign(size int64, root []byte) string {
	text := fmt.Sprintf("%s\n%d\n%s\n", l.origin, size, base64.StdEncoding.EncodeToString(root))
	b, err := note.Sign(&note.Note{Text: text}, signer{l.origin, l.key})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// tile serves tile/<level>/<number>[.p/<width>].
func (l *Log) tile(w http.ResponseWriter, path string) {
	rest, ok := strings.CutPrefix(path, "tile/")
	t, err := tlog.ParseTilePath("tile/8/" + rest)
	if !ok || err != nil {
		http.NotFound(w, nil)
		return
	}
	b, err := tlog.ReadTileData(t, l.reader())
	if err != nil {
		http.NotFound(w, nil)
		return
	}
	_, _ = w.Write(b) //nolint:gosec // hashes, for no browser
}

// signer is a [note.Signer] of the log.
type signer struct {
	origin string
	key    ed25519.PrivateKey
}

// Name implements [note.Signer].
func (s signer) Name() string { return s.origin }

// KeyHash implements [note.Signer].
func (s signer) KeyHash() uint32 {
	pub, _ := s.key.Public().(ed25519.PublicKey)
	sum := sha256.Sum256(append([]byte(s.origin+"\n\x01"), pub...))
	return binary.BigEndian.Uint32(sum[:])
}

// Sign implements [note.Signer].
func (s signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

// Key is an anchor key in memory.
type Key struct {
	private *ecdsa.PrivateKey
	// DER is the public key.
	DER []byte
}

// NewKey makes an anchor key.
func NewKey(tb testing.TB) *Key {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		tb.Fatal(err)
	}
	return &Key{private: k, DER: der}
}

// Statement signs a statement.
func (k *Key) Statement(tb testing.TB, s audit.Statement) audit.Signed {
	tb.Helper()
	msg, err := s.Message()
	if err != nil {
		tb.Fatal(err)
	}
	sig, err := k.Sign(tb.Context(), msg)
	if err != nil {
		tb.Fatal(err)
	}
	return audit.Signed{Key: k.DER, Signature: sig, Statement: s}
}

// PublicKey returns the public key.
func (k *Key) PublicKey(context.Context) ([]byte, error) { return k.DER, nil }

// Sign signs a message, as KMS does with ECDSA_SHA_256.
func (k *Key) Sign(_ context.Context, msg []byte) ([]byte, error) {
	sum := sha256.Sum256(msg)
	return ecdsa.SignASN1(rand.Reader, k.private, sum[:])
}

// Submit puts a signed statement into the log and returns its proof.
func (l *Log) Submit(tb testing.TB, s audit.Signed) audit.Proof {
	tb.Helper()
	body, err := s.LogEntry()
	if err != nil {
		tb.Fatal(err)
	}
	return l.Prove(l.Append(body))
}
