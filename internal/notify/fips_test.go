package notify_test

import (
	"context"
	"crypto/fips140"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/matter-ops/kms-rotation/internal/notify"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/test/fips"
)

// TestFIPS: announcements are signed with approved cryptography, or refused.
func TestFIPS(t *testing.T) { fips.RunTests(t, "TestWebhook", "TestShortKeyInStrictMode") }

// TestShortKeyInStrictMode: a key that FIPS 140-3 does not approve is refused, which the HMAC itself
// would answer with a panic.
func TestShortKeyInStrictMode(t *testing.T) {
	short := func(context.Context) (notify.Keys, error) { return notify.Keys{Webhook: "13 characters"}, nil }
	w := notify.NewWebhook(http.DefaultClient, "http://127.0.0.1:1/", short, time.Now)
	err := w.Tell(t.Context(), window, gates.StageScheduled)
	if err == nil || errors.Is(err, journal.ErrRejected) != fips140.Enforced() {
		t.Errorf("strict mode %t: %v", fips140.Enforced(), err)
	}
}
