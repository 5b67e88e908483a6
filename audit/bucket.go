package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ObjectVersion is one version of one object, or a delete marker.
type ObjectVersion struct {
	Key          string    `json:"key"`
	ID           string    `json:"version_id"` // "" where the copy knows of no versions
	DeleteMarker bool      `json:"delete_marker,omitempty"`
	Modified     time.Time `json:"modified,omitzero"`
}

// Object is what one version holds. Lock is nil where the copy knows of no Object
// Lock.
type Object struct {
	Bytes []byte
	Lock  *Lock
}

// Lock is the Object Lock of one version; without one, Mode is "".
type Lock struct {
	Mode  string    `json:"mode"`
	Until time.Time `json:"retain_until,omitzero"`
}

// Compliance is the only mode of Object Lock that nobody can lift.
const Compliance = "COMPLIANCE"

// Bucket is read-only access to an audit bucket or to a copy of one.
type Bucket interface {
	// Versions lists every version of every object and every delete marker: by key
	// and, of one key, the oldest first.
	Versions(ctx context.Context) ([]ObjectVersion, error)
	// Read returns one version. An object that is gone is [fs.ErrNotExist].
	Read(ctx context.Context, v ObjectVersion) (Object, error)
}

// ManifestName is the file in which [Copy] keeps what plain files cannot say.
const ManifestName = "versions.json"

// otherVersions is the directory of what cannot be a file under its key.
const otherVersions = "other-versions"

// manifestEntry is a version and where its bytes are.
type manifestEntry struct {
	ObjectVersion
	File string `json:"file,omitempty"` // "" for a delete marker
	Lock *Lock  `json:"lock,omitempty"`
}

// Dir is a directory copy of a bucket, each object a file under its key: what
// [Copy] makes, or aws s3 sync. Only the former has versions and locks; files that
// its manifest does not name are part of the copy all the same.
type Dir struct {
	files    fs.FS
	manifest map[ObjectVersion]manifestEntry
	versions []ObjectVersion
}

// OpenDir opens a directory copy.
func OpenDir(files fs.FS) (*Dir, error) {
	d := &Dir{files: files}
	named := map[string]bool{ManifestName: true}
	b, err := fs.ReadFile(files, ManifestName)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("directory copy: %w", err)
	}
	if err == nil {
		var entries []manifestEntry
		if err := strict(b, &entries); err != nil {
			return nil, fmt.Errorf("directory copy: %s: %w", ManifestName, err)
		}
		d.manifest = map[ObjectVersion]manifestEntry{}
		for _, e := range entries {
			d.manifest[e.ObjectVersion] = e
			d.versions = append(d.versions, e.ObjectVersion)
			named[e.File] = true
		}
	}
	err = fs.WalkDir(files, ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && !named[name] {
			d.versions = append(d.versions, ObjectVersion{Key: name})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("directory copy: %w", err)
	}
	slices.SortStableFunc(d.versions, func(a, b ObjectVersion) int { return strings.Compare(a.Key, b.Key) })
	return d, nil
}

// claims reports whether the copy says of itself what versions, locks and times the
// bucket has.
func (d *Dir) claims() bool { return d.manifest != nil }

// Versions implements [Bucket].
func (d *Dir) Versions(context.Context) ([]ObjectVersion, error) {
	return slices.Clone(d.versions), nil
}

// Read implements [Bucket].
func (d *Dir) Read(_ context.Context, v ObjectVersion) (Object, error) {
	e, known := d.manifest[v]
	if !known {
		e.File = v.Key
	}
	b, err := fs.ReadFile(d.files, e.File)
	if err != nil {
		return Object{}, fmt.Errorf("directory copy: %w", err)
	}
	return Object{Bytes: b, Lock: e.Lock}, nil
}

// Copy copies every version of a bucket into an empty or absent directory, with a
// manifest of versions, delete markers and locks.
func Copy(ctx context.Context, from Bucket, dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("copy the audit bucket: %w", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return errors.Join(err, fmt.Errorf("copy the audit bucket: %s is not empty", dir))
	}
	root, err := os.OpenRoot(dir) // a key of the bucket must not lead out of it
	if err != nil {
		return fmt.Errorf("copy the audit bucket: %w", err)
	}
	err = copyInto(ctx, from, root)
	if err := errors.Join(err, root.Close()); err != nil {
		return fmt.Errorf("copy the audit bucket: %w", err)
	}
	return nil
}

func copyInto(ctx context.Context, from Bucket, root *os.Root) error {
	versions, err := from.Versions(ctx)
	if err != nil {
		return err
	}
	entries := []manifestEntry{}
	taken := map[string]bool{".": true, ManifestName: true, otherVersions: true}
	for i, v := range versions {
		e := manifestEntry{ObjectVersion: v}
		if !v.DeleteMarker {
			e.File = v.Key
			if !fs.ValidPath(v.Key) || isTaken(taken, v.Key) {
				e.File = fmt.Sprintf("%s/%06d", otherVersions, i)
			}
			taken[e.File] = true
			if e.Lock, err = copyOne(ctx, from, v, root, e.File); err != nil {
				return err
			}
		}
		entries = append(entries, e)
	}
	b, err := json.MarshalIndent(entries, "", " ")
	if err != nil {
		return err
	}
	return root.WriteFile(ManifestName, b, 0o600)
}

// isTaken says whether a key cannot be a file because there is one of its name, or
// one where its directory would be: whoever can write the bucket can write such keys,
// and must not be able to prevent a copy.
func isTaken(taken map[string]bool, key string) bool {
	for p := path.Dir(key); p != "."; p = path.Dir(p) {
		if taken[p] {
			return true
		}
	}
	return taken[key]
}

func copyOne(ctx context.Context, from Bucket, v ObjectVersion, root *os.Root, file string) (*Lock, error) {
	o, err := from.Read(ctx, v)
	if err != nil {
		return nil, err
	}
	name := filepath.FromSlash(file)
	if err := root.MkdirAll(path.Dir(name), 0o750); err != nil {
		return nil, err
	}
	return o.Lock, root.WriteFile(name, o.Bytes, 0o600)
}
