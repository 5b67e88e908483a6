------------------------------- MODULE rotation -------------------------------
(***************************************************************************)
(* Rotation of a key-encryption key (KEK) under crashes, retries,          *)
(* duplicates and paused processes. spec/README.md says how to read this.  *)
(*                                                                         *)
(* Every action is ONE atomic effect on ONE external system: a conditional *)
(* write or a transaction in DynamoDB, or one KMS call. An action may run  *)
(* at ANY time its conditions hold and any number of times. So the model   *)
(* has every retry, every late duplicate of a Lambda, a crash between any  *)
(* two effects, a redrive or resume, and a person at the CLI beside the    *)
(* state machine. A primed variable (x') is x after the action; what an    *)
(* action does not change it lists as UNCHANGED.                           *)
(*                                                                         *)
(* A step is: read, compute, write on condition that what was read still   *)
(* stands (kek.View, kek.Change). That makes read and write one action.    *)
(* What a condition does not cover (KMS calls, leases, rows in a worker's  *)
(* hand) is kept in a variable between two actions and may be stale.       *)
(*                                                                         *)
(* Words. A KEK is a KMS key. It wraps DEKs; a DEK encrypts the payload of *)
(* a row. The row holds the wrapped DEK and, as its label, the KEK's id.   *)
(* The pointer names the KEK for new DEKs; each switch of it begins an     *)
(* epoch, which a write stamps on its row. The fence of a KEK is a set of  *)
(* items (shards, so that no one item is hot). An insert under the KEK     *)
(* requires that one of them is open; the seal shuts all of them, forever. *)
(* A lease says that a process may still write under a KEK. A source is a  *)
(* table that rotations read, a mark says that a process writes into one.  *)
(* A pass reads all sources: rewrap, confirm (the second scan), verify.    *)
(*                                                                         *)
(* The order of this file: constants, variables, the data plane (writers,  *)
(* readers, other programs), the control plane (a step's actions in the    *)
(* order of a rotation, from Start to Complete), Next, and the promises.   *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets, TLC

CONSTANTS
  Row, Writer, Reader, Shard,  \* the rows, the processes, the fence items of a KEK
  Side,       \* the rows of a second table; the others are in the first, which is always a source
  Historic,   \* how many KEKs have rows although the registry does not know them yet
  Modes,      \* subset of {"normal", "emergency"}: what rotations may be started as
  Takeover,   \* an emergency may end a rotation that runs: "off", "normal", "any" (an emergency too)
  MaxRot,     \* how many rotations
  MaxMint,    \* mint attempts of an emergency (Config.MaxMints)
  Dup,        \* keys that a repeated or late CreateKey may make beside each attempt's
  MaxWrite,   \* DEKs made and rows written by the data plane
  MaxRenew,   \* renewals of one lease
  Leases,     \* FALSE leaves leases out: promises must not depend on them
  Recheck,    \* a holder reads the pointer again after it has put its lease
  DekCache,   \* a writer may use one DEK for several rows
  Deletes,    \* rows may be deleted
  Restore,    \* of a row from a backup: "off", "raw", "early", "halted", "late" or "fenced"
  Foreign,    \* other programs write rows without a label: "off", "idle", "early" or "raw"
  Lies,       \* other programs overwrite the label of a row
  Unfit,      \* rewrap cannot move real rows to some new KEKs
  Unmarked    \* the second table may get rows while it is neither a source nor marked

-----------------------------------------------------------------------------
(* What there is. *)

Past == 2 .. 1 + Historic                      \* historic KEKs; 1 is the genesis KEK
KEK  == 1 .. 1 + Historic + MaxRot * MaxMint * (1 + Dup)
Rot  == 1 .. MaxRot

Table      == {"first"} \cup (IF Side = {} THEN {} ELSE {"second"})
TableOf(r) == IF r \in Side THEN "second" ELSE "first"

(* The record of a rotation: phase and mode; the pointer's KEK at its start, all the    *)
(* KEKs that it leaves and the sources that it looks at; whether the census has counted *)
(* every row; its new KEK, and the KEK that was rehearsed; the mint attempt; the epoch  *)
(* of its switch; how many sources have joined. If an emergency has ended it: in which  *)
(* phase, and which emergency. left: keys of a rotation that this one has ended, which  *)
(* must be disabled too.                                                                *)
NoRot   == [ph |-> "none", mode |-> "normal", old |-> 0, olds |-> {}, srcs |-> {}, cnt |-> FALSE, new |-> 0,
            reh |-> 0, att |-> 0, ep |-> 0, rev |-> 0, was |-> "none", by |-> 0, left |-> {}]
NoRow   == [kid |-> 0, real |-> 0, ep |-> 0, dek |-> 0, ct |-> 0, body |-> 0]
NoLeases == [w \in Writer |-> [k \in KEK |-> 0]]
NoTag   == [n |-> 0, a |-> 0]           \* rotation and attempt
\* A rewrap worker: the row that it will write, and what it has read: label, DEK, payload.
NoWork  == [with |-> NoRow, from |-> 0, dek |-> 0, body |-> 0]
\* A writer: the KEK and epoch that it has loaded, its row, whether that is new, its DEK.
Idle    == [pc |-> "idle", k |-> 0, e |-> 0, r |-> 0, ins |-> FALSE, d |-> 0]
\* A sweep: the rotation, and the KMS keys that it has listed. A reader: row and KEK.
Resting == [pc |-> "idle", n |-> 0, set |-> {}]
NotRead == [r |-> 0, k |-> 0]

VARIABLES
  \* The registry and KMS.
  kek,     \* state of each KEK: none, pending, active, draining, sealed, retired
  on,      \* KEKs whose KMS key is enabled
  tag,     \* the rotation and attempt that a KMS key was made for
  owner,   \* KMS keys that own the alias of their attempt
  doomed,  \* KMS keys that somebody has decided to disable, and will
  reaper,  \* the sweep for stray keys: what it has read so far
  unfit,   \* new KEKs to which rewrap cannot move real rows
  \* The rest of the control table.
  ptr,     \* the pointer: KEK and epoch
  fence,   \* which fence shards of each KEK are open
  lock,    \* the rotation that holds the lock; 0 is free
  rot,     \* the record of each rotation
  src,     \* tables that are registered as sources
  mark,    \* tables that a writer has left its mark of
  lease,   \* the lease of each writer on each KEK: which version of it is stored; 0 is none
  \* Drain and rewrap, between a read and a write.
  seen,    \* leases that drain has read and found expired: which version; 0 is none
  gone,    \* <<writer, KEK>>: drain has seen no lease of that writer on that KEK
  rw,      \* rewrap workers of each rotation: a row's new wrapping, computed from what was read
  clean,   \* rows that the pass under way has seen under the new KEK, or gone
  halt,    \* the execution has halted between a pass and its conclusion
  \* The data plane.
  row,     \* rows: KEK on the label (0: none), KEK that really wraps the DEK, epoch,
           \* DEK that is wrapped, DEK that the payload is under, payload
  wr,      \* writers
  rd,      \* readers
  backup,  \* one backed-up row
  \* Counters, which no code has.
  nDek, writes

tabV  == <<src, mark>>
passV  == <<halt>>
keyV  == <<kek, on, tag, owner, doomed, reaper, unfit>>
ctlV  == <<ptr, fence, lock, rot, tabV>>
workV == <<lease, seen, gone, rw, clean, passV>>
dataV == <<row, wr, rd, backup>>
cntV  == <<nDek, writes>>
vars  == <<keyV, ctlV, workV, dataV, cntV>>

(* A DEK is numbered by the KEK that it was first wrapped under and a serial. *)
Serials         == 100000
Dek(k, serial)  == Serials * k + serial
Born(d)         == d \div Serials
Rewritten(d, k) == Dek(k, d % Serials)    \* the fresh DEK that an emergency gives a row

Final   == {"completed", "rolledback", "superseded"}
PreSw   == {"started", "minted", "tested"}
Order(ph) == CASE ph = "started" -> 1 [] ph = "minted" -> 2 [] ph = "tested" -> 3
               [] ph = "switched" -> 4 [] ph = "drained" -> 5 [] ph = "rewrapped" -> 6
               [] ph = "retired" -> 7 [] ph = "completed" -> 8 [] OTHER -> 0
Reached(n, ph) == Order(rot[n].ph) >= Order(ph)      \* kek.Phase.Reached
Once(n, ph)    == Order(rot[n].was) >= Order(ph) \/ Reached(n, ph)   \* what a stale worker may have read
Registered     == {k \in KEK : kek[k] \in {"active", "draining", "sealed"}}
NotYet(k)      == k \in Past /\ kek[k] = "none"        \* historic, and nobody has registered it
Resolves(k)    == k \in on /\ (k \in Registered \/ NotYet(k))

(* What one call of KMS may say of a key. lag.tla replaces these three: there a *)
(* host of KMS may not know yet what has changed.                               *)
Serves(k)     == k \in on
Refuses(k)    == k \notin on
KnownToAll(k) == k \in KEK

Frozen(n)      == {r \in Row : TableOf(r) \in rot[n].srcs}  \* the rows that a rotation looks at
Told(t)        == t \in src \cup mark \/ Unmarked           \* the assumption: only such a table gets rows

Under(k) ==      \* a row from before genesis; under a historic KEK it has no epoch
  [kid |-> k, real |-> k, ep |-> IF k = 1 THEN 1 ELSE 0, dek |-> Dek(k, 0), ct |-> Dek(k, 0), body |-> 0]

Init ==          \* kek.View.Genesis
  /\ kek = [k \in KEK |-> IF k = 1 THEN "active" ELSE "none"]
  /\ on = {1} \cup Past
  /\ tag = [k \in KEK |-> NoTag]
  /\ owner = {} /\ doomed = {} /\ reaper = Resting /\ unfit = {}
  /\ ptr = [kek |-> 1, ep |-> 1]
  /\ fence = [k \in KEK |-> IF k = 1 THEN Shard ELSE {}]
  /\ lock = 0
  /\ rot = [n \in Rot |-> NoRot]
  /\ lease = NoLeases /\ seen = NoLeases
  /\ gone = {}
  /\ rw = [n \in Rot |-> [r \in Row |-> NoWork]]
  /\ clean = {}
  /\ halt = FALSE
  /\ row \in [Row -> {NoRow} \cup {Under(k) : k \in {1} \cup Past}]
  /\ src \in {{"first"}, Table} /\ mark \in {{"first"}, Table}
  /\ \A r \in Row : row[r] # NoRow => Told(TableOf(r))
  /\ wr = [w \in Writer |-> Idle]
  /\ rd = [q \in Reader |-> NotRead]
  /\ backup = NoRow
  /\ nDek = 0 /\ writes = 0

-----------------------------------------------------------------------------
(* Data plane: writers (package envelope).                                  *)

Holds(w) == wr[w].k # 0 /\ lease[w][wr[w].k] # 0
InUse(w, k) == wr[w].pc # "idle" /\ wr[w].k = k     \* the process has a reference to the KEK

PutMark(w, t) ==        \* Client.Table: before the first write into a table
  /\ wr[w].pc # "idle" /\ t \notin mark
  /\ mark' = mark \cup {t}
  /\ UNCHANGED <<keyV, ptr, fence, lock, rot, src, workV, dataV, cntV>>

Load(w) ==              \* Client.read: reads the pointer, and may then pause
  /\ wr[w].pc = "idle" /\ nDek < MaxWrite /\ writes < MaxWrite
  /\ wr' = [wr EXCEPT ![w] = [Idle EXCEPT !.pc = IF Leases THEN "loaded" ELSE "ready",
                                          !.k = ptr.kek, !.e = ptr.ep]]
  /\ UNCHANGED <<keyV, ctlV, workV, row, rd, backup, cntV>>

(* A process has one lease on each KEK that it refers to, so two during a switch. *)
(* Each put and each renewal is another version: its expiry is another.          *)

PutLease(w) ==          \* Client.hold: promises that it may write under the KEK it loaded
  /\ wr[w].pc = "loaded"
  /\ lease' = IF Holds(w) THEN lease ELSE [lease EXCEPT ![w][wr[w].k] = seen[w][wr[w].k] + 1]
  /\ wr' = [wr EXCEPT ![w].pc = IF Recheck THEN "leased" ELSE "ready"]
  /\ UNCHANGED <<keyV, ctlV, seen, gone, rw, clean, passV, row, rd, backup, cntV>>

RecheckPtr(w) ==        \* Client.read again: if the pointer moved, the lease came too late to count
  /\ wr[w].pc = "leased"
  /\ wr' = [wr EXCEPT ![w] = IF ptr.ep = wr[w].e THEN [@ EXCEPT !.pc = "ready"] ELSE Idle]
  /\ UNCHANGED <<keyV, ctlV, workV, row, rd, backup, cntV>>

Renew(w) ==             \* Client.renew: a holder that finds its lease revoked loads again
  /\ wr[w].pc \in {"ready", "wrapped"} /\ Leases
  /\ IF Holds(w)
       THEN /\ lease[w][wr[w].k] <= MaxRenew
            /\ lease' = [lease EXCEPT ![w][wr[w].k] = @ + 1] /\ UNCHANGED wr
       ELSE wr' = [wr EXCEPT ![w] = Idle] /\ UNCHANGED lease
  /\ UNCHANGED <<keyV, ctlV, seen, gone, rw, clean, passV, row, rd, backup, cntV>>

DropLease(w, k) ==      \* Client.renew, Client.Close: no reference is left
  /\ ~InUse(w, k) /\ lease[w][k] # 0
  /\ lease' = [lease EXCEPT ![w][k] = 0]
  /\ UNCHANGED <<keyV, ctlV, seen, gone, rw, clean, passV, dataV, cntV>>

May(r) == /\ TableOf(r) \in mark
          /\ row[r] = NoRow \/ row[r].kid # 0        \* an update opens the row that it changes

Wrap(w) ==              \* Client.generate, no KMS call if the DEK is cached; chooses a row
  /\ wr[w].pc = "ready"
  /\ \/ /\ wr[w].d = 0 /\ Serves(wr[w].k) /\ nDek < MaxWrite
        /\ nDek' = nDek + 1
        /\ \E r \in Row : May(r) /\ wr' = [wr EXCEPT ![w] =
             [@ EXCEPT !.pc = "wrapped", !.r = r, !.ins = (row[r] = NoRow), !.d = Dek(wr[w].k, nDek + 1)]]
     \/ /\ wr[w].d # 0 /\ writes < MaxWrite
        /\ \E r \in Row : May(r) /\ wr' = [wr EXCEPT ![w] =
             [@ EXCEPT !.pc = "wrapped", !.r = r, !.ins = (row[r] = NoRow)]]
        /\ UNCHANGED nDek
     \/ /\ wr[w].d = 0 /\ Refuses(wr[w].k)         \* DisabledException: loads the pointer again
        /\ wr' = [wr EXCEPT ![w] = Idle]
        /\ UNCHANGED nDek
  /\ UNCHANGED <<keyV, ctlV, workV, row, rd, backup, writes>>

(* The two fenced writes, as conditions on what is stored at that moment.   *)
InsertOK(r, k, s) == row[r] = NoRow /\ s \in fence[k]
UpdateOK(r, k, e, s) ==  \* by the row's epoch; if the row has none, past the fence as an insert
  row[r] # NoRow /\ IF row[r].ep # 0 THEN row[r].ep <= e ELSE s \in fence[k]
Written(r, k, e, d) ==  \* the whole envelope is replaced
  row' = [row EXCEPT ![r] = [kid |-> k, real |-> k, ep |-> e, dek |-> d, ct |-> d,
                             body |-> IF "emergency" \in Modes THEN writes + 1 ELSE 0]]

Commit(w) ==            \* envelope.Table.insert past one random shard, or Table.update by epoch
  LET me == wr[w] IN    \* (update's condition on the ciphertext is left out: the model allows more)
  /\ me.pc = "wrapped"
  /\ \E s \in Shard :
       IF IF me.ins THEN InsertOK(me.r, me.k, s) ELSE UpdateOK(me.r, me.k, me.e, s)
         THEN /\ writes < MaxWrite /\ Written(me.r, me.k, me.e, me.d)
              /\ writes' = writes + 1
              /\ wr' \in {[wr EXCEPT ![w] = Idle]} \cup
                         (IF DekCache THEN {[wr EXCEPT ![w].pc = "ready"]} ELSE {})
         ELSE /\ wr' = [wr EXCEPT ![w] = Idle]     \* seals again under the current KEK
              /\ UNCHANGED <<row, writes>>
  /\ UNCHANGED <<keyV, ctlV, workV, rd, backup, nDek>>

Crash(w) ==             \* between any two effects; the lease stays behind
  /\ wr[w].pc # "idle"
  /\ wr' = [wr EXCEPT ![w] = Idle]
  /\ UNCHANGED <<keyV, ctlV, workV, row, rd, backup, cntV>>

(* Data plane: readers, deletes, restores.                                  *)

ReadRow(q) ==           \* a row's KEK id, which may be stale by the time it is used
  /\ rd[q] = NotRead
  /\ \E r \in Row : row[r].kid # 0 /\ rd' = [rd EXCEPT ![q] = [r |-> r, k |-> row[r].kid]]
  /\ UNCHANGED <<keyV, ctlV, workV, row, wr, backup, cntV>>

Decrypt(q) ==           \* Client.open; on DisabledException reads the row again, consistently
  LET r == rd[q].r IN
  /\ rd[q] # NotRead
  /\ rd' = [rd EXCEPT ![q] = IF rd[q].k \in on \/ row[r] = NoRow THEN NotRead
                             ELSE [r |-> r, k |-> row[r].kid]]
  /\ UNCHANGED <<keyV, ctlV, workV, row, wr, backup, cntV>>

DeleteRow(r) ==
  /\ Deletes /\ row[r] # NoRow
  /\ row' = [row EXCEPT ![r] = NoRow]
  /\ UNCHANGED <<keyV, ctlV, workV, wr, rd, backup, cntV>>

TakeBackup(r) ==
  /\ Restore # "off" /\ backup = NoRow /\ row[r] # NoRow
  /\ backup' = row[r]
  /\ UNCHANGED <<keyV, ctlV, workV, row, wr, rd, cntV>>

(* Until the second scan begins a row under k may come to be past the fence. *)
Early(k) == \A n \in Rot : k \in rot[n].olds => ~Once(n, "rewrapped")

RestoreRow(r) ==        \* writes a backed-up row as it was: "raw" at any time, "fenced" as an insert,
                        \* the others past the fence, until the second scan begins or during a halt
  LET k    == backup.real
      keks == {k, backup.kid} \ {0}          \* they differ if somebody overwrote the label
  IN
  /\ Restore # "off" /\ backup # NoRow /\ row[r] = NoRow /\ Told(TableOf(r))
  /\ Restore = "fenced" => backup.kid = k /\ \E s \in Shard : s \in fence[k]      \* as an insert
  /\ Restore = "early"  => \A j \in keks : Early(j)
  /\ Restore = "halted" => \A j \in keks : Early(j) \/ (halt /\ kek[j] # "retired")
  /\ Restore = "late"   => \A j \in keks : Early(j) \/ halt
  /\ row' = [row EXCEPT ![r] = backup]
  /\ UNCHANGED <<keyV, ctlV, workV, wr, rd, backup, cntV>>

(* Other programs: they use the KMS key and the table, but neither label nor *)
(* fence nor mark.                                                           *)

AppearUnlabelled(r, k) ==    \* a row whose data is under k, without a label that says so
  /\ Foreign # "off" /\ Told(TableOf(r)) /\ k \in on /\ (k \in Registered \/ NotYet(k))
  /\ Foreign = "idle"  => lock = 0
  /\ Foreign = "early" => Early(k)
  /\ nDek < MaxWrite /\ writes < MaxWrite
  /\ row' = [row EXCEPT ![r] = [kid |-> 0, real |-> k, ep |-> 0, dek |-> Dek(k, nDek + 1), ct |-> Dek(k, nDek + 1),
                                body |-> IF "emergency" \in Modes THEN writes + 1 ELSE 0]]
  /\ nDek' = nDek + 1 /\ writes' = writes + 1
  /\ UNCHANGED <<keyV, ctlV, workV, wr, rd, backup>>

