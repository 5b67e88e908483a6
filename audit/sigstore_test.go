package audit_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
)

// As sigstore/root-signing publishes them, cut to what is of Rekor, with a successor.
const (
	signingConfigFile = `{
  "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
  "caUrls": [{"url": "https://fulcio.sigstore.dev", "majorApiVersion": 1}],
  "rekorTlogUrls": [
    {"url": "https://log2026-1.rekor.sigstore.dev", "majorApiVersion": 2, "validFor": {"start": "2026-12-01T00:00:00Z"}, "operator": "sigstore.dev"},
    {"url": "https://log2025-1.rekor.sigstore.dev", "majorApiVersion": 2, "validFor": {"start": "2026-01-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"}, "operator": "sigstore.dev"},
    {"url": "https://rekor.sigstore.dev", "majorApiVersion": 1, "validFor": {"start": "2021-01-12T11:53:27Z"}, "operator": "sigstore.dev"}
  ],
  "rekorTlogConfig": {"selector": "ANY"}
}`
	trustedRootFile = `{
  "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
  "tlogs": [
    {"baseUrl": "https://rekor.sigstore.dev", "hashAlgorithm": "SHA2_256", "publicKey": {"rawBytes": "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE2G2Y+2tabdTV5BcGiBIx0a9fAFwrkBbmLSGtks4L3qX6yYY0zufBnhC8Ur/iy55GhWP/9A/bY2LhC30M9+RYtw==", "keyDetails": "PKIX_ECDSA_P256_SHA_256"}},
    {"baseUrl": "https://log2025-1.rekor.sigstore.dev", "publicKey": {"rawBytes": "MCowBQYDK2VwAyEAt8rlp1knGwjfbcXAYPYAkn0XiLz1x8O4t0YkEhie244=", "keyDetails": "PKIX_ED25519", "validFor": {"start": "2025-09-23T00:00:00Z"}}},
    {"baseUrl": "https://log2026-1.rekor.sigstore.dev/", "publicKey": {"rawBytes": "MCowBQYDK2VwAyEAt8rlp1knGwjfbcXAYPYAkn0XiLz1x8O4t0YkEhie244=", "keyDetails": "PKIX_ED25519"}}
  ]
}`
)

// TestSigstoreFiles: the next shard of the public log comes from Sigstore's own files, with
// its key and from its day on; what the list has stays as it is.
func TestSigstoreFiles(t *testing.T) {
	logs, err := audit.LogsOf([]byte(signingConfigFile), []byte(trustedRootFile))
	if err != nil {
		t.Fatal(err)
	}
	old := audit.Log{URL: "https://log2025-1.rekor.sigstore.dev", Origin: "log2025-1.rekor.sigstore.dev", Key: logs[1].Key, From: time.Date(2025, 9, 23, 0, 0, 0, 0, time.UTC)}
	own := audit.Log{URL: "https://rekor.example.com", Origin: "rekor.example.com", Key: logs[1].Key}
	got, added := audit.Trust{Logs: []audit.Log{old, own}}.With(logs)
	next := audit.Log{URL: "https://log2026-1.rekor.sigstore.dev", Origin: "log2026-1.rekor.sigstore.dev", Key: logs[0].Key, From: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)}
	if d := cmp.Diff([]audit.Log{old, own, next}, got.Logs); d != "" || added != 1 || len(next.Key) != 44 {
		t.Errorf("%d added, key of %d bytes (-want +got):\n%s", added, len(next.Key), d)
	}
	if again, added := got.With(logs); added != 0 || !cmp.Equal(again, got) {
		t.Errorf("again: %d added", added)
	}
	lists := []audit.Log{own, old}
	if got, added := (audit.Trust{Logs: lists[:1]}).With(logs); added != 2 || len(got.Logs) != 3 || !cmp.Equal(lists[1], old) {
		t.Errorf("%d added to %v, and the caller's list is %v", added, got.Logs, lists)
	}
	if w := got.Writable(time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)); w[0].URL != next.URL {
		t.Errorf("from its day on anchors go to %s", w[0].URL)
	}
}

func TestSigstoreFilesRefused(t *testing.T) {
	for name, c := range map[string]struct{ signing, root, want string }{
		"no JSON":           {"{", trustedRootFile, "signing config: unexpected end"},
		"no JSON root":      {signingConfigFile, "[", "trusted root: unexpected end"},
		"swapped":           {trustedRootFile, signingConfigFile, "media types"},
		"two roots":         {trustedRootFile, trustedRootFile, "media types"},
		"two configs":       {signingConfigFile, signingConfigFile, "media types"},
		"no URL":            {strings.ReplaceAll(signingConfigFile, "https://log2026-1", "https://["), trustedRootFile, "rekorTlogUrls[0].url"},
		"no host":           {strings.ReplaceAll(signingConfigFile, "https://log2026-1.rekor.sigstore.dev", "https:///log2026-1"), trustedRootFile, "rekorTlogUrls[0].url"},
		"no v2 log":         {strings.ReplaceAll(signingConfigFile, `"majorApiVersion": 2`, `"majorApiVersion": 1`), trustedRootFile, "no Rekor v2 log"},
		"a log without key": {strings.ReplaceAll(signingConfigFile, "log2026-1", "log2027-1"), trustedRootFile, "the key of https://log2027-1"},
		"no https":          {strings.ReplaceAll(signingConfigFile, "https://log2026-1", "http://log2026-1"), trustedRootFile, "rekorTlogUrls[0].url"},
	} {
		if _, err := audit.LogsOf([]byte(c.signing), []byte(c.root)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
