// Command schedule is the Lambda function that starts, every few minutes, what the calendar says is due; see
// [rotation.Scheduler.StartDue].
package main

import (
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
)

func main() { lambdastep.Start(app.Scheduler, (*rotation.Scheduler).StartDue) }
