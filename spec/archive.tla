-------------------------------- MODULE archive --------------------------------
(***************************************************************************)
(* What a rotation that is over has left in the control table is removed:  *)
(* its checkpoints, and the sealed fence shards of the KEKs that it has    *)
(* retired (Steps.archiveFinished). A record of the audit chain keeps what *)
(* they said, in the transaction that removes them.                        *)
(*                                                                         *)
(* A shard that is not there must refuse an insert as a sealed one does: a *)
(* writer may have slept since before the seal. The record of the rotation *)
(* and the registry's entry of the KEK stay, so neither is begun again.    *)
(*                                                                         *)
(* Checkpoints need no action here: what a step concludes from them it     *)
(* conditions on the phase of their rotation (At), and a rotation that is  *)
(* over stays so (EndedIsEnded). One that a late worker saves afterwards   *)
(* is read by nobody; the next archive removes it.                         *)
(***************************************************************************)
EXTENDS rotation

VARIABLE none    \* <<KEK, shard>>: it was sealed, and its item has been removed

AInit == Init /\ none = {}

There(k, s) == <<k, s>> \notin none

(* controltable.FenceOpen: an item that is not there has no state "open".     *)
ArchivedInsertOK(r, k, s) == row[r] = NoRow /\ There(k, s) /\ s \in fence[k]

Left(k) == \E n \in Rot : rot[n].ph \in Final /\ k \in rot[n].olds

Remove(k, s) ==         \* Archive.RemoveSpent: on condition of the KEK's entry and of the shard
  /\ Left(k) /\ There(k, s)
  /\ kek[k] = "retired" /\ k \notin on
  /\ s \notin fence[k]
  /\ none' = none \cup {<<k, s>>}
  /\ UNCHANGED vars

SealAgain(n, k, s) ==   \* Drainage.SealFence of a drain that wakes up: an unconditional put
  /\ ~There(k, s) /\ k \in rot[n].olds /\ Once(n, "switched")
  /\ none' = none \ {<<k, s>>}
  /\ fence' = [fence EXCEPT ![k] = @ \ {s}]
  /\ UNCHANGED <<keyV, ptr, lock, rot, tabV, workV, dataV, cntV>>

PutBack(k, s) ==       \* exam.examineFence: doctor puts a shard that is missing back
  /\ ~There(k, s)
  /\ none' = none \ {<<k, s>>}
  /\ fence' = [fence EXCEPT ![k] = IF kek[k] = "active" THEN @ \cup {s} ELSE @ \ {s}]
  /\ UNCHANGED <<keyV, ptr, lock, rot, tabV, workV, dataV, cntV>>

GoOn == Next /\ UNCHANGED none

ANext ==
  \/ GoOn
  \/ \E k \in KEK, s \in Shard : Remove(k, s) \/ PutBack(k, s) \/ \E n \in Rot : SealAgain(n, k, s)
ASpec == AInit /\ [][ANext]_<<vars, none>>

ArchivedIsShut ==       \* no insert passes a shard that was removed, nor will one
  \A p \in none : kek[p[1]] = "retired" /\ p[1] \notin on /\ p[2] \notin fence[p[1]]

PointerOpen ==          \* the pointer's KEK has all of its shards
  \A s \in Shard : There(ptr.kek, s)

NeverArchived ==        \* must be violated
  ~(none # {} /\ Cardinality({n \in Rot : rot[n].ph = "completed"}) = 2)
=================================================================================