Mislabel(r) ==          \* a script that writes the pointer's KEK over the label and rewraps nothing
  /\ Lies /\ row[r].kid \notin {0, ptr.kek}
  /\ row' = [row EXCEPT ![r].kid = ptr.kek]
  /\ UNCHANGED <<keyV, ctlV, workV, wr, rd, backup, cntV>>

(* Steps.Adopt: KMS says which KEK wraps the DEK. The label is written on     *)
(* condition that there is none and that the wrapped DEK is what was read.    *)
Adoptable(r) == row[r] # NoRow /\ row[r].kid = 0 /\ row[r].real \in Registered \cap on

Adopt(r) ==
  /\ Adoptable(r)
  /\ row' = [row EXCEPT ![r].kid = row[r].real]
  /\ UNCHANGED <<keyV, ctlV, workV, wr, rd, backup, cntV>>

-----------------------------------------------------------------------------
(* Control plane. n is the rotation that a step was called for, maybe long  *)
(* ago: its condition on the lock and on the phase of that very rotation's  *)
(* record is what makes a stale call harmless (kek.LockHold, View.step).    *)

At(n, ph) == rot[n].ph = ph /\ lock = n

Unstarted(n) == \A i \in Rot : (i < n) <=> (rot[i].ph # "none")

Start(n, m) ==          \* View.Start: the lock is free, no such record yet; freezes KEKs and sources
  /\ m \in Modes /\ Unstarted(n)
  /\ lock = 0 /\ kek[ptr.kek] = "active"
  /\ m = "normal" => mark \subseteq src
  /\ lock' = n
  /\ rot' = [rot EXCEPT ![n] = [NoRot EXCEPT !.ph = "started", !.mode = m, !.att = 1, !.old = ptr.kek,
                                             !.olds = Registered, !.srcs = src]]
  /\ UNCHANGED <<keyV, ptr, fence, tabV, workV, dataV, cntV>>

