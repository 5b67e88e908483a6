--------------------------------- MODULE doctor ---------------------------------
(***************************************************************************)
(* One item of the control table is lost at any moment of a rotation, and  *)
(* doctor rebuilds it (doctor.RepairTable, kek/repair.go). The steps,      *)
(* writers and readers of rotation.tla go on meanwhile, as far as they do  *)
(* not need the item.                                                      *)
(*                                                                         *)
(* Every change of the control table is in the audit chain, in the same    *)
(* transaction: so what the chain says of an item is what it was when it   *)
(* was lost, and stays so until it is rebuilt. Doctor reads, computes, and *)
(* writes at any later time, perhaps twice, on condition that the item is  *)
(* still lost. Two people may run it.                                      *)
(***************************************************************************)
EXTENDS rotation

CONSTANT Items   \* which items may be lost: "ptr", "kek", "fence", "lock", "rot", "head"

VARIABLES
  lost,    \* the item that is lost
  said,    \* what the audit chain says of a lost KEK's state
  hand     \* the repair that somebody has computed, and may make at any later time

doctorV == <<lost, said, hand>>

NoLoss  == [i |-> "none", k |-> 0, s |-> "none", n |-> 0]
Sound   == lost.i \in {"none", "over"}     \* an item is lost once in a behaviour

DInit == Init /\ lost = NoLoss /\ said = "none" /\ hand = [l |-> NoLoss, kek |-> "none", ptr |-> [kek |-> 1, ep |-> 1]]

(* A loss. What is missing is not what a step conditions on: a KEK that nobody *)
(* has registered, a shard that is not open, a free lock, a record that no     *)
(* step finds. Another rotation may start then: so `clean`, which is one       *)
(* rotation's, begins again.                                                   *)

LoseItem(i) ==
  /\ i \in Items /\ lost = NoLoss
  /\ CASE i = "ptr" \/ i = "head" ->
            /\ lost' = [NoLoss EXCEPT !.i = i]
            /\ UNCHANGED <<vars, said>>
       [] i = "kek" -> \E k \in KEK : kek[k] # "none"
            /\ lost' = [NoLoss EXCEPT !.i = i, !.k = k] /\ said' = kek[k]
            /\ kek' = [kek EXCEPT ![k] = "none"]
            /\ UNCHANGED <<on, tag, owner, doomed, reaper, unfit, ctlV, workV, dataV, cntV>>
       [] i = "fence" -> \E k \in KEK, s \in Shard : kek[k] \in {"active", "draining"} /\ s \in fence[k]
            /\ lost' = [NoLoss EXCEPT !.i = i, !.k = k, !.s = s]
            /\ fence' = [fence EXCEPT ![k] = @ \ {s}]
            /\ UNCHANGED <<keyV, ptr, lock, rot, tabV, workV, dataV, cntV, said>>
       [] i = "lock" -> lock # 0
            /\ lost' = [NoLoss EXCEPT !.i = i, !.n = lock]
            /\ lock' = 0 /\ clean' = {}
            /\ UNCHANGED <<keyV, ptr, fence, rot, tabV, lease, seen, gone, rw, passV, dataV, cntV, said>>
       [] i = "rot" -> lock # 0
            /\ lost' = [NoLoss EXCEPT !.i = i, !.n = lock]
            /\ rot' = [rot EXCEPT ![lock].ph = "lost", ![lock].was = rot[lock].ph]
            /\ clean' = {}
            /\ UNCHANGED <<keyV, ptr, fence, lock, tabV, lease, seen, gone, rw, passV, dataV, cntV, said>>
       [] OTHER -> FALSE
  /\ UNCHANGED hand

(* What goes on while an item is lost. *)

WithoutPointer ==       \* nobody can read it: these do not
  \/ \E w \in Writer : PutLease(w) \/ Renew(w) \/ (\E k \in KEK : DropLease(w, k)) \/ Wrap(w) \/ Commit(w) \/ Crash(w)
  \/ Reading \/ Backups \/ \E n \in Rot, r \in Row : RewrapWrite(n, r)
  \/ \E n \in Rot, r \in Row : RewrapRead(n, r) \/ ScanRow(n, r)
  \/ \E n \in Rot, k \in KEK, s \in Shard : SealShard(n, k, s)
  \/ \E k \in KEK : DisableRetired(k)

GoOn ==
  /\ IF lost.i = "ptr" THEN WithoutPointer ELSE Next
  /\ lost.i = "kek"   => kek'[lost.k] = kek[lost.k]                 \* every change of an entry conditions on it
  /\ lost.i = "fence" => kek'[lost.k] # "sealed" \/ kek[lost.k] = "sealed"   \* so does the seal, on every shard
  /\ lost.i = "head"  => UNCHANGED <<kek, ptr, lock, rot>>          \* no record can be appended
  /\ clean' \subseteq clean \/ (lock # 0 /\ \E r \in Row : ScanRow(lock, r))   \* checkpoints are keyed by the rotation
  /\ UNCHANGED doctorV

(* Doctor.                                                                   *)

Pending(k) == \E n \in Rot : rot[n].new = k /\ rot[n].ph \in PreSw     \* a rotation that runs switches to it
Rebuilt(k, st, p) ==    \* kek.RebuiltState
  CASE k = p.kek -> "active"
    [] st = "active" -> "draining"
    [] st = "retired" /\ k \in on -> "sealed"
    [] st = "pending" /\ ~Pending(k) -> "sealed"                    \* nobody switches to it any more
    [] OTHER -> st

Examine ==              \* Doctor.diagnoseTable: reads the table, the chain and KMS
  /\ ~Sound /\ hand.l = NoLoss
  /\ hand' = [l |-> lost, ptr |-> ptr,
              kek |-> CASE lost.i = "kek" -> Rebuilt(lost.k, said, ptr) [] lost.i = "fence" -> kek[lost.k] [] OTHER -> "none"]
  /\ UNCHANGED <<vars, lost, said>>

