// Package corpus keeps the known ciphers, envelopes whose plaintext's hash is
// known, as JSON objects under a prefix of an S3 bucket. They are opened under
// every new KEK before the switch; being wrapped under the KEK themselves, they are
// a source of rows too.
//
// Invariants: an object is replaced only if it still is what was read (If-Match on
// its ETag), and never created by a replacement, so that NoKeyOrphans cannot break
// by bringing back what somebody deleted. A PUT that the SDK repeats because its
// answer was lost fails its own condition: callers read again and find their effect
// made.
//
// Retries and timeouts are those of the client passed in.
package corpus

import (
	"bytes"
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

	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// API is what [Source] uses of the S3 client.
type API interface {
	GetObject(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)
	ListObjectsV2(context.Context, *s3.ListObjectsV2Input, ...func(*s3.Options)) (*s3.ListObjectsV2Output, error)
	PutObject(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error)
}

// Name is the name of the source where a definition gives it no other.
const Name = "corpus"

const (
	suffix    = ".json"
	maxObject = 1 << 20
)

var _ rotation.Source = (*Source)(nil)

// Source is the corpus in a bucket. It is safe for concurrent use.
type Source struct {
	client API
	name   string
	bucket string
	prefix string
}

// New returns the corpus under a prefix, which ends in a slash or is empty.
func New(client API, bucket, prefix string) *Source {
	return &Source{client: client, name: Name, bucket: bucket, prefix: prefix}
}

// SourceConfig is the definition of a corpus.
type SourceConfig struct {
	Bucket string `json:"bucket"`
	Prefix string `json:"prefix"` // ends in a slash
}

// ParseSource reads a definition strictly.
func ParseSource(definition []byte) (SourceConfig, error) {
	var c SourceConfig
	err := strictjson.Unmarshal(definition, &c)
	if err == nil {
		err = c.Validate()
	}
	if err != nil {
		return c, fmt.Errorf("the definition of a corpus: %w", err)
	}
	return c, nil
}

// Validate reports what is wrong with c.
func (c SourceConfig) Validate() error {
	if bucket, _, err := ParseURL(c.url()); err != nil || bucket != c.Bucket {
		return fmt.Errorf("bucket and prefix: %q is not s3://bucket/prefix/", c.url())
	}
	return nil
}

func (c SourceConfig) url() string { return "s3://" + c.Bucket + "/" + c.Prefix }

// Source is the definition as the registry keeps it, under the name "corpus".
func (c SourceConfig) Source() kek.Source {
	b, err := json.Marshal(c)
	if err != nil {
		panic("corpus: strings do not encode: " + err.Error())
	}
	return kek.Source{Name: Name, Kind: kek.KindCorpus, Definition: string(b), Place: c.url()}
}

// Open returns the corpus of a definition of kind [kek.KindCorpus], under the name
// that it is registered by.
func Open(client API, def kek.Source) (*Source, error) {
	c, err := ParseSource([]byte(def.Definition))
	if err != nil {
		return nil, err
	}
	return &Source{client: client, name: def.Name, bucket: c.Bucket, prefix: c.Prefix}, nil
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
		return refuse("it is no pattern and has no query")
	case prefix == "":
		return refuse("the prefix is missing")
	case !strings.HasSuffix(prefix, "/"):
		return refuse("the prefix must end in a slash, or it would match its neighbours too")
	}
	return bucket, prefix, nil
}

// Name implements [rotation.Source].
func (s *Source) Name() string { return s.name }

// Segments implements [rotation.Source]: a prefix is listed as one part.
func (s *Source) Segments(int) int { return 1 }

// stored is one object as it was read.
type stored struct {
	entry    Entry
	defect   string // why it is no readable entry; "" if it is
	etag     string
	metadata map[string]string

	encryptedBy string // ARN of the KMS key that S3 encrypts it with; "" for none
}

// get reads one object; false if there is none, or an error.
func (s *Source) get(ctx context.Context, key string) (stored, bool, error) {
	out, err := s.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: &key})
	switch awserr.Code(err) {
	case "NoSuchKey":
		return stored{}, false, nil
	case "InvalidObjectState":
		return stored{defect: "the object is archived and cannot be read"}, true, nil
	}
	if err != nil {
		return stored{}, false, awserr.Wrap("s3 GetObject "+key, err)
	}
	b, err := io.ReadAll(io.LimitReader(out.Body, maxObject+1))
	if err = errors.Join(err, out.Body.Close()); err != nil {
		return stored{}, false, awserr.Wrap("s3 GetObject "+key, err)
	}
	o := stored{etag: aws.ToString(out.ETag), metadata: maps.Clone(out.Metadata), encryptedBy: aws.ToString(out.SSEKMSKeyId)}
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

// put writes an entry on a condition: the ETag it must have, or none for an object
// that must not exist. [errChanged] if the condition does not hold.
func (s *Source) put(ctx context.Context, key, etag string, e Entry, metadata map[string]string) error {
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
	switch awserr.Code(err) {
	case "PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey":
		return fmt.Errorf("s3 PutObject %s: %w: %w", key, errChanged, err)
	}
	if err != nil {
		return awserr.Wrap("s3 PutObject "+key, err)
	}
	return nil
}

// ErrExists reports an entry that is in the corpus already.
var ErrExists = errors.New("the corpus has such an entry already")

// Put adds an entry under a name that ends in .json; [ErrExists] if there is one of
// that name.
func (s *Source) Put(ctx context.Context, name string, e Entry) error {
	if !strings.HasSuffix(name, suffix) || url.PathEscape(name) != name {
		return fmt.Errorf("corpus entry %q: use letters, digits, - and _, and end the name in %s", name, suffix)
	}
	err := s.put(ctx, s.prefix+name, "", e, nil)
	if errors.Is(err, errChanged) {
		return fmt.Errorf("%w: %w", ErrExists, err)
	}
	return err
}
