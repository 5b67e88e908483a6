package access

import (
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/iam"
	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// s3Actions maps operations to actions where the names differ.
var s3Actions = map[string]string{
	"ListObjects": "ListBucket", "ListObjectsV2": "ListBucket", "HeadBucket": "ListBucket",
	"ListObjectVersions": "ListBucketVersions", "ListBuckets": "ListAllMyBuckets",
	"ListMultipartUploads": "ListBucketMultipartUploads", "ListParts": "ListMultipartUploadParts",
	"HeadObject":            "GetObject",
	"CreateMultipartUpload": "PutObject", "UploadPart": "PutObject", "CompleteMultipartUpload": "PutObject",
	"CopyObject": "PutObject", "UploadPartCopy": "PutObject", "PostObject": "PutObject",
	"DeleteObjects":              "DeleteObject",
	"GetObjectLockConfiguration": "GetBucketObjectLockConfiguration", "PutObjectLockConfiguration": "PutBucketObjectLockConfiguration",
	"GetPublicAccessBlock": "GetBucketPublicAccessBlock", "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
	"GetBucketEncryption": "GetEncryptionConfiguration", "PutBucketEncryption": "PutEncryptionConfiguration",
	"GetBucketLifecycleConfiguration": "GetLifecycleConfiguration", "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration",
}

// versioned are the actions that have a name of their own for a given version.
var versioned = map[string]string{
	"GetObject": "GetObjectVersion", "DeleteObject": "DeleteObjectVersion",
	"GetObjectTagging": "GetObjectVersionTagging", "GetObjectAcl": "GetObjectVersionAcl",
}

func (d Reader) s3(r *http.Request, c wire.Call) []iam.Access {
	action := c.Operation
	if a, ok := s3Actions[action]; ok {
		action = a
	}
	query := r.URL.Query()
	if a, ok := versioned[action]; ok && query.Get("versionId") != "" {
		action = a
	}
	resource := "*"
	switch {
	case c.Operation == "DeleteObjects": // each of its keys: a pattern that grants all of them does
		resource = "arn:aws:s3:::" + c.Bucket + "/*"
	case c.Key != "":
		resource = "arn:aws:s3:::" + c.Bucket + "/" + c.Key
	case c.Bucket != "":
		resource = "arn:aws:s3:::" + c.Bucket
	}
	keys := d.s3Keys(r)
	out := []iam.Access{{Action: "s3:" + action, Resource: resource, Context: keys}}
	also := func(action string) {
		out = append(out, iam.Access{Action: "s3:" + action, Resource: resource, Context: maps.Clone(keys)})
	}
	h := r.Header
	if h.Get("X-Amz-Object-Lock-Mode") != "" {
		also("PutObjectRetention")
	}
	if h.Get("X-Amz-Object-Lock-Legal-Hold") != "" {
		also("PutObjectLegalHold")
	}
	if h.Get("X-Amz-Tagging") != "" {
		also("PutObjectTagging")
	}
	if strings.EqualFold(h.Get("X-Amz-Bypass-Governance-Retention"), "true") {
		also("BypassGovernanceRetention")
	}
	if source := h.Get("X-Amz-Copy-Source"); source != "" {
		name, _, _ := strings.Cut(strings.TrimPrefix(source, "/"), "?")
		out = append(out, iam.Access{Action: "s3:GetObject", Resource: "arn:aws:s3:::" + name})
	}
	return out
}

// s3Keys are the condition keys that headers and query of a request give.
func (d Reader) s3Keys(r *http.Request) map[string][]string {
	keys := map[string][]string{}
	for key, header := range map[string]string{
		"s3:if-match": "If-Match", "s3:if-none-match": "If-None-Match",
		"s3:x-amz-server-side-encryption":                "X-Amz-Server-Side-Encryption",
		"s3:x-amz-server-side-encryption-aws-kms-key-id": "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id",
		"s3:object-lock-mode":                            "X-Amz-Object-Lock-Mode",
		"s3:object-lock-retain-until-date":               "X-Amz-Object-Lock-Retain-Until-Date",
	} {
		if v := r.Header.Get(header); v != "" {
			keys[key] = []string{v}
		}
	}
	query := r.URL.Query()
	for key, parameter := range map[string]string{"s3:prefix": "prefix", "s3:delimiter": "delimiter", "s3:versionid": "versionId"} {
		if query.Has(parameter) {
			keys[key] = []string{query.Get(parameter)}
		}
	}
	if until, err := time.Parse(time.RFC3339, r.Header.Get("X-Amz-Object-Lock-Retain-Until-Date")); err == nil {
		days := int(until.Sub(d.Now()).Hours() / 24) // whole days that remain
		keys["s3:object-lock-remaining-retention-days"] = []string{strconv.Itoa(days)}
	}
	return keys
}