(* An emergency that starts while a rotation runs, at any phase of it: a rotation of   *)
(* its own, which ends the other and takes its lock in one transaction. It leaves    *)
(* every KEK that resolves, also the one that the other has switched to, and sees to *)
(* the keys that the other has retired and perhaps not disabled.                     *)
TakeOver(m) ==          \* View.TakeOver
  LET n == lock
      pre == rot[n].ph \in PreSw
      ended == IF pre /\ rot[n].mode = "normal" THEN "rolledback" ELSE "superseded"
      left == rot[n].left \cup (IF pre THEN {rot[n].new} \ {0} ELSE {})
                          \cup (IF rot[n].ph = "retired" THEN rot[n].olds ELSE {})
  IN
  /\ Takeover # "off" /\ n # 0 /\ Unstarted(m)
  /\ rot[n].mode = "normal" \/ Takeover = "any"
  /\ kek[ptr.kek] = "active"
  /\ lock' = m
  /\ kek' = [k \in KEK |-> IF pre /\ k = rot[n].new THEN "retired" ELSE kek[k]]
  /\ rot' = [rot EXCEPT ![n].ph = ended, ![n].was = rot[n].ph, ![n].by = m,
                        ![n].cnt = FALSE, ![n].reh = 0,
                        ![m] = [NoRot EXCEPT !.ph = "started", !.mode = "emergency", !.att = 1, !.old = ptr.kek,
                                     !.olds = Registered, !.srcs = src, !.left = left]]
  /\ clean' = {} /\ halt' = FALSE                       \* checkpoints are keyed by the rotation
  /\ UNCHANGED <<on, tag, owner, doomed, reaper, unfit, ptr, fence, tabV, lease, seen, gone, rw, dataV, cntV>>

