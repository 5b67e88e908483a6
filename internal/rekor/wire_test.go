package rekor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/rekor"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

var errWire = errors.New("the wire is cut")

// wire is between a client and its log.
type wire = func(r *http.Request, next func() *http.Response) (*http.Response, error)

// on answers one path by wire, the others by the log.
func on(path string, w wire) wire {
	return func(r *http.Request, next func() *http.Response) (*http.Response, error) {
		if r.URL.Path == "/api/v2/"+path {
			return w(r, next)
		}
		return next(), nil
	}
}

// always gives one answer.
func always(status int, body string) wire {
	return func(*http.Request, func() *http.Response) (*http.Response, error) { return answer(status, body), nil }
}

// filled is a log with some entries, of which the one in the middle is that of the
// statement.
func filled(t *testing.T, entries int) (*rekortest.Log, audit.Signed) {
	t.Helper()
	l := rekortest.New(t)
	s := statement(t, rekortest.NewKey(t), 1)
	for i := range entries {
		if i == entries/2 {
			l.Submit(t, s)
		} else {
			l.Append([]byte(strconv.Itoa(i)))
		}
	}
	return l, s
}

// TestRequests: what is sent to upload an entry that is there already, to the log's
// address with a slash or without.
func TestRequests(t *testing.T) {
	type request struct{ Method, URL, ContentType, UserAgent string }
	for _, slash := range []string{"", "/"} {
		l, s := filled(t, 3)
		var got []request
		var body []byte
		client := l.Client(func(r *http.Request, next func() *http.Response) (*http.Response, error) {
			got = append(got, request{r.Method, r.URL.String(), r.Header.Get("Content-Type"), r.Header.Get("User-Agent")})
			if r.Method == http.MethodPost {
				var err error
				if body, err = io.ReadAll(r.Body); err != nil {
					return nil, err
				}
				r.Body = io.NopCloser(bytes.NewReader(body))
			}
			return next(), nil
		})
		trust := l.Trust()
		trust.URL += slash
		if _, err := rekor.New(client).Submit(t.Context(), trust, s); err != nil {
			t.Fatal(err)
		}
		const agent = "matter-ops-kms-rotation"
		want := []request{
			{"POST", "http://rekor.test/api/v2/log/entries", "application/json", agent},
			{"GET", "http://rekor.test/api/v2/checkpoint", "", agent},
			{"GET", "http://rekor.test/api/v2/tile/0/000.p/3", "", agent},
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("requests (-want +got):\n%s", d)
		}
		var fields, wantFields any
		if err := json.Unmarshal(body, &fields); err != nil {
			t.Fatal(err)
		}
		entry, err := s.LogEntry()
		if err != nil {
			t.Fatal(err)
		}
		var e struct {
			Spec struct {
				Rekord struct {
					Data      struct{ Digest string }
					Signature any
				} `json:"hashedRekordV002"`
			}
		}
		if err := json.Unmarshal(entry, &e); err != nil {
			t.Fatal(err)
		}
		wantFields = map[string]any{"hashedRekordRequestV002": map[string]any{"digest": e.Spec.Rekord.Data.Digest, "signature": e.Spec.Rekord.Signature}}
		if d := cmp.Diff(wantFields, fields); d != "" {
			t.Errorf("upload (-want +got):\n%s", d)
		}
	}
}

// TestAccepted: a log may answer an upload with 200 or 201, and any other success is
// no proof.
func TestAccepted(t *testing.T) {
	for status, ok := range map[int]bool{200: true, 201: true, 202: false, 204: false, 301: false, 399: false} {
		l, s := filled(t, 1)
		client := l.Client(on("log/entries", always(status, tle(l.Prove(0)))))
		p, err := rekor.New(client).Submit(t.Context(), l.Trust(), s)
		if ok {
			if err != nil {
				t.Errorf("status %d: %v", status, err)
			} else if _, err := p.Verify(s, audit.Trust{Logs: []audit.Log{l.Trust()}}); err != nil {
				t.Errorf("status %d: %v", status, err)
			}
			continue
		}
		if err == nil || errors.Is(err, anchor.ErrLogRefused) || !cmp.Equal(p, audit.Proof{}) {
			t.Errorf("status %d: %v, %v, want an error that does not say refused", status, p, err)
		}
	}
}

