--------------------------------- MODULE keyed ---------------------------------
(***************************************************************************)
(* Key table: rows name a data key (DEK) by its id, a record of the key    *)
(* table holds the DEK wrapped under a KEK. A rotation rewraps records.    *)
(* Beside them live embedded rows, which carry their wrapped DEK.          *)
(*                                                                         *)
(* As in rotation.tla an action is one atomic effect on one system, and it *)
(* may run at any time its conditions hold. What a process read and has    *)
(* not yet acted on is kept in a variable and may be as old as one likes:  *)
(* wr (writers, walkers), rw and ew (rewraps of records and rows), pb      *)
(* (records to be put back), rd (readers). rw, ew and pb are never         *)
(* emptied, so every duplicate stays possible.                             *)
(*                                                                         *)
(* Rotation n makes KEK n+1 and moves everything off the KEKs before it    *)
(* (more than KEK n if it took over). The epoch of KEK k is k.             *)
(* Mint, test, shards, leases and rollback are in rotation.tla; one        *)
(* rotation at a time is assumed here (lock).                              *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets, TLC

CONSTANTS
  Row, Writer, Walker, Reader,
  MaxRot, MaxDek, MaxWrite,
  Modes,     \* subset of {"normal", "emergency"}
  Formats,   \* what writers write: subset of {"key", "emb"}
  Convert,   \* walkers turn embedded rows into keyed ones, at any time
  Back,      \* and keyed ones into embedded ones
  Sweep,     \* walkers continue after the emergency that needed them
  Deletes,   \* the application deletes rows
  Takeover,  \* an emergency may supersede a normal rotation after its switch
  CloseEmb,  \* the operator may declare that no new KEK takes embedded rows
  Upgraded,  \* KEK 1 is from before the key table: its fence of records is not there
  Mishaps    \* subset of {"lose", "stale", "stale-early", "move", "old-rows"}

Rot == 1 .. MaxRot
KEK == 1 .. MaxRot + 1
Dek == 1 .. MaxDek                \* DEK 0 is that of the embedded rows of the beginning

NoRow == [f |-> "none", kek |-> 0, d |-> 0, b |-> 0, ep |-> 0, v |-> 0, o |-> 0, late |-> 0]
NoRec == [kek |-> 0, born |-> 0]
NoHand == [f |-> "none", d |-> 0, b |-> 0, v |-> 0]
Idle == [pc |-> "idle", f |-> "key", k |-> 0, d |-> 0, r |-> 0, was |-> NoHand]
NotRead == [r |-> 0, k |-> 0]

VARIABLES
  rot,     \* phase and mode of each rotation
  kst,     \* registry: none, pending, active, draining, sealed, retired
  on,      \* KEKs enabled in KMS
  fence,   \* KEKs under which a record may be created
  efence,  \* KEKs under which an embedded row may be inserted
  eopen,   \* KEKs for which that fence was ever opened
  ptr,     \* the pointer's KEK
  embOff,  \* declared: KEKs to come take no embedded rows
  rec,     \* the key table: KEK that wraps the DEK, epoch of its birth as recorded
  gen,     \* truth: the KEK that each DEK was generated under; 0: not generated
  bkt,     \* locked bucket: the KEKs that each DEK has a wrapped copy under
  row,     \* rows
  clean,   \* what the pass under way has found in order: DEK ids and rows
  rw, ew, pb,
  wr, rd,
  writes, harm

ctl  == <<rot, kst, on, fence, efence, eopen, ptr, embOff>>
keys == <<rec, gen, bkt>>
work == <<clean, rw, ew, pb>>
vars == <<ctl, keys, row, work, wr, rd, writes, harm>>

Phases == <<"none", "started", "switched", "sealed", "rewrapped", "retired", "completed", "superseded">>
Order(p) == CHOOSE i \in 1 .. 8 : Phases[i] = p
Reached(n, p) == Order(rot[n].ph) >= Order(p)
Lives(k) == kst[k] \in {"active", "draining", "sealed"}
Olds(n) == {k \in 1 .. n : Lives(k)}          \* all that the registry holds, not only the pointer's
Resolves(k) == k # 0 /\ Lives(k) /\ k \in on

(* Emergencies after whose switch we are; a DEK generated under such a KEK or *)
(* an earlier one is exposed.                                                  *)
Emerg      == {n \in Rot : rot[n].mode = "emergency" /\ Reached(n, "switched")}
Max(S)     == IF S = {} THEN 0 ELSE CHOOSE x \in S : \A y \in S : y <= x
Exposed(d) == gen[d] <= Max(Emerg) /\ gen[d] # 0
BornRec(d) == IF d = 0 THEN 0 ELSE rec[d].born         \* as the walk sees it: the record says it
Looks(x)   == x.f # "none" /\ Max(Emerg) # 0 /\ (IF x.f = "emb" THEN x.ep ELSE BornRec(x.d)) <= Max(Emerg)

V1 == 0                                      \* versions are followed only by variants that condition on them
RowEpoch(k) == k                             \* a keyed row carries the epoch in which its DEK was made

Init ==
  /\ rot = [n \in Rot |-> [ph |-> "none", mode |-> "normal"]]
  /\ kst = [k \in KEK |-> IF k = 1 THEN "active" ELSE "none"]
  /\ on = {1} /\ fence = (IF Upgraded THEN {} ELSE {1}) /\ efence = {1} /\ eopen = {1} /\ ptr = 1 /\ embOff = FALSE
  /\ rec = [d \in Dek |-> IF d = 1 /\ ~Upgraded THEN [kek |-> 1, born |-> 1] ELSE NoRec]
  /\ gen = [d \in {0} \cup Dek |-> IF d = 0 \/ (d = 1 /\ ~Upgraded) THEN 1 ELSE 0]
  /\ bkt = [d \in Dek |-> IF d = 1 /\ ~Upgraded THEN {1} ELSE {}]
  /\ row \in [Row -> {NoRow} \cup
       (IF Upgraded THEN {} ELSE {[NoRow EXCEPT !.f = "key", !.d = 1, !.v = V1, !.ep = RowEpoch(1)]}) \cup
       (IF "emb" \in Formats \/ Convert THEN {[NoRow EXCEPT !.f = "emb", !.kek = 1, !.v = V1, !.ep = 1]} ELSE {})]
  /\ clean = {} /\ rw = {} /\ ew = {} /\ pb = {}
  /\ wr \in [Writer \cup Walker -> {Idle} \cup
       (IF Upgraded THEN {} ELSE {[Idle EXCEPT !.pc = "ready", !.k = 1, !.d = 1]}) \cup
       (IF "emb" \in Formats THEN {[Idle EXCEPT !.pc = "ready", !.f = "emb", !.k = 1]} ELSE {})]
  /\ \A w \in Walker : wr[w] = Idle
  /\ rd = [q \in Reader |-> NotRead]
  /\ writes = 0 /\ harm = {}

-----------------------------------------------------------------------------
(* Writers and walkers. A walker is the control plane's: it re-encrypts rows *)
(* under a DEK that it made the same way as a writer makes one.               *)

Walking == Max({n \in Emerg : Reached(n, "sealed") /\ (Sweep \/ ~Reached(n, "rewrapped"))})
ToWalk(x) == /\ x.f = "key" => Resolves(rec[x.d].kek)
             /\ \/ (Convert \/ ptr \notin eopen) /\ x.f = "emb"
                \/ Back /\ x.f = "key"
                \/ Walking # 0 /\ Looks(x)

Next1 == 1 + Cardinality({d \in Dek : gen[d] # 0})

Free(w) == Next1 + (IF w \in Writer THEN Cardinality(Walker) ELSE 0) <= MaxDek   \* writers leave one for each walker

Load(w) ==               \* reads the pointer
  /\ wr[w].pc = "idle" /\ Free(w)
  /\ IF w \in Writer THEN writes < MaxWrite ELSE \E r \in Row : ToWalk(row[r])
  /\ \E f \in (IF w \in Walker THEN {"key"} ELSE Formats) : (f = "emb" => ptr \in eopen) /\
       wr' = [wr EXCEPT ![w] = [Idle EXCEPT !.pc = "loaded", !.k = ptr, !.f = f]]
  /\ UNCHANGED <<ctl, keys, row, work, rd, writes, harm>>

Generate(w) ==           \* KMS GenerateDataKey
  /\ wr[w].pc = "loaded"
  /\ IF wr[w].k \in on /\ Free(w)
       THEN /\ gen' = [gen EXCEPT ![Next1] = wr[w].k]
            /\ wr' = [wr EXCEPT ![w].pc = IF wr[w].f = "emb" THEN "ready" ELSE "made", ![w].d = Next1]
       ELSE wr' = [wr EXCEPT ![w] = Idle] /\ UNCHANGED gen
  /\ UNCHANGED <<ctl, rec, bkt, row, work, rd, writes, harm>>

PutCopy(w) ==            \* the locked bucket has the copy before the key table has the record
  /\ wr[w].pc = "made"
  /\ bkt' = [bkt EXCEPT ![wr[w].d] = @ \cup {wr[w].k}]
  /\ wr' = [wr EXCEPT ![w].pc = "copied"]
  /\ UNCHANGED <<ctl, rec, gen, row, work, rd, writes, harm>>

Create(w) ==             \* one transaction: put the record if absent, check the fence of its KEK
  LET me == wr[w] IN
  /\ me.pc = "copied"
  /\ IF rec[me.d] = NoRec /\ me.k \in fence
       THEN /\ rec' = [rec EXCEPT ![me.d] = [kek |-> me.k, born |-> me.k]]
            /\ wr' = [wr EXCEPT ![w].pc = "ready"]
       ELSE UNCHANGED rec /\ wr' = [wr EXCEPT ![w] = Idle]
  /\ UNCHANGED <<ctl, gen, bkt, row, work, rd, writes, harm>>

Hand(r) == [f |-> row[r].f, d |-> row[r].d, b |-> row[r].b, v |-> row[r].v]

Pick(w) ==               \* reads a row that it will insert or update, and may pause
  /\ w \in Writer /\ wr[w].pc = "ready" /\ writes < MaxWrite
  /\ \E r \in Row : wr' = [wr EXCEPT ![w].pc = "hand", ![w].r = r, ![w].was = Hand(r)]
  /\ UNCHANGED <<ctl, keys, row, work, rd, writes, harm>>

(* A write is conditional on the ciphertext that was read, which is unique. A *)
(* version is not: it begins at 1 in every insert.                            *)
Same(x, was) == x.f # "none" /\ x.f = was.f /\ x.d = was.d /\ x.b = was.b
Ver(r) == IF V1 = 0 THEN 0 ELSE row[r].v + 1

InsertOK(me, x) == x = NoRow /\ (me.f = "emb" => me.k \in efence)
UpdateOK(me, x) ==
  /\ Same(x, me.was)
  /\ IF me.f = "emb" THEN x.f = "emb" /\ x.ep <= me.k
                     ELSE x.ep <= me.k

Commit(w) ==             \* a plain conditional write; an embedded insert is a transaction with its fence
  LET me == wr[w] x == row[me.r] ins == me.was.f = "none" IN
  /\ w \in Writer /\ me.pc = "hand" /\ writes < MaxWrite
  /\ IF IF ins THEN InsertOK(me, x) ELSE UpdateOK(me, x)
       THEN /\ row' = [row EXCEPT ![me.r] =
                 [f |-> me.f, kek |-> IF me.f = "emb" THEN me.k ELSE 0, d |-> me.d, b |-> writes + 1,
                  ep |-> IF me.f = "emb" THEN me.k ELSE RowEpoch(me.k), v |-> Ver(me.r), o |-> 0,
                  late |-> IF ins THEN (IF me.k <= Max(Emerg) THEN Max(Emerg) ELSE 0) ELSE x.late]]
            /\ writes' = writes + 1
            /\ harm' = IF ~ins /\ x.b # me.was.b THEN harm \cup {"lost update"} ELSE harm
       ELSE UNCHANGED <<row, writes, harm>>
  /\ wr' \in {[wr EXCEPT ![w].pc = IF @ = "hand" THEN "ready" ELSE @, ![w].r = 0, ![w].was = NoHand], [wr EXCEPT ![w] = Idle]}
  /\ UNCHANGED <<ctl, keys, work, rd>>

Crash(w) ==              \* a walker that is lost with a DEK of today is a paused one
  /\ wr[w].pc # "idle" /\ (w \in Walker => wr[w].k < ptr)
  /\ wr' = [wr EXCEPT ![w] = Idle]
  /\ UNCHANGED <<ctl, keys, row, work, rd, writes, harm>>

WalkRead(w) ==           \* an emergency, a sweep, a conversion: opens the row and seals it under its own DEK
  /\ w \in Walker /\ wr[w].pc = "ready"
  /\ \E r \in Row : ToWalk(row[r]) /\ wr' = [wr EXCEPT ![w].pc = "hand", ![w].r = r, ![w].was = Hand(r)]
  /\ UNCHANGED <<ctl, keys, row, work, rd, writes, harm>>

WalkWrite(w) ==          \* on condition that the row is what was read; never an upsert
  LET me == wr[w] x == row[me.r] IN
  /\ w \in Walker /\ me.pc = "hand"
  /\ IF x.f = me.was.f /\ x.d = me.was.d /\ x.b = me.was.b /\ x.ep <= me.k
       THEN /\ \/ row' = [row EXCEPT ![me.r] = [@ EXCEPT !.f = "key", !.kek = 0, !.d = me.d, !.b = me.was.b,
                                             !.ep = RowEpoch(me.k), !.v = Ver(me.r)]]
               \/ /\ Back /\ x.f = "key" /\ me.k \in eopen /\ me.k \in efence
                  /\ row' = [row EXCEPT ![me.r] = [@ EXCEPT !.f = "emb", !.kek = me.k, !.d = me.d, !.b = me.was.b, !.ep = me.k, !.v = Ver(me.r)]]
            /\ harm' = IF x.b # me.was.b THEN harm \cup {"lost update"} ELSE harm
       ELSE UNCHANGED <<row, harm>>
  /\ wr' = [wr EXCEPT ![w] = IF x.ep > me.k THEN Idle    \* refused by a later epoch: needs a DEK of today
                             ELSE [@ EXCEPT !.pc = "ready", !.r = 0, !.was = NoHand]]
  /\ UNCHANGED <<ctl, keys, work, rd, writes>>

