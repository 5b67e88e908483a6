package localaws_test

import (
	"errors"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// TestKMSLag: within the lag KMS answers as if it did not know of a new or disabled key,
// and as if it did, also the former after the latter; afterwards it knows.
func TestKMSLag(t *testing.T) {
	s := stack(t)
	const lag = 2 * time.Second
	s.SetKMSLag(lag)
	defer s.SetKMSLag(0)
	cfg := s.AWSConfig()
	cfg.Retryer = func() aws.Retryer { return aws.NopRetryer{} }
	c := kms.NewFromConfig(cfg)
	key, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{KeyUsage: types.KeyUsageTypeEncryptDecrypt})
	if err != nil {
		t.Fatal(err)
	}
	use := func() error {
		_, err := c.GenerateDataKey(t.Context(), &kms.GenerateDataKeyInput{KeyId: key.KeyMetadata.KeyId, KeySpec: types.DataKeySpecAes256})
		return err
	}
	// watch uses the key until the lag is over, and says how often the answer was old, new,
	// and old after a new one.
	watch := func(isOld func(error) bool) (older, newer, back int) {
		for end, last := time.Now().Add(lag), true; time.Now().Before(end); {
			old := isOld(use())
			if old {
				older++
			} else {
				newer++
			}
			if old && !last {
				back++
			}
			last = old
		}
		return older, newer, back
	}
	unknown := func(err error) bool {
		var e *types.NotFoundException
		return errors.As(err, &e)
	}
	if older, newer, back := watch(unknown); older == 0 || newer == 0 || back == 0 {
		t.Errorf("a new key: %d times unknown, %d times known, %d times unknown after it was known", older, newer, back)
	}
	for range 20 {
		if err := use(); err != nil {
			t.Errorf("after the lag: %v", err)
		}
	}
	if _, err := c.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: key.KeyMetadata.KeyId}); err != nil {
		t.Fatal(err)
	}
	if older, newer, back := watch(func(err error) bool { return err == nil }); older == 0 || newer == 0 || back == 0 {
		t.Errorf("a disabled key: %d times enabled, %d times disabled, %d times enabled after it was disabled", older, newer, back)
	}
	time.Sleep(lag / 4) // until moto has it
	for range 20 {
		var e *types.DisabledException
		if err := use(); !errors.As(err, &e) {
			t.Errorf("after the lag: %v", err)
		}
	}
}
