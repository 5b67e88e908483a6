package audit

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// signingConfig has the fields that are used of a Sigstore signing config, media type
// application/vnd.dev.sigstore.signingconfig.v0.2+json (sigstore/protobuf-specs).
type signingConfig struct {
	MediaType string `json:"mediaType"`
	Logs      []struct {
		URL      string   `json:"url"`
		Version  int      `json:"majorApiVersion"`
		ValidFor validFor `json:"validFor"`
	} `json:"rekorTlogUrls"`
}

// trustedRoot has the fields that are used of a Sigstore trusted root, media type
// application/vnd.dev.sigstore.trustedroot+json;version=0.1 or .v0.2+json.
type trustedRoot struct {
	MediaType string `json:"mediaType"`
	Logs      []struct {
		URL string `json:"baseUrl"`
		Key struct {
			DER []byte `json:"rawBytes"`
		} `json:"publicKey"`
	} `json:"tlogs"`
}

type validFor struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end,omitzero"`
}

// LogsOf returns the Rekor v2 logs that a Sigstore signing config names, with their keys
// from the trusted root. Both files belong to Sigstore and are signed by TUF; the caller
// has verified that. Unknown fields are accepted, because Sigstore may add some. The
// returned logs have no end: an end in the signing config only tells writers to use
// another log; the entries in the log stay valid.
func LogsOf(signing, root []byte) ([]Log, error) {
	var c signingConfig
	if err := json.Unmarshal(signing, &c); err != nil {
		return nil, fmt.Errorf("signing config: %w", err)
	}
	var r trustedRoot
	if err := json.Unmarshal(root, &r); err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	if !strings.Contains(c.MediaType, "signingconfig") || !strings.Contains(r.MediaType, "trustedroot") {
		return nil, fmt.Errorf("media types %q and %q are not of a signing config and a trusted root", c.MediaType, r.MediaType)
	}
	keys := map[string][]byte{}
	for _, l := range r.Logs {
		keys[strings.TrimSuffix(l.URL, "/")] = l.Key.DER
	}
	var out []Log
	for i, l := range c.Logs {
		if l.Version != 2 {
			continue
		}
		u, err := url.Parse(l.URL)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" {
			return nil, fmt.Errorf("signing config: rekorTlogUrls[%d].url: %q is not an https URL", i, l.URL)
		}
		base := strings.TrimSuffix(l.URL, "/")
		log := Log{URL: base, Origin: u.Hostname(), Key: keys[base], From: l.ValidFor.Start}
		if _, err := log.newVerifier(); err != nil {
			return nil, fmt.Errorf("trusted root: the key of %s: %w", base, err)
		}
		out = append(out, log)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("signing config: it names no Rekor v2 log: take signing_config_rekor_v2.v0.2.json")
	}
	return out, nil
}

// With returns a trust list with the logs added whose URL it does not have yet, and how
// many were added.
func (t Trust) With(logs []Log) (Trust, int) {
	out, added := t, 0
	out.Logs = append([]Log(nil), t.Logs...)
	for _, l := range logs {
		known := false
		for _, have := range out.Logs {
			known = known || strings.TrimSuffix(have.URL, "/") == l.URL
		}
		if !known {
			out.Logs, added = append(out.Logs, l), added+1
		}
	}
	return out, added
}
