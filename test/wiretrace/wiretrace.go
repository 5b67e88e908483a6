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
// model explains. What reads prove is recorded too: every page of a scan of a source,
// and of the leases. Which calls are neither is listed in package wire, with reasons.
//
// A DEK, and what a payload opens to, is named by an HMAC of its plaintext under a random
// key of the recorder, which is in no trace. No event, log or error holds a plaintext or an
// un-keyed digest of one.
package wiretrace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/localaws/wire"
	"github.com/matter-ops/kms-rotation/test/trace"
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
	Context    map[string]string // encryption context, as definitions write it
	Bind       map[string]string // what else the payload is bound to
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
	Behind       Behind
}

// Behind is the local AWS, asked past the recording: a call to it is not part of the run.
type Behind struct {
	DynamoDB DynamoDB
	KMS      KMS
	S3       S3
}

// DynamoDB is what a recorder uses of the DynamoDB client.
type DynamoDB interface {
	GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error)
	Scan(context.Context, *dynamodb.ScanInput, ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error)
}

// KMS is what a recorder uses of the KMS client.
type KMS interface {
	Decrypt(context.Context, *kms.DecryptInput, ...func(*kms.Options)) (*kms.DecryptOutput, error)
}

// S3 is what a recorder uses of the S3 client.
type S3 interface {
	GetObject(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)
	ListObjectsV2(context.Context, *s3.ListObjectsV2Input, ...func(*s3.Options)) (*s3.ListObjectsV2Output, error)
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
	lists   map[string][]*listing
	deks    deks
}

// object is an object of the corpus.
type object struct{ etag, kek, blob, body string }

// New returns a recorder that has recorded nothing.
func New(cfg Config) *Recorder {
	return &Recorder{
		cfg: cfg, tokens: map[string]bool{}, records: map[int64]audit.Entry{}, objects: map[string]object{}, lists: map[string][]*listing{}, deks: newDEKs(cfg.Behind.KMS),
	}
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
		if ev.Caller == "" {
			ev.Caller = e.Caller
		}
		r.add(ev)
	}
}

// isFunction reports whether a caller is a function of the deployment.
func isFunction(caller string) bool { return caller != wire.Application && caller != wire.Person }

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
	case e.Service == "s3" && reads[e.Operation] && e.Status == http.StatusNotFound:
		return r.object(e) // it is gone
	case reads[e.Operation] && (e.Status == 0 || e.Status >= 300):
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
		return r.object(e)
	}
	return nil, errUnknown
}

// reads are the calls that change nothing: one that failed says nothing.
var reads = map[string]bool{
	"Query": true, "Scan": true, "GetObject": true, "ListObjectsV2": true,
	"GenerateDataKey": true, "Decrypt": true, "Encrypt": true, "ReEncrypt": true,
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
		return e.Bucket == r.cfg.AuditBucket || r.cfg.Corpus != "" && e.Bucket == r.cfg.CorpusBucket && (e.Key == "" || strings.HasPrefix(e.Key, r.cfg.CorpusPrefix))
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
