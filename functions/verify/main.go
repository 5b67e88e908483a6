// Command verify is the Lambda function that reads every row: before the mint, to account for each item, and at
// the end, to show that the rotation did what it says and close it; see [rotation.Steps.Verify].
package main

import (
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation"
)

func main() { lambdastep.Start(app.Steps, (*rotation.Steps).Verify) }
