package app

import (
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/internal/budget"
)

// requestBudget returns the process's share of the requests to KMS.
func requestBudget(c Config, cfg aws.Config) *budget.Budget {
	return budget.New(budget.Params{
		Ceiling: c.KMSRate, Workers: c.Concurrency, Now: time.Now, Usage: budget.KMSUsage(metricClient(cfg), time.Now),
	})
}

// writeBudgets returns the process's share of the write units of each table.
func writeBudgets(c Config, cfg aws.Config) func(table string) *budget.Budget {
	metrics := metricClient(cfg)
	tables := dynamodb.NewFromConfig(cfg)
	var mu sync.Mutex
	made := map[string]*budget.Budget{}
	return func(table string) *budget.Budget {
		mu.Lock()
		defer mu.Unlock()
		if made[table] == nil {
			made[table] = budget.New(budget.Params{
				Ceiling: c.WriteRate, Workers: c.Concurrency, Parts: true, Now: time.Now,
				Usage: budget.TableUsage(metrics, tables, table, time.Now),
			})
		}
		return made[table]
	}
}

// metricClient returns a client that asks once: rows wait for the answer.
func metricClient(cfg aws.Config) *cloudwatch.Client {
	return cloudwatch.NewFromConfig(cfg, func(o *cloudwatch.Options) { o.RetryMaxAttempts = 1 })
}
