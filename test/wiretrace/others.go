package wiretrace

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// key is what a call to KMS did.
func (r *Recorder) key(e wire.Exchange) ([]trace.Event, error) {
	switch e.Operation {
	case "GenerateDataKey", "Decrypt", "Encrypt", "ReEncrypt":
		return r.secret(e)
	}
	var in struct {
		KeyID, TargetKeyID, AliasName string // names match in any case
		Tags                          []struct{ TagKey, TagValue string }
	}
	if err := unmarshal(e.Body, &in); err != nil {
		return nil, err
	}
	switch e.Operation {
	case "CreateKey":
		var out struct{ KeyMetadata struct{ KeyID string } }
		if err := unmarshal(e.Answer, &out); err != nil {
			return nil, err
		}
		ev := trace.Event{Effect: "KMS.Create", KEK: out.KeyMetadata.KeyID}
		for _, t := range in.Tags {
			switch t.TagKey {
			case "matter:rotation":
				ev.Rotation = t.TagValue
			case "matter:attempt":
				ev.Attempt, _ = strconv.Atoi(t.TagValue)
			}
		}
		if ev.KEK == "" {
			return nil, errors.New("the answer names no key")
		}
		return []trace.Event{ev}, nil
	case "CreateAlias":
		return r.claim(in.AliasName, in.TargetKeyID)
	case "DisableKey":
		return []trace.Event{{Effect: "KMS.Disable", KEK: keyID(in.KeyID)}}, nil
	case "EnableKey":
		return []trace.Event{{Effect: "KMS.Enable", KEK: keyID(in.KeyID)}}, nil
	case "GenerateMac":
		return nil, nil // it is for checkpoints, not for data keys
	case "CreateGrant", "RevokeGrant", "RetireGrant", "PutKeyPolicy", "ReplicateKey", "DeleteAlias", "UpdateAlias":
		if !isFunction(e.Caller) {
			return nil, nil // who may use a key, which the model does not know; no function changes it
		}
	case "TagResource":
		return nil, nil // a key that is adopted; the tags of minted ones come with them
	}
	return nil, errUnknown
}

// keyID is the id in an id or ARN.
func keyID(s string) string { return s[strings.LastIndexByte(s, '/')+1:] }

// claim is alias/matter/kek/<stack>/<life>/<rotation>/<attempt>, see docs/adr/0002.
func (r *Recorder) claim(alias, target string) ([]trace.Event, error) {
	rest, ok := strings.CutPrefix(alias, "alias/matter/kek/"+r.cfg.Stack+"/")
	if !ok {
		return nil, nil
	}
	_, rest, _ = strings.Cut(rest, "/")
	rotation, text, _ := strings.Cut(rest, "/")
	attempt, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("alias %s: %w", alias, errUnknown)
	}
	return []trace.Event{{Effect: "KMS.Claim", Rotation: rotation, Attempt: attempt, KEK: keyID(target)}}, nil
}

// object is what a call to S3 did.
func (r *Recorder) object(e wire.Exchange) ([]trace.Event, error) {
	if e.Bucket == r.cfg.AuditBucket {
		return r.stored(e)
	}
	switch {
	case e.Operation == "ListObjectsV2":
		return r.listed(e)
	case e.Key == "" && (isFunction(e.Caller) || e.Operation == "DeleteObjects" || e.Operation == "PostObject" || e.Operation == "DeleteBucket"):
		return nil, errUnknown
	case e.Key == "", !strings.HasSuffix(e.Key, ".json"):
		return nil, nil // properties of the bucket, or an object outside the corpus
	}
	switch e.Operation {
	case "GetObject":
		return r.read(e)
	case "PutObject":
		r.overwritten(e.Key)
		return r.entry(e)
	case "DeleteObject":
		r.overwritten(e.Key)
		delete(r.objects, e.Key)
		return []trace.Event{{Effect: "Table.Delete", Source: r.cfg.Corpus, Row: e.Key}}, nil
	}
	return nil, errUnknown
}

// stored is a record that got into the bucket. One that is not what the outbox
// holds has the place of none.
func (r *Recorder) stored(e wire.Exchange) ([]trace.Event, error) {
	if reads[e.Operation] {
		return nil, nil // records are compared with the chain, which the model has
	}
	name, ok := strings.CutPrefix(e.Key, "v1/"+r.cfg.Stack+"/records/")
	if !ok {
		if e.Operation == "PutObject" {
			return nil, nil // an anchor
		}
		return nil, errUnknown
	}
	seq, err := strconv.ParseInt(strings.TrimSuffix(path.Base(name), ".json"), 10, 64) // of whichever generation
	if err != nil || e.Operation != "PutObject" {
		return nil, fmt.Errorf("object %s: %w", e.Key, errUnknown)
	}
	if rec, known := r.records[seq]; known && string(rec.Bytes) != string(e.Body) {
		seq = 0
	}
	return []trace.Event{{Effect: "Vault.Put", Seq: seq}}, nil
}

// known is an entry of the corpus.
type known struct {
	KEK        string            `json:"kek_id"`
	Epoch      int64             `json:"kek_epoch"`
	WrappedDEK []byte            `json:"wrapped_dek"`
	Ciphertext []byte            `json:"ciphertext"`
	Context    map[string]string `json:"context"`
}

// entry is an object of the corpus that was written. A rewrap says by its ETag what
// it has read.
func (r *Recorder) entry(e wire.Exchange) ([]trace.Event, error) {
	var k known
	if err := unmarshal(e.Body, &k); err != nil {
		return nil, err
	}
	was := r.objects[e.Key]
	before, ev := r.planted(k, e.Key)
	r.objects[e.Key] = object{etag(e.AnsweredHeader.Get("Etag")), ev.KEK, ev.Blob, ev.Body}
	match := etag(e.Header.Get("If-Match"))
	if match == "" && !isFunction(e.Caller) {
		ev.Caller = trace.Person // S3 has no fence, so every put is a put past the fence
		return append(before, ev), nil
	}
	ev.Effect = "Table.Replace"
	if match != "" && match == was.etag {
		ev.Old, ev.Was, ev.WasBody = was.kek, was.blob, was.body
		if ev.Body == was.body {
			ev.Body, ev.BodyDEK, ev.Text = "", "", "" // an object is written whole, also where it stays what it was
		}
	}
	return append(before, ev), nil
}

func etag(s string) string { return strings.Trim(s, `"`) }

// planted is an entry as it is stored, and before it what it wraps if that is news.
func (r *Recorder) planted(k known, id string) (before []trace.Event, e trace.Event) {
	before = r.deks.open(k.WrappedDEK, k.Context)
	e = trace.Event{
		Effect: trace.Plant, Source: r.cfg.Corpus, Row: id, KEK: label(k.KEK), Epoch: k.Epoch,
		Blob: trace.Digest(k.WrappedDEK), Body: trace.Digest(k.Ciphertext),
	}
	e.BodyDEK, e.Text = r.deks.under(k.Ciphertext, k.WrappedDEK, k.Context)
	return before, e
}
