// Package audittest builds a sound audit chain with its anchors and forges it in
// every way that verification must name. The same cases run on memory, on a
// directory copy and on S3.
package audittest

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
)

// Stored is one version in a [Bucket].
type Stored struct {
	audit.ObjectVersion
	audit.Object
}

// Bucket is a versioned bucket in memory, for a forger who is above its rules.
type Bucket struct {
	Clock  time.Time // of S3, which dates what is written
	stored []Stored  // in the order of writing
	writes int
}

// Stored returns the versions in the order of writing.
func (b *Bucket) Stored() []Stored { return slices.Clone(b.stored) }

// Put adds a version.
func (b *Bucket) Put(key string, content []byte, lock audit.Lock) {
	b.add(Stored{audit.ObjectVersion{Key: key}, audit.Object{Bytes: content, Lock: &lock}})
}

// Delete adds a delete marker.
func (b *Bucket) Delete(key string) {
	b.add(Stored{ObjectVersion: audit.ObjectVersion{Key: key, DeleteMarker: true}})
}

func (b *Bucket) add(s Stored) {
	b.writes++
	s.ID, s.Modified = fmt.Sprintf("version-%d", b.writes), b.Clock.Truncate(time.Second)
	b.stored = append(b.stored, s)
}

// Remove takes a key away without a trace.
func (b *Bucket) Remove(keys ...string) {
	b.stored = slices.DeleteFunc(b.stored, func(s Stored) bool { return slices.Contains(keys, s.Key) })
}

// Replace changes the bytes of a key without a trace.
func (b *Bucket) Replace(key string, content []byte) { b.find(key).Bytes = content }

// Relock changes the lock of a key.
func (b *Bucket) Relock(key string, lock audit.Lock) { b.find(key).Lock = &lock }

// Redate changes when S3 says that a key was written.
func (b *Bucket) Redate(key string, at time.Time) { b.find(key).Modified = at }

// Bytes returns what is stored under a key.
func (b *Bucket) Bytes(key string) []byte { return bytes.Clone(b.find(key).Bytes) }

func (b *Bucket) find(key string) *Stored {
	for i := range b.stored {
		if b.stored[i].Key == key {
			return &b.stored[i]
		}
	}
	panic("no object " + key)
}

// Count returns how many versions hold bytes.
func (b *Bucket) Count() (n int) {
	for _, s := range b.stored {
		if !s.DeleteMarker {
			n++
		}
	}
	return n
}

// Versions implements [audit.Bucket].
func (b *Bucket) Versions(context.Context) ([]audit.ObjectVersion, error) {
	out := make([]audit.ObjectVersion, 0, len(b.stored))
	for _, s := range b.stored {
		out = append(out, s.ObjectVersion)
	}
	slices.SortStableFunc(out, func(x, y audit.ObjectVersion) int { return strings.Compare(x.Key, y.Key) })
	return out, nil
}

// VersionsAfter implements [audit.PartialBucket].
func (b *Bucket) VersionsAfter(ctx context.Context, prefix, after string) ([]audit.ObjectVersion, error) {
	all, err := b.Versions(ctx)
	return slices.DeleteFunc(all, func(v audit.ObjectVersion) bool { return !strings.HasPrefix(v.Key, prefix) || v.Key <= after }), err
}

// Read implements [audit.Bucket].
func (b *Bucket) Read(_ context.Context, v audit.ObjectVersion) (audit.Object, error) {
	for _, s := range b.stored {
		if s.ID == v.ID && !s.DeleteMarker { // a marker has no bytes
			return s.Object, nil
		}
	}
	return audit.Object{}, fs.ErrNotExist
}
