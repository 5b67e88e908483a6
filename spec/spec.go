// Package spec holds the TLA+ models of a rotation, rotation.tla, of the repair of its
// control table, doctor.tla, of its checkpoints, checkpoint.tla, and of the audit chain's
// outbox, outbox.tla. Its tests check that the promises hold in the models and that they fail
// as soon as one mechanism that they rest on is taken away.
// README.md says how to read the models and which code each part stands for.
package spec

import _ "embed"

// Rotation is the text of the module rotation.
//
//go:embed rotation.tla
var Rotation string

// Outbox is the text of the module outbox.
//
//go:embed outbox.tla
var Outbox string

// Doctor is the text of the module doctor, which extends rotation.
//
//go:embed doctor.tla
var Doctor string

// Lag is the text of the module lag, which extends rotation.
//
//go:embed lag.tla
var Lag string

// SetBack is the text of the module setback, which extends rotation.
//
//go:embed setback.tla
var SetBack string

// Checkpoint is the text of the module checkpoint: why a pass may be concluded from items
// that others can write.
//
//go:embed checkpoint.tla
var Checkpoint string

// Archive is the text of the module archive, which extends rotation.
//
//go:embed archive.tla
var Archive string

// Keyed is the text of the module keyed: rows that name a data key of the key table.
//
//go:embed keyed.tla
var Keyed string

// Evidence is the text of the module evidence: what an audit chain can be.
//
//go:embed evidence.tla
var Evidence string

// Refines is the text of the module refines: rotation is an implementation of evidence.
//
//go:embed refines.tla
var Refines string
