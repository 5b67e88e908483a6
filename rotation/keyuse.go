package rotation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// checkOldKeys looks for other users of the old KEKs before they are retired: a disabled key
// is disabled for everybody. A normal rotation halts and names the user. An emergency only
// records it, unless the disabled key would make a source itself unreadable. It returns
// what the audit record says about the use of each key.
func (s *Steps) checkOldKeys(ctx context.Context, r kek.Rotation) (map[string]string, error) {
	sources, err := s.openSources(r.Sources)
	if err != nil {
		return nil, err
	}
	body := map[string]string{}
	for _, old := range r.Olds {
		if err := s.checkEncryptedBy(ctx, sources, old); err != nil {
			return nil, err
		}
		use, err := s.Keys.Admin.Use(ctx, old)
		if err != nil && r.Mode == kek.Emergency {
			body["use."+string(old)] = journal.CutText(gates.Overridden + ": it could not be read: " + err.Error())
			continue
		}
		if err != nil {
			return nil, journal.WrapUnavailable("use of KMS key "+string(old), err)
		}
		var found []string
		for _, g := range use.Grants {
			found = append(found, "grant "+g)
		}
		seen := r.SealedAt // a use before a resume was already reported, and a person decided to resume
		if r.ResumedAt.After(seen) {
			seen = r.ResumedAt
		}
		if isWrapping(use.LastUse) && use.LastUseAt.After(seen.Add(clockTolerance)) {
			found = append(found, fmt.Sprintf("%s at %s, after its fence was sealed (CloudTrail event %s)",
				use.LastUse, use.LastUseAt.UTC().Format(time.RFC3339), use.LastUseBy))
		}
		if len(found) > 0 && r.Mode == kek.Normal {
			return nil, &journal.Error{
				Kind: journal.KeyInUse, Field: string(old), Msg: "others still use this KEK: " + strings.Join(found, "; "),
				Next: journal.Next{Do: journal.MoveUsers, Rotation: r.ID},
			}
		}
		body["use."+string(old)] = journal.CutText(use.Summarize())
	}
	return body, nil
}

// clockTolerance is how far the clocks of KMS and of this process may differ.
const clockTolerance = time.Minute

// isWrapping reports an operation that makes new ciphertexts under a key. An operation that
// unwraps says nothing, because the rewrap itself unwraps under the old key.
func isWrapping(operation string) bool {
	return operation == "Encrypt" || strings.HasPrefix(operation, "GenerateDataKey")
}

// checkEncryptedBy refuses to disable a key that encrypts a source at rest: DynamoDB
// makes such a table inaccessible and archives it after seven days (DynamoDB developer
// guide, "Encryption at rest").
func (s *Steps) checkEncryptedBy(ctx context.Context, sources []frozenSource, old kek.ID) error {
	for _, src := range sources {
		arn, err := src.EncryptedBy(ctx)
		if err != nil {
			return journal.WrapUnavailable("source "+src.Name(), err)
		}
		if id, _, ok := kek.ParseKeyRef(arn); ok && id == old {
			return &journal.Error{
				Kind: journal.KeyInUse, Field: "sources[" + src.Name() + "]", Msg: fmt.Sprintf("it is encrypted at rest by KEK %s: disabling the key would make it unreadable", old),
				Next: journal.Next{Say: "give the table another key for its encryption at rest, then start or resume"},
			}
		}
	}
	return nil
}

// successorNotes says before a rotation what a new KEK will not inherit from the old one
// (replicas, policy statements, grants, aliases), and so who would lose access.
func (s *Steps) successorNotes(ctx context.Context, id kek.ID) ([]string, error) {
	use, err := s.Keys.Admin.Use(ctx, id)
	if errors.Is(err, journal.ErrDenied) {
		return []string{"who else uses the KEK could not be read: " + err.Error()}, nil
	}
	if err != nil {
		return nil, journal.WrapUnavailable("use of KMS key "+string(id), err)
	}
	var notes []string
	add := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if use.MultiRegion {
		add("the KEK is a multi-Region key: the new one will be one too, but without replicas (%s)", joinOrNone(use.Replicas))
	}
	if len(use.Policy) > 0 {
		add("key policy statements that the new KEK will not have: %s", strings.Join(use.Policy, ", "))
	}
	if len(use.Grants) > 0 {
		add("%d grants that the new KEK will not have, and on which a normal rotation halts before it retires the KEK: %s",
			len(use.Grants), strings.Join(use.Grants, "; "))
	}
	if len(use.Aliases) > 0 {
		add("aliases that stay with the old KEK: %s", strings.Join(use.Aliases, ", "))
	}
	return notes, nil
}

func joinOrNone(list []string) string {
	if len(list) == 0 {
		return "it has none"
	}
	return strings.Join(list, ", ")
}
