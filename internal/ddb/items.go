package ddb

import (
	"strings"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

func decodePointer(i item) (kek.Pointer, error) {
	p, err := controltable.DecodePointer(i)
	return p, damagedIf(err, pkPointer)
}

func decodeKEK(i item) (kek.KEK, error) {
	k, err := controltable.DecodeKEK(i)
	return k, damagedIf(err, controltable.KEKPK(k.ID))
}

func encodeRotation(r kek.Rotation) item {
	i := attr.Set(controltable.Key(controltable.RotationPK(r.ID), noSK),
		controltable.AttrMode, string(r.Mode), "phase", string(r.Phase), "label", r.Label, "reason", r.Reason,
		"old_kek_id", string(r.OldKEK), "new_kek_id", string(r.NewKEK), "attempt", int64(r.Attempt),
		"epoch", r.Epoch, "segments", int64(r.Segments), "rev", r.Rev,
		"execution_arn", r.Execution, "actor", r.Actor, "started_at", r.StartedAt,
		"updated_at", r.UpdatedAt, "switched_at", r.SwitchedAt, "error", r.Err,
		"requested_by", r.Requester, "drill", r.Drill)
	if r.Approval {
		i["approval"] = attr.Bool(true)
	}
	encodeFrozen(i, r)
	return i
}

func decodeRotation(i item) (kek.Rotation, error) {
	r := attr.Reader{Item: i}
	pk := r.Str("pk")
	v := kek.Rotation{
		ID: strings.TrimPrefix(pk, pkRotation), Mode: kek.Mode(r.Str(controltable.AttrMode)), Phase: kek.Phase(r.Str("phase")),
		Label: r.Str("label"), Reason: r.Str("reason"), OldKEK: kek.ID(r.Str("old_kek_id")),
		NewKEK: kek.ID(r.Str("new_kek_id")), Attempt: int(r.Num("attempt")), Epoch: r.Num("epoch"),
		Segments: int(r.Num("segments")), Rev: r.Num("rev"),
		Execution: r.Str("execution_arn"), Actor: r.Str("actor"), StartedAt: r.Time("started_at"),
		UpdatedAt: r.Time("updated_at"), SwitchedAt: r.Time("switched_at"), Err: r.Str("error"),
		Requester: r.Str("requested_by"), Drill: r.Str("drill"), Approval: r.Bool("approval"),
	}
	decodeFrozen(&r, &v)
	return v, damagedIf(r.Err, pk)
}

// damagedIf reports an item that could not be decoded; nil if it could.
func damagedIf(err error, pk string) error {
	if err != nil {
		return damaged(pk, err)
	}
	return nil
}

// damaged reports an item that cannot be read or used.
func damaged(pk string, err error) error {
	return &rotation.Error{
		Kind: rotation.ControlTableDamaged, Field: "control table item " + pk, Msg: "it is damaged", Err: err,
		Next: "matter ops doctor",
	}
}