(* The registry of historic KEKs and sources (kek/registry.go).               *)

Register(k) ==          \* View.RegisterKEK: its fence shut, and only while no rotation runs
  /\ NotYet(k)
  /\ lock = 0
  /\ kek' = [kek EXCEPT ![k] = "sealed"]
  /\ UNCHANGED <<on, tag, owner, doomed, reaper, unfit, ptr, fence, lock, rot, tabV, workV, dataV, cntV>>

Settled == lock # 0 => rot[lock].ph \notin PreSw       \* no rotation is between census and switch

AddSource(t) ==         \* View.PutSource: after the switch and before the retirement it joins
  /\ t \notin src /\ Settled
  /\ src' = src \cup {t}
  /\ rot' = IF lock = 0 \/ Reached(lock, "retired") \/ t \in rot[lock].srcs THEN rot
            ELSE [rot EXCEPT ![lock].srcs = @ \cup {t}, ![lock].rev = @ + 1]
  /\ UNCHANGED <<keyV, ptr, fence, lock, mark, workV, dataV, cntV>>

Unused(t) ==            \* no row is in it, and the processes that wrote into it have stopped
  /\ \A r \in Row : TableOf(r) = t => row[r] = NoRow
  /\ \A w \in Writer : wr[w].pc = "wrapped" => TableOf(wr[w].r) # t

RemoveSource(t) ==      \* View.RemoveSource, the mark too; View.ForgetMark if it is not a source
  /\ t \in src \cup mark /\ Settled /\ Unused(t)
  /\ src' = src \ {t} /\ mark' = mark \ {t}
  /\ UNCHANGED <<keyV, ptr, fence, lock, rot, workV, dataV, cntV>>

(* The census is one action although it takes hours: only the early refusal   *)
(* rests on it.                                                               *)

Accounted(r) == row[r] = NoRow \/ row[r].kid \in Registered

Count(n) ==             \* Steps.runCensus, View.Count; an emergency may count, but does not need to
  /\ At(n, "started") /\ \A r \in Frozen(n) : Accounted(r)
  /\ rot' = [rot EXCEPT ![n].cnt = (rot[n].mode = "normal")]
  /\ UNCHANGED <<keyV, ptr, fence, lock, tabV, workV, dataV, cntV>>

(* Mint makes the new KEK. CreateKey has no idempotency token: if its answer is   *)
(* lost, or the step runs twice, there are two KMS keys, the second maybe an hour *)
(* later. The tag of each says for which rotation and attempt it was made: an     *)
(* emergency whose new KEK fails its tests mints again, which is another attempt. *)
(*                                                                                *)
(* The alias decides which of these keys becomes the KEK. Its name has rotation   *)
(* and attempt in it, and KMS gives a name to one key, the first that claims it:  *)
(* the owner, forever. So all mints of an attempt, however late, register the     *)
(* same key. A choice by tags would change with every key that is made.           *)
(*                                                                                *)
(* The other keys are strays. A mint that lost the claim disables its own (Lose). *)
(* A sweep lists the keys of a rotation and disables those that it need not keep. *)
(* A re-mint disables the owner of the failed attempt (DoomFailed). Deciding and  *)
(* disabling are two effects: doomed has what is decided.                         *)

(* Three effects. Between them anything may happen, a second mint too.            *)


