// Package rekor uploads signed statements to Rekor v2 logs (rekor-tiles), with plain JSON
// over HTTP. The log's own client would triple the size of a Lambda function.
//
//	POST <url>/api/v2/log/entries      200, 201: the proof; 409: the entry exists, X-Log-Index
//	GET  <url>/api/v2/checkpoint       a signed checkpoint
//	GET  <url>/api/v2/tile/<L>/<N>     256 hashes, or fewer as <N>.p/<W> (c2sp.org/tlog-tiles)
//
// It verifies only the checkpoint from which it reads a tree. Package audit verifies the
// returned proofs offline.
//
// Invariant: an error never means that the log does not hold the entry. To upload it again
// is safe: the log answers with the index of the existing entry, and the proof is made
// from the log's tiles.
package rekor

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
)

const (
	entriesPath = "/api/v2/log/entries"
	readPath    = "/api/v2/"
	indexHeader = "X-Log-Index"
	maxAnswer   = 1 << 20
	// Timeout is how long one request should be allowed to take: a log answers an upload
	// only when a checkpoint covers it, and public logs publish one every few seconds.
	Timeout = 30 * time.Second
	tries   = 8 // reads of a checkpoint until it covers an entry
	wait    = 500 * time.Millisecond
)

var _ anchor.TransparencyLog = (*Client)(nil)

// Client uploads to logs and reads their tiles.
type Client struct{ http *http.Client }

// New returns a client. The timeout of hc, see [Timeout], bounds each request.
func New(hc *http.Client) *Client { return &Client{http: hc} }

// Submit implements [anchor.TransparencyLog]. The error is [anchor.ErrLogRefused] if
// the log will never accept the statement; any other error is transient.
func (c *Client) Submit(ctx context.Context, l audit.Log, s audit.Signed) (audit.Proof, error) {
	body, err := encodeRequest(s)
	if err != nil {
		return audit.Proof{}, err
	}
	answer, err := c.sendRequest(ctx, http.MethodPost, strings.TrimSuffix(l.URL, "/")+entriesPath, body)
	if err != nil {
		return audit.Proof{}, fmt.Errorf("rekor upload: %w", err)
	}
	switch answer.status {
	case http.StatusOK, http.StatusCreated:
		p, err := decodeEntry(answer.body)
		if err != nil {
			return p, fmt.Errorf("rekor upload: %w", err)
		}
		return p, nil
	case http.StatusConflict:
		p, err := c.proveExisting(ctx, l, s, answer.index)
		if err != nil {
			return p, fmt.Errorf("rekor entry %s: %w", answer.index, err)
		}
		return p, nil
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests, 499:
		return audit.Proof{}, fmt.Errorf("rekor upload: %w", answer.statusError())
	default:
		if answer.status >= 400 && answer.status < 500 {
			return audit.Proof{}, fmt.Errorf("rekor upload: %w: %w", anchor.ErrLogRefused, answer.statusError())
		}
		return audit.Proof{}, fmt.Errorf("rekor upload: %w", answer.statusError())
	}
}

// createEntry is the body of an upload: a hashedrekord, which has the digest of the
// statement, its signature and the public key, and not the statement.
type createEntry struct {
	Request hashedRekordRequest `json:"hashedRekordRequestV002"`
}

type hashedRekordRequest struct {
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
}

// encodeRequest encodes the upload of a signed statement.
func encodeRequest(s audit.Signed) ([]byte, error) {
	digest, err := s.Statement.Digest()
	if err != nil {
		return nil, err
	}
	var c createEntry
	if c.Request.Digest, err = hex.DecodeString(digest); err != nil {
		return nil, err
	}
	sig := &c.Request.Signature
	sig.Content = s.Signature
	sig.Verifier.PublicKey.RawBytes = s.Key
	sig.Verifier.KeyDetails = "PKIX_ECDSA_P256_SHA_256"
	return json.Marshal(c)
}

// logEntry has the fields that are used of a TransparencyLogEntry (sigstore/protobuf-specs).
// Protobuf's JSON writes 64-bit numbers as strings.
type logEntry struct {
	LogIndex       int64 `json:"logIndex,string"`
	InclusionProof struct {
		Hashes     [][]byte `json:"hashes"`
		Checkpoint struct {
			Envelope string `json:"envelope"`
		} `json:"checkpoint"`
	} `json:"inclusionProof"`
	Body []byte `json:"canonicalizedBody"`
}

// decodeEntry decodes the answer to an upload as a proof, which is not verified yet.
func decodeEntry(b []byte) (audit.Proof, error) {
	var e logEntry
	if err := json.Unmarshal(b, &e); err != nil {
		return audit.Proof{}, fmt.Errorf("the log's answer cannot be read: %w", err)
	}
	return audit.Proof{
		Body: e.Body, Checkpoint: e.InclusionProof.Checkpoint.Envelope, Hashes: e.InclusionProof.Hashes, Index: e.LogIndex,
	}, nil
}

// answer is the answer of a log to one request.
type answer struct {
	status int
	index  string // of an entry that exists already
	body   []byte
}

func (a answer) statusError() error {
	return fmt.Errorf("HTTP status %d: %.200q", a.status, a.body)
}

// sendRequest sends one request. It reads at most maxAnswer bytes of the answer, because
// the log is not trusted.
func (c *Client) sendRequest(ctx context.Context, method, url string, body []byte) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("User-Agent", "matter-ops-kms-rotation")
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return answer{}, err
	}
	return answer{resp.StatusCode, resp.Header.Get(indexHeader), b}, nil
}

// proveExisting makes the proof of an entry that the log holds already, from its tiles. It
// waits until a checkpoint covers the entry.
func (c *Client) proveExisting(ctx context.Context, l audit.Log, s audit.Signed, index string) (audit.Proof, error) {
	i, err := strconv.ParseInt(index, 10, 64)
	if err != nil || i < 0 {
		return audit.Proof{}, fmt.Errorf("the log says that the entry exists and names no index: %q", index)
	}
	body, err := s.LogEntry()
	if err != nil {
		return audit.Proof{}, err
	}
	for range tries {
		var text string
		var at audit.Checkpoint
		if text, at, err = c.readCheckpoint(ctx, l); err != nil {
			return audit.Proof{}, err
		}
		if uint64(i) < at.Size {
			hashes, err := c.proveInclusion(ctx, l, at, i)
			return audit.Proof{Body: body, Checkpoint: text, Hashes: hashes, Index: i}, err
		}
		if err := remote.Wait(ctx, wait); err != nil {
			return audit.Proof{}, err
		}
	}
	return audit.Proof{}, errors.New("no checkpoint covers it yet")
}

// readCheckpoint reads the latest checkpoint of a log, as text and verified.
func (c *Client) readCheckpoint(ctx context.Context, l audit.Log) (string, audit.Checkpoint, error) {
	a, err := c.sendRequest(ctx, http.MethodGet, strings.TrimSuffix(l.URL, "/")+readPath+"checkpoint", nil)
	if err == nil && a.status != http.StatusOK {
		err = a.statusError()
	}
	if err != nil {
		return "", audit.Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	at, err := l.OpenCheckpoint(string(a.body))
	return string(a.body), at, err
}
