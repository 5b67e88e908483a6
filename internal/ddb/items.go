package ddb

import (
	"strings"

	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

func decodePointer(i item) (kek.Pointer, error) {
	p, err := controltable.DecodePointer(i)
	return p, damagedIf(err, pkPointer)
}

func decodeKEK(i item) (kek.KEK, error) {
	k, err := controltable.DecodeKEK(i)
	return k, damagedIf(err, controltable.KEKPK(k.ID))
}

// encodeRotation returns the record of a rotation. Strings and times that are empty are
// absent. See [kek.Rotation] for what the fields mean.
//
//	ROTATION#<id>   -
//	  mode, phase, label, reason, error, drill      S
//	  old_kek_id, new_kek_id                        S   ids of KEKs
//	  attempt, epoch, segments, rev                 N
//	  execution_arn, actor, requested_by            S
//	  started_at, updated_at, switched_at           S   times
//	  approval                                      BOOL, absent if false
//
// Frozen at the start, or added on the way (encodeFrozen):
//
//	sources, settings                             S   JSON
//	old_kek_ids, took_over, leftover_kek_ids      L of S
//	probes                                        M of B, by KEK: a data key wrapped under it
//	counted                                       BOOL, absent if false
//	rehearsed, ended_by                           S
//	sealed_at, resumed_at                         S   times
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
	if r.RecordsOnly {
		i["records_only"] = attr.Bool(true)
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
		RecordsOnly: r.Bool("records_only"),
	}
	decodeFrozen(&r, &v)
	return v, damagedIf(r.Err, pk)
}

// damagedIf returns [errDamaged] for an item that could not be decoded; nil if err is nil.
func damagedIf(err error, pk string) error {
	if err != nil {
		return errDamaged(pk, err)
	}
	return nil
}

// errDamaged reports an item that cannot be decoded or used. No step continues on such an
// item: it would decide from a value that nothing wrote.
func errDamaged(pk string, err error) error {
	return &journal.Error{
		Kind: journal.ControlTableDamaged, Field: "control table item " + pk, Msg: "it is damaged", Err: err,
		Next: journal.Next{Do: journal.RunDoctor},
	}
}
