package main

import (
	"context"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"

	"github.com/matter-ops/kms-rotation/internal/console"
)

// keysByName answers DescribeKey.
type keysByName struct {
	rotation.KeyAdmin
	keys map[kek.ID]rotation.Key
}

func (k keysByName) Describe(_ context.Context, id kek.ID) (rotation.Key, error) {
	if key, ok := k.keys[id]; ok {
		return key, nil
	}
	return rotation.Key{}, rotation.ErrNoKey
}

// TestGenesisOfAnotherAccount: a KEK that is named by an ARN of another account or Region is
// refused before anything is written: rows would name it by an id that nothing here resolves.
func TestGenesisOfAnotherAccount(t *testing.T) {
	const ours, theirs = "arn:aws:kms:eu-central-1:111111111111:key/k", "arn:aws:kms:eu-central-1:222222222222:key/k"
	key := func(arn string) rotation.Key {
		return rotation.Key{ID: "k", ARN: arn, Enabled: true, Usable: true, State: "Enabled"}
	}
	for name, c := range map[string]struct {
		give string
		keys map[kek.ID]rotation.Key
		want string
	}{
		"by id":                   {"k", map[kek.ID]rotation.Key{"k": key(ours)}, ""},
		"by ARN":                  {ours, map[kek.ID]rotation.Key{ours: key(ours), "k": key(ours)}, ""},
		"by alias":                {"alias/x", map[kek.ID]rotation.Key{"alias/x": key(ours), "k": key(ours)}, ""},
		"of another account":      {theirs, map[kek.ID]rotation.Key{theirs: key(theirs)}, "another account or Region"},
		"with the id of one here": {theirs, map[kek.ID]rotation.Key{theirs: key(theirs), "k": key(ours)}, "another account or Region"},
		"of nobody":               {"x", nil, "knows no key"},
	} {
		o := &operator{&app.Deployment{Steps: &rotation.Steps{Deps: rotation.Deps{Keys: keysByName{keys: c.keys}}}}, console.Console{}}
		_, err := o.usableKey(t.Context(), c.give)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
