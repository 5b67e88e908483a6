package memstore

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// LoadAnchor implements [anchor.Store].
func (s *Store) LoadAnchor(ctx context.Context) (st anchor.State, err error) {
	err = s.w.call(ctx, "Store.LoadAnchor", func() error {
		st = s.anchor
		if st.Intent != nil {
			signed := cloneSigned(*st.Intent)
			st.Intent = &signed
		}
		return nil
	})
	if err != nil {
		return anchor.State{}, err
	}
	return st, nil
}

// SaveAnchor implements [anchor.Store].
func (s *Store) SaveAnchor(ctx context.Context, st anchor.State) error {
	return s.w.call(ctx, "Store.SaveAnchor", func() error {
		if s.anchor.Rev != st.Rev {
			return conflict("ANCHOR")
		}
		st.Rev++
		st.Last.At = ms(st.Last.At)
		if st.Intent != nil {
			signed := cloneSigned(*st.Intent)
			st.Intent = &signed
		}
		s.anchor = st
		return nil
	}, st)
}

func cloneSigned(s audit.Signed) audit.Signed {
	s.Key, s.Signature = bytes.Clone(s.Key), bytes.Clone(s.Signature)
	return s
}

// PutAnchor implements [anchor.ObjectStore].
func (v *Vault) PutAnchor(ctx context.Context, key string, b []byte) (there []byte, err error) {
	err = v.w.call(ctx, "Vault.PutAnchor", func() error {
		if _, ok := v.objects[key]; !ok {
			v.objects[key] = bytes.Clone(b)
		}
		there = bytes.Clone(v.objects[key])
		return nil
	}, key, b)
	if err != nil {
		return nil, err
	}
	return there, nil
}

// GetAnchor implements [anchor.ObjectStore].
func (v *Vault) GetAnchor(ctx context.Context, key string) ([]byte, error) {
	return v.get(ctx, "Vault.GetAnchor", key)
}

// Versions implements [audit.Bucket].
func (v *Vault) Versions(ctx context.Context) (out []audit.ObjectVersion, err error) {
	err = v.w.call(ctx, "Vault.Versions", func() error {
		for k := range v.objects {
			out = append(out, audit.ObjectVersion{Key: k, ID: "only"})
		}
		slices.SortFunc(out, func(a, b audit.ObjectVersion) int { return strings.Compare(a.Key, b.Key) })
		return nil
	})
	return out, err
}

// VersionsAfter implements [audit.PartialBucket].
func (v *Vault) VersionsAfter(ctx context.Context, prefix, after string) (out []audit.ObjectVersion, err error) {
	err = v.w.call(ctx, "Vault.VersionsAfter", func() error {
		for k := range v.objects {
			if strings.HasPrefix(k, prefix) && k > after {
				out = append(out, audit.ObjectVersion{Key: k, ID: "only"})
			}
		}
		slices.SortFunc(out, func(a, b audit.ObjectVersion) int { return strings.Compare(a.Key, b.Key) })
		return nil
	}, prefix, after)
	return out, err
}

// Read implements [audit.Bucket]. Everything is locked for ever.
func (v *Vault) Read(ctx context.Context, o audit.ObjectVersion) (out audit.Object, err error) {
	err = v.w.call(ctx, "Vault.Read", func() error {
		b, ok := v.objects[o.Key]
		if !ok {
			return fmt.Errorf("%s: %w", o.Key, fs.ErrNotExist)
		}
		lock := &audit.Lock{Mode: audit.Compliance, Until: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
		out = audit.Object{Bytes: bytes.Clone(b), Lock: lock}
		return nil
	}, o)
	return out, err
}

var (
	_ anchor.Store        = (*Store)(nil)
	_ journal.Recorder    = (*Store)(nil)
	_ anchor.ObjectStore  = (*Vault)(nil)
	_ audit.PartialBucket = (*Vault)(nil)
)
