// Package wire recognises AWS requests as they come over HTTP (which service,
// operation and caller, signed when) and writes errors in the shape that the
// service's protocol has. It checks the age of a signature, not the signature:
// the local AWS has no secrets worth guarding.
package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"
)

// Protocol is how a service encodes requests and errors.
type Protocol int

// The protocols of AWS services.
const (
	JSON     Protocol = iota // X-Amz-Target and a JSON body: DynamoDB, KMS, Step Functions
	Query                    // a form with Action: SNS, CloudFormation, IAM
	CBOR                     // Smithy RPC v2: CloudWatch
	RESTJSON                 // Lambda, EventBridge Scheduler
	RESTXML                  // S3
)

// Call is a recognised request.
type Call struct {
	Service   string // signing name: dynamodb, kms, s3, states, …
	Operation string // as the SDK names it: GetItem, PutObject
	AccessKey string // id of the caller's access key, "" if unsigned
	Protocol  Protocol

	Bucket, Key string // of S3
	Function    string // name or ARN of the function that Lambda's Invoke is for

	Signed  time.Time     // when the request was signed; zero if it was not
	Expires time.Duration // how long a presigned request is valid, else 0
}

const (
	amzTime      = "20060102T150405Z"
	maxFormBytes = 8 << 20
)

// Parse recognises a request. It may read the body, which it puts back.
func Parse(r *http.Request) (Call, error) {
	var c Call
	if err := c.parseSignature(r); err != nil {
		return c, err
	}
	switch target := r.Header.Get("X-Amz-Target"); {
	case target != "":
		prefix, operation, _ := strings.Cut(target, ".")
		c.Protocol, c.Operation = JSON, operation
		if strings.HasPrefix(prefix, "DynamoDB") {
			c.Service = "dynamodb"
		}
	case r.Header.Get("Smithy-Protocol") == "rpc-v2-cbor":
		c.Protocol, c.Operation = CBOR, path.Base(r.URL.Path)
	case c.Service != "s3" && strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded"):
		return c, c.parseForm(r)
	case c.Service == "lambda":
		c.Protocol = RESTJSON
		c.parseLambda(r)
	case c.Service == "s3" || c.Service == "":
		c.Protocol, c.Service = RESTXML, "s3"
		c.parseS3(r)
	default:
		c.Protocol, c.Operation = RESTJSON, restOperation(c.Service, r)
	}
	return c, nil
}

// parseSignature reads caller, service and time from the Authorization header or,
// for a presigned request, from the query.
func (c *Call) parseSignature(r *http.Request) error {
	query := r.URL.Query()
	scope, date := query.Get("X-Amz-Credential"), query.Get("X-Amz-Date")
	if auth := r.Header.Get("Authorization"); auth != "" {
		_, after, ok := strings.Cut(auth, "Credential=")
		if !ok || !strings.HasPrefix(auth, "AWS4-HMAC-SHA256") {
			return errors.New("the Authorization header is not AWS4-HMAC-SHA256 with a Credential")
		}
		scope, _, _ = strings.Cut(after, ",")
		if date = r.Header.Get("X-Amz-Date"); date == "" {
			return errors.New("the request is signed but has no X-Amz-Date")
		}
	} else if scope != "" {
		expires, err := time.ParseDuration(query.Get("X-Amz-Expires") + "s")
		if err != nil || expires <= 0 {
			return errors.New("the presigned request has no X-Amz-Expires")
		}
		c.Expires = expires
	}
	if scope == "" {
		return nil
	}
	part := strings.Split(strings.TrimSpace(scope), "/")
	if len(part) != 5 {
		return fmt.Errorf("the credential scope %q has not five parts", scope)
	}
	signed, err := time.Parse(amzTime, date)
	if err != nil {
		return fmt.Errorf("X-Amz-Date: %w", err)
	}
	c.AccessKey, c.Service, c.Signed = part[0], part[3], signed
	return nil
}

func (c *Call) parseForm(r *http.Request) error {
	c.Protocol = Query
	body, err := Body(r, maxFormBytes)
	if err != nil {
		return err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return fmt.Errorf("form: %w", err)
	}
	c.Operation = form.Get("Action")
	return nil
}

// Body reads the body of at most limit bytes and puts it back.
func Body(r *http.Request, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("the request has more than %d bytes", limit)
	}
	_ = r.Body.Close()
	r.Body = io.NopCloser(bytes.NewReader(b))
	return b, nil
}
