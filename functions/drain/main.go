// Command drain is the Lambda function that waits out the writers of the old KEK and seals its fence; see
// [rotation.Steps.Drain].
package main

import (
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
)

func main() { lambdastep.Start(app.Steps, (*rotation.Steps).Drain) }
