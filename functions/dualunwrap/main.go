// Command dualunwrap is the Lambda function that shows that the old and the new KEK unwrap; see
// [rotation.Steps.DualUnwrap].
package main

import (
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
)

func main() { lambdastep.Start(app.Steps, (*rotation.Steps).DualUnwrap) }
