-------------------------------- MODULE setback --------------------------------
(***************************************************************************)
(* The whole control table is set back to an earlier moment: by a          *)
(* point-in-time recovery, or from a backup. Pointer, registry, fences,    *)
(* lock, records, marks, leases and checkpoints are what they were then.   *)
(* KMS, the rows, the bucket and what processes hold in their hands are    *)
(* not. (doctor.tla has the loss of one item.)                             *)
(*                                                                         *)
(* The rule that protects: nothing uses the restored table before doctor   *)
(* has repaired it (docs/runbook.md, "The control table was restored").    *)
(* DynamoDB restores into a new table, so the rule can be kept. Where      *)
(* steps do not keep it, they give up no KEK while the bucket has a record *)
(* that the table does not know (Journal.CheckSetBack).                    *)
(***************************************************************************)
EXTENDS rotation

CONSTANTS
  KeptBy,        \* who keeps the rule: "all", "steps" (applications use the table at once), "writers" (steps do)
  Moments,       \* what moment it is set back to: "any", or the "first" alone
  Unpublished    \* the last change may have no record in the bucket yet

VARIABLES
  past,    \* the moment that the table may be set back to
  told,    \* what the records in the bucket tell of the table
  back     \* "no", "set" (back, and not repaired yet), "same" (set back, and the bucket has no
           \* record that the table does not know: its chain continues), "over" (repaired)

backV == <<past, told, back>>

Recorded == [kek |-> kek, ptr |-> ptr, lock |-> lock, rot |-> rot, src |-> src]
Stored   == [kek |-> kek, ptr |-> ptr, lock |-> lock, rot |-> rot, src |-> src,
             fence |-> fence, mark |-> mark, lease |-> lease]
Nothing  == [kek |-> << >>]

BInit ==
  /\ Init /\ back = "no" /\ told = Recorded
  /\ past = IF Moments = "first" THEN Stored ELSE Nothing

Remember ==             \* this is the moment
  /\ past = Nothing /\ back = "no"
  /\ past' = Stored
  /\ UNCHANGED <<vars, told, back>>

Used      == back \in {"set", "same"}
Continues == back \in {"no", "same"}

Publish ==              \* Journal.Publish
  /\ Continues /\ told # Recorded
  /\ told' = Recorded
  /\ UNCHANGED <<vars, past, back>>

Put(t) ==               \* the table is t
  /\ kek' = t.kek /\ ptr' = t.ptr /\ lock' = t.lock /\ rot' = t.rot /\ src' = t.src
  /\ fence' = t.fence /\ mark' = t.mark /\ lease' = t.lease /\ clean' = {}
  /\ UNCHANGED <<on, tag, owner, doomed, reaper, unfit, seen, gone, rw, passV, dataV, cntV>>

(* What doctor makes of a table that was set back: pointer, KEKs, sources and  *)
(* rotations are as the chain tells, the rotation that ran is ended, the epoch *)
(* grows by one. No record tells of leases, nor of marks.                      *)
Said(k) ==              \* kek.RebuiltState, exam.examineKEKs
  CASE k = told.ptr.kek -> "active"
    [] told.kek[k] = "active" -> "draining"
    [] told.kek[k] = "pending" \/ (told.kek[k] = "retired" /\ k \in on) -> "sealed"
    [] OTHER -> told.kek[k]

Running(n) == told.rot[n].ph \notin Final \cup {"none"}

Repaired(t) ==
  [kek |-> [k \in KEK |-> Said(k)], ptr |-> [told.ptr EXCEPT !.ep = @ + 1], lock |-> 0,
   rot |-> [n \in Rot |-> IF Running(n) THEN [told.rot[n] EXCEPT !.ph = "superseded", !.was = told.rot[n].ph]
                                        ELSE told.rot[n]],
   src |-> told.src, fence |-> [k \in KEK |-> IF k = told.ptr.kek THEN Shard ELSE {}],
   mark |-> t.mark, lease |-> t.lease]

SetBack ==
  /\ back = "no" /\ past # Nothing
  /\ IF KeptBy = "all" THEN Put(Repaired(past)) /\ back' = "over"
     ELSE /\ Put(past)
          /\ back' = IF told = [kek |-> past.kek, ptr |-> past.ptr, lock |-> past.lock, rot |-> past.rot, src |-> past.src]
                     THEN "same" ELSE "set"
  /\ UNCHANGED <<past, told>>

Repair ==
  /\ Used
  /\ Put(Repaired(Stored)) /\ back' = "over"
  /\ UNCHANGED <<past, told>>

GivesUp ==              \* what a step must not do then: journal.GivesUpKEK, and KMS DisableKey
  \/ \E k \in KEK : kek[k] # "retired" /\ kek'[k] = "retired"
  \/ \E n \in Rot : rot[n].ph # "rolledback" /\ rot'[n].ph = "rolledback"
  \/ ~(on \subseteq on')

(* Steps.Switch describes the new key, and KMS wraps under no key that is       *)
(* disabled. In rotation.tla the new KEK's key is always enabled (NewKekUsable).*)
KmsAgrees ==
  /\ ptr' # ptr => ptr'.kek \in on
  /\ \A n \in Rot, r \in Row : rw'[n][r] \notin {NoWork, rw[n][r]} => rot[n].new \in on

GoOn ==                 \* a step returns, and disables a key, when its record is in the bucket
  /\ CASE Used /\ KeptBy = "steps"   -> Writing \/ Reading \/ Backups
       [] Used /\ KeptBy = "writers" -> People \/ Keys \/ Steps \/ Others
       [] OTHER                      -> Next
  /\ back = "set" => ~GivesUp       \* Journal.CheckSetBack
  /\ KmsAgrees
  /\ Continues /\ (Recorded' # Recorded \/ \E k \in on \ on' : kek[k] = "retired") => told = Recorded
  /\ told' = IF Continues /\ ~Unpublished THEN Recorded' ELSE told
  /\ UNCHANGED <<past, back>>

BNext == GoOn \/ Remember \/ Publish \/ SetBack \/ Repair
BSpec == BInit /\ [][BNext]_<<vars, backV>>

(* While the table is set back the registry is wrong; once it is repaired       *)
(* everything holds again, and all the time nothing that a row is under is      *)
(* disabled.                                                                    *)
RepairedNoKeyOrphans  == ~Used => NoKeyOrphans
RepairedPointerUsable == ~Used => PointerUsable
RepairedSealedIsShut  == ~Used => SealedIsShut
EveryRowOpens == \A r \in Row : row[r] # NoRow => row[r].real \in on

NeverRecovered ==       \* must be violated
  ~(back = "over" /\ \E n \in Rot : rot[n].ph = "completed" /\ told.rot[n].ph # "completed")
=================================================================================
