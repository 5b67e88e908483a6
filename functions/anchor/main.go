// Command anchor is the Lambda function that states the head of the audit chain in a public log; see
// [rotation.Steps.Anchor].
package main

import (
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
)

func main() { lambdastep.Start(app.Anchorer, (*rotation.Steps).Anchor) }
