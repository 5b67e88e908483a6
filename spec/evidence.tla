------------------------------ MODULE evidence ------------------------------
(***************************************************************************)
(* What an audit chain can be: the part of rotation.tla that records tell  *)
(* of. Each record is one action of this module, with the same name as     *)
(* there, or changes nothing here. What only the account can show is left  *)
(* out: rows, leases, fences, whether KMS has disabled a key.              *)
(*                                                                         *)
(* refines.tla: each behaviour of rotation.tla is one of this module. So a *)
(* record that is not a step here can come of no run of rotation.tla. Package *)
(* audit/replay holds a chain to this module without TLC, and its tests    *)
(* hold it to TLC.                                                         *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS KEK, Rot, Source

VARIABLES
  ptr,   \* the pointer: KEK and epoch
  kek,   \* state of each KEK: none, pending, active, draining, sealed, retired
  lock,  \* the rotation that holds the lock; 0 is free
  rot,   \* the record of each rotation
  src    \* registered sources

vars == <<ptr, kek, lock, rot, src>>

NoRot == [ph |-> "none", mode |-> "normal", old |-> 0, olds |-> {}, srcs |-> {}, cnt |-> FALSE, new |-> 0, reh |-> 0, att |-> 0]

Final      == {"completed", "rolledback", "superseded"}
PreSw      == {"started", "minted", "tested"}
Registered == {k \in KEK : kek[k] \in {"active", "draining", "sealed"}}
At(n, ph)  == rot[n].ph = ph /\ lock = n
Settled    == lock # 0 => rot[lock].ph \notin PreSw

Init ==                 \* View.Genesis
  /\ ptr.ep \in Nat \ {0}
  /\ kek = [k \in KEK |-> IF k = ptr.kek THEN "active" ELSE "none"]
  /\ lock = 0 /\ rot = [n \in Rot |-> NoRot] /\ src \subseteq Source

Started(m, att) ==
  [NoRot EXCEPT !.ph = "started", !.mode = m, !.att = att, !.old = ptr.kek, !.olds = Registered, !.srcs = src]

Start(n, m) ==
  /\ rot[n].ph = "none" /\ lock = 0 /\ kek[ptr.kek] = "active"
  /\ lock' = n /\ rot' = [rot EXCEPT ![n] = Started(m, 1)]
  /\ UNCHANGED <<ptr, kek, src>>

TakeOver(m) ==
  LET n == lock
      pre == rot[n].ph \in PreSw
  IN
  /\ n # 0 /\ rot[m].ph = "none" /\ kek[ptr.kek] = "active"
  /\ lock' = m
  /\ kek' = [k \in KEK |-> IF pre /\ k = rot[n].new THEN "retired" ELSE kek[k]]
  /\ rot' = [rot EXCEPT ![n].ph = IF pre /\ rot[n].mode = "normal" THEN "rolledback" ELSE "superseded",
                        ![n].cnt = FALSE, ![n].reh = 0, ![m] = Started("emergency", 1)]
  /\ UNCHANGED <<ptr, src>>

Register(k) ==
  /\ kek[k] = "none" /\ lock = 0
  /\ kek' = [kek EXCEPT ![k] = "sealed"]
  /\ UNCHANGED <<ptr, lock, rot, src>>

AddSource(t) ==
  /\ t \notin src /\ Settled
  /\ src' = src \cup {t}
  /\ rot' = IF lock = 0 \/ rot[lock].ph = "retired" \/ t \in rot[lock].srcs THEN rot
            ELSE [rot EXCEPT ![lock].srcs = @ \cup {t}]
  /\ UNCHANGED <<ptr, kek, lock>>

RemoveSource(t) ==
  /\ t \in src /\ Settled
  /\ src' = src \ {t}
  /\ UNCHANGED <<ptr, kek, lock, rot>>

Count(n) ==             \* an emergency may count, and its record changes nothing
  /\ At(n, "started")
  /\ rot' = [rot EXCEPT ![n].cnt = (rot[n].mode = "normal")]
  /\ UNCHANGED <<ptr, kek, lock, src>>

