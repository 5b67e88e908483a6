package localaws

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

const (
	maxRetentionBytes = 64 << 10
	maxExecutionBytes = 1 << 20
)

// forwardMoto passes a call to moto, and makes up for where moto differs from AWS in
// what this project relies on.
func (p *proxy) forwardMoto(w http.ResponseWriter, r *http.Request, c wire.Call) {
	if name := atomicity(c); name != "" {
		defer p.serial.lock(name)()
	}
	if _, isFunction := p.host.Caller(c.AccessKey); p.lags(w, r, c, isFunction) {
		return
	}
	switch answered, refused := p.likeAWS(w, r, c); {
	case refused != nil:
		c.Write(w, refused)
	case !answered:
		p.moto.ServeHTTP(w, r)
	}
}

// atomicity names what a call must not do at the same time as another: moto checks
// a condition and acts on it in two steps.
func atomicity(c wire.Call) string {
	switch {
	case c.Service == "s3" && c.Key != "" && !strings.HasPrefix(c.Operation, "Get") && !strings.HasPrefix(c.Operation, "Head"):
		return "s3/" + c.Bucket + "/" + c.Key
	case c.Service == "kms" && strings.HasSuffix(c.Operation, "Alias"):
		return "kms/alias"
	case c.Service == "states" && c.Operation == "StartExecution":
		return "states/" + c.Operation
	}
	return ""
}

// likeAWS makes up for how moto differs from AWS in a call: it refuses what AWS
// would refuse, answers what moto cannot, and completes what moto asks for. With
// neither answer nor refusal, moto gets the call.
func (p *proxy) likeAWS(w http.ResponseWriter, r *http.Request, c wire.Call) (answered bool, refused *wire.Error) {
	if c.Service == "s3" {
		namesChecksum(r.Header)
	}
	switch c.Service + ":" + c.Operation {
	case "s3:PutObject":
		return false, wholeLock(r.Header)
	case "s3:PutObjectRetention":
		return false, p.keepsRetention(r)
	case "s3:GetObjectRetention":
		return p.answersRetention(w, r)
	case "states:StartExecution":
		return false, namesExecution(r)
	}
	return false, nil
}

// namesChecksum has a checksum name its algorithm, which AWS does not ask for.
func namesChecksum(h http.Header) {
	const prefix = "X-Amz-Checksum-"
	algorithm := strings.TrimPrefix(http.CanonicalHeaderKey(h.Get("X-Amz-Trailer")), prefix)
	for name := range h {
		if strings.HasPrefix(name, prefix) {
			algorithm = strings.TrimPrefix(name, prefix)
		}
	}
	if algorithm != "" && h.Get("X-Amz-Sdk-Checksum-Algorithm") == "" {
		h.Set("X-Amz-Sdk-Checksum-Algorithm", strings.ToUpper(algorithm))
	}
}

// wholeLock refuses an object's lock without a mode, without a date, or of a mode that
// there is not.
func wholeLock(h http.Header) *wire.Error {
	mode, until := h.Get("X-Amz-Object-Lock-Mode"), h.Get("X-Amz-Object-Lock-Retain-Until-Date")
	switch {
	case (mode == "") != (until == ""):
		return &wire.Error{
			Status: http.StatusBadRequest, Code: "InvalidArgument",
			Message: "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied",
		}
	case mode != "" && mode != "COMPLIANCE" && mode != "GOVERNANCE":
		return &wire.Error{Status: http.StatusBadRequest, Code: "InvalidArgument", Message: "Unknown wormMode directive."}
	}
	return nil
}