DeleteRow(r) ==
  /\ Deletes /\ row[r] # NoRow
  /\ row' = [row EXCEPT ![r] = NoRow]
  /\ UNCHANGED <<ctl, keys, work, wr, rd, writes, harm>>

OldRow(r, d) ==          \* a keyed row is put back from a backup, as it was, at any time
  /\ "old-rows" \in Mishaps /\ row[r] = NoRow /\ rec[d] # NoRec /\ "old row" \notin harm
  /\ row' = [row EXCEPT ![r] = [NoRow EXCEPT !.f = "key", !.d = d, !.v = V1, !.late = IF Exposed(d) THEN Max(Emerg) ELSE 0,
                                             !.ep = RowEpoch(rec[d].born)]]
  /\ harm' = harm \cup {"old row"}
  /\ UNCHANGED <<ctl, keys, work, wr, rd, writes>>

Move(r, s) ==            \* somebody who may write the table copies one row's payload over another's
  /\ "move" \in Mishaps /\ r # s /\ row[r] # NoRow /\ row[s] # NoRow /\ row[r].b # row[s].b
  /\ row' = [row EXCEPT ![s] = [row[r] EXCEPT !.o = 1]]
  /\ UNCHANGED <<ctl, keys, work, wr, rd, writes, harm>>

