// Command anchor is the Lambda function that states the head of the audit chain in a public log; see
// [anchor.Anchor.AnchorChain].
package main

import (
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/lambdastep"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
)

func main() { lambdastep.Start(app.Anchorer, (*anchor.Anchor).AnchorChain) }
