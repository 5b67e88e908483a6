package rotation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
)

// checkOldKeys looks, before the old KEKs are retired, who else uses them: disabling a
// key disables it for everybody. What it finds halts a normal rotation with its name;
// an emergency keeps it in the record and goes on, except where the disabled key would
// make a source itself unreadable. It returns what the record says of the keys' use.
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
		use, err := s.Keys.Use(ctx, old)
		if err != nil && r.Mode == kek.Emergency {
			body["use."+string(old)] = cut(overridden + ": it could not be read: " + err.Error())
			continue
		}
		if err != nil {
			return nil, unavailable("use of KMS key "+string(old), err)
		}
		var found []string
		for _, g := range use.Grants {
			found = append(found, "grant "+g)
		}
		seen := r.SealedAt // what a person has resumed after is in the record
		if r.ResumedAt.After(seen) {
			seen = r.ResumedAt
		}
		if wrapping(use.LastUse) && use.LastUseAt.After(seen.Add(clockTolerance)) {
			found = append(found, fmt.Sprintf("%s at %s, after its fence was sealed (CloudTrail event %s)",
				use.LastUse, use.LastUseAt.UTC().Format(time.RFC3339), use.LastUseBy))
		}
		if len(found) > 0 && r.Mode == kek.Normal {
			return nil, &Error{
				Kind: KeyInUse, Field: string(old), Msg: "others still use this KEK: " + strings.Join(found, "; "),
				Next: "move them to the new KEK; revoke grants with aws kms revoke-grant; then resume: matter ops resume --rotation ID",
			}
		}
		body["use."+string(old)] = cut(use.summary())
	}
	return body, nil
}

// clockTolerance is how far KMS's clock and ours may be apart.
const clockTolerance = time.Minute

// wrapping reports an operation that makes new ciphertexts under a key. Unwrapping
// does not tell anybody from the rewrap itself.
func wrapping(operation string) bool {
	return operation == "Encrypt" || strings.HasPrefix(operation, "GenerateDataKey")
}

// summary is a key's use in one line.
func (u KeyUse) summary() string {
	text := fmt.Sprintf("%d grants, %d aliases of others", len(u.Grants), len(u.Aliases))
	if len(u.Grants) > 0 {
		text += ": " + strings.Join(u.Grants, "; ")
	}
	switch u.LastUse {
	case "":
		text += ", last use not known to KMS"
	default:
		text += fmt.Sprintf(", last use %s at %s", u.LastUse, u.LastUseAt.UTC().Format(time.RFC3339))
	}
	return text
}

// checkEncryptedBy refuses to disable a key that encrypts a source at rest: DynamoDB
// makes such a table inaccessible and archives it after seven days (DynamoDB developer
// guide, "Encryption at rest").
func (s *Steps) checkEncryptedBy(ctx context.Context, sources []frozen, old kek.ID) error {
	for _, src := range sources {
		arn, err := src.EncryptedBy(ctx)
		if err != nil {
			return unavailable("source "+src.Name(), err)
		}
		if id, _, ok := kek.ParseKeyRef(arn); ok && id == old {
			return &Error{
				Kind: KeyInUse, Field: "sources[" + src.Name() + "]", Msg: fmt.Sprintf("it is encrypted at rest by KEK %s: disabling the key would make it unreadable", old),
				Next: "give the table another key for its encryption at rest, then start or resume",
			}
		}
	}
	return nil
}

// successorNotes says before a rotation what a new KEK will not have of the old one's,
// and who would be cut off with it.
func (s *Steps) successorNotes(ctx context.Context, id kek.ID) ([]string, error) {
	use, err := s.Keys.Use(ctx, id)
	if errors.Is(err, ErrDenied) {
		return []string{"who else uses the KEK could not be read: " + err.Error()}, nil
	}
	if err != nil {
		return nil, unavailable("use of KMS key "+string(id), err)
	}
	var notes []string
	add := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if use.MultiRegion {
		add("the KEK is a multi-Region key: the new one will be one too, but without replicas (%s)", orNone(use.Replicas))
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

func orNone(list []string) string {
	if len(list) == 0 {
		return "it has none"
	}
	return strings.Join(list, ", ")
}
