package awskms_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	"golang.org/x/time/rate"

	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/internal/keystest"
	"github.com/matter-ops/kms-rotation/internal/mototest"
)

func TestMain(m *testing.M) { mototest.Main(m) }

var stacks atomic.Int64

// service returns the keys of a fresh stack.
func service(cfg aws.Config) keystest.Service {
	client := kms.NewFromConfig(cfg)
	stack := fmt.Sprintf("stack-%d", stacks.Add(1))
	return keystest.Service{
		Keys: awskms.NewAdmin(client, resourcegroupstaggingapi.NewFromConfig(cfg), stack),
		KMS:  awskms.NewWrapper(client, rate.NewLimiter(rate.Inf, 1)),
	}
}

func newService(t *testing.T) keystest.Service {
	t.Helper()
	return service(mototest.Config(t))
}

func TestKeyAdmin(t *testing.T) { keystest.TestKeyAdmin(t, newService) }
func TestWrapper(t *testing.T)  { keystest.TestWrapper(t, newService) }
