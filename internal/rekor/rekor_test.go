package rekor_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/rekor"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/localaws/rekorlocal"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// log is a log under test and the way to it.
type log struct {
	audit.Log
	http *http.Client
}

// logs are the log in memory and the real server: both pass the same suite.
var logs = map[string]func(t *testing.T) log{
	"memory": func(t *testing.T) log {
		t.Helper()
		l := rekortest.New(t)
		return log{l.Trust(), l.Client(nil)}
	},
	"rekor-tiles": func(t *testing.T) log {
		t.Helper()
		l := realLog(t, t.TempDir())
		return log{l.Trust(), &http.Client{Timeout: rekor.Timeout}}
	},
}

func realLog(t *testing.T, dir string) *rekorlocal.Log {
	t.Helper()
	l, err := rekorlocal.Start(t.Context(), rekorlocal.Options{Dir: dir, Interval: time.Second})
	if errors.Is(err, backend.ErrNotInstalled) && os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Stop)
	return l
}

func statement(t *testing.T, key *rekortest.Key, n int64) audit.Signed {
	t.Helper()
	head := audit.Head{Seq: n, Hash: audit.Genesis("c").Hash}
	return key.Statement(t, audit.NewStatement("c", n, audit.AnchorGenesis("c"), head, time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)))
}

