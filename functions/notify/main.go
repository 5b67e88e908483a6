// Command notify is the Lambda function that tells people what happened and what to do next; see
// [rotation.Steps.Notify].
package main

import (
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
)

func main() { lambdastep.Start(app.Notifier, (*rotation.Steps).Notify) }
