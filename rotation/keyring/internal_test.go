package keyring

import (
	"testing"
	"time"
)

func TestUseSummary(t *testing.T) {
	for want, use := range map[string]Use{
		"0 grants, 0 aliases of others, last use not known to KMS": {},
		"1 grants, 2 aliases of others: g, last use Decrypt at 2026-04-01T00:01:00Z": {
			Grants: []string{"g"}, Aliases: []string{"a", "b"}, LastUse: "Decrypt", LastUseAt: time.Date(2026, 4, 1, 1, 1, 0, 0, time.FixedZone("x", 3600)),
		},
		"2 grants, 0 aliases of others: g; h, last use not known to KMS": {Grants: []string{"g", "h"}},
	} {
		if got := use.Summarize(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
