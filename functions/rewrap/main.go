// Command rewrap is the Lambda function that moves the rows of one segment to the new KEK, and before the switch
// shows that it can; see [rotation.Steps.Rewrap].
package main

import (
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
)

func main() { lambdastep.Start(app.Steps, (*rotation.Steps).Rewrap) }
