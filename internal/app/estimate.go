package app

import (
	"github.com/matter-ops/kms-rotation/internal/budget"
	"github.com/matter-ops/kms-rotation/rotation/estimate"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/source/dynamodb"
)

// TableTraits are those of the driver of DynamoDB tables, for a plan without a table.
var TableTraits source.Traits = (&dynamodb.Table{}).Traits()

// BestSettings returns the most that the deployment may take, if AWS answered at once and nobody
// else asked: what cannot end with these cannot end.
func (c Config) BestSettings() estimate.Settings {
	s := c.EstimateSettings()
	s.KMSRate = c.KMSRate
	s.Latency = estimate.Latency{}
	s.Overhead = 0
	return s
}

// EstimateSettings returns the parameters of the deployment for an estimate, with the default
// latencies.
func (c Config) EstimateSettings() estimate.Settings {
	s := estimate.DefaultSettings()
	s.Segments = c.Segments
	s.Concurrency = c.Concurrency
	s.KMSRate = min(c.KMSRate, budget.StartRate) // more where CloudWatch shows that it is free
	s.WriteRate = c.WriteRate
	s.CanaryRounds = c.CanaryRounds
	s.Deep = c.Deep
	s.KeySettle = c.KeySettle
	s.DrainAtMost = c.DrainMaxWait
	return s
}