AsRead == lost = hand.l /\ (hand.l.i = "fence" => kek[hand.l.k] = hand.kek)

EndLost(n) == [rot EXCEPT ![n].ph = "superseded", ![n].was = IF @ = "none" THEN rot[n].ph ELSE @]    \* kek.Rotation.Lose

Repair ==               \* Items.Repair: one transaction on what was read
  LET h == hand  l == h.l  k == l.k IN
  /\ l # NoLoss
  /\ IF ~AsRead THEN UNCHANGED <<kek, fence, ptr, lock, rot, lost>>     \* looks again
     ELSE
       /\ lost' = [NoLoss EXCEPT !.i = "over"]
       /\ ptr' = IF l.i = "ptr" THEN h.ptr ELSE ptr
       /\ fence' = IF l.i = "fence" /\ h.kek = "active" THEN [fence EXCEPT ![k] = @ \cup {l.s}] ELSE fence
       /\ rot' = IF l.i = "rot" \/ (l.i = "lock" /\ lock \notin {0, l.n}) THEN EndLost(l.n) ELSE rot
       /\ lock' = CASE l.i = "rot" /\ lock = l.n -> 0 [] l.i = "lock" /\ lock = 0 -> l.n [] OTHER -> lock
       /\ kek' = CASE l.i = "kek" -> [kek EXCEPT ![k] = h.kek]
                   [] l.i = "rot" /\ rot[l.n].new # 0 -> IF kek[rot[l.n].new] = "pending"
                        THEN [kek EXCEPT ![rot[l.n].new] = "sealed"] ELSE kek
                   [] OTHER -> kek
  /\ hand' \in {hand, [hand EXCEPT !.l = NoLoss]}
  /\ UNCHANGED <<on, tag, owner, doomed, reaper, unfit, tabV, workV, dataV, cntV, said>>

DNext == GoOn \/ (\E i \in Items : LoseItem(i)) \/ Examine \/ Repair
DSpec == DInit /\ [][DNext]_<<vars, doctorV>>

(* From a repair on everything holds again, and meanwhile nothing is disabled *)
(* that a row is under.                                                       *)
RebuiltNoKeyOrphans      == Sound => NoKeyOrphans
RebuiltRetireAfterSwitch == Sound => RetireAfterSwitch
RebuiltPointerUsable     == Sound => PointerUsable
RebuiltSealedIsShut      == Sound => SealedIsShut
EveryRowOpens == \A r \in Row : row[r] # NoRow => row[r].real \in on

NeverRebuilt == ~(lost.i = "over" /\ \E n \in Rot : rot[n].ph = "completed")   \* must be violated
=================================================================================
