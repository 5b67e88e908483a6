package audit_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/audittest"
)

// TestCopyIsTheBucket: a copy has every version with its bytes and its lock, whatever
// its key is.
func TestCopyIsTheBucket(t *testing.T) {
	var b audittest.Bucket
	lock := audittest.Lock(time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC))
	for i, key := range []string{
		"a", "a", "a/b", "a/b/c", "b", ".", "../up", "/abs", "d/./e", "other-versions", "other-versions/000000", "versions.json", "versions.json/x", "z",
	} {
		b.Put(key, []byte{byte('0' + i)}, lock)
		lock.Until = lock.Until.Add(time.Hour)
	}
	b.Delete("b")
	b.Delete("gone")
	c := copied(t, &b)
	want, err := b.Versions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Versions(t.Context())
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Fatalf("versions (-want +got):\n%s%v", d, err)
	}
	for _, v := range got {
		if v.DeleteMarker {
			continue
		}
		want, err := b.Read(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Read(t.Context(), v)
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("%s, version %s (-want +got):\n%s%v", v.Key, v.ID, d, err)
		}
	}
}

// TestCopyFails: a copy that is not whole is an error.
func TestCopyFails(t *testing.T) {
	w := audittest.New(t)
	broken := errors.New("the network is down")
	dir := t.TempDir()
	file, one := filepath.Join(dir, "file"), filepath.Join(dir, "one")
	for _, err := range []error{os.WriteFile(file, nil, 0o600), os.Mkdir(one, 0o700), os.WriteFile(filepath.Join(one, "left"), nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("n", 300) // more than a file's name can have
	longFile, longDir := audittest.New(t), audittest.New(t)
	longFile.Bucket.Put("v1/"+long, nil, audit.Lock{})
	longDir.Bucket.Put("v1/"+long+"/x", nil, audit.Lock{})
	undated := audittest.New(t)
	undated.Bucket.Relock(record(1), audit.Lock{Until: time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)})
	for name, c := range map[string]struct {
		from audit.Bucket
		dir  string
		want string
	}{
		"where a file is":         {w.Bucket, filepath.Join(file, "copy"), "not a directory"},
		"where one file is":       {w.Bucket, one, "is not empty"},
		"of what is not listed":   {faulty{Bucket: w.Bucket, list: broken}, filepath.Join(dir, "1"), broken.Error()},
		"of what cannot be read":  {faulty{Bucket: w.Bucket, read: failAt(record(5), broken)}, filepath.Join(dir, "2"), broken.Error()},
		"of a name too long":      {longFile.Bucket, filepath.Join(dir, "3"), "name too long"},
		"of a directory too long": {longDir.Bucket, filepath.Join(dir, "4"), "name too long"},
		"of an undated lock":      {undated.Bucket, filepath.Join(dir, "5"), "year outside of range"},
		"without a manifest": {faulty{Bucket: w.Bucket, read: func(string) error {
			return os.MkdirAll(filepath.Join(dir, "6", audit.ManifestName), 0o700)
		}}, filepath.Join(dir, "6"), "is a directory"},
	} {
		if err := audit.Copy(t.Context(), c.from, c.dir); err == nil || !strings.HasPrefix(err.Error(), "copy the audit bucket: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// unlisted is a file system with a directory that cannot be read.
type unlisted struct{ fstest.MapFS }

// ReadDir implements [fs.ReadDirFS].
func (f unlisted) ReadDir(name string) ([]fs.DirEntry, error) {
	if name == "v1" {
		return nil, fs.ErrPermission
	}
	return f.MapFS.ReadDir(name)
}

// TestOpenDirRefuses a copy that cannot be read as a whole.
func TestOpenDirRefuses(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	for name, c := range map[string]struct {
		files fs.FS
		want  string
	}{
		"a manifest that is a directory": {fstest.MapFS{"versions.json/x": file("")}, "directory copy: read versions.json"},
		"a manifest of something else":   {fstest.MapFS{"versions.json": file(`{"a":1}`)}, "directory copy: versions.json: json"},
		"a manifest with a field more":   {fstest.MapFS{"versions.json": file(`[{"a":1}]`)}, "unknown field"},
		"a manifest and more":            {fstest.MapFS{"versions.json": file(`[]]`)}, "more than one JSON value"},
		"a directory that is not there":  {os.DirFS(filepath.Join(t.TempDir(), "none")), "no such file or directory"},
		"a directory that is not listed": {unlisted{fstest.MapFS{"v1/x": file("")}}, "directory copy: permission denied"},
	} {
		d, err := audit.OpenDir(c.files)
		if err == nil || !strings.Contains(err.Error(), c.want) || d != nil {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// TestDirIsSorted: what the manifest does not name stands by its key among what it
// names, and shows that the copy does not know all versions.
func TestDirIsSorted(t *testing.T) {
	w := audittest.New(t)
	dir := filepath.Join(t.TempDir(), "copy")
	if err := audit.Copy(t.Context(), w.Bucket, dir); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"0", "v1/matter/b"} {
		if err := os.WriteFile(filepath.Join(dir, key), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := audit.OpenDir(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	versions, err := d.Versions(t.Context())
	byKey := func(a, b audit.ObjectVersion) int { return strings.Compare(a.Key, b.Key) }
	if err != nil || len(versions) != 15 || !slices.IsSortedFunc(versions, byKey) || versions[0].Key != "0" {
		t.Errorf("%v, %v", versions, err)
	}
	o, err := d.Read(t.Context(), versions[0])
	if err != nil || !bytes.Equal(o.Bytes, []byte("x")) || o.Lock != nil {
		t.Errorf("%+v, %v", o, err)
	}
	r := verify(t, d, w.Policy)
	if !slices.Contains(r.Unchecked, "versions, delete markers and S3's times: the copy does not record them") {
		t.Errorf("unchecked: %q", r.Unchecked)
	}
	audittest.MustFind(t, r, audit.StrayObject, "0")
}

// TestKeyCopies: copies of data keys lie beside the chain. They are counted and do not count as strays,
// but that one was deleted or written again is a finding.
func TestKeyCopies(t *testing.T) {
	const dek = "deks/74aaaaaaaaaaaaaaaaaaaaaaae/"
	w := audittest.New(t)
	lock := audittest.Lock(w.Policy.Now)
	w.Bucket.Put(dek+"000000000005-kek-2-adbf45b08ad6468a.json", []byte("{}"), lock)
	w.Bucket.Put(dek+"000000000006-kek-3-adbf45b08ad6468a.json", []byte("{}"), lock)
	if r := verify(t, w.Bucket, w.Policy); r.Result != audit.Green || r.KeyCopies != 2 || r.Strays > 0 ||
		!slices.ContainsFunc(r.Unchecked, func(u string) bool { return strings.HasPrefix(u, "what the 2 copies of data keys say") }) {
		t.Errorf("%s", r)
	}
	again, gone := dek+"000000000007-kek-4-adbf45b08ad6468a.json", dek+"000000000008-kek-5-adbf45b08ad6468a.json"
	w.Bucket.Put(again, []byte("{}"), lock)
	w.Bucket.Put(again, []byte("{ }"), lock)
	w.Bucket.Delete(gone)
	w.Bucket.Put("deks/notes.txt", []byte("{}"), lock)
	r := verify(t, w.Bucket, w.Policy)
	audittest.MustFind(t, r, audit.StrayObject, "deks/notes.txt")
	audittest.MustFind(t, r, audit.ExtraVersion, again)
	audittest.MustFind(t, r, audit.DeleteMarker, gone)
}

// TestUndated: where a copy does not know when a version was written, no time is named.
func TestUndated(t *testing.T) {
	d, err := audit.OpenDir(fstest.MapFS{
		"versions.json": &fstest.MapFile{Data: []byte(`[{"key":"` + record(1) + `","version_id":"v","delete_marker":true}]`)},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := verify(t, d, audittest.New(t).Policy)
	if r.Findings[0].Detail != "the key was deleted: delete marker v" {
		t.Errorf("%v", r.Findings)
	}
}
