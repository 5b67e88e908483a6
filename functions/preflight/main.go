// Command preflight is the Lambda function that checks everything a rotation relies on and starts it; see
// [rotation.Steps.Preflight].
package main

import (
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
)

func main() { lambdastep.Start(app.Steps, (*rotation.Steps).Preflight) }
