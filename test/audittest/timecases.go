package audittest

import (
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/rekortest"
)

func timeCases() []Case {
	year := func(n int) time.Time { return time.Date(n, 1, 1, 0, 0, 0, 0, time.UTC) }
	return []Case{
		{
			Name: "a record is dated 2099", Kind: audit.FutureTime, Object: rec(10),
			Tamper: func(w *World) { w.redate(year(2099)) },
		},
		{
			Name: "a record is dated after S3 stored it", Kind: audit.FutureTime, Object: rec(10),
			Tamper: func(w *World) {
				w.Policy.Now = at(60)
				w.redate(at(16))
			},
		},
		{
			Name: "a record is dated 1990", Kind: audit.Backdated, Object: rec(10),
			Tamper: func(w *World) { w.redate(year(1990)) },
		},
		{
			Name: "the times of records run backward", Kind: audit.TimeBackward, Object: rec(10),
			Tamper: func(w *World) { w.redate(at(3)) },
		},
		{
			Name: "an anchor is dated in the future", Kind: audit.FutureTime, Object: anc(3),
			Tamper: func(w *World) { w.backdate(year(2099), at(11)) },
		},
		{
			Name: "an anchor is dated before the record that it covers", Kind: audit.TimeBackward, Object: anc(3),
			Tamper: func(w *World) { w.backdate(at(3), at(11)) },
		},
	}
}

func endCases() []Case {
	end := at(7)
	return []Case{
		{
			Name: "an anchor key whose time has ended signs, dated back", Kind: audit.Backdated, Object: anc(3),
			Tamper: func(w *World) {
				w.Policy.Trust.AnchorKeys[0].To = end
				w.backdate(at(6), at(12))
			},
		},
		{
			Name: "an anchor key signs after its successor", Kind: audit.SupersededKey, Object: anc(4),
			Tamper: func(w *World) {
				successor := newKey(w)
				w.Policy.Trust.AnchorKeys[0].To = at(60)
				w.Policy.Trust.AnchorKeys = append(w.Policy.Trust.AnchorKeys, audit.PinnedKey{Key: successor.DER, From: at(0)})
				w.Bucket.Remove(anc(3))
				w.Anchors = w.Anchors[:2]
				w.anchorWith(9, successor, w.Log)
				w.anchorWith(10, w.Key, w.Log)
			},
		},
		{
			Name: "a log whose time has ended holds an anchor, dated back", Kind: audit.Backdated, Object: anc(3),
			Tamper: func(w *World) {
				w.Policy.Trust.Logs[0].To = end
				w.backdate(at(6), at(12))
			},
		},
		{
			Name: "a log holds an anchor after its successor", Kind: audit.SupersededLog, Object: anc(4),
			Tamper: func(w *World) {
				successor := rekortest.Named(w.T, "successor.test")
				w.Policy.Trust.Logs[0].To = at(60)
				w.Policy.Trust.Logs = append(w.Policy.Trust.Logs, successor.Trust())
				w.Bucket.Remove(anc(3))
				w.Anchors = w.Anchors[:2]
				w.anchorWith(9, w.Key, successor)
				w.anchorWith(10, w.Key, w.Log)
			},
		},
	}
}

func treeCases() []Case {
	return []Case{
		{
			Name: "the log shows a fork of another size", Kind: audit.WrongConsistency, Object: anc(3),
			Tamper: func(w *World) { w.fork() },
		},
		{
			Name: "a consistency proof is edited", Kind: audit.WrongConsistency, Object: anc(3),
			Tamper: func(w *World) {
				w.edit(3, func(a *audit.Anchor) {
					path := append([][]byte{}, a.Proof.Consistency...)
					path[0] = append([]byte{path[0][0] ^ 1}, path[0][1:]...)
					a.Proof.Consistency = path
				})
			},
		},
		{
			Name: "a consistency proof is gone", Kind: audit.MissingConsistency, Object: anc(3),
			Tamper: func(w *World) { w.edit(3, func(a *audit.Anchor) { a.Proof.Consistency = nil }) },
		},
		{
			Name: "an anchor goes back to the format without a consistency proof", Kind: audit.MissingConsistency, Object: anc(3),
			Tamper: func(w *World) {
				first := w.Anchors[2].Signed.Statement
				first.V = 1
				signed := w.Key.Statement(w.T, first)
				w.edit(3, func(a *audit.Anchor) { *a = audit.Anchor{V: 1, Signed: signed, Proof: w.Log.Submit(w.T, signed)} })
			},
		},
	}
}
