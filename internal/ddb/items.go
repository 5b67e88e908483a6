package ddb

import (
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

func encodePointer(p kek.Pointer) item {
	return set(key(pkPointer, noSK),
		"kek_id", string(p.KEKID), "key_arn", p.KeyARN, "epoch", p.Epoch,
		"rotation_id", p.RotationID, "switched_at", p.SwitchedAt)
}

func decodePointer(i item) (kek.Pointer, error) {
	r := reader{item: i}
	p := kek.Pointer{
		KEKID: kek.ID(r.str("kek_id")), KeyARN: r.str("key_arn"), Epoch: r.num("epoch"),
		RotationID: r.str("rotation_id"), SwitchedAt: r.time("switched_at"),
	}
	return p, r.decoded(pkPointer)
}

func encodeKEK(k kek.KEK) item {
	return set(key(kekPK(k.ID), noSK),
		"state", string(k.State), "key_arn", k.ARN, "label", k.Label, "rotation_id", k.RotationID,
		"fence_shards", int64(k.FenceShards), "created_at", k.CreatedAt, "switched_at", k.SwitchedAt,
		"retired_at", k.RetiredAt, "reason", k.Reason, "not_before_delete", k.NotBeforeDelete)
}

func decodeKEK(i item) (kek.KEK, error) {
	r := reader{item: i}
	pk := r.str("pk")
	k := kek.KEK{
		ID: kek.ID(strings.TrimPrefix(pk, pkKEK)), ARN: r.str("key_arn"), State: kek.State(r.str("state")),
		Label: r.str("label"), RotationID: r.str("rotation_id"), FenceShards: int(r.num("fence_shards")),
		CreatedAt: r.time("created_at"), SwitchedAt: r.time("switched_at"), RetiredAt: r.time("retired_at"),
		Reason: r.str("reason"), NotBeforeDelete: r.time("not_before_delete"),
	}
	return k, r.decoded(pk)
}

func encodeRotation(r kek.Rotation) item {
	i := set(key(rotationPK(r.ID), noSK),
		"mode", string(r.Mode), "phase", string(r.Phase), "label", r.Label, "reason", r.Reason,
		"old_kek_id", string(r.OldKEK), "new_kek_id", string(r.NewKEK), "attempt", int64(r.Attempt),
		"epoch", r.Epoch, "segments", int64(r.Segments), "rev", r.Rev,
		"execution_arn", r.Execution, "actor", r.Actor, "started_at", r.StartedAt,
		"updated_at", r.UpdatedAt, "switched_at", r.SwitchedAt, "error", r.Err,
		"requested_by", r.Requester, "drill", r.Drill)
	if r.Approval {
		i["approval"] = boolean(true)
	}
	encodeFrozen(i, r)
	return i
}

func decodeRotation(i item) (kek.Rotation, error) {
	r := reader{item: i}
	pk := r.str("pk")
	v := kek.Rotation{
		ID: strings.TrimPrefix(pk, pkRotation), Mode: kek.Mode(r.str("mode")), Phase: kek.Phase(r.str("phase")),
		Label: r.str("label"), Reason: r.str("reason"), OldKEK: kek.ID(r.str("old_kek_id")),
		NewKEK: kek.ID(r.str("new_kek_id")), Attempt: int(r.num("attempt")), Epoch: r.num("epoch"),
		Segments: int(r.num("segments")), Rev: r.num("rev"),
		Execution: r.str("execution_arn"), Actor: r.str("actor"), StartedAt: r.time("started_at"),
		UpdatedAt: r.time("updated_at"), SwitchedAt: r.time("switched_at"), Err: r.str("error"),
		Requester: r.str("requested_by"), Drill: r.str("drill"), Approval: r.bool("approval"),
	}
	decodeFrozen(&r, &v)
	return v, r.decoded(pk)
}

// decoded returns the reader's error, naming the item.
func (r *reader) decoded(pk string) error {
	if r.err != nil {
		return damaged(pk, r.err)
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
