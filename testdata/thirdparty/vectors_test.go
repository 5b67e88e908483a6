package thirdparty

import (
	"archive/zip"
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/c2sp/wycheproof"

	"github.com/matter-ops/kms-rotation/envelope/aead"
)

// open opens what a vector gives in the wire format: version ‖ nonce ‖ ciphertext ‖ tag.
func open(key, nonce, ciphertext, tag, associated []byte) ([]byte, error) {
	k, err := aead.New(key)
	if err != nil {
		return nil, err
	}
	payload := append([]byte{aead.Version}, nonce...)
	return k.Open(nil, append(append(payload, ciphertext...), tag...), associated)
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestWycheproof: valid vectors of the format's sizes open, invalid ones do not,
// and keys of other sizes are refused. A nonce of another size is not of the format.
func TestWycheproof(t *testing.T) {
	raw, err := fs.ReadFile(wycheproof.TestVectors, "aes_gcm_test.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		NumberOfTests int `json:"numberOfTests"`
		TestGroups    []struct {
			KeySize, IVSize, TagSize int
			Tests                    []struct {
				TCID                       int
				Key, IV, AAD, Msg, CT, Tag string
				Result                     string
			}
		}
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	var opened, refused, otherKey, otherNonce int
	for _, g := range file.TestGroups {
		for _, v := range g.Tests {
			if g.IVSize != 96 || g.TagSize != 128 {
				otherNonce++
				continue
			}
			got, err := open(unhex(t, v.Key), unhex(t, v.IV), unhex(t, v.CT), unhex(t, v.Tag), unhex(t, v.AAD))
			switch {
			case g.KeySize != 256:
				if otherKey++; !errors.Is(err, aead.ErrKeySize) {
					t.Errorf("%d: a key of %d bits: %v", v.TCID, g.KeySize, err)
				}
			case v.Result == "valid":
				if opened++; err != nil || !bytes.Equal(got, unhex(t, v.Msg)) {
					t.Errorf("%d: %x, %v", v.TCID, got, err)
				}
			default:
				if refused++; !errors.Is(err, aead.ErrOpen) {
					t.Errorf("%d: %x, %v", v.TCID, got, err)
				}
			}
		}
	}
	t.Logf("%d vectors: %d opened, %d refused as they must be, %d keys of another size refused, %d with nonces or tags of another size left out",
		file.NumberOfTests, opened, refused, otherKey, otherNonce)
	if opened+refused+otherKey+otherNonce != file.NumberOfTests || opened == 0 || refused == 0 {
		t.Error("not every vector was tried")
	}
}

// TestCAVP opens NIST's gcmDecrypt256.rsp.
func TestCAVP(t *testing.T) {
	path := os.Getenv("MATTER_CAVP_WHEEL")
	if path == "" {
		if os.Getenv("CI") == "true" || os.Getenv("MATTER_REQUIRE_LOCAL") == "1" {
			t.Fatal("MATTER_CAVP_WHEEL is not set")
		}
		t.Skip("MATTER_CAVP_WHEEL is not set")
	}
	wheel, err := zip.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer wheel.Close()
	for _, f := range wheel.File {
		if filepath.Base(f.Name) == "gcmDecrypt256.rsp" {
			cavp(t, f)
			return
		}
	}
	t.Fatalf("%s holds no gcmDecrypt256.rsp", path)
}

func cavp(t *testing.T, f *zip.File) {
	t.Helper()
	r, err := f.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var total, opened, refused, other int
	v := map[string]string{}
	finish := func() {
		if v["Count"] == "" {
			return
		}
		total++
		if v["IVlen"] != "96" || v["Taglen"] != "128" {
			other++
		} else if got, err := open(unhex(t, v["Key"]), unhex(t, v["IV"]), unhex(t, v["CT"]), unhex(t, v["Tag"]), unhex(t, v["AAD"])); v["FAIL"] != "" {
			if refused++; !errors.Is(err, aead.ErrOpen) {
				t.Errorf("count %s: %x, %v", v["Count"], got, err)
			}
		} else if opened++; err != nil || !bytes.Equal(got, unhex(t, v["PT"])) {
			t.Errorf("count %s: %x, %v", v["Count"], got, err)
		}
		for _, name := range []string{"Count", "FAIL", "PT"} {
			delete(v, name)
		}
	}
	s := bufio.NewScanner(r)
	for s.Scan() {
		line := strings.Trim(s.Text(), "[] \r")
		name, value, _ := strings.Cut(line, "=")
		switch name = strings.TrimSpace(name); {
		case name == "Count" || strings.HasPrefix(s.Text(), "["):
			finish()
			v[name] = strings.TrimSpace(value)
		case line == "FAIL":
			v["FAIL"] = "FAIL"
		default:
			v[name] = strings.TrimSpace(value)
		}
	}
	finish()
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d vectors: %d opened, %d refused as they must be, %d with nonces or tags of another size left out", total, opened, refused, other)
	if total < 1000 || opened == 0 || refused == 0 {
		t.Error("not every vector was tried")
	}
}
