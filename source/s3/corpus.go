// Package s3 is the driver of the corpus: known ciphers, stored as JSON objects under a
// prefix of an S3 bucket. A known cipher is an envelope for which the hash of its plaintext
// is recorded. All of them are opened under every new KEK before the switch. Since they are
// wrapped under the KEK themselves, a rotation also rewraps them, as it does rows.
//
// Invariants:
//
//   - An object is replaced only if it still is what was read (If-Match on its ETag).
//   - A replacement never creates an object, so that NoKeyOrphans (spec/rotation.tla) cannot
//     break by bringing back a deleted one.
//
// S3 evaluates If-Match atomically with the write, and reads after writes are strongly
// consistent (S3 user guide, "Amazon S3 data consistency model"). If the answer to a PUT is
// lost, the SDK repeats it, which fails its own condition: the caller reads again and finds
// that its effect is made.
//
// Retries and timeouts are those of the client passed in.
package s3

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/source"
)

// API is what [Corpus] uses of the S3 client.
type API interface {
	GetObject(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)
	ListObjectsV2(context.Context, *s3.ListObjectsV2Input, ...func(*s3.Options)) (*s3.ListObjectsV2Output, error)
	PutObject(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error)
}

// KindName is the kind of a corpus in definitions and in the control table.
const KindName = "corpus"

// Name is the name of the source where a definition gives it no other.
const Name = "corpus"

const (
	suffix    = ".json" // of an entry's key; other objects are not entries
	maxObject = 1 << 20 // bytes of an object that are read; an entry has a few kilobytes
)

var (
	_ source.Driver = (*Corpus)(nil)
	_ source.Sizer  = (*Corpus)(nil)
)

// Corpus is the corpus in a bucket. It is safe for concurrent use.
type Corpus struct {
	client API
	name   string
	bucket string
	prefix string
}

// New returns the corpus under a prefix, which ends in a slash or is empty.
func New(client API, bucket, prefix string) *Corpus {
	return &Corpus{client: client, name: Name, bucket: bucket, prefix: prefix}
}

// Config is the definition of a corpus.
type Config struct {
	Bucket string `json:"bucket"`
	Prefix string `json:"prefix"` // ends in a slash
}

// ParseConfig reads a definition strictly.
func ParseConfig(definition []byte) (Config, error) {
	var c Config
	err := strictjson.Unmarshal(definition, &c)
	if err == nil {
		err = c.Validate()
	}
	if err != nil {
		return c, fmt.Errorf("the definition of a corpus: %w", err)
	}
	return c, nil
}

// Validate returns what is wrong with c; nil if it can be used.
func (c Config) Validate() error {
	if bucket, _, err := ParseURL(c.placeURL()); err != nil || bucket != c.Bucket {
		return fmt.Errorf("bucket and prefix: %q is not s3://bucket/prefix/", c.placeURL())
	}
	return nil
}

// placeURL returns the place of the corpus, which the registry compares: two sources must
// not have one place.
func (c Config) placeURL() string { return "s3://" + c.Bucket + "/" + c.Prefix }

// Source returns the definition as the registry stores it, under the name "corpus".
func (c Config) Source() kek.Source {
	b, err := json.Marshal(c)
	if err != nil {
		panic("corpus: strings do not encode: " + err.Error())
	}
	return kek.Source{Name: Name, Kind: KindName, Definition: string(b), Place: c.placeURL()}
}

// Kind returns the kind of source for the corpora that client can reach.
func Kind(client API) source.Kind {
	return source.Kind{
		Name: KindName, Parse: parseDefinition,
		Open: func(def kek.Source) (source.Driver, error) { return Open(client, def) },
	}
}

// parseDefinition reads a definition as a person writes it.
func parseDefinition(text []byte) (kek.Source, error) {
	var d struct {
		Kind string `json:"kind"`
		Name string `json:"name"`
		Config
	}
	if err := strictjson.Unmarshal(text, &d); err != nil {
		return kek.Source{}, err
	}
	def := d.Source()
	def.Name = cmp.Or(d.Name, def.Name)
	return def, errors.Join(kek.CheckSourceName(def.Name), d.Validate())
}

// Open returns the corpus of a definition of kind [KindName], under the name
// that it is registered by.
func Open(client API, def kek.Source) (*Corpus, error) {
	c, err := ParseConfig([]byte(def.Definition))
	if err != nil {
		return nil, err
	}
	return &Corpus{client: client, name: def.Name, bucket: c.Bucket, prefix: c.Prefix}, nil
}

