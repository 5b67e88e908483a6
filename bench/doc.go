// Package bench compares package envelope with raw AES-256-GCM, Tink's
// KMSEnvelopeAEAD and the AWS Encryption SDK for Go, all in one run and none with a
// network. It is a module of its own so that nobody who imports envelope gets their
// dependencies. docs/performance.md has the figures.
package bench
