package remote_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/internal/remote"
)

// TestLogCalls: a line for each call, with its time and the code of its error, and nothing of
// what was sent or answered.
func TestLogCalls(t *testing.T) {
	refuse := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if refuse {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"__type":"NotFoundException","message":"secret-text"}`))
			return
		}
		_, _ = w.Write([]byte(`{"Plaintext":"c2VjcmV0"}`))
	}))
	defer server.Close()
	var out strings.Builder
	cfg := aws.Config{Region: "eu-central-1", BaseEndpoint: &server.URL, Credentials: credentials.NewStaticCredentialsProvider("id", "secret-key", "")}
	remote.LogCalls(&out, time.Now)(&cfg)
	client := kms.NewFromConfig(cfg, func(o *kms.Options) { o.RetryMaxAttempts = 1 })
	decrypt := func() error {
		_, err := client.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: []byte("secret-blob")})
		return err
	}
	if err := decrypt(); err != nil {
		t.Fatal(err)
	}
	refuse = true
	if err := decrypt(); err == nil {
		t.Fatal("no error")
	}
	server.Close()
	if err := decrypt(); err == nil {
		t.Fatal("no error")
	}
	want := regexp.MustCompile(`^KMS Decrypt, \d+ ms\nKMS Decrypt, \d+ ms: NotFoundException\nKMS Decrypt, \d+ ms: no answer\n$`)
	if !want.MatchString(out.String()) {
		t.Errorf("%q does not match %s", out.String(), want)
	}
}