Tagged(n, a) == {k \in KEK : tag[k] = [n |-> n, a |-> a]}
Made         == {k \in KEK : tag[k] # NoTag}

CreateKey(n, a) ==      \* KeyAdmin.Create: no idempotency token, may be a late duplicate
  LET k == 2 + Historic + Cardinality(Made) IN
  /\ a \in 1 .. rot[n].att
  /\ Dup = 0 => rot[n].ph = "started" /\ a = rot[n].att
  /\ Cardinality(Tagged(n, a)) <= Dup
  /\ tag' = [tag EXCEPT ![k] = [n |-> n, a |-> a]]
  /\ on' = on \cup {k}
  /\ unfit' \in {unfit} \cup (IF Unfit THEN {unfit \cup {k}} ELSE {})
  /\ UNCHANGED <<kek, owner, doomed, reaper, ctlV, workV, dataV, cntV>>

Claim(k) ==             \* KeyAdmin.Claim: the alias of an attempt has one owner, the first
  /\ k \in Made /\ \A j \in owner : tag[j] # tag[k]
  /\ owner' = owner \cup {k}
  /\ UNCHANGED <<kek, on, tag, doomed, reaper, unfit, ctlV, workV, dataV, cntV>>

Lose(k) ==              \* Steps.claimKey: another key owns the alias; this one must go
  /\ k \in on \cap Made /\ k \notin owner /\ \E j \in owner : tag[j] = tag[k]
  /\ doomed' = doomed \cup {k}
  /\ UNCHANGED <<kek, on, tag, owner, reaper, unfit, ctlV, workV, dataV, cntV>>

Mint(n, k) ==           \* Steps.Mint, View.Mint: registers the owner of this attempt's alias
  /\ At(n, "started") /\ (rot[n].mode = "normal" => rot[n].cnt)
  /\ k \in owner /\ tag[k] = [n |-> n, a |-> rot[n].att] /\ kek[k] = "none"
  /\ kek' = [kek EXCEPT ![k] = "pending"]
  /\ rot' = [rot EXCEPT ![n].ph = "minted", ![n].new = k]
  /\ UNCHANGED <<on, tag, owner, doomed, reaper, unfit, ptr, fence, lock, tabV, workV, dataV, cntV>>

(* The sweep for stray keys (Steps.disableOrphanKeys) lists the keys tagged *)
(* with the rotation, reads the record, and disables what need not be kept. *)

Keep(n) == {rot[n].old, ptr.kek} \cup (IF rot[n].ph = "rolledback" THEN {} ELSE {rot[n].new})    \* no sweep disables these
MintUnderWay(n) == rot[n].new = 0 /\ rot[n].ph \notin Final      \* any key may become the KEK

ReapBegin(n) ==         \* KeyAdmin.Tagged
  /\ reaper.pc = "idle" /\ rot[n].ph # "none" /\ Dup > 0
  /\ reaper' = [pc |-> "begun", n |-> n, set |-> {k \in Made : tag[k].n = n}]
  /\ UNCHANGED <<kek, on, tag, owner, doomed, unfit, ctlV, workV, dataV, cntV>>

ReapDecide ==           \* reads the record after the listing, not before
  LET n == reaper.n IN
  /\ reaper.pc = "begun"
  /\ reaper' = Resting
  /\ doomed' = doomed \cup (on \cap IF MintUnderWay(n) THEN {} ELSE reaper.set \ Keep(n))
  /\ UNCHANGED <<kek, on, tag, owner, unfit, ctlV, workV, dataV, cntV>>

DoomFailed(n, k) ==     \* Steps.retryMint: the alias owner of an attempt that is over
  /\ k \in owner \cap on /\ tag[k].n = n /\ tag[k].a < rot[n].att
  /\ k \notin {rot[n].new, rot[n].old, ptr.kek}
  /\ doomed' = doomed \cup {k}
  /\ UNCHANGED <<kek, on, tag, owner, reaper, unfit, ctlV, workV, dataV, cntV>>

DisableDoomed(k) ==     \* KeyAdmin.Disable of a stray key, however late
  /\ k \in doomed
  /\ on' = on \ {k} /\ doomed' = doomed \ {k}
  /\ UNCHANGED <<kek, tag, owner, reaper, unfit, ctlV, workV, dataV, cntV>>

Rehearse(n) ==          \* Steps.rehearseRotation, View.Rehearse: real rows rewrapped to the new KEK for trial
  LET k == rot[n].new IN
  /\ At(n, "minted") /\ rot[n].reh # k /\ k \in on \ unfit
  /\ rot' = [rot EXCEPT ![n].reh = k]
  /\ UNCHANGED <<keyV, ptr, fence, lock, tabV, workV, dataV, cntV>>

DualUnwrap(n) ==        \* Steps.DualUnwrap, View.Test: needs a key that wraps
  /\ At(n, "minted") /\ rot[n].new \in on /\ rot[n].reh = rot[n].new
  /\ rot' = [rot EXCEPT ![n].ph = "tested"]
  /\ UNCHANGED <<keyV, ptr, fence, lock, tabV, workV, dataV, cntV>>

PreSwitchFailure(n) ==  \* View.PreSwitchFailure: a Catch, an abandoned preflight, a person
  LET k == rot[n].new IN
  /\ lock = n /\ rot[n].ph \in PreSw /\ rot[n].mode = "normal"
  /\ kek' = IF k = 0 THEN kek ELSE [kek EXCEPT ![k] = "retired"]
  /\ rot' = [rot EXCEPT ![n].ph = "rolledback", ![n].cnt = FALSE, ![n].reh = 0]    \* nobody asks any more
  /\ lock' = 0
  /\ UNCHANGED <<on, tag, owner, doomed, reaper, unfit, ptr, fence, tabV, workV, dataV, cntV>>

Remint(n) ==            \* View.Remint: an emergency goes forward, a bounded number of times
  LET k == rot[n].new IN
  /\ lock = n /\ rot[n].ph \in PreSw /\ rot[n].mode = "emergency"
  /\ rot[n].att < MaxMint
  /\ kek' = IF k = 0 THEN kek ELSE [kek EXCEPT ![k] = "retired"]
  /\ rot' = [rot EXCEPT ![n].ph = "started", ![n].new = 0, ![n].att = @ + 1]
  /\ UNCHANGED <<on, tag, owner, doomed, reaper, unfit, ptr, fence, lock, tabV, workV, dataV, cntV>>

Switch(n) ==            \* View.Switch: pointer, both registry entries, fence, phase; one transaction
  LET k == rot[n].new o == rot[n].old IN
  /\ At(n, "tested") /\ ptr.kek = o /\ kek[k] = "pending" /\ kek[o] = "active"
  /\ KnownToAll(k)      \* Steps.settleTime: as old as the slowest host of KMS is slow
  /\ ptr' = [kek |-> k, ep |-> ptr.ep + 1]
  /\ kek' = [kek EXCEPT ![k] = "active", ![o] = "draining"]
  /\ fence' = [fence EXCEPT ![k] = Shard]
  /\ rot' = [rot EXCEPT ![n].ph = "switched", ![n].ep = ptr.ep + 1]
  /\ UNCHANGED <<on, tag, owner, doomed, reaper, unfit, lock, tabV, workV, dataV, cntV>>

(* Drain: looks at every lease, revokes the expired, then seals the fence    *)
(* shard by shard, then makes the transition that needs all of them sealed. *)

DrainSee(n, w, k) ==    \* Drainage.Leases: this writer has no lease on this old KEK
  /\ Leases /\ rot[n].ph = "switched" /\ k \in rot[n].olds /\ lease[w][k] = 0 /\ <<w, k>> \notin gone
  /\ gone' = gone \cup {<<w, k>>}
  /\ UNCHANGED <<keyV, ctlV, lease, seen, rw, clean, passV, dataV, cntV>>

DrainJudge(n, w, k) ==  \* it has, and it expired as drain's clock sees it (emergency: any)
  /\ rot[n].ph = "switched" /\ k \in rot[n].olds /\ lease[w][k] # 0
  /\ seen' = [seen EXCEPT ![w][k] = lease[w][k]]
  /\ UNCHANGED <<keyV, ctlV, lease, gone, rw, clean, passV, dataV, cntV>>

Revoke(w, k) ==         \* Drainage.Revoke: deletes the lease if it is what was judged
  /\ seen[w][k] # 0
  /\ seen' = [seen EXCEPT ![w][k] = 0]
  /\ lease' = IF lease[w][k] = seen[w][k] THEN [lease EXCEPT ![w][k] = 0] ELSE lease
  /\ UNCHANGED <<keyV, ctlV, gone, rw, clean, passV, dataV, cntV>>

Draining(n) == {k \in rot[n].olds : kek[k] = "draining"}       \* kek.View.Draining
Drained(n)  == Leases => \A w \in Writer, k \in Draining(n) : <<w, k>> \in gone

SealShard(n, k, s) ==   \* Steps.sealFences, Drainage.SealFence: one shard, forever, however late
  /\ rot[n].ph # "none" /\ k \in rot[n].olds /\ s \in fence[k]
  /\ Once(n, "switched") /\ (Drained(n) \/ rot[n].ph = "superseded")
  /\ fence' = [fence EXCEPT ![k] = @ \ {s}]
  /\ UNCHANGED <<keyV, ptr, lock, rot, tabV, workV, dataV, cntV>>

Seal(n, k) ==           \* View.Seal: one old KEK, on condition that every shard of it is sealed
  /\ At(n, "switched") /\ Drained(n) /\ k \in rot[n].olds /\ kek[k] = "draining"
  /\ fence[k] = {}
  /\ kek' = [kek EXCEPT ![k] = "sealed"]
  /\ LET last == \A j \in rot[n].olds : kek'[j] # "draining" IN
     /\ rot' = [rot EXCEPT ![n].ph = IF last THEN "drained" ELSE @]
     /\ clean' = IF last THEN {} ELSE clean
  /\ UNCHANGED <<on, tag, owner, doomed, reaper, unfit, ptr, fence, lock, tabV, lease, seen, gone, rw, passV,
                 dataV, cntV>>

(* Rewrap: workers move rows, each at its own pace, duplicates and all. The  *)
(* second full scan before retiring, Steps.confirmRows, uses the same.      *)

Rewrapping(n) == Once(n, "drained")

Payload(n) == rot[n].mode = "emergency"

Wrapping(n, r) ==       \* what a worker makes of the row that it has read
  LET d == IF Payload(n) THEN Rewritten(row[r].dek, rot[n].new) ELSE row[r].dek
  IN [from |-> row[r].kid, dek |-> row[r].dek, body |-> row[r].body,
      with |-> [kid |-> rot[n].new, real |-> rot[n].new, dek |-> d, ct |-> IF Payload(n) THEN d ELSE row[r].ct,
                ep |-> rot[n].ep, body |-> row[r].body]]

RewrapRead(n, r) ==     \* Steps.rewrapRow, Steps.rewrapDEK: KMS.ReEncrypt, or a fresh DEK
  /\ Rewrapping(n) /\ r \in Frozen(n) /\ row[r].kid \in rot[n].olds
  /\ row[r].real = row[r].kid /\ rot[n].new \notin unfit     \* else KMS refuses
  /\ rw' = [rw EXCEPT ![n][r] = Wrapping(n, r)]
  /\ UNCHANGED <<keyV, ctlV, lease, seen, gone, clean, passV, dataV, cntV>>

RewrapOK(n, r) ==       \* Source.Replace: still what was read
  LET b == rw[n][r] IN
  /\ row[r] # NoRow
  /\ row[r].kid = b.from /\ row[r].real = b.from /\ row[r].dek = b.dek
  /\ Payload(n) => row[r].body = b.body

RewrapRow(n, r, b) ==   \* the effect alone: the payload changes in an emergency only
  row' = [row EXCEPT ![r] = IF Payload(n) THEN b.with
                            ELSE [@ EXCEPT !.kid = b.with.kid, !.real = b.with.real, !.ep = b.with.ep,
                                          !.dek = b.with.dek]]

