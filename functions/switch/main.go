// Command switch is the Lambda function that moves the pointer to the new KEK; see
// [rotation.Steps.Switch].
package main

import (
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
)

func main() { lambdastep.Start(app.Steps, (*rotation.Steps).Switch) }
