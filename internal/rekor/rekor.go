// Package rekor brings signed statements into Rekor v2 logs (rekor-tiles): plain
// JSON over HTTP, without the log's own client, which would triple a Lambda.
//
// It verifies nothing but the checkpoint that it reads a tree from; the proofs it
// returns are for package audit to verify offline.
//
// Invariant: an error never means that the log does not hold the entry. Uploading
// the same again finds it: the log answers with the entry's index, and the proof
// is made from the log's tiles.
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
	"github.com/matter-ops/kms-rotation/internal/backoff"
	"github.com/matter-ops/kms-rotation/rotation"
)

const (
	entriesPath = "/api/v2/log/entries"
	readPath    = "/api/v2/"
	indexHeader = "X-Log-Index"
	maxAnswer   = 1 << 20
	// Timeout is what one request should be given: a log answers an upload only when
	// a checkpoint covers it, which public ones publish every few seconds.
	Timeout = 30 * time.Second
	tries   = 8 // looks at a checkpoint until it covers an entry
	wait    = 500 * time.Millisecond
)

var _ rotation.TransparencyLog = (*Client)(nil)

// Client uploads to logs and reads their tiles.
type Client struct{ http *http.Client }

// New returns a client; the timeout of hc bounds each request.
func New(hc *http.Client) *Client { return &Client{http: hc} }

// Submit implements [rotation.TransparencyLog].
func (c *Client) Submit(ctx context.Context, l audit.Log, s audit.Signed) (audit.Proof, error) {
	body, err := request(s)
	if err != nil {
		return audit.Proof{}, err
	}
	answer, err := c.do(ctx, http.MethodPost, strings.TrimSuffix(l.URL, "/")+entriesPath, body)
	if err != nil {
		return audit.Proof{}, fmt.Errorf("rekor upload: %w", err)
	}
	switch answer.status {
	case http.StatusOK, http.StatusCreated:
		p, err := decode(answer.body)
		if err != nil {
			return p, fmt.Errorf("rekor upload: %w", err)
		}
		return p, nil
	case http.StatusConflict:
		p, err := c.find(ctx, l, s, answer.index)
		if err != nil {
			return p, fmt.Errorf("rekor entry %s: %w", answer.index, err)
		}
		return p, nil
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests, 499:
		return audit.Proof{}, fmt.Errorf("rekor upload: %w", answer.err())
	default:
		if answer.status >= 400 && answer.status < 500 {
			return audit.Proof{}, fmt.Errorf("rekor upload: %w: %w", rotation.ErrLogRefused, answer.err())
		}
		return audit.Proof{}, fmt.Errorf("rekor upload: %w", answer.err())
	}
}

// createEntry is the request for a hashedrekord.
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

func request(s audit.Signed) ([]byte, error) {
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

// logEntry is a TransparencyLogEntry, of which only these fields matter; 64-bit
// numbers are strings in protobuf's JSON.
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

func decode(b []byte) (audit.Proof, error) {
	var e logEntry
	if err := json.Unmarshal(b, &e); err != nil {
		return audit.Proof{}, fmt.Errorf("the log's answer cannot be read: %w", err)
	}
	return audit.Proof{
		Body: e.Body, Checkpoint: e.InclusionProof.Checkpoint.Envelope, Hashes: e.InclusionProof.Hashes, Index: e.LogIndex,
	}, nil
}

type answer struct {
	status int
	index  string // of an entry that is there already
	body   []byte
}

func (a answer) err() error {
	return fmt.Errorf("HTTP status %d: %.200q", a.status, a.body)
}

func (c *Client) do(ctx context.Context, method, url string, body []byte) (answer, error) {
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

// find makes the proof of an entry that the log holds from its tiles.
func (c *Client) find(ctx context.Context, l audit.Log, s audit.Signed, index string) (audit.Proof, error) {
	i, err := strconv.ParseInt(index, 10, 64)
	if err != nil || i < 0 {
		return audit.Proof{}, fmt.Errorf("the log says that the entry is there and names no index: %q", index)
	}
	body, err := s.LogEntry()
	if err != nil {
		return audit.Proof{}, err
	}
	for range tries {
		var text string
		var at audit.Checkpoint
		if text, at, err = c.checkpoint(ctx, l); err != nil {
			return audit.Proof{}, err
		}
		if uint64(i) < at.Size {
			hashes, err := c.inclusion(ctx, l, at, i)
			return audit.Proof{Body: body, Checkpoint: text, Hashes: hashes, Index: i}, err
		}
		if err := backoff.Sleep(ctx, wait); err != nil {
			return audit.Proof{}, err
		}
	}
	return audit.Proof{}, errors.New("no checkpoint covers it yet")
}

func (c *Client) checkpoint(ctx context.Context, l audit.Log) (string, audit.Checkpoint, error) {
	a, err := c.do(ctx, http.MethodGet, strings.TrimSuffix(l.URL, "/")+readPath+"checkpoint", nil)
	if err == nil && a.status != http.StatusOK {
		err = a.err()
	}
	if err != nil {
		return "", audit.Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	at, err := l.OpenCheckpoint(string(a.body))
	return string(a.body), at, err
}