// TestErrorsSay: an error names what failed, with the status and the beginning of
// what the log says, and comes without a proof.
func TestErrorsSay(t *testing.T) {
	cut := func(*http.Request, func() *http.Response) (*http.Response, error) { return nil, errWire }
	long := strings.Repeat("x", 300)
	for name, c := range map[string]struct {
		wire wire
		want []string
	}{
		"upload refused":       {on("log/entries", always(400, long)), []string{"rekor upload", "HTTP status 400", `"` + long[:200] + `"`}},
		"upload fails":         {on("log/entries", always(503, "later")), []string{"rekor upload", "HTTP status 503", "later"}},
		"upload too often":     {on("log/entries", always(429, "slow down")), []string{"rekor upload", "HTTP status 429", "slow down"}},
		"upload cut":           {on("log/entries", cut), []string{"rekor upload", errWire.Error()}},
		"upload's answer":      {on("log/entries", always(201, "<html>")), []string{"rekor upload", "cannot be read"}},
		"no checkpoint":        {on("checkpoint", always(500, "broken")), []string{"rekor entry 1", "checkpoint", "HTTP status 500", "broken"}},
		"checkpoint cut":       {on("checkpoint", cut), []string{"rekor entry 1", "checkpoint", errWire.Error()}},
		"checkpoint of nobody": {on("checkpoint", always(200, "rekor.test\n3\nAAAA\n")), []string{"rekor entry 1", "checkpoint"}},
		"tile cut":             {on("tile/0/000.p/3", cut), []string{"rekor entry 1", "prove from tiles", errWire.Error()}},
		"no tile":              {on("tile/0/000.p/3", always(500, "broken")), []string{"rekor entry 1", "prove from tiles", "tile/0/000.p/3", "HTTP status 500"}},
		"a short tile":         {on("tile/0/000.p/3", always(200, strings.Repeat("x", 95))), []string{"tile/0/000.p/3", "95 bytes", "96"}},
		"another tile":         {on("tile/0/000.p/3", always(200, strings.Repeat("x", 96))), []string{"rekor entry 1", "prove from tiles"}},
	} {
		t.Run(name, func(t *testing.T) {
			l, s := filled(t, 3)
			p, err := rekor.New(l.Client(c.wire)).Submit(t.Context(), l.Trust(), s)
			if err == nil || !cmp.Equal(p.Hashes, [][]byte(nil)) || strings.Contains(name, "upload") && !cmp.Equal(p, audit.Proof{}) {
				t.Fatalf("%v, %v, want an error", p, err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v, want it to say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), long[:201]) {
				t.Errorf("%v quotes all that the log says", err)
			}
			if cutIt := strings.Contains(name, "cut"); errors.Is(err, errWire) != cutIt {
				t.Errorf("%v hides its cause", err)
			}
		})
	}
}

// TestConflictIndex: an index that is not in a log finds nothing, and no tile is
// asked for.
func TestConflictIndex(t *testing.T) {
	for _, index := range []string{"", "x", "-1", "1.5", "9223372036854775808"} {
		l, s := filled(t, 3)
		asked := 0
		client := l.Client(func(r *http.Request, next func() *http.Response) (*http.Response, error) {
			if r.Method != http.MethodPost {
				asked++
				return next(), nil
			}
			a := answer(409, "{}")
			a.Header.Set("X-Log-Index", index)
			return a, nil
		})
		if _, err := rekor.New(client).Submit(t.Context(), l.Trust(), s); err == nil || !strings.Contains(err.Error(), "names no index") || asked > 0 {
			t.Errorf("index %q: %v after %d more requests", index, err, asked)
		}
	}
}

