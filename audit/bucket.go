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

// ManifestName is the file in which [Copy] keeps what plain files cannot hold: versions,
// delete markers, locks and times.
const ManifestName = "versions.json"

// otherVersions is the directory of versions that cannot be a file under their key.
const otherVersions = "other-versions"

// manifestEntry is a version and where its bytes are.
type manifestEntry struct {
	ObjectVersion
	File string `json:"file,omitempty"` // "" for a delete marker
	Lock *Lock  `json:"lock,omitempty"`
}

// Dir is a directory copy of a bucket, each object a file under its key, made by [Copy]
// or by aws s3 sync. Only a copy made by [Copy] has versions and locks. Files that its
// manifest does not name are part of the copy too, so an added file is found. Those that a
// desktop adds are left out, and the report says so.
type Dir struct {
	files    fs.FS
	manifest map[ObjectVersion]manifestEntry
	versions []ObjectVersion
	ignored  []string
}

// desktopFiles are the names of files that a desktop adds to each directory that it shows. No
// object of a chain has such a name.
var desktopFiles = []string{".DS_Store", "Thumbs.db", "desktop.ini", ".directory"}

// OpenDir opens a directory copy. It lists the files and does not read them, except for
// the manifest, which it decodes strictly.
func OpenDir(files fs.FS) (*Dir, error) {
	d := &Dir{files: files}
	named := map[string]bool{ManifestName: true}
	b, err := fs.ReadFile(files, ManifestName)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("directory copy: %w", err)
	}
	if err == nil {
		var entries []manifestEntry
		if err := decodeStrict(b, &entries); err != nil {
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
		switch {
		case err != nil || e.IsDir() || named[name]:
		case slices.Contains(desktopFiles, e.Name()):
			d.ignored = append(d.ignored, name)
		default:
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

// hasManifest reports whether versions, locks and times come from a manifest, which
// anybody who has the copy can edit.
func (d *Dir) hasManifest() bool { return d.manifest != nil }

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
	err = copyVersions(ctx, from, root)
	if err := errors.Join(err, root.Close()); err != nil {
		return fmt.Errorf("copy the audit bucket: %w", err)
	}
	return nil
}

// copyVersions writes each version to a file, and the manifest last.
func copyVersions(ctx context.Context, from Bucket, root *os.Root) error {
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
			if e.Lock, err = copyVersion(ctx, from, v, root, e.File); err != nil {
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

// isTaken reports whether a key cannot become a file, because a file has its name already,
// or the name of one of its directories. Anyone who can write to the bucket can write such
// keys, and must not be able to prevent a copy.
func isTaken(taken map[string]bool, key string) bool {
	for p := path.Dir(key); p != "."; p = path.Dir(p) {
		if taken[p] {
			return true
		}
	}
	return taken[key]
}

// copyVersion writes the bytes of one version to a file and returns its lock.
func copyVersion(ctx context.Context, from Bucket, v ObjectVersion, root *os.Root, file string) (*Lock, error) {
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
