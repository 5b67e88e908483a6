package wire

import (
	"net/http"
	"strings"
)

// parseLambda names the operations on functions that this project's tools use.
func (c *Call) parseLambda(r *http.Request) {
	part := strings.Split(strings.Trim(r.URL.Path, "/"), "/") // 2015-03-31 functions NAME …
	last := part[len(part)-1]
	switch {
	case last == "invocations" && r.Method == http.MethodPost && len(part) == 4:
		c.Operation, c.Function = "Invoke", part[2]
	case last == "configuration" && r.Method == http.MethodGet:
		c.Operation = "GetFunctionConfiguration"
	case last == "functions" && r.Method == http.MethodGet:
		c.Operation = "ListFunctions"
	case len(part) == 3 && r.Method == http.MethodGet:
		c.Operation = "GetFunction"
	default:
		c.Operation = r.Method + " " + r.URL.Path
	}
}

// restOperation names the operations of EventBridge Scheduler; of other services
// it returns method and path.
func restOperation(service string, r *http.Request) string {
	if service != "scheduler" {
		return r.Method + " " + r.URL.Path
	}
	part := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if part[0] != "schedules" && part[0] != "schedule-groups" {
		return r.Method + " " + r.URL.Path
	}
	noun := map[string]string{"schedules": "Schedule", "schedule-groups": "ScheduleGroup"}[part[0]]
	switch {
	case len(part) == 1:
		return "List" + noun + "s"
	case r.Method == http.MethodPost:
		return "Create" + noun
	case r.Method == http.MethodPut:
		return "Update" + noun
	case r.Method == http.MethodDelete:
		return "Delete" + noun
	default:
		return "Get" + noun
	}
}

// parseS3 names S3 operations by method, path (the bucket is its first part: no
// virtual hosts here) and subresource in the query.
func (c *Call) parseS3(r *http.Request) {
	c.Bucket, c.Key, _ = strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case c.Bucket == "":
		c.Operation = "ListBuckets"
	case c.Key == "":
		c.Operation = bucketOperation(r)
	default:
		c.Operation = objectOperation(r)
	}
}

// verbs are the prefixes of S3 operations on a subresource.
var verbs = map[string]string{
	http.MethodGet: "Get", http.MethodHead: "Head", http.MethodPut: "Put", http.MethodDelete: "Delete",
}

// bucketSubresources maps the query parameter of a bucket's subresource to its noun.
var bucketSubresources = map[string]string{
	"versioning": "BucketVersioning", "object-lock": "ObjectLockConfiguration", "policy": "BucketPolicy",
	"policyStatus": "BucketPolicyStatus", "encryption": "BucketEncryption", "publicAccessBlock": "PublicAccessBlock",
	"tagging": "BucketTagging", "lifecycle": "BucketLifecycleConfiguration", "location": "BucketLocation",
	"ownershipControls": "BucketOwnershipControls", "acl": "BucketAcl", "logging": "BucketLogging",
	"notification": "BucketNotificationConfiguration", "cors": "BucketCors",
}

func bucketOperation(r *http.Request) string {
	query := r.URL.Query()
	for parameter, noun := range bucketSubresources {
		if query.Has(parameter) {
			return verbs[r.Method] + noun
		}
	}
	switch {
	case query.Has("versions"):
		return "ListObjectVersions"
	case query.Has("uploads"):
		return "ListMultipartUploads"
	case query.Has("delete"):
		return "DeleteObjects"
	case query.Get("list-type") == "2":
		return "ListObjectsV2"
	}
	return map[string]string{
		http.MethodGet: "ListObjects", http.MethodHead: "HeadBucket", http.MethodPut: "CreateBucket",
		http.MethodDelete: "DeleteBucket", http.MethodPost: "PostObject",
	}[r.Method]
}

// objectSubresources maps the query parameter of an object's subresource to its noun.
var objectSubresources = map[string]string{
	"retention": "ObjectRetention", "legal-hold": "ObjectLegalHold", "tagging": "ObjectTagging",
	"acl": "ObjectAcl", "attributes": "ObjectAttributes",
}

func objectOperation(r *http.Request) string {
	query := r.URL.Query()
	for parameter, noun := range objectSubresources {
		if query.Has(parameter) {
			return verbs[r.Method] + noun
		}
	}
	upload, copied := query.Has("uploadId"), r.Header.Get("X-Amz-Copy-Source") != ""
	switch {
	case r.Method == http.MethodPost && query.Has("uploads"):
		return "CreateMultipartUpload"
	case r.Method == http.MethodPost && upload:
		return "CompleteMultipartUpload"
	case r.Method == http.MethodPut && upload && copied:
		return "UploadPartCopy"
	case r.Method == http.MethodPut && upload:
		return "UploadPart"
	case r.Method == http.MethodPut && copied:
		return "CopyObject"
	case r.Method == http.MethodGet && upload:
		return "ListParts"
	case r.Method == http.MethodDelete && upload:
		return "AbortMultipartUpload"
	default:
		return verbs[r.Method] + "Object"
	}
}
