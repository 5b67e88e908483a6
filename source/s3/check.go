package s3

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/matter-ops/kms-rotation/internal/remote"
	"github.com/matter-ops/kms-rotation/source"
)

// Check implements [source.Driver]. It lists the prefix and reads the objects of the first
// page: if there are some and none of them is an entry, the prefix is a mistake in the
// configuration. A single broken entry among good ones does not fail the check: the census
// and dual unwrap name it.
func (s *Corpus) Check(ctx context.Context) (notes []string, err error) {
	return nil, s.checkEntries(ctx)
}

// checkEntries is Check, without notes: there is nothing to note of a corpus.
func (s *Corpus) checkEntries(ctx context.Context) error {
	keys, last, err := s.listKeys(ctx, "", pageSize)
	if err != nil {
		return s.checkError(err)
	}
	var entries []string
	others := 0
	for _, k := range keys {
		switch {
		case strings.HasSuffix(k, suffix):
			entries = append(entries, k)
		case k != s.prefix: // the S3 console makes an empty object of that name for a folder
			others++
		}
	}
	if len(entries) == 0 {
		if others == 0 || !last {
			return nil
		}
		return errMisconfigured(fmt.Sprintf("none of the %d objects under s3://%s/%s ends in %s", others, s.bucket, s.prefix, suffix))
	}
	rows, err := s.readRows(ctx, entries, false)
	if err != nil {
		return s.checkError(err)
	}
	for _, r := range rows {
		if r.Defect == "" {
			return nil
		}
	}
	if len(rows) == 0 {
		return nil
	}
	return errMisconfigured(fmt.Sprintf("none of the %d objects looked at is an entry of the corpus; s3://%s/%s: %s",
		len(rows), s.bucket, rows[0].ID, rows[0].Defect))
}

// errMisconfigured reports a wrong bucket or prefix.
func errMisconfigured(msg string) *source.Error {
	return &source.Error{
		Problem: source.Misconfigured, Msg: msg, Next: "correct its bucket and prefix: matter ops source add --file DEFINITION.json --confirm",
	}
}

// checkError turns an error that a person must fix into a [*source.Error]. Any other error is
// returned as it is and is worth another try.
func (s *Corpus) checkError(err error) error {
	if remote.ErrorCode(err) == "NoSuchBucket" {
		e := errMisconfigured(fmt.Sprintf("there is no bucket %q", s.bucket))
		e.Err = err
		return e
	}
	if errors.Is(err, source.ErrDenied) {
		e := errMisconfigured(fmt.Sprintf("s3://%s/%s cannot be read", s.bucket, s.prefix))
		e.Err, e.Next = err, "grant the role s3:ListBucket on the bucket and s3:GetObject and s3:PutObject on the prefix"
		return e
	}
	return err
}
