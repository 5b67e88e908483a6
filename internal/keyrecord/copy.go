package keyrecord

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/matter-ops/kms-rotation/internal/strictjson"
	"github.com/matter-ops/kms-rotation/kek"
)

// CopyPrefix is how the key of every copy begins, in the audit bucket.
const CopyPrefix = "deks/"

// CopyName is what the key of a copy says about the record.
type CopyName struct {
	DEKID    string
	KEKID    kek.ID
	KEKEpoch int64
	Sum      string // the first 16 hex digits of SHA-256 of the wrapped DEK
}

func (n CopyName) key() string {
	return fmt.Sprintf("%s%s/%012d-%s-%s.json", CopyPrefix, n.DEKID, n.KEKEpoch, n.KEKID, n.Sum)
}

// CopyKey returns the key of the copy of this version of a record. It names the content:
// an object of this key holds the same bytes, so an answer 412 to a conditional write says
// that the copy is there.
func CopyKey(r Record) string {
	sum := sha256.Sum256(r.WrappedDEK)
	return CopyName{DEKID: r.DEKID, KEKID: r.KEKID, KEKEpoch: r.KEKEpoch, Sum: hex.EncodeToString(sum[:8])}.key()
}

// CopiesOf returns how the keys of all copies of a record begin.
func CopiesOf(dekID string) string { return CopyPrefix + dekID + "/" }

var copyKey = regexp.MustCompile(`^` + CopyPrefix + `([a-z2-7]{26})/([0-9]{12})-([A-Za-z0-9-]{1,128})-([0-9a-f]{16})\.json$`)

// ParseCopyKey reads the key of a copy. Anything else under the prefix is an error.
func ParseCopyKey(key string) (CopyName, error) {
	m := copyKey.FindStringSubmatch(key)
	if m == nil {
		return CopyName{}, fmt.Errorf("%.200q is not the key of a copy of a data key's record", key)
	}
	epoch, err := strconv.ParseInt(m[2], 10, 64)
	if err == nil {
		err = CheckID(m[1])
	}
	if err == nil && epoch < 1 {
		err = fmt.Errorf("%d is not an epoch", epoch)
	}
	if err != nil {
		return CopyName{}, fmt.Errorf("%.200q is not the key of a copy of a data key's record: %w", key, err)
	}
	return CopyName{DEKID: m[1], KEKID: kek.ID(m[3]), KEKEpoch: epoch, Sum: m[4]}, nil
}

// recordCopy is the JSON of a copy.
type recordCopy struct {
	Format     int               `json:"format"`
	DEKID      string            `json:"dek_id"`
	WrappedDEK string            `json:"wrapped_dek"` // base64, RFC 4648 section 4
	KEKID      kek.ID            `json:"kek_id"`
	KEKEpoch   int64             `json:"kek_epoch"`
	BornEpoch  int64             `json:"born_epoch"`
	Context    map[string]string `json:"context"`
	CreatedAt  string            `json:"created_at"`
}

// EncodeCopy returns the bytes of a copy, JSON.
func EncodeCopy(r Record) []byte {
	c := recordCopy{
		Format: Format, DEKID: r.DEKID, WrappedDEK: base64.StdEncoding.EncodeToString(r.WrappedDEK), KEKID: r.KEKID, KEKEpoch: r.KEKEpoch,
		BornEpoch: r.BornEpoch, Context: r.Context, CreatedAt: r.CreatedAt.UTC().Format(timeFormat),
	}
	if c.Context == nil {
		c.Context = map[string]string{}
	}
	b, err := json.Marshal(c)
	if err != nil {
		panic("keyrecord: strings do not encode: " + err.Error())
	}
	return b
}

// DecodeCopy decodes the copy that is stored under key. It refuses the copy of another
// record or version, fields that are missing or unknown, and values that [Decode] refuses.
func DecodeCopy(key string, body []byte) (Record, error) {
	r, err := decodeCopy(key, body)
	if err != nil {
		return Record{}, fmt.Errorf("copy of a data key's record, %.200q: %w", key, err)
	}
	return r, nil
}

func decodeCopy(key string, body []byte) (Record, error) {
	if _, err := ParseCopyKey(key); err != nil {
		return Record{}, err
	}
	var c recordCopy
	if err := strictjson.Unmarshal(body, &c); err != nil {
		return Record{}, err
	}
	if c.Format != Format {
		return Record{}, fmt.Errorf("format is %d; this release reads %d", c.Format, Format)
	}
	if c.Context == nil {
		return Record{}, errors.New("context is missing")
	}
	wrapped, err := base64.StdEncoding.Strict().DecodeString(c.WrappedDEK)
	if err != nil {
		return Record{}, fmt.Errorf("wrapped_dek: %w", err)
	}
	r := Record{DEKID: c.DEKID, WrappedDEK: wrapped, KEKID: c.KEKID, KEKEpoch: c.KEKEpoch, BornEpoch: c.BornEpoch, Context: c.Context}
	if r.CreatedAt, err = parseTime(c.CreatedAt); err != nil {
		return Record{}, fmt.Errorf("created_at: %w", err)
	}
	if err := Check(r); err != nil {
		return Record{}, err
	}
	if CopyKey(r) != key {
		return Record{}, fmt.Errorf("it is the copy of %q", CopyKey(r))
	}
	return r, nil
}

// CopyAPI is the part of the S3 client that [PutCopy] uses.
type CopyAPI interface {
	PutObject(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error)
}

// copyTries is how often a PUT is sent that met another one of the same key. Both have the
// same bytes, so one try more finds the other's object.
const copyTries = 5

// PutCopy writes the copy of this version of a record, unless it is in the bucket. The
// bucket's default retention locks it.
func PutCopy(ctx context.Context, client CopyAPI, bucket string, r Record) error {
	key, body := CopyKey(r), EncodeCopy(r)
	sum := sha256.Sum256(body)
	var last error
	for range copyTries {
		_, err := client.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &bucket, Key: &key, Body: bytes.NewReader(body), ContentType: aws.String("application/json"), IfNoneMatch: aws.String("*"),
			ChecksumAlgorithm: types.ChecksumAlgorithmSha256, ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(sum[:])),
		})
		var answer smithy.APIError
		if err == nil || errors.As(err, &answer) && answer.ErrorCode() == "PreconditionFailed" {
			return nil
		}
		if last = err; answer == nil || answer.ErrorCode() != "ConditionalRequestConflict" {
			break
		}
	}
	return fmt.Errorf("s3 PutObject %s: %w", key, last)
}