// namesExecution gives an execution without a name the UUID that it gets on AWS, and
// refuses an input that is no JSON.
func namesExecution(r *http.Request) *wire.Error {
	body, err := wire.Body(r, maxExecutionBytes)
	if err != nil {
		return &wire.Error{Status: http.StatusBadRequest, Code: "ValidationException", Message: err.Error()}
	}
	var in map[string]any
	if json.Unmarshal(body, &in) != nil {
		return nil // moto says what is wrong with it
	}
	if text, ok := in["input"].(string); ok && !json.Valid([]byte(text)) {
		return &wire.Error{Status: http.StatusBadRequest, Code: "InvalidExecutionInput", Message: "Invalid State Machine Execution Input: 'Invalid execution input.'"}
	}
	if in["name"] != nil {
		return nil
	}
	in["name"] = wire.RequestID()
	if body, err = json.Marshal(in); err != nil {
		return &wire.Error{Status: http.StatusBadRequest, Code: "ValidationException", Message: err.Error()}
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}

// retention is the lock of an object's version.
type retention struct {
	XMLName xml.Name  `xml:"Retention"`
	Mode    string    `xml:"Mode"`
	Until   time.Time `xml:"RetainUntilDate"`
}

// keepsRetention refuses to shorten or weaken a retention that is in force.
func (p *proxy) keepsRetention(r *http.Request) *wire.Error {
	body, err := wire.Body(r, maxRetentionBytes)
	if err != nil {
		return &wire.Error{Status: http.StatusBadRequest, Code: "MalformedXML", Message: err.Error()}
	}
	var wanted retention
	if err := xml.Unmarshal(body, &wanted); err != nil {
		return &wire.Error{Status: http.StatusBadRequest, Code: "MalformedXML", Message: err.Error()}
	}
	held, _, err := p.retention(r)
	if err != nil {
		return &wire.Error{Status: http.StatusInternalServerError, Code: "InternalError", Message: err.Error()}
	}
	bypass := held.Mode == "GOVERNANCE" && strings.EqualFold(r.Header.Get("X-Amz-Bypass-Governance-Retention"), "true")
	if held.Mode == "" || !held.Until.After(p.now()) || bypass {
		return nil
	}
	if wanted.Mode != held.Mode && held.Mode == "COMPLIANCE" || wanted.Until.Before(held.Until) {
		return &wire.Error{Status: http.StatusForbidden, Code: "AccessDenied", Message: "Access Denied because object protected by object lock."}
	}
	return nil
}

// answersRetention answers GetObjectRetention, for which moto returns the object.
func (p *proxy) answersRetention(w http.ResponseWriter, r *http.Request) (answered bool, refused *wire.Error) {
	held, found, err := p.retention(r)
	switch {
	case err != nil:
		return false, &wire.Error{Status: http.StatusInternalServerError, Code: "InternalError", Message: err.Error()}
	case !found:
		return false, &wire.Error{Status: http.StatusNotFound, Code: "NoSuchKey", Message: "The specified key does not exist."}
	case held.Mode == "":
		return false, &wire.Error{
			Status: http.StatusNotFound, Code: "NoSuchObjectLockConfiguration",
			Message: "The specified object does not have a ObjectLock configuration",
		}
	}
	w.Header().Set("Content-Type", "application/xml")
	_ = xml.NewEncoder(w).Encode(held) // the client may be gone
	return true, nil
}

// retention reads the lock of the object that a call is about.
func (p *proxy) retention(r *http.Request) (held retention, found bool, err error) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
	defer cancel()
	url := p.motoURL + r.URL.EscapedPath()
	if id := r.URL.Query().Get("versionId"); id != "" {
		url += "?versionId=" + id
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return held, false, err
	}
	req.Header.Set("Authorization", r.Header.Get("Authorization"))
	req.Host = r.Host
	resp, err := p.moto.Transport.RoundTrip(req)
	if err != nil {
		return held, false, err
	}
	if err := resp.Body.Close(); err != nil {
		return held, false, err
	}
	if held.Mode = resp.Header.Get("X-Amz-Object-Lock-Mode"); held.Mode != "" {
		held.Until, err = time.Parse(time.RFC3339, resp.Header.Get("X-Amz-Object-Lock-Retain-Until-Date"))
	}
	return held, resp.StatusCode == http.StatusOK, err
}
