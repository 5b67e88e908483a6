package notify_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/notify"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

var (
	now    = time.Date(2026, 3, 29, 2, 0, 0, 0, time.UTC)
	window = gates.Announcement{Label: "Q2-2026-rotation", From: now.AddDate(0, 0, 7).Add(-time.Hour), To: now.AddDate(0, 0, 7).Add(3 * time.Hour)}
)

const secret = "hunter2-hunter2"

func keys(context.Context) (notify.Keys, error) {
	return notify.Keys{Webhook: secret, Statuspage: secret}, nil
}

// flaky answers some requests with a status before it lets them through.
type flaky struct {
	mu     sync.Mutex
	status []int // 0: the connection is dropped
	next   http.Handler
	count  int
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.count++
	var s int
	faulty := len(f.status) > 0
	if faulty {
		s, f.status = f.status[0], f.status[1:]
	}
	f.mu.Unlock()
	switch {
	case !faulty:
		f.next.ServeHTTP(w, r)
	case s == 0:
		panic(http.ErrAbortHandler)
	default:
		w.WriteHeader(s)
	}
}

// requests is how many have come.
func (f *flaky) requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

func serve(t *testing.T, h http.Handler, status ...int) (string, *flaky) {
	t.Helper()
	f := &flaky{status: status, next: h}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return srv.URL, f
}

// verify checks a signature as a receiver does; one older than maxAge is refused, for
// it may be a replay.
func verify(key, signature string, body []byte, now time.Time, maxAge time.Duration) error {
	refused := errors.New("the signature is wrong or old")
	t, sum, ok := strings.Cut(strings.TrimPrefix(signature, "t="), ",v1=")
	got, err := hex.DecodeString(sum)
	m := hmac.New(sha256.New, []byte(key))
	m.Write([]byte(t + "."))
	m.Write(body)
	if !ok || err != nil || !hmac.Equal(got, m.Sum(nil)) {
		return refused
	}
	unix, err := strconv.ParseInt(t, 10, 64)
	if age := now.Sub(time.Unix(unix, 0)); err != nil || age > maxAge || age < -maxAge {
		return refused
	}
	return nil
}

// TestWebhook checks what a receiver gets: the event, a key that is the same for the
// same event, and a signature that nobody forges, alters or replays.
func TestWebhook(t *testing.T) {
	var got []notify.Event
	var idempotency []string
	url, _ := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		sig := r.Header.Get(notify.SignatureHeader)
		for name, c := range map[string]struct {
			key, sig string
			body     string
			at       time.Time
			ok       bool
		}{
			"as sent":        {secret, sig, string(body), now.Add(time.Minute), true},
			"another key":    {secret + "?", sig, string(body), now, false},
			"another body":   {secret, sig, string(body) + " ", now, false},
			"replayed":       {secret, sig, string(body), now.Add(time.Hour), false},
			"from later":     {secret, sig, string(body), now.Add(-time.Hour), false},
			"another time":   {secret, strings.Replace(sig, "t=", "t=1", 1), string(body), now, false},
			"no signature":   {secret, "", string(body), now, false},
			"not hex":        {secret, "t=1,v1=xyz", string(body), now, false},
			"without a time": {secret, strings.SplitN(sig, ",", 2)[1], string(body), now, false},
		} {
			if err := verify(c.key, c.sig, []byte(c.body), c.at, 5*time.Minute); (err == nil) != c.ok {
				t.Errorf("%s: %v", name, err)
			}
		}
		var e notify.Event
		if err := json.Unmarshal(body, &e); err != nil {
			t.Error(err)
		}
		got, idempotency = append(got, e), append(idempotency, r.Header.Get(notify.IdempotencyHeader))
		w.WriteHeader(http.StatusAccepted)
	}), 0, 503)
	w := notify.NewWebhook(http.DefaultClient, url, keys, func() time.Time { return now })
	for range 2 {
		if err := w.Tell(t.Context(), window, gates.StageScheduled); err != nil {
			t.Fatal(err)
		}
	}
	if len(got) != 2 || idempotency[0] != idempotency[1] || idempotency[0] != "Q2-2026-rotation/2026-04-05T01:00:00Z/scheduled" {
		t.Errorf("%+v, %q", got, idempotency)
	}
	if e := got[0]; e.ID != window.Label || !e.From.Equal(window.From) || !strings.Contains(e.Body, "2026-04-05 01:00 UTC") {
		t.Errorf("%+v", e)
	}
}