RewrapWrite(n, r) ==    \* at any later time, repeatable; a failed condition means: read again
  /\ rw[n][r] # NoWork
  /\ IF RewrapOK(n, r) THEN RewrapRow(n, r, rw[n][r]) ELSE UNCHANGED row
  /\ rw' \in {rw, [rw EXCEPT ![n][r] = NoWork]}
  /\ UNCHANGED <<keyV, ctlV, lease, seen, gone, clean, passV, wr, rd, backup, cntV>>

LooksClean(n, r) ==     \* gone, or under the NEW KEK; a deep second scan unwraps (rotation.prover)
  LET x == row[r] IN
  \/ x = NoRow
  \/ x.kid = rot[n].new /\ (Reached(n, "rewrapped") => x.real = rot[n].new)

ScanRow(n, r) ==        \* Source.Scan, consistently: passes rewrap, confirm and verify
  /\ rot[n].ph \in {"drained", "rewrapped", "retired"}
  /\ ~halt /\ r \in Frozen(n) \ clean /\ LooksClean(n, r)
  /\ clean' = clean \cup {r}
  /\ UNCHANGED <<keyV, ctlV, lease, seen, gone, rw, passV, dataV, cntV>>

(* A scan counts only if no halt lies between its beginning and the step that  *)
(* concludes from it: Steps.forgetIdle, Steps.restartPasses.                   *)

Halt ==
  /\ Restore \in {"halted", "late"} /\ ~halt /\ lock # 0 /\ rot[lock].ph \in {"rewrapped", "retired"}
  /\ halt' = TRUE
  /\ UNCHANGED <<keyV, ctlV, lease, seen, gone, rw, clean, dataV, cntV>>

Resume ==
  /\ halt
  /\ halt' = FALSE
  /\ clean' = {}
  /\ UNCHANGED <<keyV, ctlV, lease, seen, gone, rw, dataV, cntV>>

(* Every row of every source in the record is clean. The step conditions on    *)
(* the revision of that record (View.stepAt), so reading it, looking at the    *)
(* checkpoints and writing are one action.                                     *)
AllClean(n) == ~halt /\ Frozen(n) \subseteq clean

Rewrapped(n) ==         \* Steps.completeRewrap, View.Rewrap: every segment's pass is done
  /\ At(n, "drained") /\ AllClean(n)
  /\ rot' = [rot EXCEPT ![n].ph = "rewrapped"]
  /\ clean' = {}
  /\ UNCHANGED <<keyV, ptr, fence, lock, tabV, lease, seen, gone, rw, passV, dataV, cntV>>

Retire(n) ==            \* View.Retire: the second scan was clean, and no marked table is forgotten
  LET olds == rot[n].olds IN
  /\ At(n, "rewrapped") /\ AllClean(n) /\ ptr.kek \notin olds /\ \A k \in olds : kek[k] = "sealed"
  /\ mark \subseteq rot[n].srcs
  /\ kek' = [k \in KEK |-> IF k \in olds THEN "retired" ELSE kek[k]]
  /\ rot' = [rot EXCEPT ![n].ph = "retired"]
  /\ clean' = {}
  /\ UNCHANGED <<on, tag, owner, doomed, reaper, unfit, ptr, fence, lock, tabV, lease, seen, gone, rw, passV,
                 dataV, cntV>>

DisableRetired(k) ==    \* Steps.disableRetired: what the registry calls retired, never an argument
  /\ k \in on /\ kek[k] = "retired"
  /\ on' = on \ {k}
  /\ UNCHANGED <<kek, tag, owner, doomed, reaper, unfit, ctlV, workV, dataV, cntV>>

Complete(n) ==          \* Steps.Verify, View.Complete: closes the rotation, frees the lock
  /\ At(n, "retired") /\ AllClean(n)
  /\ \A k \in rot[n].left \cup rot[n].olds : Refuses(k)         \* Steps.verifyKeyDead
  /\ rot' = [rot EXCEPT ![n].ph = "completed"]
  /\ lock' = 0
  /\ clean' = {}
  /\ UNCHANGED <<keyV, ptr, fence, tabV, lease, seen, gone, rw, passV, dataV, cntV>>

