// Command approve is the Lambda function that asks for a second person's approval before the switch; see
// [gates.Gates.AskApproval].
package main

import (
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation/gates"
)

func main() { lambdastep.Start(app.Gates, (*gates.Gates).AskApproval) }