// page is a status page: the part of the API that is used, held to its rules.
type page struct {
	t         *testing.T
	mu        sync.Mutex
	incidents []map[string]any
	writes    int
}

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Header.Get("Authorization") != "OAuth "+secret {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	id, ok := strings.CutPrefix(r.URL.Path, "/v1/pages/page1/incidents")
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if r.Method == http.MethodGet {
		if err := json.NewEncoder(w).Encode(p.incidents); err != nil {
			p.t.Error(err)
		}
		return
	}
	var in struct {
		Incident map[string]any `json:"incident"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		p.t.Error(err)
	}
	p.writes++
	switch r.Method {
	case http.MethodPost:
		in.Incident["id"] = "i" + string(rune('0'+len(p.incidents)))
		p.incidents = append(p.incidents, in.Incident)
		w.WriteHeader(http.StatusCreated)
	case http.MethodPatch:
		for _, i := range p.incidents {
			if "/"+i["id"].(string) == id {
				for k, v := range in.Incident {
					i[k] = v
				}
				return
			}
		}
		w.WriteHeader(http.StatusNotFound)
	}
}

// TestStatuspage walks a window through its stages, each told twice, with a faulty
// page in between.
func TestStatuspage(t *testing.T) {
	p := &page{t: t}
	url, f := serve(t, p)
	s := notify.NewStatuspage(http.DefaultClient, url+"/", "page1", keys)
	if err := s.Tell(t.Context(), window, gates.StageInProgress); err != nil || len(p.incidents) != 0 {
		t.Errorf("what was never announced: %v, %v", err, p.incidents)
	}
	for i, stage := range []gates.Stage{gates.StageScheduled, gates.StageInProgress, gates.StageVerifying, gates.StageCompleted} {
		for range 2 {
			f.mu.Lock()
			f.status = []int{0, 500}
			f.mu.Unlock()
			if err := s.Tell(t.Context(), window, stage); err != nil {
				t.Fatal(err)
			}
		}
		if len(p.incidents) != 1 || p.incidents[0]["status"] != string(stage) || p.writes != i+1 {
			t.Errorf("%s: %v, %d writes", stage, p.incidents, p.writes)
		}
	}
	if i := p.incidents[0]; i["scheduled_for"] != "2026-04-05T01:00:00Z" || i["scheduled_until"] != "2026-04-05T05:00:00Z" {
		t.Errorf("scheduled %v", i)
	}
	again := window // the same label, months later
	again.From, again.To = window.From.AddDate(0, 3, 0), window.To.AddDate(0, 3, 0)
	if err := s.Tell(t.Context(), again, gates.StageScheduled); err != nil {
		t.Fatal(err)
	}
	again.From = again.From.Add(time.Hour) // and moved
	if err := s.Tell(t.Context(), again, gates.StageScheduled); err != nil {
		t.Fatal(err)
	}
	if len(p.incidents) != 2 || p.incidents[1]["scheduled_for"] != "2026-07-05T02:00:00Z" || p.incidents[0]["status"] != "completed" {
		t.Errorf("%v", p.incidents)
	}
}

// TestFailures checks what is told apart, and that no secret gets into an error.
func TestFailures(t *testing.T) {
	wrong := func(context.Context) (notify.Keys, error) {
		return notify.Keys{Webhook: "w", Statuspage: "wrong-key"}, nil
	}
	none := func(context.Context) (notify.Keys, error) { return notify.Keys{}, nil }
	broken := func(context.Context) (notify.Keys, error) { return notify.Keys{}, errors.New("no secret") }
	for _, c := range []struct {
		name    string
		secrets notify.Secrets
		status  []int
		want    error // nil: any other
		calls   int
	}{
		{"wrong key", wrong, nil, journal.ErrDenied, 1},
		{"rejected", keys, []int{422}, journal.ErrRejected, 1},
		{"down", keys, []int{500, 502, 429}, nil, 3},
		{"no answer", keys, []int{0, 0, 0}, nil, 3},
		{"no key", none, nil, journal.ErrRejected, 0},
		{"no secret", broken, nil, nil, 0},
	} {
		url, f := serve(t, &page{t: t}, c.status...)
		err := notify.NewStatuspage(http.DefaultClient, url, "page1", c.secrets).Tell(t.Context(), window, gates.StageScheduled)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || f.requests() != c.calls {
			t.Errorf("%s: %v after %d requests", c.name, err, f.requests())
		}
		if s := err.Error(); strings.Contains(s, secret) || strings.Contains(s, "wrong-key") {
			t.Errorf("%s: the error tells the secret: %s", c.name, s)
		}
	}
	err := notify.NewWebhook(http.DefaultClient, "http://127.0.0.1:1/?token="+secret, keys, time.Now).Tell(t.Context(), window, gates.StageScheduled)
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("the URL's secret: %v", err)
	}
}

// published is an SNS client that keeps the last publication.
type published struct{ subject, message string }

func (p *published) Publish(_ context.Context, in *sns.PublishInput, _ ...func(*sns.Options)) (*sns.PublishOutput, error) {
	p.subject, p.message = aws.ToString(in.Subject), aws.ToString(in.Message)
	return &sns.PublishOutput{}, nil
}

func TestTopicTellsCustomers(t *testing.T) {
	seen := map[string]bool{}
	for _, stage := range []gates.Stage{gates.StageScheduled, gates.StageInProgress, gates.StageVerifying, gates.StageCompleted} {
		var p published
		if err := notify.NewTopic(&p, "arn", "").Tell(t.Context(), window, stage); err != nil || p.subject == "" || seen[p.message] {
			t.Errorf("%s: %v, %+v", stage, err, p)
		}
		seen[p.message] = true
	}
	if diff := cmp.Diff(4, len(seen)); diff != "" {
		t.Error(diff)
	}
}