-----------------------------------------------------------------------------
Writing == \E w \in Writer : Load(w) \/ PutLease(w) \/ RecheckPtr(w) \/ Renew(w) \/ (\E k \in KEK : DropLease(w, k))
                             \/ Wrap(w) \/ Commit(w) \/ Crash(w) \/ \E t \in Table : PutMark(w, t)
Reading == \E q \in Reader : ReadRow(q) \/ Decrypt(q)
Backups == \E r \in Row : DeleteRow(r) \/ TakeBackup(r) \/ RestoreRow(r)
Foreigners == \E r \in Row : (\E k \in KEK : AppearUnlabelled(r, k)) \/ Mislabel(r)
People  == \/ \E r \in Row : Adopt(r)
           \/ \E k \in KEK : Register(k)
           \/ \E t \in Table \ {"first"} : AddSource(t) \/ RemoveSource(t)
Keys    == \/ \E n \in Rot, a \in 1 .. MaxMint : CreateKey(n, a)
           \/ \E k \in KEK : Claim(k) \/ Lose(k) \/ DisableDoomed(k) \/ DisableRetired(k)
           \/ \E n \in Rot, k \in KEK : DoomFailed(n, k)
           \/ \E n \in Rot : ReapBegin(n)
           \/ ReapDecide
Steps   == \E n \in Rot :
           \/ (\E m \in Modes : Start(n, m)) \/ TakeOver(n)
           \/ \E k \in KEK : Mint(n, k)
           \/ Count(n) \/ Rehearse(n)
           \/ DualUnwrap(n) \/ PreSwitchFailure(n) \/ Remint(n) \/ Switch(n)
           \/ \E w \in Writer, k \in KEK : DrainSee(n, w, k) \/ DrainJudge(n, w, k)
           \/ \E k \in KEK : Seal(n, k) \/ \E s \in Shard : SealShard(n, k, s)
           \/ Rewrapped(n) \/ Retire(n) \/ Complete(n)
           \/ \E r \in Row : RewrapRead(n, r) \/ ScanRow(n, r)
Others  == (\E w \in Writer, k \in KEK : Revoke(w, k)) \/ (\E n \in Rot, r \in Row : RewrapWrite(n, r)) \/ Halt \/ Resume

Next == Writing \/ Reading \/ Backups \/ Foreigners \/ People \/ Keys \/ Steps \/ Others
Spec == Init /\ [][Next]_vars

