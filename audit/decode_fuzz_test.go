package audit_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

// FuzzParseTrust: a list that is taken says what its bytes say: written again it is taken
// again as the same list, and every log and key in it can be used.
func FuzzParseTrust(f *testing.F) {
	w := audittest.New(f)
	b, err := json.Marshal(w.Policy.Trust)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for _, s := range []string{"null", "{}", `{"logs":[]}`, `{"logs":[],"logs":null}`, string(b) + "]", `{"Logs":[{}]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		trust, err := audit.ParseTrust(b)
		if err != nil {
			return
		}
		if len(trust.Logs) == 0 {
			t.Fatalf("%q has no log", b)
		}
		again, err := json.Marshal(trust)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := audit.ParseTrust(again)
		if err != nil || !cmp.Equal(parsed, trust, cmpopts.EquateEmpty()) { // no anchor keys are an empty list or none
			t.Fatalf("%q is written again as %q: %v", b, again, err)
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(b, &fields); err != nil {
			t.Fatal(err)
		}
		for name := range fields {
			if name != "logs" && name != "anchor_keys" {
				t.Fatalf("%q has a field %q", b, name)
			}
		}
	})
}

// FuzzOpenDir: whatever a manifest says, a copy is opened or refused, and is verified to
// a verdict: only the true manifest makes it green.
func FuzzOpenDir(f *testing.F) {
	w := audittest.New(f)
	dir := f.TempDir() + "/copy"
	if err := audit.Copy(f.Context(), w.Bucket, dir); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(dir + "/" + audit.ManifestName)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for _, s := range []string{"null", "[]", "[null]", `[{"key":"../../etc/passwd","version_id":"1","file":"../../etc/passwd"}]`, `[{"delete_marker":true}]`} {
		f.Add([]byte(s))
	}
	files := fstest.MapFS{}
	for _, s := range w.Bucket.Stored() {
		files[s.Key] = &fstest.MapFile{Data: s.Bytes}
	}
	want := verify(f, w.Bucket, w.Policy)
	f.Fuzz(func(t *testing.T, b []byte) {
		copied := fstest.MapFS{audit.ManifestName: &fstest.MapFile{Data: b}}
		for name, file := range files {
			copied[name] = file
		}
		d, err := audit.OpenDir(fs.FS(copied))
		if err != nil {
			return
		}
		r, err := audit.Verify(t.Context(), d, w.Policy)
		if err == nil && r.Result == audit.Green && (r.HeadHash != want.HeadHash || r.Anchors != want.Anchors) {
			t.Fatalf("%q is green: %+v", b, r)
		}
	})
}

// FuzzVerifyConsistency: no proof makes a tree grow into one that does not hold it.
func FuzzVerifyConsistency(f *testing.F) {
	log, fork := rekortest.New(f), rekortest.New(f)
	fork.Append([]byte("another first entry"))
	const most = 12
	trees, forks := checkpoints(f, log, most), checkpoints(f, fork, most)
	for n := 2; n <= most; n += 3 {
		f.Add(byte(n-1), byte(n), bytes.Join(log.Consistency(int64(n-1), int64(n)), nil))
		f.Add(byte(1), byte(n), bytes.Join(fork.Consistency(1, int64(n)), nil))
	}
	f.Fuzz(func(t *testing.T, m, n byte, proof []byte) {
		before, c := trees[1+int(m)%most], forks[1+int(n)%most]
		hashes := [][]byte{}
		for len(proof) > 0 {
			cut := min(32, len(proof))
			hashes, proof = append(hashes, proof[:cut]), proof[cut:]
		}
		if err := c.VerifyConsistency(before, hashes); err == nil {
			t.Fatalf("a fork of size %d holds the tree of size %d by %x", c.Size, before.Size, hashes)
		}
	})
}

// FuzzParseKnown: what is read is printed as it was.
func FuzzParseKnown(f *testing.F) {
	w := audittest.New(f)
	f.Add(audittest.Known(f, w.Anchors[0]).String())
	f.Add("1:")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := audit.ParseKnown(s)
		if err != nil {
			return
		}
		if again, err := audit.ParseKnown(k.String()); err != nil || again != k || k.N < 1 {
			t.Fatalf("%q is %+v, again %+v, %v", s, k, again, err)
		}
	})
}