Unbound(x) == FALSE      \* the row's key is associated data: a payload of another row does not open

(* Readers hold a record (or an embedded row's KEK) that may be out of date.  *)
KekOf(x) == IF x.f = "emb" THEN x.kek ELSE rec[x.d].kek

ReadRow(q) ==
  /\ rd[q] = NotRead
  /\ \E r \in Row : row[r] # NoRow /\ rd' = [rd EXCEPT ![q] = [r |-> r, k |-> KekOf(row[r])]]
  /\ UNCHANGED <<ctl, keys, row, work, wr, writes, harm>>

Open(q) ==               \* on a disabled KEK or an unknown DEK: reads row and record again, consistently
  LET r == rd[q].r IN
  /\ rd[q] # NotRead
  /\ IF rd[q].k \in on
       THEN /\ rd' = [rd EXCEPT ![q] = NotRead]
            /\ harm' = IF Unbound(row[r]) THEN harm \cup {"read another row's payload"} ELSE harm
       ELSE /\ harm' = harm
            /\ rd' = [rd EXCEPT ![q] = IF row[r] # NoRow THEN [r |-> r, k |-> KekOf(row[r])] ELSE NotRead]
  /\ UNCHANGED <<ctl, keys, row, work, wr, writes>>

-----------------------------------------------------------------------------
(* Rotation.                                                                 *)

Start(n, m) ==           \* lock, mint, test
  /\ m \in Modes /\ rot[n].ph = "none"
  /\ n > 1 => \/ rot[n - 1].ph = "completed"
              \/ /\ Takeover /\ m = "emergency" /\ rot[n - 1].mode = "normal"
                 /\ rot[n - 1].ph \in {"switched", "sealed", "rewrapped", "retired"}
  /\ rot' = [i \in Rot |-> IF i = n THEN [ph |-> "started", mode |-> m]
                            ELSE IF i = n - 1 /\ rot[i].ph # "completed" THEN [rot[i] EXCEPT !.ph = "superseded"] ELSE rot[i]]
  /\ kst' = [kst EXCEPT ![n + 1] = "pending"] /\ on' = on \cup {n + 1}
  /\ UNCHANGED <<fence, efence, eopen, ptr, embOff, keys, row, work, wr, rd, writes, harm>>

Switch(n) ==
  /\ rot[n].ph = "started"
  /\ rot' = [rot EXCEPT ![n].ph = "switched"]
  /\ ptr' = n + 1 /\ fence' = fence \cup {n + 1}
  /\ efence' = IF embOff THEN efence ELSE efence \cup {n + 1}
  /\ eopen' = IF embOff THEN eopen ELSE eopen \cup {n + 1}
  /\ kst' = [kst EXCEPT ![n + 1] = "active", ![n] = "draining"]
  /\ UNCHANGED <<on, embOff, keys, row, work, wr, rd, writes, harm>>

OpenRecords ==           \* an upgraded deployment opens the fence of records of the KEK that it has, on condition that it is active
  /\ Upgraded /\ fence = {} /\ kst[1] = "active" /\ fence' = {1}
  /\ UNCHANGED <<rot, kst, on, efence, eopen, ptr, embOff, keys, row, work, wr, rd, writes, harm>>

CloseEmbedded ==         \* declared once by the operator
  /\ CloseEmb /\ ~embOff /\ embOff' = TRUE
  /\ UNCHANGED <<rot, kst, on, fence, efence, eopen, ptr, keys, row, work, wr, rd, writes, harm>>

SealFence(n, k) ==
  /\ Reached(n, "switched")
  /\ k <= n /\ k \in fence \cup efence
  /\ fence' = fence \ {k} /\ efence' = efence \ {k}
  /\ UNCHANGED <<rot, kst, on, eopen, ptr, embOff, keys, row, work, wr, rd, writes, harm>>

Seal(n) ==
  /\ rot[n].ph = "switched" /\ (1 .. n) \cap (fence \cup efence) = {}
  /\ rot' = [rot EXCEPT ![n].ph = "sealed"] /\ kst' = [k \in KEK |-> IF k <= n /\ kst[k] = "draining" THEN "sealed" ELSE kst[k]]
  /\ clean' = {}
  /\ UNCHANGED <<on, fence, efence, eopen, ptr, embOff, keys, row, rw, ew, pb, wr, rd, writes, harm>>

RecRead(n, d) ==         \* KMS ReEncrypt of a record that was read, and the bucket's copy of the result
  /\ Reached(n, "sealed") /\ rec[d].kek \in Olds(n) \cap on /\ n + 1 \in on /\ <<n, d, rec[d].kek>> \notin rw
  /\ rw' = rw \cup {<<n, d, rec[d].kek>>}
  /\ bkt' = [bkt EXCEPT ![d] = @ \cup {n + 1}]
  /\ UNCHANGED <<ctl, rec, gen, row, clean, ew, pb, wr, rd, writes, harm>>

RecWrite(h) ==        \* conditional on the wrapped bytes that were read, at any later time, repeatable
  LET n == h[1] d == h[2] IN
  /\ rec[d].kek = h[3]
  /\ rec[d] # NoRec
  /\ rec' = [rec EXCEPT ![d] = [kek |-> n + 1, born |-> @.born]]
  /\ rec' # rec
  /\ UNCHANGED <<ctl, gen, bkt, row, work, wr, rd, writes, harm>>

EmbRead(n, r) ==         \* normal rewrap of an embedded row
  /\ Reached(n, "sealed") /\ row[r].f = "emb" /\ row[r].kek \in Olds(n) \cap on
  /\ rot[n].mode = "normal" /\ n + 1 \in eopen
  /\ ew' = ew \cup {<<n, r, row[r].d, row[r].kek>>} /\ ew' # ew
  /\ UNCHANGED <<ctl, keys, row, clean, rw, pb, wr, rd, writes, harm>>

EmbWrite(e) ==           \* e: rotation, row, DEK that was read
  LET n == e[1] r == e[2] IN
  /\ row[r].f = "emb" /\ row[r].kek = e[4] /\ row[r].d = e[3]
  /\ row' = [row EXCEPT ![r].kek = n + 1, ![r].ep = n + 1]
  /\ UNCHANGED <<ctl, keys, work, wr, rd, writes, harm>>

(* A pass looks at every record, every copy's id in the bucket, and at rows   *)
(* where embedded ones can be or exposed ones are looked for.                 *)
RecInOrder(n, d) ==
  /\ rec[d].kek \in {0, n + 1}
  /\ rec[d] # NoRec \/ Olds(n) \cap bkt[d] = {} \/ n + 1 \in bkt[d]
RowInOrder(n, r) ==
  LET x == row[r] IN
  /\ x.f = "emb" => x.kek = n + 1 /\ n + 1 \in eopen
  /\ rot[n].mode = "emergency" => ~(x.f = "key" /\ BornRec(x.d) <= n)

RowsLooked(n) == Olds(n) \cap eopen # {} \/ rot[n].mode = "emergency"

Scan(n, x) ==
  /\ rot[n].ph \in {"sealed", "rewrapped"} /\ x \notin clean
  /\ \/ x[1] = "d" /\ RecInOrder(n, x[2])
     \/ x[1] = "r" /\ (RowsLooked(n) => RowInOrder(n, x[2]))
  /\ clean' = clean \cup {x}
  /\ UNCHANGED <<ctl, keys, row, rw, ew, pb, wr, rd, writes, harm>>

Things == {<<"d", d>> : d \in Dek} \cup {<<"r", r>> : r \in Row}
AllClean == clean = Things

Rewrapped(n) ==
  /\ rot[n].ph = "sealed" /\ AllClean
  /\ rot' = [rot EXCEPT ![n].ph = "rewrapped"] /\ clean' = {}
  /\ UNCHANGED <<kst, on, fence, efence, eopen, ptr, embOff, keys, row, rw, ew, pb, wr, rd, writes, harm>>

Retire(n) ==
  /\ rot[n].ph = "rewrapped" /\ AllClean
  /\ rot' = [rot EXCEPT ![n].ph = "retired"]
  /\ kst' = [k \in KEK |-> IF k \in Olds(n) THEN "retired" ELSE kst[k]]
  /\ clean' = {}
  /\ UNCHANGED <<on, fence, efence, eopen, ptr, embOff, keys, row, rw, ew, pb, wr, rd, writes, harm>>

Disable(k) ==
  /\ k \in on /\ kst[k] = "retired" /\ on' = on \ {k}
  /\ UNCHANGED <<rot, kst, fence, efence, eopen, ptr, embOff, keys, row, work, wr, rd, writes, harm>>

Complete(n) ==
  /\ rot[n].ph = "retired" /\ on \cap 1 .. n = {}
  /\ rot' = [rot EXCEPT ![n].ph = "completed"]
  /\ UNCHANGED <<kst, on, fence, efence, eopen, ptr, embOff, keys, row, work, wr, rd, writes, harm>>

-----------------------------------------------------------------------------
(* Mishaps with the key table, and their repair.                             *)

Named(d) == \E r \in Row : row[r].f = "key" /\ row[r].d = d

Lose(d) ==               \* a record is deleted by mistake
  /\ "lose" \in Mishaps /\ rec[d] # NoRec /\ "lost" \notin harm
  /\ rec' = [rec EXCEPT ![d] = NoRec] /\ harm' = harm \cup {"lost"}
  /\ UNCHANGED <<ctl, gen, bkt, row, work, wr, rd, writes>>

Stale(d, k) ==           \* a record comes back as a backup has it, whatever is there now
  /\ \/ "stale" \in Mishaps
     \/ "stale-early" \in Mishaps /\ (k \in Rot => ~Reached(k, "rewrapped"))
  /\ k \in bkt[d] /\ rec[d] # NoRec /\ rec[d].kek # k /\ "restored" \notin harm
  /\ rec' = [rec EXCEPT ![d].kek = k] /\ harm' = harm \cup {"restored"}
  /\ UNCHANGED <<ctl, gen, bkt, row, work, wr, rd, writes>>

Bad(d) == IF rec[d] = NoRec THEN TRUE ELSE kst[rec[d].kek] = "retired"

Newest(copies) == {Max(copies)}

PutBackRead(d) ==        \* doctor: the newest copy; if its KEK's fence is shut, first rewrapped to the pointer's
  /\ Bad(d) /\ bkt[d] # {} /\ (Mishaps # {} \/ \E n \in Rot : rot[n].ph \in {"sealed", "rewrapped"} /\ n >= Max(bkt[d]))
  /\ \E k \in Newest(bkt[d]) :
       LET to == IF k \notin fence THEN ptr ELSE k IN
       /\ k \in on \/ k = to
       /\ pb' = pb \cup {<<d, to>>} /\ pb' # pb
       /\ bkt' = [bkt EXCEPT ![d] = @ \cup {to}]
  /\ UNCHANGED <<ctl, rec, gen, row, clean, rw, ew, wr, rd, writes, harm>>

PutBackWrite(p) ==       \* a transaction like a creation: still bad, and the fence of its KEK is open
  LET d == p[1] IN
  /\ Bad(d) /\ p[2] \in fence
  /\ rec' = [rec EXCEPT ![d] = [kek |-> p[2], born |-> gen[d]]]   \* birth is part of every copy
  /\ UNCHANGED <<ctl, gen, bkt, row, work, wr, rd, writes, harm>>

-----------------------------------------------------------------------------
WriteRow    == \E e \in ew : EmbWrite(e)
WriteRecord == \E h \in rw : RecWrite(h)
WriteBack   == \E p \in pb : PutBackWrite(p)

Data   == (\E w \in Writer \cup Walker : Load(w) \/ Generate(w) \/ PutCopy(w) \/ Create(w) \/ Pick(w)
                                     \/ Commit(w) \/ Crash(w) \/ WalkRead(w) \/ WalkWrite(w))
          \/ (\E q \in Reader : ReadRow(q) \/ Open(q))
          \/ (\E r \in Row : DeleteRow(r)) \/ (\E r, s \in Row : Move(r, s)) \/ (\E r \in Row, d \in Dek : OldRow(r, d))
Steps  == \/ CloseEmbedded \/ OpenRecords
          \/ \E n \in Rot :
             \/ \E m \in Modes : Start(n, m)
             \/ (\E k \in KEK : SealFence(n, k)) \/ Switch(n) \/ Seal(n) \/ Rewrapped(n) \/ Retire(n) \/ Complete(n)
             \/ \E d \in Dek : RecRead(n, d)
             \/ \E r \in Row : EmbRead(n, r)
             \/ \E x \in Things : Scan(n, x)
          \/ \E k \in KEK : Disable(k)
          \/ WriteRow \/ WriteRecord
Doctor == (\E d \in Dek : PutBackRead(d)) \/ WriteBack
Mishap == \E d \in Dek : Lose(d) \/ \E k \in KEK : Stale(d, k)
Next   == Data \/ Steps \/ Doctor \/ Mishap
Spec   == Init /\ [][Next]_vars

WalkFair(w) == /\ WF_vars(Load(w)) /\ WF_vars(Generate(w)) /\ WF_vars(PutCopy(w)) /\ WF_vars(Create(w))
               /\ WF_vars(WalkRead(w)) /\ WF_vars(WalkWrite(w))
Fair == /\ \A n \in Rot :
             /\ WF_vars(Switch(n)) /\ WF_vars(\E k \in KEK : SealFence(n, k)) /\ WF_vars(Seal(n)) /\ WF_vars(Rewrapped(n))
             /\ WF_vars(Retire(n)) /\ WF_vars(Complete(n))
             /\ \A d \in Dek : WF_vars(RecRead(n, d)) /\ WF_vars(\E h \in rw : h[1] = n /\ h[2] = d /\ RecWrite(h))
             /\ \A r \in Row : WF_vars(EmbRead(n, r)) /\ WF_vars(\E e \in ew : e[1] = n /\ e[2] = r /\ EmbWrite(e))
             /\ \A x \in Things : WF_vars(Scan(n, x))
        /\ \A k \in KEK : WF_vars(Disable(k))
        /\ \A d \in Dek : WF_vars(PutBackRead(d)) /\ WF_vars(\E p \in pb : p[1] = d /\ PutBackWrite(p))
        /\ \A q \in Reader : WF_vars(Open(q))
Renew(w) == wr[w].pc = "ready" /\ wr[w].k < ptr /\ Crash(w)
\* A walker that comes by again and again looks at the pointer and drops a DEK of an earlier epoch ...
FairSpec == Spec /\ Fair /\ \A w \in Walker : WalkFair(w) /\ SF_vars(Renew(w))
\* ... or only does when it has nothing else to do.
SlackSpec == Spec /\ Fair /\ \A w \in Walker : WalkFair(w) /\ WF_vars(Renew(w))

-----------------------------------------------------------------------------
(* Always.                                                                   *)

RowResolves(x) == x.f # "none" => IF x.f = "emb" THEN Resolves(x.kek) ELSE rec[x.d] # NoRec /\ Resolves(rec[x.d].kek)

NoKeyOrphans ==          \* each keyed row's DEK has a record, each record's KEK resolves; embedded rows as before
  /\ \A r \in Row : RowResolves(row[r])
  /\ \A d \in Dek : rec[d] # NoRec => Resolves(rec[d].kek)

RecOK ==                 \* for runs in which records get lost: those that are there resolve
  \A d \in Dek : rec[d] # NoRec => Resolves(rec[d].kek)

NoDekLost ==             \* whatever befalls records: what a row needs is in the record or in a copy under a live KEK
  \A r \in Row : row[r].f = "key" => \E k \in {rec[row[r].d].kek} \cup bkt[row[r].d] : Resolves(k)

RetireAfterSwitch == \A n \in Rot : kst[n] = "retired" => ptr > n

PointerUsable == kst[ptr] = "active" /\ ptr \in on /\ (ptr \in fence \/ (Upgraded /\ ptr = 1))

BornBound ==             \* the record tells the epoch that its DEK was generated in, whatever wraps it now
  \A d \in Dek : rec[d] # NoRec => rec[d].born = gen[d] /\ rec[d].kek >= gen[d]

NoLostUpdate  == "lost update" \notin harm
ReadersServed == "read failed" \notin harm
NoWrongRow    == "read another row's payload" \notin harm

(* After an emergency n is past its walk:                                    *)
After(n) == rot[n].mode = "emergency" /\ Reached(n, "rewrapped")

ExposedOnlyLate ==       \* a row under an exposed DEK was INSERTED after the switch, by a writer that loaded before it
  \A n \in Rot : After(n) => \A r \in Row : row[r].f # "none" /\ gen[row[r].d] <= n => row[r].late >= n

ExposedGone ==           \* too strong for keyed rows: must be violated by a late writer
  \A n \in Rot : After(n) => \A r \in Row : row[r].f # "none" => gen[row[r].d] > n

ExposedSetClosed ==      \* after the seal no record of an exposed DEK comes to be, but for one put back
  [][\A d \in Dek : rec[d] = NoRec /\ rec'[d] # NoRec /\ gen[d] # 0 /\ Exposed(d)
       /\ (\E n \in Emerg : gen[d] <= n /\ Reached(n, "sealed")) => <<d, rec'[d].kek>> \in pb]_rec

NoReexposure ==          \* a row once off the exposed DEKs never comes to one again, but by delete and late insert
  [][\A r \in Row : row[r].f # "none" /\ row'[r].f # "none" /\ gen[row[r].d] > Max(Emerg) => gen[row'[r].d] > Max(Emerg)]_<<row>>

NoRowComesBack == [][\A r \in Row : row[r] = NoRow /\ row'[r] # NoRow => writes' # writes \/ harm' # harm]_row

KekForward == [][\A k \in KEK : kst[k] # kst'[k] => <<kst[k], kst'[k]>> \in
  {<<"none", "pending">>, <<"pending", "active">>, <<"active", "draining">>, <<"draining", "sealed">>, <<"sealed", "retired">>}]_kst

NeverCompleted == \A n \in Rot : rot[n].ph # "completed"
NeverTaken     == \A n \in Rot : rot[n].ph = "superseded" => \A m \in Rot : rot[m].ph # "completed"
NeverRowless   == \A n \in Rot : n \notin eopen => rot[n].ph # "completed"

(* Eventually, if steps, walkers, doctor are retried and MaxWrite ends the writers. *)
Terminates    == \A n \in Rot : rot[n].ph = "started" ~> rot[n].ph \in {"completed", "superseded"}
ExposedEnds   == <>[](\A r \in Row : row[r].f # "none" => ~Exposed(row[r].d))
OrphansEnd    == <>[](\A r \in Row : RowResolves(row[r]))
Converted     == <>[](\A r \in Row : row[r].f # "emb")

Sym == Permutations(Writer) \cup Permutations(Row)
===============================================================================