// TestFullTile: a log may have dropped a partial tile for the full one, of which only
// what the tree of the checkpoint has is used; a full one that is missing is missing.
func TestFullTile(t *testing.T) {
	for name, c := range map[string]struct {
		size  int    // of the tree
		drops string // what begins the paths of tiles that are gone
		asked int    // how often for what is gone
		ok    bool
	}{
		"the partial tile is dropped":          {300, "tile/0/001.p/44", 1, true},
		"the smallest":                         {257, "tile/0/001.p/1", 1, true},
		"the largest":                          {255, "tile/0/000.p/255", 1, true},
		"the full tile too":                    {300, "tile/0/001", 2, false},
		"a full tile whose partial is unasked": {300, "tile/0/000", 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			l, s := filled(t, c.size)
			at, asked := l.Prove(int64(c.size/2)), 0
			client := l.Client(func(r *http.Request, next func() *http.Response) (*http.Response, error) {
				path := strings.TrimPrefix(r.URL.Path, "/api/v2/")
				switch {
				case path == "checkpoint":
					return answer(200, at.Checkpoint), nil
				case strings.HasPrefix(path, c.drops):
					asked++
					return answer(404, "gone"), nil
				}
				return next(), nil
			})
			for i := range 300 { // the log has grown: the second tile is full
				l.Append([]byte("more " + strconv.Itoa(i)))
			}
			p, err := rekor.New(client).Submit(t.Context(), l.Trust(), s)
			if asked != c.asked {
				t.Errorf("what is gone was asked for %d times, want %d", asked, c.asked)
			}
			if !c.ok {
				if err == nil || !strings.Contains(err.Error(), "HTTP status 404") || !strings.Contains(err.Error(), c.drops) {
					t.Errorf("%v, want the status of the tile", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(at, p); d != "" {
				t.Errorf("the proof (-want +got):\n%s", d)
			}
		})
	}
}

// TestGrownTile: a log that answers a partial tile with more hashes than it was asked
// for is understood.
func TestGrownTile(t *testing.T) {
	l, s := filled(t, 3)
	at := l.Prove(1)
	client := l.Client(func(r *http.Request, next func() *http.Response) (*http.Response, error) {
		switch r.URL.Path {
		case "/api/v2/checkpoint":
			return answer(200, at.Checkpoint), nil
		case "/api/v2/tile/0/000.p/3":
			r.URL.Path = "/api/v2/tile/0/000.p/5"
		}
		return next(), nil
	})
	l.Append([]byte("3"))
	l.Append([]byte("4"))
	p, err := rekor.New(client).Submit(t.Context(), l.Trust(), s)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(at, p); d != "" {
		t.Errorf("the proof (-want +got):\n%s", d)
	}
}

// TestWaitsForCheckpoint: an entry that no checkpoint covers yet is waited for, half a
// second at a time and for so long as public logs need, but not forever.
func TestWaitsForCheckpoint(t *testing.T) {
	for late, ok := range map[int]bool{0: true, 1: true, 7: true, 8: false, 1000: false} {
		t.Run(fmt.Sprint(late), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, s := filled(t, 1)
				old := emptyCheckpoint(l)
				looks := 0
				client := l.Client(on("checkpoint", func(_ *http.Request, next func() *http.Response) (*http.Response, error) {
					if looks++; looks <= late {
						return answer(200, old), nil
					}
					return next(), nil
				}))
				began := time.Now()
				p, err := rekor.New(client).Submit(t.Context(), l.Trust(), s)
				took := time.Since(began)
				if !ok {
					if err == nil || errors.Is(err, anchor.ErrLogRefused) || looks != 8 {
						t.Errorf("%v after %d looks, want an error that does not say refused after 8", err, looks)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if _, err := p.Verify(s, audit.Trust{Logs: []audit.Log{l.Trust()}}); err != nil {
					t.Error(err)
				}
				if want := time.Duration(late) * 500 * time.Millisecond; took != want {
					t.Errorf("it took %s, want %s", took, want)
				}
			})
		})
	}
}

// emptyCheckpoint is one of a log of before its first entry.
func emptyCheckpoint(l *rekortest.Log) string {
	root := [32]byte{}
	return l.Sign(0, root[:])
}

// TestWaitEnds: the wait for a checkpoint ends with the context.
func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, s := filled(t, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		defer cancel()
		began, old := time.Now(), emptyCheckpoint(l)
		client := l.Client(on("checkpoint", always(200, old)))
		_, err := rekor.New(client).Submit(ctx, l.Trust(), s)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 700*time.Millisecond {
			t.Errorf("%v after %s, want the context's end", err, time.Since(began))
		}
	})
}

// brokenBody is an answer that breaks off, or that fails when it is closed.
type brokenBody struct {
	io.Reader
	close error
}

func (b brokenBody) Close() error { return b.close }

// TestAnswerBreaksOff: what has arrived of an answer is not taken for all of it.
func TestAnswerBreaksOff(t *testing.T) {
	for name, body := range map[string]func(text string) io.ReadCloser{
		"read": func(text string) io.ReadCloser {
			return brokenBody{io.MultiReader(strings.NewReader(text), failing{}), nil}
		},
		"close": func(text string) io.ReadCloser { return brokenBody{strings.NewReader(text), errWire} },
	} {
		l, s := filled(t, 1)
		client := l.Client(on("log/entries", func(*http.Request, func() *http.Response) (*http.Response, error) {
			a := answer(201, "")
			a.Body = body(tle(l.Prove(0)))
			return a, nil
		}))
		if p, err := rekor.New(client).Submit(t.Context(), l.Trust(), s); !errors.Is(err, errWire) {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errWire }

// TestAnswerTooLong: a megabyte of an answer is read and no more.
func TestAnswerTooLong(t *testing.T) {
	for size, ok := range map[int]bool{1 << 20: true, 1<<20 + 1: false} {
		l, s := filled(t, 1)
		text := tle(l.Prove(0))
		text = text[:1] + strings.Repeat(" ", size-len(text)) + text[1:]
		client := l.Client(on("log/entries", always(201, text)))
		if _, err := rekor.New(client).Submit(t.Context(), l.Trust(), s); (err == nil) != ok {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// TestUnusable: what cannot be sent is not sent.
func TestUnusable(t *testing.T) {
	l, s := filled(t, 1)
	sent := 0
	client := l.Client(func(_ *http.Request, next func() *http.Response) (*http.Response, error) {
		sent++
		return next(), nil
	})
	trust := l.Trust()
	trust.URL = "http://rekor test"
	var bad *url.Error
	if _, err := rekor.New(client).Submit(t.Context(), trust, s); !errors.As(err, &bad) || sent > 0 {
		t.Errorf("%v after %d requests, want the fault of the address", err, sent)
	}
}
