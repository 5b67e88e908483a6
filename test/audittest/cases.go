package audittest

import (
	"time"

	"github.com/matter-ops/kms-rotation/audit"
)

// Case is one way to tamper with a chain.
type Case struct {
	Name   string
	Tamper func(w *World)
	Kind   audit.Kind // what verification must find
	Object string     // and about which object
	// Memory gives the verifier what it must remember from outside the bucket for the
	// case to show; nil if it shows without.
	Memory func(w *World, p *audit.Policy)
	// Before is the verdict without that memory, and Reason why.
	Before audit.Result
	Reason string
}

// Result is the verdict that the case must get.
func (c Case) Result() audit.Result {
	switch c.Kind {
	case audit.LogUnknown, audit.NoRecords, audit.NotAnchored, audit.TailTooOld:
		return audit.Unproven
	default:
		return audit.Tampered
	}
}

// Cases returns all cases.
func Cases() []Case {
	var out []Case
	for _, group := range [][]Case{recordCases(), linkCases(), objectCases(), anchorCases(), logCases(), timeCases(), endCases(), treeCases(), hiddenCases()} {
		out = append(out, group...)
	}
	return out
}

func withHead(w *World, p *audit.Policy) { p.Head = &w.Head }

func withKnown(n int64) func(w *World, p *audit.Policy) {
	return func(w *World, p *audit.Policy) { p.Known = w.known(n) }
}

// edited replaces a record by a text made of it.
func edited(seq int64, old, new string) func(w *World) {
	return func(w *World) { w.Bucket.Replace(rec(seq), replaceOnce(w, w.Bucket.Bytes(rec(seq)), old, new)) }
}

func recordCases() []Case {
	return []Case{
		{
			Name: "a record says something else", Kind: audit.UnlinkedRecord, Object: rec(6),
			Tamper: edited(5, `"key":"value"`, `"key":"other"`),
		},
		{
			Name: "an anchored record says something else", Kind: audit.AnchoredOther, Object: anc(3),
			Tamper: edited(9, `"actor":"somebody"`, `"actor":"nobody"`),
		},
		{
			Name: "a record names another time", Kind: audit.UnlinkedRecord, Object: rec(5),
			Tamper: edited(4, `02:04:00`, `02:04:01`),
		},
		{
			Name: "a record is encoded with a space", Kind: audit.UnreadableRecord, Object: rec(5),
			Tamper: edited(5, `"seq":5,`, `"seq": 5,`),
		},
		{
			Name: "a record's fields are in another order", Kind: audit.UnreadableRecord, Object: rec(5),
			Tamper: edited(5, `"type":"event 5","v":1`, `"v":1,"type":"event 5"`),
		},
		{
			Name: "a record has a field twice", Kind: audit.UnreadableRecord, Object: rec(5),
			Tamper: edited(5, `"seq":5,`, `"seq":4,"seq":5,`),
		},
		{
			Name: "a record has one field more", Kind: audit.UnreadableRecord, Object: rec(5),
			Tamper: edited(5, `"v":1}`, `"v":1,"w":1}`),
		},
		{
			Name: "a record is cut short", Kind: audit.UnreadableRecord, Object: rec(5),
			Tamper: edited(5, `,"v":1}`, ``),
		},
		{
			Name: "a record is escaped otherwise", Kind: audit.UnreadableRecord, Object: rec(5),
			Tamper: edited(5, `"somebody"`, `"some\u0062ody"`),
		},
		{
			Name: "a record claims a later format", Kind: audit.UnreadableRecord, Object: rec(5),
			Tamper: edited(5, `"v":1}`, `"v":2}`),
		},
		{
			Name: "a record has a time that there is not", Kind: audit.UnreadableRecord, Object: rec(10),
			Tamper: edited(10, `02:10:00`, `02:10:61`),
		},
	}
}

