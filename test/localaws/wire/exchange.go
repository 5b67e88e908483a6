package wire

import (
	"net/http"
	"net/url"
)

// Exchange is a call that was served, and its answer.
type Exchange struct {
	Call
	Caller         string // short name of the calling function, or [Application] or [Person]
	Query          url.Values
	Header         http.Header
	Body           []byte
	Status         int // of the answer; 0 if the service gave none, and what became of the call is not known
	AnsweredHeader http.Header
	Answer         []byte
}

// Callers that are no function. No function has such a name.
const (
	Application = "application" // a process that uses the library
	Person      = "person"      // a person, or another program
)

// quiet are the operations that change no key, item or object and prove nothing, each with
// the reason. No other operation of these services is: one that is not known here matters.
var quiet = map[string]string{
	"dynamodb GetItem":                   "one item is read to decide by; the write that follows conditions on what was read",
	"dynamodb BatchGetItem":              "as GetItem",
	"dynamodb TransactGetItems":          "as GetItem",
	"dynamodb DescribeTable":             "says how the table is, not what is in it",
	"dynamodb DescribeContinuousBackups": "as DescribeTable",
	"dynamodb DescribeTimeToLive":        "as DescribeTable",
	"dynamodb ListTables":                "as DescribeTable",
	"dynamodb ListTagsOfResource":        "as DescribeTable",
	"kms DescribeKey":                    "says how a key is; that it may be used is tested by its use",
	"kms GetKeyLastUsage":                "as DescribeKey",
	"kms GetKeyPolicy":                   "as DescribeKey",
	"kms GetKeyRotationStatus":           "as DescribeKey",
	"kms ListKeys":                       "as DescribeKey",
	"kms ListAliases":                    "as DescribeKey; a claim is decided by CreateAlias",
	"kms ListGrants":                     "as DescribeKey",
	"kms ListKeyPolicies":                "as DescribeKey",
	"kms ListResourceTags":               "as DescribeKey",
	"kms GetPublicKey":                   "of the key that signs anchors, of which the model knows nothing",
	"kms Sign":                           "as GetPublicKey",
	"kms Verify":                         "as GetPublicKey",
	"kms GenerateRandom":                 "uses no key",
	"s3 HeadObject":                      "says that an object is there, not what is in it",
	"s3 ListObjectVersions":              "as HeadObject",
	"s3 GetObjectAttributes":             "as HeadObject",
	"s3 GetObjectLegalHold":              "as HeadObject",
	"s3 GetObjectRetention":              "as HeadObject",
	"s3 GetObjectTagging":                "as HeadObject",
	"s3 GetObjectAcl":                    "as HeadObject",
	"s3 ListBuckets":                     "says how the bucket is, not what is in it",
	"s3 HeadBucket":                      "as ListBuckets",
	"s3 GetBucketLocation":               "as ListBuckets",
	"s3 GetBucketPolicy":                 "as ListBuckets",
	"s3 GetBucketVersioning":             "as ListBuckets",
	"s3 GetBucketEncryption":             "as ListBuckets",
	"s3 GetObjectLockConfiguration":      "as ListBuckets",
}

// Matters reports whether a call may have an effect on a key, an item, an object or a
// DEK, or shows several items at once: a recording of a rotation needs
// these calls in one order.
func (c Call) Matters() bool {
	switch c.Service {
	case "dynamodb", "kms", "s3":
		return quiet[c.Service+" "+c.Operation] == ""
	}
	return false
}

// reads are operations that matter for what they show or make of a DEK, and that change
// nothing: two of them may be served side by side.
var reads = map[string]bool{
	"kms GenerateDataKey": true, "kms Decrypt": true, "kms Encrypt": true, "kms ReEncrypt": true,
	"dynamodb Scan": true, "dynamodb Query": true,
	"s3 GetObject": true, "s3 ListObjectsV2": true,
}

// Reads reports whether a call that matters changes no key, item or object.
func (c Call) Reads() bool { return reads[c.Service+" "+c.Operation] }
