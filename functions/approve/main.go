// Command approve is the Lambda function that asks for a second person's approval before the switch; see
// [rotation.Steps.AskApproval].
package main

import (
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
)

func main() { lambdastep.Start(app.Steps, (*rotation.Steps).AskApproval) }
