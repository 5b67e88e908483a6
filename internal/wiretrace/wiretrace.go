// Package wiretrace makes a trace of what real processes did, out of the calls that
// they made to AWS and the answers they were given.
//
// It reads the wire, not the adapters: it knows the items of the control table, of
// rows and of the bucket by their documented shape and imports nothing that writes
// them, so a bug in an adapter cannot hide itself. Invariant: a call that was
// answered with success and that may have changed a key, an item or an object of
// the deployment becomes an event, or an error; never nothing. What the deployment
// must not do but the wire allows (a pointer that is written without its audit
// record, a row inserted past the fence) becomes an event that no action of the
// model explains.
package wiretrace

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/localaws/wire"
	"github.com/matter-ops/kms-rotation/spec/trace"
)

// Table is a table of cipher rows: its key, and the attributes of an envelope.
type Table struct {
	Source     string // as rotations name it
	Table      string
	Keys       []string
	KEKID      string
	WrappedDEK string
	Ciphertext string
	Epoch      string
}

// Config says what the deployment's keys, tables and buckets are.
type Config struct {
	Stack        string // of the alias of KEKs; the audit chain's name
	ControlTable string
	AuditBucket  string
	Tables       []Table
	Corpus       string // name of the source that is objects in a bucket; "" for none
	CorpusBucket string
	CorpusPrefix string
}

// Recorder makes events of calls. It is safe for concurrent use; the order of the
// calls is the order of the events.
type Recorder struct {
	cfg Config

	mu      sync.Mutex
	events  []trace.Event
	faults  []error
	tokens  map[string]bool // of transactions that went through: a repeat changes nothing
	records map[int64]audit.Entry
	objects map[string]object // of the corpus, as last written
	bare    map[string]string // payloads of rows that name no KEK, by source and row
}

// object is an object of the corpus.
type object struct{ etag, kek, blob, body string }

// New returns a recorder that has recorded nothing.
func New(cfg Config) *Recorder {
	return &Recorder{cfg: cfg, tokens: map[string]bool{}, records: map[int64]audit.Entry{}, objects: map[string]object{}, bare: map[string]string{}}
}

// Events returns the run so far. The error says which calls are not understood: the
// run is then no account of what happened.
func (r *Recorder) Events() ([]trace.Event, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]trace.Event(nil), r.events...), errors.Join(r.faults...)
}

func (r *Recorder) add(e trace.Event) {
	e.N = int64(len(r.events)) + 1
	r.events = append(r.events, e)
}

// See records a call.
func (r *Recorder) See(e wire.Exchange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	events, err := r.decode(e)
	if err != nil && len(r.faults) < maxFaults {
		r.faults = append(r.faults, fmt.Errorf("%s %s by %q, answered %d: %w", e.Service, e.Operation, e.Caller, e.Status, err))
	}
	for _, ev := range events {
		r.add(ev)
	}
}

const maxFaults = 10

var (
	errUnknown = errors.New("this call is not one that the deployment makes")
	errLost    = errors.New("the service did not say whether it took effect")
)

// decode is what a call did.
func (r *Recorder) decode(e wire.Exchange) ([]trace.Event, error) {
	switch {
	case !r.concerns(e):
		return nil, nil
	case e.Status == 0 || e.Status >= 500:
		return nil, errLost
	case e.Status >= 300 && e.Operation == "TransactWriteItems":
		return r.refused(e)
	case e.Status >= 300:
		return nil, nil
	}
	switch e.Service {
	case "dynamodb":
		return r.item(e)
	case "kms":
		return r.key(e)
	case "s3":
		return r.put(e)
	}
	return nil, errUnknown
}

// concerns reports whether a call is about the deployment. All keys are.
func (r *Recorder) concerns(e wire.Exchange) bool {
	switch e.Service {
	case "dynamodb":
		for _, t := range r.cfg.Tables {
			if strings.Contains(string(e.Body), `"`+t.Table+`"`) || strings.Contains(string(e.Body), `/`+t.Table+`"`) {
				return true
			}
		}
		return strings.Contains(string(e.Body), r.cfg.ControlTable)
	case "s3":
		return e.Bucket == r.cfg.AuditBucket || e.Bucket == r.cfg.CorpusBucket && strings.HasPrefix(e.Key, r.cfg.CorpusPrefix)
	}
	return true
}

// tableName is the name in a name or ARN.
func tableName(s string) string { return s[strings.LastIndexByte(s, '/')+1:] }

func (r *Recorder) table(name string) (Table, bool) {
	for _, t := range r.cfg.Tables {
		if t.Table == tableName(name) {
			return t, true
		}
	}
	return Table{}, false
}

func unmarshal(b []byte, into any) error {
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("not understood: %w", err)
	}
	return nil
}
