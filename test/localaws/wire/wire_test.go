package wire_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// request makes a request signed for a service.
func request(method, target, service string, header ...string) *http.Request {
	r := httptest.NewRequest(method, target, strings.NewReader("Action=Publish&TopicArn=t"))
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=KEYID/20260102/eu-central-1/"+service+"/aws4_request, SignedHeaders=host, Signature=0")
	r.Header.Set("X-Amz-Date", "20260102T030405Z")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func TestOperations(t *testing.T) {
	const form = "application/x-www-form-urlencoded; charset=utf-8"
	for _, c := range []struct {
		r        *http.Request
		want     string // service operation
		protocol wire.Protocol
	}{
		{request("POST", "/", "dynamodb", "X-Amz-Target", "DynamoDB_20120810.GetItem"), "dynamodb GetItem", wire.JSON},
		{request("POST", "/", "kms", "X-Amz-Target", "TrentService.CreateKey"), "kms CreateKey", wire.JSON},
		{request("POST", "/", "sns", "Content-Type", form), "sns Publish", wire.Query},
		{request("POST", "/service/GraniteServiceVersion20100801/operation/PutMetricData", "monitoring", "Smithy-Protocol", "rpc-v2-cbor"), "monitoring PutMetricData", wire.CBOR},
		{request("POST", "/2015-03-31/functions/f/invocations", "lambda"), "lambda Invoke", wire.RESTJSON},
		{request("GET", "/2015-03-31/functions/f", "lambda"), "lambda GetFunction", wire.RESTJSON},
		{request("GET", "/2015-03-31/functions/f/configuration", "lambda"), "lambda GetFunctionConfiguration", wire.RESTJSON},
		{request("POST", "/schedules/s", "scheduler"), "scheduler CreateSchedule", wire.RESTJSON},
		{request("GET", "/schedules/s?groupName=g", "scheduler"), "scheduler GetSchedule", wire.RESTJSON},
		{request("GET", "/schedules", "scheduler"), "scheduler ListSchedules", wire.RESTJSON},
		{request("DELETE", "/schedule-groups/g", "scheduler"), "scheduler DeleteScheduleGroup", wire.RESTJSON},
		{request("GET", "/", "s3"), "s3 ListBuckets", wire.RESTXML},
		{request("PUT", "/b", "s3"), "s3 CreateBucket", wire.RESTXML},
		{request("GET", "/b?list-type=2", "s3"), "s3 ListObjectsV2", wire.RESTXML},
		{request("GET", "/b?versioning", "s3"), "s3 GetBucketVersioning", wire.RESTXML},
		{request("POST", "/b?delete", "s3"), "s3 DeleteObjects", wire.RESTXML},
		{request("PUT", "/b/k", "s3", "Content-Type", form), "s3 PutObject", wire.RESTXML},
		{request("PUT", "/b/k", "s3", "X-Amz-Copy-Source", "b/j"), "s3 CopyObject", wire.RESTXML},
		{request("PUT", "/b/k?partNumber=1&uploadId=u", "s3"), "s3 UploadPart", wire.RESTXML},
		{request("POST", "/b/k?uploads", "s3"), "s3 CreateMultipartUpload", wire.RESTXML},
		{request("POST", "/b/k?uploadId=u", "s3"), "s3 CompleteMultipartUpload", wire.RESTXML},
		{request("DELETE", "/b/k?uploadId=u", "s3"), "s3 AbortMultipartUpload", wire.RESTXML},
		{request("PUT", "/b/k?retention", "s3"), "s3 PutObjectRetention", wire.RESTXML},
		{request("GET", "/b/a/k?legal-hold", "s3"), "s3 GetObjectLegalHold", wire.RESTXML},
		{request("HEAD", "/b/k", "s3"), "s3 HeadObject", wire.RESTXML},
	} {
		got, err := wire.Parse(c.r)
		if err != nil || got.Service+" "+got.Operation != c.want || got.Protocol != c.protocol || got.AccessKey != "KEYID" {
			t.Errorf("%s %s: %+v, %v; want %s", c.r.Method, c.r.URL, got, err, c.want)
		}
	}
}

func TestBadSignatures(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"other scheme": func(r *http.Request) { r.Header.Set("Authorization", "AWS KEYID:signature") },
		"short scope": func(r *http.Request) {
			r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=KEYID/20260102/s3, Signature=0")
		},
		"no date":    func(r *http.Request) { r.Header.Del("X-Amz-Date") },
		"wrong date": func(r *http.Request) { r.Header.Set("X-Amz-Date", "2026-01-02") },
		"presigned without end": func(r *http.Request) {
			r.Header.Del("Authorization")
			r.URL.RawQuery = "X-Amz-Credential=K/20260102/eu-central-1/s3/aws4_request&X-Amz-Date=20260102T030405Z"
		},
	} {
		r := request("GET", "/b/k", "s3")
		change(r)
		if _, err := wire.Parse(r); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestErrorShapes looks for the code where each protocol has it.
func TestErrorShapes(t *testing.T) {
	for protocol, want := range map[wire.Protocol]string{
		wire.JSON:     `"__type":"Code"`,
		wire.RESTJSON: `"message":"a \u003c b"`,
		wire.RESTXML:  "<Error><Code>Code</Code><Message>a &lt; b</Message>",
		wire.Query:    "<Error><Type>Sender</Type><Code>Code</Code><Message>a &lt; b</Message>",
		wire.CBOR:     "\xa2\x79\x00\x06__type\x79\x00\x04Code\x79\x00\x07message\x79\x00\x05a < b",
	} {
		w := httptest.NewRecorder()
		wire.Call{Protocol: protocol}.Write(w, &wire.Error{Status: 418, Code: "Code", Message: "a < b"})
		if w.Code != 418 || w.Header().Get("X-Amzn-Errortype") != "Code" || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%d: %d %q, want %q", protocol, w.Code, w.Body, want)
		}
	}
}

func TestBodyIsPutBack(t *testing.T) {
	r := request("POST", "/", "sns", "Content-Type", "application/x-www-form-urlencoded")
	if _, err := wire.Parse(r); err != nil {
		t.Fatal(err)
	}
	b, err := wire.Body(r, 1<<10)
	if err != nil || string(b) != "Action=Publish&TopicArn=t" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := wire.Body(r, 3); err == nil {
		t.Error("a body over the limit is read")
	}
}

func TestAge(t *testing.T) {
	signed := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	call := func(service string, p wire.Protocol, expires time.Duration) wire.Call {
		return wire.Call{Service: service, Protocol: p, AccessKey: "K", Signed: signed, Expires: expires}
	}
	for _, c := range []struct {
		call wire.Call
		age  time.Duration
		want string
	}{
		{call("kms", wire.JSON, 0), 5 * time.Minute, ""},
		{call("kms", wire.JSON, 0), 5*time.Minute + 1, "InvalidSignatureException"},
		{call("kms", wire.JSON, 0), -5*time.Minute - 1, "InvalidSignatureException"},
		{call("sns", wire.Query, 0), 6 * time.Minute, "SignatureDoesNotMatch"},
		{call("s3", wire.RESTXML, 0), 15 * time.Minute, ""},
		{call("s3", wire.RESTXML, 0), 15*time.Minute + 1, "RequestTimeTooSkewed"},
		{call("s3", wire.RESTXML, time.Hour), 59 * time.Minute, ""},
		{call("s3", wire.RESTXML, time.Hour), 61 * time.Minute, "AccessDenied"},
	} {
		got := ""
		if e := c.call.CheckAge(signed.Add(c.age)); e != nil {
			got = e.Code
		}
		if got != c.want {
			t.Errorf("%s after %s: %q, want %q", c.call.Service, c.age, got, c.want)
		}
	}
}
