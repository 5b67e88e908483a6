package main

import (
	"context"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/internal/operate"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// keysByName answers DescribeKey.
type keysByName struct {
	keyring.Admin
	keys map[kek.ID]keyring.Key
}

func (k keysByName) Describe(_ context.Context, id kek.ID) (keyring.Key, error) {
	if key, ok := k.keys[id]; ok {
		return key, nil
	}
	return keyring.Key{}, journal.ErrNoKey
}

// TestGenesisOfAnotherAccount: a KEK that is named by an ARN of another account or Region is
// refused before anything is written: rows would name it by an id that nothing here resolves.
func TestGenesisOfAnotherAccount(t *testing.T) {
	const ours, theirs = "arn:aws:kms:eu-central-1:111111111111:key/k", "arn:aws:kms:eu-central-1:222222222222:key/k"
	key := func(arn string) keyring.Key {
		return keyring.Key{ID: "k", ARN: arn, Enabled: true, Usable: true, State: "Enabled"}
	}
	for name, c := range map[string]struct {
		give string
		keys map[kek.ID]keyring.Key
		want string
	}{
		"by id":                   {"k", map[kek.ID]keyring.Key{"k": key(ours)}, ""},
		"by ARN":                  {ours, map[kek.ID]keyring.Key{ours: key(ours), "k": key(ours)}, ""},
		"by alias":                {"alias/x", map[kek.ID]keyring.Key{"alias/x": key(ours), "k": key(ours)}, ""},
		"of another account":      {theirs, map[kek.ID]keyring.Key{theirs: key(theirs)}, "another account or Region"},
		"with the id of one here": {theirs, map[kek.ID]keyring.Key{theirs: key(theirs), "k": key(ours)}, "another account or Region"},
		"of nobody":               {"x", nil, "knows no key"},
	} {
		o := &operator{stack: &operate.Deployment{Steps: &rotation.Steps{Keys: keyring.Keyring{Admin: keysByName{keys: c.keys}}}}}
		_, err := o.usableKey(t.Context(), c.give)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