// mustProve submits s and verifies the proof.
func mustProve(t *testing.T, l log, s audit.Signed) audit.Proof {
	t.Helper()
	p, err := rekor.New(l.http).Submit(t.Context(), l.Log, s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Verify(s, audit.Trust{Logs: []audit.Log{l.Log}}); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSubmit(t *testing.T) {
	for name, open := range logs {
		t.Run(name, func(t *testing.T) {
			l := open(t)
			key := rekortest.NewKey(t)
			first := mustProve(t, l, statement(t, key, 1))
			second := mustProve(t, l, statement(t, key, 2))
			if first.Index != 0 || second.Index != 1 || len(second.Hashes) != 1 {
				t.Errorf("indexes %d and %d, path %d", first.Index, second.Index, len(second.Hashes))
			}
		})
	}
}

// TestSubmitAgain finds by its tiles what is in the log already, however large the
// log has grown, and adds nothing.
func TestSubmitAgain(t *testing.T) {
	const others = 300 // more than a tile
	for name, open := range logs {
		t.Run(name, func(t *testing.T) {
			l := open(t)
			key := rekortest.NewKey(t)
			s := statement(t, key, 1)
			first := mustProve(t, l, s)
			var wg sync.WaitGroup
			for n := range others {
				wg.Go(func() {
					if _, err := rekor.New(l.http).Submit(t.Context(), l.Log, statement(t, key, int64(n+2))); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			again := mustProve(t, l, s)
			if again.Index != first.Index || len(again.Hashes) < 8 {
				t.Errorf("first %d, again %d with a path of %d", first.Index, again.Index, len(again.Hashes))
			}
			if next := mustProve(t, l, statement(t, key, others+2)); next.Index != others+1 {
				t.Errorf("the next entry has index %d, want %d", next.Index, others+1)
			}
		})
	}
}

// opened is the checkpoint of a proof, verified.
func opened(t *testing.T, l log, p audit.Proof) audit.Checkpoint {
	t.Helper()
	c, err := l.OpenCheckpoint(p.Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestConsistency proves by the tiles that a log has grown, over more than a tile, and
// finds a checkpoint of before that is of another tree.
func TestConsistency(t *testing.T) {
	for name, open := range logs {
		t.Run(name, func(t *testing.T) {
			l := open(t)
			key := rekortest.NewKey(t)
			at := []audit.Checkpoint{opened(t, l, mustProve(t, l, statement(t, key, 1)))}
			for n := int64(2); len(at) < 4; n += 150 {
				var wg sync.WaitGroup
				for i := range int64(149) {
					wg.Go(func() {
						if _, err := rekor.New(l.http).Submit(t.Context(), l.Log, statement(t, key, n+1+i)); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				at = append(at, opened(t, l, mustProve(t, l, statement(t, key, n))))
			}
			for i, c := range at {
				for _, earlier := range at[:i+1] {
					proof, err := rekor.New(l.http).Consistency(t.Context(), l.Log, earlier, c)
					if err != nil {
						t.Fatal(err)
					}
					if err := c.VerifyConsistency(earlier, proof); err != nil {
						t.Error(err)
					}
					fork := earlier
					fork.Root = bytes.Repeat([]byte{1}, 32)
					if err := c.VerifyConsistency(fork, proof); !errors.Is(err, audit.ErrConsistency) {
						t.Errorf("sizes %d and %d: a fork is taken: %v", earlier.Size, c.Size, err)
					}
				}
			}
		})
	}
}

// TestForkHasNoProof: tiles that are not of the checkpoint's tree show a fork, an answer
// that does not come does not.
func TestForkHasNoProof(t *testing.T) {
	l, fork := rekortest.New(t), rekortest.New(t)
	var at []audit.Checkpoint
	for n := range 5 {
		l.Append([]byte{byte(n)})
		fork.Append([]byte{1, byte(n)})
		c, err := l.Trust().OpenCheckpoint(l.Prove(0).Checkpoint)
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, c)
	}
	if _, err := rekor.New(fork.Client(nil)).Consistency(t.Context(), l.Trust(), at[2], at[4]); !errors.Is(err, audit.ErrConsistency) || !strings.Contains(err.Error(), "tree sizes 3 and 5") {
		t.Errorf("tiles of a fork: %v", err)
	}
	for name, answers := range map[string]func() (*http.Response, error){
		"no answer": func() (*http.Response, error) { return nil, errWire },
		"an error":  func() (*http.Response, error) { return answer(503, ""), nil },
		"too short": func() (*http.Response, error) { return answer(200, "tile"), nil },
	} {
		client := l.Client(func(*http.Request, func() *http.Response) (*http.Response, error) { return answers() })
		if p, err := rekor.New(client).Consistency(t.Context(), l.Trust(), at[2], at[4]); err == nil || errors.Is(err, audit.ErrConsistency) || p != nil {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
}

// TestRestart shows that a log that was killed continues with the same key, and that
// an entry whose answer was lost is found.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	key := rekortest.NewKey(t)
	client := &http.Client{Timeout: rekor.Timeout}
	was := realLog(t, dir)
	s := statement(t, key, 1)
	before := mustProve(t, log{was.Trust(), client}, s)
	was.Stop()
	if _, err := rekor.New(client).Submit(t.Context(), was.Trust(), s); err == nil || errors.Is(err, anchor.ErrLogRefused) {
		t.Errorf("submit to a dead log: %v, want an error that does not say refused", err)
	}
	is := realLog(t, dir)
	trust := is.Trust()
	if !bytes.Equal(trust.Key, was.Trust().Key) {
		t.Fatal("the log has another key")
	}
	if after := mustProve(t, log{trust, client}, s); after.Index != before.Index {
		t.Errorf("index %d before, %d after", before.Index, after.Index)
	}
}

// TestStatuses shows what an answer means to the caller.
func TestStatuses(t *testing.T) {
	for status, refused := range map[int]bool{
		400: true, 403: true, 404: true, 405: true,
		408: false, 425: false, 429: false, 499: false, 500: false, 502: false, 503: false, 504: false,
	} {
		l := rekortest.New(t)
		client := l.Client(func(*http.Request, func() *http.Response) (*http.Response, error) {
			return answer(status, `{"message":"no"}`), nil
		})
		_, err := rekor.New(client).Submit(t.Context(), l.Trust(), statement(t, rekortest.NewKey(t), 1))
		if err == nil || errors.Is(err, anchor.ErrLogRefused) != refused {
			t.Errorf("status %d: %v, want refused %t", status, err, refused)
		}
	}
}

func answer(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader([]byte(body)))}
}

// TestLies shows that what a log answers is not believed.
func TestLies(t *testing.T) {
	key := rekortest.NewKey(t)
	good, other := statement(t, key, 1), statement(t, key, 2)
	for name, lie := range map[string]func(l *rekortest.Log) *http.Response{
		"no JSON":               func(*rekortest.Log) *http.Response { return answer(201, "<html>") },
		"nothing":               func(*rekortest.Log) *http.Response { return answer(201, "{}") },
		"the proof of another":  func(l *rekortest.Log) *http.Response { return answer(201, tle(l.Submit(t, other))) },
		"a tree of another log": func(*rekortest.Log) *http.Response { return answer(201, tle(rekortest.New(t).Submit(t, good))) },
		"a conflict without an index": func(l *rekortest.Log) *http.Response {
			l.Submit(t, good)
			return answer(409, "{}")
		},
		"a conflict with another's index": func(l *rekortest.Log) *http.Response {
			l.Submit(t, other)
			r := answer(409, "{}")
			r.Header.Set("X-Log-Index", "0")
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := rekortest.New(t)
			client := l.Client(func(r *http.Request, next func() *http.Response) (*http.Response, error) {
				if r.Method == http.MethodPost {
					return lie(l), nil
				}
				return next(), nil
			})
			p, err := rekor.New(client).Submit(t.Context(), l.Trust(), good)
			if err == nil {
				_, err = p.Verify(good, audit.Trust{Logs: []audit.Log{l.Trust()}})
			}
			if err == nil {
				t.Error("it was believed")
			}
		})
	}
}

// tle is a log's answer that holds p.
func tle(p audit.Proof) string {
	return fmt.Sprintf(`{"logIndex":"%d","inclusionProof":{"hashes":[],"checkpoint":{"envelope":%q}},"canonicalizedBody":%q}`,
		p.Index, p.Checkpoint, base64.StdEncoding.EncodeToString(p.Body))
}

// TestTruth shows that the answer which TestLies builds is believed when it is true.
func TestTruth(t *testing.T) {
	l := rekortest.New(t)
	s := statement(t, rekortest.NewKey(t), 1)
	client := l.Client(func(*http.Request, func() *http.Response) (*http.Response, error) {
		return answer(201, tle(l.Submit(t, s))), nil
	})
	mustProve(t, log{l.Trust(), client}, s)
}