func linkCases() []Case {
	return []Case{
		{
			Name: "two records change places", Kind: audit.MisplacedRecord, Object: rec(4),
			Tamper: func(w *World) {
				a, b := w.Bucket.Bytes(rec(4)), w.Bucket.Bytes(rec(5))
				w.Bucket.Replace(rec(4), b)
				w.Bucket.Replace(rec(5), a)
			},
		},
		{
			Name: "a record stands in two places", Kind: audit.MisplacedRecord, Object: rec(5),
			Tamper: func(w *World) { w.Bucket.Replace(rec(5), w.Bucket.Bytes(rec(4))) },
		},
		{
			Name: "a record of another chain is put in", Kind: audit.UnlinkedRecord, Object: rec(5),
			Tamper: edited(5, `"chain":"matter"`, `"chain":"other"`),
		},
		{
			Name: "the first record follows something else", Kind: audit.UnlinkedRecord, Object: rec(1),
			Tamper: edited(1, audit.Genesis(Chain).Hash, audit.Genesis("other").Hash),
		},
		{
			Name: "a record is gone", Kind: audit.MissingRecord, Object: rec(5),
			Tamper: func(w *World) { w.Bucket.Remove(rec(5)) },
		},
		{
			Name: "the first record is gone", Kind: audit.MissingRecord, Object: rec(1),
			Tamper: func(w *World) { w.Bucket.Remove(rec(1)) },
		},
		{
			Name: "the tail is cut off and its anchor left", Kind: audit.MissingRecord, Object: rec(9),
			Tamper: func(w *World) { w.Bucket.Remove(rec(8), rec(9), rec(10)) },
		},
		{
			Name: "every record is cut off and the anchors left", Kind: audit.MissingRecord, Object: rec(9),
			Tamper: func(w *World) {
				for n := int64(1); n <= records; n++ {
					w.Bucket.Remove(rec(n))
				}
			},
		},
		{
			Name: "history is rewritten and linked again", Kind: audit.AnchoredOther, Object: anc(2),
			Tamper: func(w *World) { w.relink(5) },
		},
		{
			Name: "history is rewritten from the first record on", Kind: audit.AnchoredOther, Object: anc(1),
			Tamper: func(w *World) { w.relink(1) },
		},
		{
			Name: "a record is forged far ahead", Kind: audit.MissingRecord, Object: rec(11),
			Tamper: func(w *World) {
				w.Bucket.Put(rec(999_999_999_999), w.Entries[9].Bytes, Lock(at(11)))
			},
		},
	}
}

