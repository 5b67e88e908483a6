package corpus

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/matter-ops/kms-rotation/internal/awserr"
	"github.com/matter-ops/kms-rotation/rotation"
)

// Check implements [rotation.Source]. It lists the prefix and reads the objects of
// the first page: if there are some and none of them is an entry, the prefix is a
// mistake in the configuration. One broken entry among good ones is not its
// business; dualunwrap names it.
func (s *Source) Check(ctx context.Context) (notes []string, err error) {
	return nil, s.checkEntries(ctx)
}

func (s *Source) checkEntries(ctx context.Context) error {
	keys, last, err := s.list(ctx, "", pageSize)
	if err != nil {
		return s.checkError(err)
	}
	var entries []string
	others := 0
	for _, k := range keys {
		switch {
		case strings.HasSuffix(k, suffix):
			entries = append(entries, k)
		case k != s.prefix: // consoles make an empty object of that name for a folder
			others++
		}
	}
	if len(entries) == 0 {
		if others == 0 || !last {
			return nil
		}
		return s.misconfigured(fmt.Sprintf("none of the %d objects under s3://%s/%s ends in %s", others, s.bucket, s.prefix, suffix))
	}
	rows, err := s.rows(ctx, entries, false)
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
	return s.misconfigured(fmt.Sprintf("none of the %d objects looked at is an entry of the corpus; s3://%s/%s: %s",
		len(rows), s.bucket, rows[0].ID, rows[0].Defect))
}

func (s *Source) misconfigured(msg string) *rotation.Error {
	return &rotation.Error{
		Kind: rotation.SourceMisconfigured, Field: "sources[" + s.name + "]", Msg: msg,
		Next: "correct its bucket and prefix: matter ops source add --file DEFINITION.json --confirm",
	}
}

// checkError names what a person must fix; any other error is worth another try.
func (s *Source) checkError(err error) error {
	if awserr.Code(err) == "NoSuchBucket" {
		e := s.misconfigured(fmt.Sprintf("there is no bucket %q", s.bucket))
		e.Err = err
		return e
	}
	if errors.Is(err, rotation.ErrDenied) {
		e := s.misconfigured(fmt.Sprintf("s3://%s/%s cannot be read", s.bucket, s.prefix))
		e.Err, e.Next = err, "grant the role s3:ListBucket on the bucket and s3:GetObject and s3:PutObject on the prefix"
		return e
	}
	return err
}
