package second

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/matter-ops/kms-rotation/test/localaws/proc"
)

const (
	region  = "eu-central-1"
	account = "111122223333" // as in the documentation's examples
)

// server is a running ministack, and what stands before it.
type server struct {
	direct string // its own endpoint
	url    string // the one that everybody uses: with ReEncrypt
	root   string // of the module
	home   string // HOME of the tools, so that they keep nothing elsewhere
}

// start starts ministack, which dies with this process. It listens on the loopback
// interface. The test is skipped where ministack is not installed or the functions are not
// built, unless MATTER_REQUIRE_LOCAL=1.
func start(t *testing.T) *server {
	t.Helper()
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(root, "build", "ministack", "bin", "ministack")
	for what, path := range map[string]string{"ministack": program, "build": filepath.Join(root, "build", "local", "mint", "bootstrap")} {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) && os.Getenv("CI") != "true" && os.Getenv("MATTER_REQUIRE_LOCAL") != "1" {
			t.Skipf("%v: make %s", err, what)
		}
	}
	s := &server{root: root, home: t.TempDir()}
	port := freePort(t)
	s.direct = "http://127.0.0.1:" + strconv.Itoa(port)
	direct, err := url.Parse(s.direct)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(withReEncrypt(direct))
	t.Cleanup(front.Close)
	s.url = front.URL

	log, err := os.Create(filepath.Join(s.home, "ministack.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.home, log, log
	cmd.Env = append(s.env(), "GATEWAY_PORT="+strconv.Itoa(port), "BIND_HOST=127.0.0.1", "IOT_MTLS_ENABLED=0",
		"MINISTACK_REGION="+region, "MINISTACK_ACCOUNT_ID="+account, "TMPDIR="+s.home)
	p, err := proc.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("functions: %s", s.functionLogs())
		}
		// It ends the functions' processes. If it cannot, they end when they ask it for work.
		_ = syscall.Kill(p.Pid(), syscall.SIGTERM)
		select {
		case <-p.Done():
		case <-time.After(5 * time.Second):
			p.Kill()
		}
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("ministack: %s", tail(b))
		}
	})
	for range 300 {
		if resp, err := http.Get(s.direct + "/_ministack/health"); err == nil {
			_ = resp.Body.Close()
			return s
		}
		select {
		case <-p.Done():
			b, _ := os.ReadFile(log.Name())
			t.Fatalf("ministack: %v\n%s", p.Err(), tail(b))
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatal("ministack does not answer")
	return nil
}

// functionLogs are the last lines of each function's log.
func (s *server) functionLogs() []byte {
	const script = `
import boto3
logs = boto3.client("logs")
for group in logs.describe_log_groups()["logGroups"]:
    for event in logs.filter_log_events(logGroupName=group["logGroupName"])["events"][-6:]:
        print(group["logGroupName"], event["message"].strip()[:500])
`
	cmd := exec.CommandContext(context.Background(), filepath.Join(s.root, "build", "ministack", "bin", "python"), "-I", "-c", script)
	cmd.Env = s.env()
	out, _ := cmd.CombinedOutput()
	return out
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func tail(b []byte) []byte {
	return b[max(0, len(b)-4000):]
}

// env is the environment of what talks to the second AWS.
func (s *server) env() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.home, "AWS_ENDPOINT_URL=" + s.url, "AWS_REGION=" + region, "AWS_DEFAULT_REGION=" + region,
		"AWS_ACCESS_KEY_ID=" + account, "AWS_SECRET_ACCESS_KEY=local", "AWS_EC2_METADATA_DISABLED=true", "SAM_CLI_TELEMETRY=0",
	}
}

// config is the SDK's configuration for an endpoint.
func config(endpoint string) aws.Config {
	return aws.Config{
		Region: region, BaseEndpoint: &endpoint, HTTPClient: http.DefaultClient,
		Credentials: credentials.NewStaticCredentialsProvider(account, "local", ""),
	}
}

// withReEncrypt forwards everything, and answers ReEncrypt, which ministack does not have,
// by its Decrypt and its Encrypt.
func withReEncrypt(to *url.URL) http.Handler {
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = to.Host }}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Amz-Target") != "TrentService.ReEncrypt" {
			forward.ServeHTTP(w, r)
			return
		}
		if err := reEncrypt(to, w, r); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	})
}

func reEncrypt(to *url.URL, w http.ResponseWriter, r *http.Request) error {
	var in struct {
		CiphertextBlob     []byte
		SourceContext      map[string]string `json:"SourceEncryptionContext"`
		DestinationContext map[string]string `json:"DestinationEncryptionContext"`
		Source             string            `json:"SourceKeyId"`
		Destination        string            `json:"DestinationKeyId"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return err
	}
	// call returns false if the answer is an error, which has been passed on.
	call := func(operation string, fields map[string]any, out any) (bool, error) {
		maps.DeleteFunc(fields, func(_ string, v any) bool { s, ok := v.(string); return ok && s == "" })
		b, err := json.Marshal(fields)
		if err != nil {
			return false, err
		}
		req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, to.String()+"/", bytes.NewReader(b))
		if err != nil {
			return false, err
		}
		req.Header = r.Header.Clone()
		req.Header.Set("X-Amz-Target", "TrentService."+operation)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false, err
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode == http.StatusOK {
			return true, json.NewDecoder(resp.Body).Decode(out)
		}
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		_, err = io.Copy(w, resp.Body)
		return false, err
	}
	var opened struct {
		Key       string `json:"KeyId"`
		Plaintext []byte
	}
	if ok, err := call("Decrypt", map[string]any{
		"CiphertextBlob": in.CiphertextBlob, "EncryptionContext": in.SourceContext, "KeyId": in.Source,
	}, &opened); !ok {
		return err
	}
	var sealed struct {
		Key            string `json:"KeyId"`
		CiphertextBlob []byte
	}
	if ok, err := call("Encrypt", map[string]any{
		"Plaintext": opened.Plaintext, "EncryptionContext": in.DestinationContext, "KeyId": in.Destination,
	}, &sealed); !ok {
		return err
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	return json.NewEncoder(w).Encode(map[string]any{
		"CiphertextBlob": sealed.CiphertextBlob, "KeyId": sealed.Key, "SourceKeyId": opened.Key,
		"SourceEncryptionAlgorithm": "SYMMETRIC_DEFAULT", "DestinationEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
	})
}

// run runs a program of this project or of .venv in dir.
func (s *server) run(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, append(s.env(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, tail(out))
	}
	return string(out)
}

// quietSAM tells sam that it has just looked for a newer sam, which it would do over the
// network.
func (s *server) quietSAM(t *testing.T) {
	t.Helper()
	dir := filepath.Join(s.home, ".aws-sam")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b := fmt.Appendf(nil, `{"lastVersionCheck": %d, "telemetryEnabled": false}`, time.Now().Unix())
	if err := os.WriteFile(filepath.Join(dir, "metadata.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}
