----------------------------- MODULE KeyedTrace -----------------------------
(***************************************************************************)
(* Checks recorded runs of the code against keyed.tla, as RotationTrace    *)
(* does against rotation.tla: KeyedData, which is generated, holds the     *)
(* effects of each run in the order in which they happened. A run is       *)
(* accepted if an action of keyed.tla explains every one of them, and if   *)
(* every invariant holds after it.                                         *)
(*                                                                         *)
(* The processes of the data plane are not replayed: a data key is made,   *)
(* and a row is written, by somebody who once loaded the pointer. Embedded *)
(* rows are left out; RotationTrace has them. The shards of a fence are    *)
(* one thing here, which is shut when its last shard is. A pass is what    *)
(* it found at best: whatever was in order at some time in its phase.      *)
(* "As coded" marks what the code does and keyed.tla does not.             *)
(***************************************************************************)
EXTENDS keyed, Sequences, KeyedData, KeyedSteps

VARIABLES
  t, i,    \* which run, and its next event
  lost     \* DEKs whose record was deleted by mistake

all == <<vars, t, i, lost>>

T == Traces[t]
E == T[i]

TInit ==                     \* the beginning of keyed.tla without any row or record
  /\ t \in 1 .. Len(Traces) /\ i = 1 /\ lost = {}
  /\ rot = [n \in Rot |-> [ph |-> "none", mode |-> "normal"]]
  /\ kst = [k \in KEK |-> IF k = 1 THEN "active" ELSE "none"]
  /\ on = {1} /\ fence = {1} /\ efence = {} /\ eopen = {} /\ ptr = 1 /\ embOff = TRUE
  /\ rec = [d \in Dek |-> NoRec] /\ gen = [d \in {0} \cup Dek |-> 0] /\ bkt = [d \in Dek |-> {}]
  /\ row = [r \in Row |-> NoRow]
  /\ clean = {} /\ rw = {} /\ ew = {} /\ pb = {}
  /\ wr = [w \in Writer \cup Walker |-> Idle] /\ rd = [q \in Reader |-> NotRead]
  /\ writes = 0 /\ harm = {}

(* Copies in the bucket. The first of a data key says that it was made. *)
Copied(d, k) ==
  \/ /\ gen[d] = 0 /\ E.e = k /\ k \in on /\ k <= ptr                    \* Generate, PutCopy
     /\ gen' = [gen EXCEPT ![d] = k] /\ bkt' = [bkt EXCEPT ![d] = {k}]
     /\ UNCHANGED <<ctl, rec, row, work, wr, rd, writes, harm>>
  \/ /\ gen[d] # 0 /\ E.e = gen[d]
     /\ \/ k - 1 \in Rot /\ RecRead(k - 1, d)
        \/ PutBackRead(d)
        \/ /\ k = ptr /\ Bad(d) /\ Max(bkt[d]) \in on /\ pb' = pb \cup {<<d, k>>}
           /\ bkt' = [bkt EXCEPT ![d] = @ \cup {k}]                      \* as coded: always to the pointer's KEK
           /\ UNCHANGED <<ctl, rec, gen, row, clean, rw, ew, wr, rd, writes, harm>>
        \/ k \in bkt[d] /\ UNCHANGED vars                                \* of the same, wrapped again
     /\ bkt'[d] = bkt[d] \cup {k}

Created(d, k) ==
  \/ /\ d \notin lost /\ gen[d] = k /\ k \in bkt[d]
     /\ rec[d] = NoRec /\ k \in fence                                    \* Create
     /\ rec' = [rec EXCEPT ![d] = [kek |-> k, born |-> E.e]]
     /\ UNCHANGED <<ctl, gen, bkt, row, work, wr, rd, writes, harm>>
  \/ <<d, k>> \in pb /\ rec[d] = NoRec /\ PutBackWrite(<<d, k>>) /\ rec'[d].born = E.e

Rewrote(d, k) ==
  LET h == <<k - 1, d, E.w>> IN h \in rw /\ RecWrite(h) /\ rec'[d] = [kek |-> k, born |-> E.e]

(* A keyed row: Commit of an insert or an update, or WalkWrite. *)
Wrote(r, d) ==
  LET x == row[r] ins == x.f # "key" IN
  /\ rec[d] # NoRec \/ d \in lost
  /\ E.e = gen[d]
  /\ ins \/ x.ep <= E.e
  /\ row' = [row EXCEPT ![r] =
       [NoRow EXCEPT !.f = "key", !.d = d, !.b = writes + 1, !.ep = E.e,
                     !.late = IF ins THEN (IF E.e <= Max(Emerg) THEN Max(Emerg) ELSE 0) ELSE x.late]]
  /\ writes' = writes + 1
  /\ UNCHANGED <<ctl, keys, work, wr, rd, harm>>

Act ==
  CASE E.a = "start"     -> Start(E.n, E.m)
    [] E.a = "switch"    -> E.e = E.n + 1 /\ Switch(E.n)
    [] E.a = "shut"      -> \E n \in Rot : SealFence(n, E.k)
    [] E.a = "seal"      -> Seal(E.n)
    [] E.a = "rewrapped" -> Rewrapped(E.n)
    [] E.a = "retire"    -> Retire(E.n)
    [] E.a = "disable"   -> Disable(E.k)
    [] E.a = "complete"  -> Complete(E.n)
    [] E.a = "copy"      -> Copied(E.d, E.k)
    [] E.a = "create"    -> Created(E.d, E.k)
    [] E.a = "rewrap"    -> Rewrote(E.d, E.k)
    [] E.a = "lose"      -> Lose(E.d)
    [] E.a = "row"       -> Wrote(E.r, E.d)
    [] E.a = "delete"    -> DeleteRow(E.r)
    [] OTHER             -> FALSE

(* Scan of everything that is in order, at once. As coded, the first pass does not list the *)
(* bucket, as that of keyed.tla does (ok_keyed_as_coded).                                   *)
FirstPass(n, x) == rot[n].ph = "sealed" /\ x[1] = "d" /\ rec[x[2]].kek \in {0, n + 1}
Seeable == {x \in Things \ clean : \E n \in Rot : FirstPass(n, x) \/ ENABLED Scan(n, x)}
See == /\ clean' = clean \cup Seeable
       /\ UNCHANGED <<ctl, keys, row, rw, ew, pb, wr, rd, writes, harm, t, i, lost>>

Says(name, ok) == ok \/ (PrintT(<<"violates", t, i, name>>) /\ FALSE)

Sound ==
  /\ IF lost' = {} THEN Says("NoKeyOrphans", NoKeyOrphans') ELSE Says("RecOK", RecOK')
  /\ Says("NoDekLost", NoDekLost') /\ Says("RetireAfterSwitch", RetireAfterSwitch')
  /\ Says("PointerUsable", PointerUsable') /\ Says("BornBound", BornBound')
  /\ Says("ExposedOnlyLate", ExposedOnlyLate')
  /\ SoundSteps(Says, FALSE)

TNext ==
  /\ i <= Len(T)
  /\ IF Seeable # {} THEN See
     ELSE /\ Act /\ i' = i + 1 /\ t' = t
          /\ lost' = IF E.a = "lose" THEN lost \cup {E.d} ELSE lost
          /\ Sound /\ PrintT(<<"explained", t, i, E.a>>)

TSpec == TInit /\ [][TNext]_all
==============================================================================