func objectCases() []Case {
	again := func(w *World, key string, content []byte) { w.Bucket.Put(key, content, Lock(at(11))) }
	return []Case{
		{
			Name: "a record is overwritten", Kind: audit.ExtraVersion, Object: rec(5),
			Tamper: func(w *World) { again(w, rec(5), w.Entries[3].Bytes) },
		},
		{
			Name: "a record is overwritten with the same bytes", Kind: audit.ExtraVersion, Object: rec(5),
			Tamper: func(w *World) { again(w, rec(5), w.Entries[4].Bytes) },
		},
		{
			Name: "a record is overwritten twice", Kind: audit.ExtraVersion, Object: rec(1),
			Tamper: func(w *World) {
				again(w, rec(1), w.Entries[3].Bytes)
				again(w, rec(1), w.Entries[4].Bytes)
			},
		},
		{
			Name: "a record is deleted by a marker", Kind: audit.DeleteMarker, Object: rec(5),
			Tamper: func(w *World) { w.Bucket.Delete(rec(5)) },
		},
		{
			Name: "a record is deleted and written again", Kind: audit.DeleteMarker, Object: rec(5),
			Tamper: func(w *World) {
				w.Bucket.Delete(rec(5))
				again(w, rec(5), w.Entries[4].Bytes)
			},
		},
		{
			Name: "an anchor is overwritten", Kind: audit.ExtraVersion, Object: anc(2),
			Tamper: func(w *World) { again(w, anc(2), w.encode(w.Anchors[0])) },
		},
		{
			Name: "an anchor is deleted by a marker", Kind: audit.DeleteMarker, Object: anc(2),
			Tamper: func(w *World) { w.Bucket.Delete(anc(2)) },
		},
		{
			Name: "a record's retention is shortened", Kind: audit.ShortRetention, Object: rec(5),
			Tamper: func(w *World) {
				w.Bucket.Relock(rec(5), audit.Lock{Mode: audit.Compliance, Until: at(5).Add(retention / 2)})
			},
		},
		{
			Name: "an anchor's retention is shortened", Kind: audit.ShortRetention, Object: anc(2),
			Tamper: func(w *World) {
				w.Bucket.Relock(anc(2), audit.Lock{Mode: audit.Compliance, Until: at(6).Add(retention / 2)})
			},
		},
		{
			Name: "a record's lock is one that can be lifted", Kind: audit.ShortRetention, Object: rec(5),
			Tamper: func(w *World) {
				w.Bucket.Relock(rec(5), audit.Lock{Mode: "GOVERNANCE", Until: at(5).Add(retention)})
			},
		},
		{
			Name: "a record has no lock", Kind: audit.ShortRetention, Object: rec(5),
			Tamper: func(w *World) { w.Bucket.Relock(rec(5), audit.Lock{}) },
		},
		{
			Name: "a second chain stands beside the first", Kind: audit.StrayObject, Object: "v1/other/records/000000000001.json",
			Tamper: func(w *World) { again(w, "v1/other/records/000000000001.json", w.Entries[0].Bytes) },
		},
		{
			Name: "a record stands under a second name", Kind: audit.StrayObject, Object: "v1/matter/records/5.json",
			Tamper: func(w *World) { again(w, "v1/matter/records/5.json", w.Entries[4].Bytes) },
		},
		{
			Name: "a record before the first is put in", Kind: audit.StrayObject, Object: rec(0),
			Tamper: func(w *World) { again(w, rec(0), w.Entries[0].Bytes) },
		},
		{
			Name: "an object stands where a copy has a directory", Kind: audit.StrayObject, Object: "v1/matter",
			Tamper: func(w *World) { again(w, "v1/matter", w.Entries[0].Bytes) },
		},
		{
			Name: "an object has the name of a copy's manifest", Kind: audit.StrayObject, Object: audit.ManifestName,
			Tamper: func(w *World) { again(w, audit.ManifestName, []byte("[]")) },
		},
	}
}

