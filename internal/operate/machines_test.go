package operate

import (
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/kek"
)

func TestMachineARN(t *testing.T) {
	for _, arn := range []string{"", "arn:aws:states:r:1:execution:m"} {
		d := &Deployment{Config: app.Config{StateMachines: map[kek.Mode]string{kek.Normal: arn}}}
		if _, err := d.Machine(kek.Normal); err == nil || !strings.Contains(err.Error(), "MATTER_STATE_MACHINE_ARN") {
			t.Errorf("%q: %v", arn, err)
		}
	}
}
