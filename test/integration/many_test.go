package integration

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/sfn/types"

	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// TestManyRotations runs as many rotations of the shipped stack as MATTER_ROTATIONS says, at
// least six, and prints what each takes; rotation's TestThousandthRotation does the same in
// memory. The last one's verify makes as many calls to S3 as the one before.
func TestManyRotations(t *testing.T) {
	last, err := strconv.Atoi(os.Getenv("MATTER_ROTATIONS"))
	if err != nil || last < 6 {
		t.Skip("MATTER_ROTATIONS says how many, at least 6")
	}
	w := up(t, nil)
	var mu sync.Mutex
	calls := map[string]int{}
	err = w.Tap(func() error { return nil }, func(e wire.Exchange) {
		mu.Lock()
		defer mu.Unlock()
		calls[e.Service]++
		if e.Caller == "verify" {
			calls["verify "+e.Service]++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Untap()
	seen := map[int]int{}
	for n := 1; n <= last; n++ {
		mu.Lock()
		clear(calls)
		mu.Unlock()
		if o := w.rotate(t, fmt.Sprintf("r%03d", n), "{}"); o.Status != types.ExecutionStatusSucceeded {
			t.Fatal(describe(o))
		}
		items := map[string]int{}
		found, err := w.Deployment.Table.Examine(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range found {
			kind, _, _ := strings.Cut(i.Key.PK, "#")
			items[kind]++
		}
		mu.Lock()
		t.Logf("rotation %d: calls %v; control items %v", n, calls, items)
		seen[n] = calls["verify s3"]
		mu.Unlock()
	}
	if seen[last] == 0 || seen[last] > seen[last-1] {
		t.Errorf("verify makes %d calls to S3 in rotation %d, %d in the one before", seen[last], last, seen[last-1])
	}
}