(* Liveness assumes that what can go on is eventually done: the state machine  *)
(* retries and is redriven, a reader decrypts, expired leases are looked at,    *)
(* people adopt what is unlabelled and register what is marked.                 *)
StepsFair ==
  /\ \A n \in Rot :
       /\ \A a \in 1 .. MaxMint : WF_vars(CreateKey(n, a))
       /\ WF_vars(Count(n)) /\ WF_vars(\E k \in KEK : Mint(n, k)) /\ WF_vars(Rehearse(n))
       /\ WF_vars(DualUnwrap(n)) /\ WF_vars(Switch(n))
       /\ \A w \in Writer, k \in KEK : WF_vars(DrainSee(n, w, k))
       /\ \A k \in KEK : WF_vars(Seal(n, k)) /\ \A s \in Shard : WF_vars(SealShard(n, k, s))
       /\ WF_vars(Rewrapped(n)) /\ WF_vars(Retire(n)) /\ WF_vars(Complete(n))
       /\ \A r \in Row : WF_vars(RewrapRead(n, r) /\ rw[n][r] = NoWork) /\ WF_vars(ScanRow(n, r))
                         /\ WF_vars(rw[n][r] # NoWork /\ RewrapWrite(n, r) /\ rw'[n][r] = NoWork)
  /\ \A k \in KEK : WF_vars(Claim(k)) /\ WF_vars(DisableRetired(k))
  /\ \A q \in Reader : WF_vars(Decrypt(q))
  /\ \A r \in Row : WF_vars(Adopt(r))
  /\ \A t \in Table \ {"first"} : WF_vars(AddSource(t))
LeasesFair ==            \* an expired lease is judged and revoked, a heartbeat ends
  /\ \A n \in Rot, w \in Writer, k \in KEK : WF_vars(seen[w][k] = 0 /\ DrainJudge(n, w, k))
  /\ \A w \in Writer, k \in KEK : WF_vars(Revoke(w, k))

FairSpec == Spec /\ StepsFair /\ LeasesFair
AgainSpec == FairSpec /\ \A n \in Rot : WF_vars(\E m \in Modes : Start(n, m))     \* every quarter somebody starts one
SweepFair ==             \* keys are made, and a sweep comes after each
  /\ \A n \in Rot : WF_vars(ReapBegin(n)) /\ WF_vars(ReapDecide)
  /\ \A k \in KEK : WF_vars(DisableDoomed(k))
SweepSpec == Spec /\ SweepFair
HangSpec == Spec /\ StepsFair          \* leases that are never judged expired

-----------------------------------------------------------------------------
(* What must hold in every state.                                           *)

(* Every row that exists, labelled or not, in a source or not: the KEK that     *)
(* its DEK is wrapped under and the KEK on its label resolve. The registry says *)
(* so, or has never known the KEK, and KMS has it enabled.                      *)
NoKeyOrphans ==
  \A r \in Row : row[r] # NoRow => Resolves(row[r].real) /\ (row[r].kid # 0 => Resolves(row[r].kid))

RetireAfterSwitch ==    \* old KEKs are retired only after the pointer moved to the new one
  \A n \in Rot : \A k \in rot[n].olds : kek[k] = "retired" =>
    \E m \in Rot : k \in rot[m].olds /\ rot[m].ep # 0

PointerUsable ==        \* new data can be wrapped, by every host of KMS, and inserted past every shard
  /\ kek[ptr.kek] = "active" /\ ptr.kek \in on /\ KnownToAll(ptr.kek) /\ fence[ptr.kek] = Shard
  /\ \A k \in KEK : kek[k] = "active" => k = ptr.kek

NewKekUsable ==         \* no sweep disables the key that a rotation has registered and tests
  \A n \in Rot : rot[n].ph \in {"minted", "tested"} => rot[n].new \in on

AtMostOneRotation ==
  Cardinality({n \in Rot : rot[n].ph \notin Final \cup {"none"}}) <= 1

NoRollbackAfterSwitch ==
  \A n \in Rot : rot[n].ph = "rolledback" => rot[n].ep = 0

EmergencyForward ==     \* an emergency never goes back to the KEK that may be compromised
  \A n \in Rot : rot[n].ph = "rolledback" => rot[n].mode = "normal"

RowIntegrity ==         \* the DEK that is wrapped is the one the payload is under
  \A r \in Row : row[r].dek = row[r].ct /\ (row[r].real = 0 <=> row[r].dek = 0)

ExposedDeksGone ==      \* after an emergency no row is under a DEK that an old KEK ever wrapped
  \A n \in Rot : rot[n].mode = "emergency" /\ Reached(n, "retired") =>
    \A r \in Row : row[r] # NoRow => Born(row[r].ct) \notin UNION {rot[i].olds : i \in 1 .. n}

SealedIsShut ==         \* a sealed or retired KEK has no open shard
  \A k \in KEK : kek[k] = "sealed" => fence[k] = {}

NoHolderRefused ==      \* who holds a lease may insert; needs Recheck: a courtesy, not a promise
  \A w \in Writer : wr[w].pc \in {"ready", "wrapped"} /\ Holds(w) => fence[wr[w].k] = Shard

LockIsRotation ==       \* who holds the lock runs, and who runs holds it
  \A n \in Rot : rot[n].ph \notin Final \cup {"none"} <=> lock = n

NoPendingOver ==        \* no KEK waits for a rotation that is over
  \A k \in KEK : kek[k] = "pending" => \E n \in Rot : rot[n].new = k /\ rot[n].ph \in {"minted", "tested"}

ArbiterNamed ==         \* the KEK of a rotation owns the alias of its attempt
  \A n \in Rot : rot[n].new # 0 => rot[n].new \in owner /\ tag[rot[n].new] = [n |-> n, a |-> rot[n].att]

EpochOfRows ==          \* else no application could update the row
  \A r \in Row : row[r].ep <= ptr.ep

SupersededOff ==        \* nor one of a rotation that an emergency has ended
  \A i, n \in Rot : rot[i].by # 0 /\ n >= rot[i].by /\ rot[n].ph = "completed" =>
    (rot[i].olds \cup {rot[i].new}) \cap on = {}

RegisteredOn ==         \* no KEK that the registry calls usable is disabled in KMS, rows or not
  Registered \subseteq on

EmergencyStarts ==      \* whatever a rotation that is not an emergency has come to
  (\E m \in Rot : Unstarted(m)) /\ (lock # 0 => rot[lock].mode = "normal") =>
    ENABLED (\E m \in Rot : Start(m, "emergency") \/ TakeOver(m))

OldsDisabled ==         \* a rotation that is completed has left none of its old KEKs enabled
  \A n \in Rot : rot[n].ph = "completed" => rot[n].olds \cap on = {}

(* Must be violated: the model can finish.                                      *)
NeverCompleted     == \A n \in Rot : rot[n].ph # "completed"
NeverCompletedTwice == Cardinality({n \in Rot : rot[n].ph = "completed"}) < 2
NeverLeftHistoric  == \A n \in Rot : rot[n].ph = "completed" => \A r \in Row : Born(row[r].dek) \notin Past
NeverTaken         == \A n \in Rot : rot[n].ph = "completed" => \A i \in Rot : rot[i].ph # "superseded"
NeverJoined        == \A n \in Rot : rot[n].ph = "completed" => rot[n].rev = 0

(* What must hold of every step from one state to the next.                 *)

EpochMonotone == [][ptr'.ep >= ptr.ep /\ (ptr' # ptr => ptr'.ep > ptr.ep)]_ptr

KekForward ==           \* retired is forever; no KEK goes back a state
  [][\A k \in KEK : kek[k] # kek'[k] =>
      <<kek[k], kek'[k]>> \in {<<"none", "pending">>, <<"pending", "active">>, <<"pending", "retired">>,
        <<"active", "draining">>, <<"draining", "sealed">>, <<"sealed", "retired">>}
        \/ (k \in Past /\ <<kek[k], kek'[k]>> = <<"none", "sealed">>)]_kek

ReadersServed ==        \* a read ends with the row opened, or gone
  [][\A q \in Reader : rd[q] # NotRead /\ rd'[q] = NotRead => rd[q].k \in on \/ row[rd[q].r] = NoRow]_rd

Becomes(n, ph) == rot[n].ph # ph /\ rot'[n].ph = ph

EndedIsEnded == [][\A n \in Rot : rot[n].ph \in Final => rot'[n].ph = rot[n].ph]_rot
ModeFixed    == [][\A n \in Rot : rot[n].ph # "none" => rot'[n].mode = rot[n].mode]_rot

OneKekLeft ==           \* a rotation leaves no registered KEK but its own
  [][\A n \in Rot : Becomes(n, "completed") => Registered = {rot[n].new}]_rot

TestedBeforeSwitch ==   \* with this very KEK, and real rows
  [][\A n \in Rot : /\ Becomes(n, "tested") => rot[n].new \in on /\ rot[n].reh = rot[n].new
                    /\ Becomes(n, "switched") => rot[n].ph = "tested"]_rot

(* What the passes say when a step concludes from them is so at that moment.    *)
AllMoved(n) ==          \* no row is under a KEK that the rotation leaves, nor says so
  \A r \in Frozen(n) : row[r] # NoRow => {row[r].kid, row[r].real} \cap rot[n].olds = {}
RetiredIsMoved   == [][\A n \in Rot : Becomes(n, "retired") => AllMoved(n)]_rot
CompletedIsMoved == [][\A n \in Rot : Becomes(n, "completed") => AllMoved(n)]_rot

(* A courtesy, not a promise: it needs that nobody writes an unlabelled row or   *)
(* leaves a mark while a rotation runs.                                         *)
KnownBeforeSwitch ==    \* what would stop a rotation is known before its switch
  [][\A n \in Rot : Becomes(n, "switched") =>
       /\ rot[n].new \notin unfit
       /\ rot[n].mode = "normal" =>
            /\ mark \subseteq rot[n].srcs
            /\ \A r \in Frozen(n) : row[r] # NoRow => row[r].kid \in rot[n].olds]_rot

Revoked(w, k) == lease[w][k] # 0 /\ lease'[w][k] = 0 /\ InUse(w, k)
NoRenewedLeaseLost ==   \* a lease in use is taken away only as it was when drain judged it
  [][\A w \in Writer, k \in KEK : Revoked(w, k) => seen[w][k] = lease[w][k]]_lease
DrainRevokesOld ==      \* and only one on a KEK that the pointer has left
  [][\A w \in Writer, k \in KEK : Revoked(w, k) => k # ptr.kek]_lease

NoLostWrite ==          \* nothing but a write of an application changes which payload a row has
  [][\A r \in Row : row[r] # NoRow /\ row'[r] # NoRow =>
       IF writes' # writes THEN row'[r].body >= row[r].body
       ELSE row'[r].body = row[r].body /\ row'[r].ct % Serials = row[r].ct % Serials]_row

NoRowComesBack ==       \* no rewrap creates a row: only an insert or a restore does
  [][\A r \in Row : row[r] = NoRow /\ row'[r] # NoRow => writes' # writes \/ row'[r] = backup]_row

(* What must happen in the end, if steps are retried and redriven.          *)

Terminates ==
  \A n \in Rot : rot[n].ph = "started" ~> rot[n].ph \in Final

(* A key that a rotation which is over has made, and that no row is under.      *)
StrayKey(k) == tag[k] # NoTag /\ rot[tag[k].n].ph = "rolledback" /\ k \in on
StraysOff == \A k \in KEK : StrayKey(k) ~> k \notin on

EachStartsAndEnds ==    \* the lock is free again: the next rotation starts, and ends too
  \A n \in Rot : <>(rot[n].ph \in Final)

EveryReadEnds ==
  \A q \in Reader : rd[q] # NotRead ~> rd[q] = NotRead

(* TLC evaluates this also where it is not asked for: of traces, which have hundreds *)
(* of rows, for seconds.                                                              *)
Sym == IF Cardinality(Row) + Cardinality(Shard) > 8 THEN {} ELSE
  Permutations(Writer) \cup Permutations(Row \ Side) \cup Permutations(Side) \cup Permutations(Shard)
===============================================================================