func anchorCases() []Case {
	return []Case{
		{
			Name: "the first anchor is gone", Kind: audit.MissingAnchor, Object: anc(1),
			Tamper: func(w *World) { w.Bucket.Remove(anc(1)) },
		},
		{
			Name: "an anchor in the middle is gone", Kind: audit.MissingAnchor, Object: anc(2),
			Tamper: func(w *World) { w.Bucket.Remove(anc(2)) },
		},
		{
			Name: "every anchor is gone", Kind: audit.NotAnchored, Object: rec(1),
			Tamper: func(w *World) { w.Bucket.Remove(anc(1), anc(2), anc(3)) },
		},
		{
			Name: "two anchors change places", Kind: audit.MisplacedAnchor, Object: anc(1),
			Tamper: func(w *World) {
				a, b := w.Bucket.Bytes(anc(1)), w.Bucket.Bytes(anc(2))
				w.Bucket.Replace(anc(1), b)
				w.Bucket.Replace(anc(2), a)
			},
		},
		{
			Name: "an anchor is encoded otherwise", Kind: audit.UnreadableAnchor, Object: anc(2),
			Tamper: func(w *World) { w.Bucket.Replace(anc(2), append(w.Bucket.Bytes(anc(2)), '\n')) },
		},
		{
			Name: "an anchor covers another head than was signed", Kind: audit.WrongSignature, Object: anc(3),
			Tamper: func(w *World) {
				w.relink(9)
				w.edit(3, func(a *audit.Anchor) { a.Signed.Statement.Head = w.Entries[8].Hash })
			},
		},
		{
			Name: "an anchor is signed by a key that is not pinned", Kind: audit.AnchorKeyUnknown, Object: anc(3),
			Tamper: func(w *World) { w.resign(3, newKey(w)) },
		},
		{
			Name: "an anchor is signed by a key after its time", Kind: audit.AnchorKeyUnknown, Object: anc(3),
			Tamper: func(w *World) { w.Policy.Trust.AnchorKeys[0].To = at(9) },
		},
		{
			Name: "an anchor does not follow the one before", Kind: audit.UnlinkedAnchor, Object: anc(3),
			Tamper: func(w *World) { w.forge(3, 9, func(s *audit.Statement) { s.Prev = audit.AnchorGenesis(Chain) }) },
		},
		{
			Name: "the first anchor follows something else", Kind: audit.UnlinkedAnchor, Object: anc(1),
			Tamper: func(w *World) {
				w.forge(1, 3, func(s *audit.Statement) { s.Prev = audit.AnchorGenesis("other") })
			},
		},
		{
			Name: "an anchor is that of another chain", Kind: audit.MisplacedAnchor, Object: anc(3),
			Tamper: func(w *World) { w.forge(3, 9, func(s *audit.Statement) { s.Chain = "other" }) },
		},
		{
			Name: "an anchor has a time that there is not", Kind: audit.UnreadableAnchor, Object: anc(3),
			Tamper: func(w *World) { w.forge(3, 9, func(s *audit.Statement) { s.Time = "yesterday" }) },
		},
		{
			Name: "an anchor goes back behind the one before", Kind: audit.UnlinkedAnchor, Object: anc(4),
			Tamper: func(w *World) { w.anchor(w.statement(w.Entries[4].Head())) },
		},
		{
			Name: "anchoring has stopped", Kind: audit.TailTooOld, Object: rec(10),
			Tamper: func(w *World) { w.Policy.Now = at(10).Add(day + time.Minute) },
		},
	}
}

func logCases() []Case {
	return []Case{
		{
			Name: "an anchor has the proof of another", Kind: audit.WrongEntry, Object: anc(3),
			Tamper: func(w *World) { w.edit(3, func(a *audit.Anchor) { a.Proof = w.Anchors[1].Proof }) },
		},
		{
			Name: "the log entry is forged", Kind: audit.WrongInclusion, Object: anc(3),
			Tamper: func(w *World) {
				w.Anchors = w.Anchors[:2]
				signed := w.Key.Statement(w.T, w.statement(w.Entries[8].Head())) // never logged
				body, err := signed.LogEntry()
				if err != nil {
					w.T.Fatal(err)
				}
				p := w.Log.Prove(3)
				p.Body = body
				w.Bucket.Remove(anc(3))
				w.store(w.Prove(signed, p))
			},
		},
		{
			Name: "the log entry names another key", Kind: audit.WrongEntry, Object: anc(3),
			Tamper: func(w *World) {
				forged := newKey(w).Statement(w.T, w.Anchors[2].Signed.Statement)
				w.edit(3, func(a *audit.Anchor) { a.Proof = w.Log.Submit(w.T, forged) })
			},
		},
		{
			Name: "the log entry is of a kind unknown", Kind: audit.WrongEntry, Object: anc(3),
			Tamper: func(w *World) {
				body := replaceOnce(w, w.Anchors[2].Proof.Body, `"0.0.2"`, `"0.0.3"`)
				w.edit(3, func(a *audit.Anchor) { a.Proof = w.Log.Prove(w.Log.Append(body)) })
			},
		},
		{
			Name: "a checkpoint is edited", Kind: audit.WrongCheckpoint, Object: anc(3),
			Tamper: func(w *World) {
				w.edit(3, func(a *audit.Anchor) {
					a.Proof.Checkpoint = string(replaceOnce(w, []byte(a.Proof.Checkpoint), "\n4\n", "\n5\n"))
				})
			},
		},
		{
			Name: "a checkpoint is not signed", Kind: audit.WrongCheckpoint, Object: anc(3),
			Tamper: func(w *World) {
				w.edit(3, func(a *audit.Anchor) { a.Proof.Checkpoint = a.Proof.Checkpoint[:len(a.Proof.Checkpoint)-8] + "\n" })
			},
		},
		{
			Name: "the log's key is another", Kind: audit.WrongCheckpoint, Object: anc(3),
			Tamper: func(w *World) {
				forged := newLog(w)
				w.edit(3, func(a *audit.Anchor) { a.Proof = forged.Submit(w.T, a.Signed) })
			},
		},
		{
			Name: "the log is one that nobody trusts", Kind: audit.LogUnknown, Object: anc(3),
			Tamper: func(w *World) { w.Policy.Trust.Logs[0].To = at(9) },
		},
		{
			Name: "an inclusion path is edited", Kind: audit.WrongInclusion, Object: anc(3),
			Tamper: func(w *World) {
				w.edit(3, func(a *audit.Anchor) {
					path := append([][]byte{}, a.Proof.Hashes...)
					path[0] = append([]byte{path[0][0] ^ 1}, path[0][1:]...)
					a.Proof.Hashes = path
				})
			},
		},
		{
			Name: "an anchor claims another log index", Kind: audit.WrongInclusion, Object: anc(3),
			Tamper: func(w *World) { w.edit(3, func(a *audit.Anchor) { a.Proof.Index-- }) },
		},
		{
			Name: "an anchor was logged before the one it follows", Kind: audit.ReusedEntry, Object: anc(3),
			Tamper: func(w *World) { // backdated: 3 is in the log, then 2 again under a new signature
				second := w.Key.Statement(w.T, w.Anchors[1].Signed.Statement)
				w.edit(2, func(a *audit.Anchor) { *a = w.make(second) })
			},
		},
		{
			Name: "the log shows two trees of one size", Kind: audit.SplitLog, Object: anc(3),
			Tamper: func(w *World) { w.splitLog() },
		},
	}
}

