module github.com/matter-ops/kms-rotation/testdata/thirdparty

go 1.26.4

replace github.com/matter-ops/kms-rotation => ../../

require (
	github.com/c2sp/wycheproof v0.0.0-20260902155932-3fa63dd0344a
	github.com/matter-ops/kms-rotation v0.0.0-00010101000000-000000000000
)
