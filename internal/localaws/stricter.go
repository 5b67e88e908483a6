package localaws

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/internal/localaws/wire"
)

const maxRetentionBytes = 64 << 10

// forwardMoto passes a call to moto, and makes up for where moto is laxer than AWS
// in what this project relies on.
func (p *proxy) forwardMoto(w http.ResponseWriter, r *http.Request, c wire.Call) {
	if name := atomicity(c); name != "" {
		defer p.serial.lock(name)()
	}
	if e := p.stricter(r, c); e != nil {
		c.Write(w, e)
		return
	}
	p.moto.ServeHTTP(w, r)
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

// stricter refuses what AWS would refuse and moto would not.
func (p *proxy) stricter(r *http.Request, c wire.Call) *wire.Error {
	switch {
	case c.Operation == "PutObject" && c.Service == "s3":
		return needsChecksum(r.Header)
	case c.Operation == "PutObjectRetention" && c.Service == "s3":
		return p.keepsRetention(r)
	}
	return nil
}

// needsChecksum holds a locked object to come with a checksum.
func needsChecksum(h http.Header) *wire.Error {
	if h.Get("X-Amz-Object-Lock-Mode") == "" || h.Get("Content-Md5") != "" || h.Get("X-Amz-Trailer") != "" {
		return nil
	}
	for name := range h {
		if strings.HasPrefix(name, "X-Amz-Checksum-") {
			return nil
		}
	}
	return &wire.Error{
		Status: http.StatusBadRequest, Code: "InvalidRequest",
		Message: "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters",
	}
}

// retention is the lock of an object's version.
type retention struct {
	Mode  string    `xml:"Mode"`
	Until time.Time `xml:"RetainUntilDate"`
}

// keepsRetention refuses to shorten or lift a retention that is in force.
func (p *proxy) keepsRetention(r *http.Request) *wire.Error {
	body, err := wire.Body(r, maxRetentionBytes)
	if err != nil {
		return &wire.Error{Status: http.StatusBadRequest, Code: "MalformedXML", Message: err.Error()}
	}
	var wanted retention
	if err := xml.Unmarshal(body, &wanted); err != nil {
		return &wire.Error{Status: http.StatusBadRequest, Code: "MalformedXML", Message: err.Error()}
	}
	held, err := p.retention(r)
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

// retention reads the lock that the object of a PutObjectRetention has.
func (p *proxy) retention(r *http.Request) (retention, error) {
	var held retention
	ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.motoURL+r.URL.RequestURI(), nil)
	if err != nil {
		return held, err
	}
	req.Header.Set("Authorization", r.Header.Get("Authorization"))
	req.Host = r.Host
	resp, err := p.moto.Transport.RoundTrip(req)
	if err != nil {
		return held, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRetentionBytes))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return held, err
	}
	switch {
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusBadRequest:
		return held, nil // no lock; moto answers the rest
	case resp.StatusCode != http.StatusOK:
		return held, fmt.Errorf("read the retention: status %d", resp.StatusCode)
	}
	return held, xml.Unmarshal(body, &held)
}