func hiddenCases() []Case {
	return []Case{
		{
			Name: "the records that wait for an anchor are cut off", Kind: audit.WrongHead, Object: rec(10),
			Tamper: func(w *World) { w.Bucket.Remove(rec(10)) }, Memory: withHead,
			Before: audit.Green, Reason: "nothing outside the bucket but the control table has seen them; the window is the age that a tail may have",
		},
		{
			Name: "a record that waits for an anchor says something else", Kind: audit.WrongHead, Object: rec(10),
			Tamper: edited(10, `"key":"value"`, `"key":"other"`), Memory: withHead,
			Before: audit.Green, Reason: "nothing outside the bucket but the control table has its hash; the window is the age that a tail may have",
		},
		{
			Name: "the tail is cut off together with its anchor", Kind: audit.Rollback, Object: anc(3),
			Tamper: func(w *World) { w.Bucket.Remove(rec(7), rec(8), rec(9), rec(10), anc(3)) }, Memory: withKnown(3),
			Before: audit.Green, Reason: "what is left is a sound chain, as it was on that day; only who has seen the anchor knows of it",
		},
		{
			Name: "the last anchor is gone", Kind: audit.Rollback, Object: anc(3),
			Tamper: func(w *World) { w.Bucket.Remove(anc(3)) }, Memory: withKnown(3),
			Before: audit.Green, Reason: "what is left is a chain that waits for its anchor; it turns unproven when the tail is too old",
		},
		{
			Name: "history is rewritten and anchored again with the anchor key", Kind: audit.Rollback, Object: anc(1),
			Tamper: func(w *World) { w.rewriteAll() }, Memory: withKnown(1),
			Before: audit.Green, Reason: "who has the anchor key can state anything; the log keeps both statements, so a known anchor or a watch on the log for the key shows it",
		},
		{
			Name: "everything is gone", Kind: audit.Rollback, Object: anc(1),
			Tamper: func(w *World) {
				for _, s := range w.Bucket.Stored() {
					w.Bucket.Remove(s.Key)
				}
			}, Memory: withKnown(1),
			Before: audit.Unproven, Reason: "an empty bucket is a chain that has not begun",
		},
	}
}