Mint(n, k) ==
  /\ At(n, "started") /\ (rot[n].mode = "normal" => rot[n].cnt)
  /\ kek[k] = "none"
  /\ kek' = [kek EXCEPT ![k] = "pending"]
  /\ rot' = [rot EXCEPT ![n].ph = "minted", ![n].new = k]
  /\ UNCHANGED <<ptr, lock, src>>

Rehearse(n) ==
  /\ At(n, "minted") /\ rot[n].reh # rot[n].new
  /\ rot' = [rot EXCEPT ![n].reh = rot[n].new]
  /\ UNCHANGED <<ptr, kek, lock, src>>

DualUnwrap(n) ==
  /\ At(n, "minted") /\ rot[n].reh = rot[n].new
  /\ rot' = [rot EXCEPT ![n].ph = "tested"]
  /\ UNCHANGED <<ptr, kek, lock, src>>

GivenUp(n) ==           \* the new KEK of a rotation that does not get to its switch
  IF rot[n].new = 0 THEN kek ELSE [kek EXCEPT ![rot[n].new] = "retired"]

PreSwitchFailure(n) ==
  /\ lock = n /\ rot[n].ph \in PreSw /\ rot[n].mode = "normal"
  /\ kek' = GivenUp(n) /\ lock' = 0
  /\ rot' = [rot EXCEPT ![n].ph = "rolledback", ![n].cnt = FALSE, ![n].reh = 0]
  /\ UNCHANGED <<ptr, src>>

Remint(n) ==
  /\ lock = n /\ rot[n].ph \in PreSw /\ rot[n].mode = "emergency"
  /\ kek' = GivenUp(n)
  /\ rot' = [rot EXCEPT ![n].ph = "started", ![n].new = 0, ![n].att = @ + 1]
  /\ UNCHANGED <<ptr, lock, src>>

Switch(n) ==
  LET k == rot[n].new o == rot[n].old IN
  /\ At(n, "tested") /\ ptr.kek = o /\ kek[k] = "pending" /\ kek[o] = "active"
  /\ ptr' = [kek |-> k, ep |-> ptr.ep + 1]
  /\ kek' = [kek EXCEPT ![k] = "active", ![o] = "draining"]
  /\ rot' = [rot EXCEPT ![n].ph = "switched"]
  /\ UNCHANGED <<lock, src>>

Seal(n, k) ==
  /\ At(n, "switched") /\ k \in rot[n].olds /\ kek[k] = "draining"
  /\ kek' = [kek EXCEPT ![k] = "sealed"]
  /\ rot' = [rot EXCEPT ![n].ph = IF \A j \in rot[n].olds : kek'[j] # "draining" THEN "drained" ELSE @]
  /\ UNCHANGED <<ptr, lock, src>>

Rewrapped(n) ==
  /\ At(n, "drained")
  /\ rot' = [rot EXCEPT ![n].ph = "rewrapped"]
  /\ UNCHANGED <<ptr, kek, lock, src>>

Retire(n) ==
  /\ At(n, "rewrapped") /\ ptr.kek \notin rot[n].olds /\ \A k \in rot[n].olds : kek[k] = "sealed"
  /\ kek' = [k \in KEK |-> IF k \in rot[n].olds THEN "retired" ELSE kek[k]]
  /\ rot' = [rot EXCEPT ![n].ph = "retired"]
  /\ UNCHANGED <<ptr, lock, src>>

Complete(n) ==
  /\ At(n, "retired")
  /\ rot' = [rot EXCEPT ![n].ph = "completed"]
  /\ lock' = 0
  /\ UNCHANGED <<ptr, kek, src>>

Next ==
  \/ \E n \in Rot : \/ \E m \in {"normal", "emergency"} : Start(n, m)
                    \/ TakeOver(n) \/ Count(n) \/ Rehearse(n) \/ DualUnwrap(n) \/ PreSwitchFailure(n) \/ Remint(n)
                    \/ Switch(n) \/ Rewrapped(n) \/ Retire(n) \/ Complete(n)
                    \/ \E k \in KEK : Mint(n, k) \/ Seal(n, k)
  \/ \E k \in KEK : Register(k)
  \/ \E t \in Source : AddSource(t) \/ RemoveSource(t)

Spec == Init /\ [][Next]_vars
=============================================================================