// ParseURL splits s3://bucket/prefix/.
func ParseURL(s string) (bucket, prefix string, err error) {
	refuse := func(why string) (string, string, error) {
		return "", "", fmt.Errorf("%q is not s3://bucket/prefix/: %s", s, why)
	}
	rest, ok := strings.CutPrefix(s, "s3://")
	if !ok {
		return refuse("it does not begin with s3://")
	}
	bucket, prefix, _ = strings.Cut(rest, "/")
	switch {
	case bucket == "":
		return refuse("the bucket is missing")
	case strings.ContainsAny(s, "?#*%\\ \t\n"):
		return refuse("patterns and queries are not supported")
	case prefix == "":
		return refuse("the prefix is missing")
	case !strings.HasSuffix(prefix, "/"):
		return refuse("the prefix must end in a slash, or it would match its neighbours too")
	}
	return bucket, prefix, nil
}

// Name implements [source.Driver].
func (s *Corpus) Name() string { return s.name }

// Traits implements [source.Driver].
func (s *Corpus) Traits() source.Traits {
	return source.Traits{
		Noun: "corpus", Billing: source.S3ByRequest, KnownPlaintexts: true, PageItems: pageSize,
		Fencing: source.Unfenced("its entries are written by the deployment's owner alone, never by an application"),
	}
}

// Segments implements [source.Driver]: a listing cannot be split, so there is one segment.
func (s *Corpus) Segments(int) int { return 1 }

// storedObject is one object as it was read.
type storedObject struct {
	entry    Entry
	defect   string            // why it is not a sound entry; "" if it is
	etag     string            // the condition of a write
	metadata map[string]string // kept by a write: PutObject replaces it

	encryptedBy string // ARN of the KMS key that S3 encrypts it with; "" for none
}

// getEntry reads one object. It returns false if there is none, or with an error. An object
// that cannot be an entry is returned with a defect.
func (s *Corpus) getEntry(ctx context.Context, key string) (storedObject, bool, error) {
	out, err := s.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: &key})
	switch remote.ErrorCode(err) {
	case "NoSuchKey":
		return storedObject{}, false, nil
	case "InvalidObjectState":
		return storedObject{defect: "the object is archived and cannot be read"}, true, nil
	}
	if err != nil {
		return storedObject{}, false, remote.WrapError("s3 GetObject "+key, err)
	}
	b, err := io.ReadAll(io.LimitReader(out.Body, maxObject+1))
	if err = errors.Join(err, out.Body.Close()); err != nil {
		return storedObject{}, false, remote.WrapError("s3 GetObject "+key, err)
	}
	o := storedObject{etag: aws.ToString(out.ETag), metadata: maps.Clone(out.Metadata), encryptedBy: aws.ToString(out.SSEKMSKeyId)}
	if len(b) > maxObject {
		o.defect = fmt.Sprintf("the object has more than %d bytes", maxObject)
		return o, true, nil
	}
	if o.entry, err = Decode(b); err != nil {
		o.defect = err.Error()
	}
	return o, true, nil
}

// errChanged reports a conditional PUT that was refused.
var errChanged = errors.New("the object is not what was read, or exists already")

// putEntry writes an entry on a condition: the object must have the ETag, or must not exist
// if etag is "". It returns [errChanged] if the condition does not hold. S3 also answers
// ConditionalRequestConflict if another request wrote the object at the same time (API
// reference, PutObject); then the caller reads again, as after a failed condition.
func (s *Corpus) putEntry(ctx context.Context, key, etag string, e Entry, metadata map[string]string) error {
	b, err := e.Encode()
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	in := &s3.PutObjectInput{
		Bucket: &s.bucket, Key: &key, Body: bytes.NewReader(b), ContentType: aws.String("application/json"), Metadata: metadata,
	}
	if etag == "" {
		in.IfNoneMatch = aws.String("*")
	} else {
		in.IfMatch = &etag
	}
	_, err = s.client.PutObject(ctx, in)
	switch remote.ErrorCode(err) {
	case "PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey":
		return fmt.Errorf("s3 PutObject %s: %w: %w", key, errChanged, err)
	}
	if err != nil {
		return remote.WrapError("s3 PutObject "+key, err)
	}
	return nil
}

// ErrExists reports an entry that is in the corpus already.
var ErrExists = errors.New("the corpus has such an entry already")

// Put adds an entry under a name that ends in .json. It returns [ErrExists] if there is an
// entry with that name.
func (s *Corpus) Put(ctx context.Context, name string, e Entry) error {
	if !strings.HasSuffix(name, suffix) || url.PathEscape(name) != name {
		return fmt.Errorf("corpus entry %q: use letters, digits, - and _, and end the name in %s", name, suffix)
	}
	err := s.putEntry(ctx, s.prefix+name, "", e, nil)
	if errors.Is(err, errChanged) {
		return fmt.Errorf("%w: %w", ErrExists, err)
	}
	return err
}
