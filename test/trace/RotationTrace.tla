---------------------------- MODULE RotationTrace ----------------------------
(***************************************************************************)
(* Checks recorded runs of the code against rotation.tla. TraceData, which *)
(* is generated, holds the runs: for each the sequence of its effects in   *)
(* the order in which they happened. A run is accepted if every event is   *)
(* explained by actions of rotation.tla whose conditions hold at that      *)
(* point, and if every invariant holds after it. For every event that is   *)
(* explained <<"explained", t, i>> is printed.                             *)
(*                                                                         *)
(* The data plane's processes are not replayed: a row is written by        *)
(* somebody who once loaded the pointer. What a row is, TraceData says:    *)
(* which KEK and which DEK its wrapped bytes really hold and which DEK its *)
(* payload opens under, as KMS has said it. The decision to disable a      *)
(* stray key leaves no trace; it is taken as soon as it may be.            *)
(*                                                                         *)
(* A row is clean only because a page of a consistent scan without a       *)
(* filter showed it so, or showed it before it was moved, or because it    *)
(* was not there when such a page of its segment was read. A pass over a   *)
(* segment is done only if such pages cover it from beginning to end, the  *)
(* first of them read in the phase that makes the pass mean something.     *)
(***************************************************************************)
EXTENDS rotation, Sequences, TraceData, TraceSteps

VARIABLES
  t, i,    \* which run, and its next event
  out,     \* records in the outbox
  stored,  \* records in the bucket
  past,    \* what the pointer has ever been: <<KEK, epoch>>
  looked,  \* KEKs whose leases were listed for a rotation: <<n, KEK>>
  blob,    \* of each row: which wrapped DEK and which payload are stored, and its text
  todo,    \* passes over segments that are not done: <<n, pass, segment>>
  begun,   \* there is a pointer
  marked,  \* records that are marked as being in the bucket
  rec,     \* of each KEK: the record that it was retired by
  read,    \* how far chains of pages have come: <<segment, cursor, when it began>>
  strange, \* somebody else has written a row since the rotation under way began
  corrupted, \* rows that somebody else has written with a payload that does not open
  shown    \* rows that a page of the phase under way has shown, or shown to be absent

logV  == <<out, stored, marked, rec>>
seenV == <<past, blob, todo, looked, begun, read, shown, strange, corrupted>>
all   == <<vars, t, i, logV, seenV>>

T == Traces[t]
E == T[i]

TInit ==
  /\ row = [r \in Row |-> NoRow] /\ Init            \* in this order: else TLC tries every set of rows
  /\ t \in 1 .. Len(Traces) /\ i = 1
  /\ out = Heads[t] /\ stored = 1 .. Puts[t]
  /\ past = {<<1, 1>>}
  /\ blob = [r \in Row |-> <<0, 0, 0>>]
  /\ todo = {} /\ looked = {}
  /\ begun = Begun[t] /\ marked = 0 /\ rec = [k \in KEK |-> 0]
  /\ read = {} /\ shown = {} /\ strange = FALSE /\ corrupted = {}

(* When something was read: in which phase of which rotation. *)
When(n, ph) == 10 * n + Order(ph)
Now         == IF lock = 0 THEN 0 ELSE When(lock, rot[lock].ph)
Means(pass) == CASE pass = "census" -> "started" [] pass = "rewrap" -> "drained"
                 [] pass = "confirm" -> "rewrapped" [] pass = "verify" -> "retired"

Put(seq) == seq = 0 \/ seq \in stored       \* 0: before the recording began

PassDone(n, pass) == \A x \in todo : <<x[1], x[2]>> # <<n, pass>>

(* The census takes its time: what somebody else writes meanwhile it may have missed. *)
Counted(n) ==
  IF ~strange THEN Count(n)
  ELSE /\ At(n, "started") /\ rot' = [rot EXCEPT ![n].cnt = (rot[n].mode = "normal")]
       /\ UNCHANGED <<keyV, ptr, fence, lock, tabV, workV, dataV, cntV>>

(* Changes of the control table, each with its audit record. *)

Beside == {"source_added", "source_removed", "mark_removed", "rotation_resumed", "reading_restarted"}

Change ==
  CASE E.a = "rotation_started"       -> Start(E.n, E.m) /\ rot'[E.n].old = E.old
    [] E.a = "rows_counted"           -> PassDone(E.n, "census") /\ Counted(E.n)
    [] E.a = "kek_minted"             -> Mint(E.n, E.k)
    [] E.a = "rows_rehearsed"         -> Rehearse(E.n)
    [] E.a \in {"rotation_resumed", "reading_restarted"} -> lock = E.n /\ UNCHANGED vars
    [] E.a = "dual_unwrap_passed"     -> DualUnwrap(E.n)
    [] E.a = "pointer_switched"       -> Switch(E.n)
    [] E.a = "old_kek_sealed"         -> \E k \in KEK : <<k, "sealed">> \in E.states /\ Seal(E.n, k)
    [] E.a = "emergency_took_over"    -> lock = E.other /\ TakeOver(E.n) /\ rot'[E.n].old = E.old
    [] E.a = "rows_rewrapped"         -> PassDone(E.n, "rewrap") /\ Rewrapped(E.n)
    [] E.a = "old_kek_retired"        -> PassDone(E.n, "confirm") /\ Retire(E.n)
    [] E.a = "kms_rotation_completed" -> PassDone(E.n, "verify") /\ Complete(E.n) /\ \A k \in rot[E.n].olds : Put(rec[k])
    [] E.a = "rolled_back"            -> PreSwitchFailure(E.n)
    [] E.a = "reminted"               -> Remint(E.n)
    [] E.a = "kek_registered"         -> Register(E.k)
    [] E.a = "kek_genesis"            -> ~begun /\ E.k = 1 /\ UNCHANGED vars       \* Init
    [] E.a \in Beside                 -> UNCHANGED vars       \* all rows are in the first table here
    [] E.a = "recorded"               -> UNCHANGED vars       \* a record of its own
    [] OTHER                          -> FALSE

Wrote ==                      \* what the action changes is what was written, all of it
  /\ E.n # 0 => rot'[E.n].ph = E.ph /\ (E.other # 0 => E.a = "emergency_took_over" /\ rot'[E.other].ph = E.oph)
  /\ {<<k, kek'[k]>> : k \in {j \in KEK : kek'[j] # kek[j]}} = E.states
  /\ ptr' = IF E.moved THEN [kek |-> E.k, ep |-> E.e] ELSE ptr
  /\ fence' = IF E.opened = {} THEN fence ELSE [fence EXCEPT ![E.k] = @ \cup E.opened]
  /\ lock' = CASE E.lock = "taken" -> E.n [] E.lock = "released" -> 0 [] OTHER -> lock

WroteFirst ==
  /\ E.n = 0 /\ E.states = {<<1, "active">>} /\ E.moved /\ E.e = 1 /\ E.opened = Shard /\ E.lock = ""

Changed ==
  /\ Change
  /\ CASE E.a = "kek_genesis" -> WroteFirst [] E.a = "recorded" -> TRUE [] OTHER -> Wrote
  /\ begun' = TRUE /\ (begun \/ E.a = "kek_genesis")
  /\ strange' = (strange /\ E.a \notin {"rotation_started", "emergency_took_over"}) /\ UNCHANGED corrupted
  /\ rec' = [k \in KEK |-> IF kek'[k] = "retired" /\ kek[k] # "retired" THEN E.seq ELSE rec[k]]
  /\ shown' = IF \E n \in Rot : rot'[n].ph # rot[n].ph THEN {} ELSE shown
  /\ E.seq = out + 1 /\ out' = E.seq                          \* with its record
  /\ past' = past \cup {<<ptr'.kek, ptr'.ep>>}
  /\ todo' = IF E.a \in {"rotation_started", "emergency_took_over"}
               THEN todo \cup {<<E.n, p, s>> : p \in {"census", "rewrap", "confirm", "verify"}, s \in E.segs}
               ELSE todo
  /\ UNCHANGED <<blob, stored, looked, marked, read>>

(* Effects on KMS. *)

DisablesStray(k) ==                  \* what a sweep, a loser or remint may have decided to disable
  LET n == tag[k].n IN
  /\ k \in Made /\ kek[k] = "none"
  /\ \/ \E j \in owner : j # k /\ tag[j] = tag[k]             \* Lose
     \/ tag[k].a < rot[n].att                                 \* DoomFailed, or a sweep since
     \/ ~MintUnderWay(n) /\ k \notin Keep(n)                  \* ReapBegin, ReapDecide

Swept(k) == k \in Made /\ rot[tag[k].n].ph = "rolledback"        \* ReapDecide: a key that was never used

InKMS ==
  CASE E.a = "create"  -> CreateKey(E.n, E.att) /\ tag'[E.k].n = E.n
    [] E.a = "claim"   -> IF E.k \in owner THEN UNCHANGED vars ELSE Claim(E.k)
    [] E.a = "disable" -> IF E.k \notin on THEN UNCHANGED vars
                          ELSE IF DisablesStray(E.k)
                            THEN on' = on \ {E.k} /\ UNCHANGED <<kek, tag, owner, doomed, reaper, unfit, ctlV, workV, dataV, cntV>>
                            ELSE DisableRetired(E.k) /\ (Put(rec[E.k]) \/ Swept(E.k))      \* not before its record is safe
    [] E.a = "enable"  -> on' = on \cup {E.k} /\ UNCHANGED <<kek, tag, owner, doomed, reaper, unfit, ctlV, workV, dataV, cntV>>

(* Leases and fences. A lease is named after its holder and KEK; its version *)
(* is when it expires.                                                       *)

Leased == UNCHANGED <<keyV, ctlV, seen, rw, clean, passV, dataV, cntV>>

InDrain ==
  CASE E.a = "lease"  -> /\ kek[E.k] \notin {"none", "pending"}
                         /\ lease' = [lease EXCEPT ![E.w][E.k] = E.v] /\ UNCHANGED gone /\ Leased
    [] E.a = "renew"  -> /\ lease[E.w][E.k] # 0
                         /\ lease' = [lease EXCEPT ![E.w][E.k] = E.v] /\ UNCHANGED gone /\ Leased
    [] E.a = "drop"   -> lease' = [lease EXCEPT ![E.w][E.k] = 0] /\ UNCHANGED gone /\ Leased
    [] E.a = "look"   -> /\ gone' = gone \cup {<<w, E.k>> : w \in {x \in Writer : lease[x][E.k] = 0}}     \* DrainSee
                         /\ UNCHANGED lease /\ Leased
    [] E.a = "revoke" -> /\ \E n \in Rot : E.k \in rot[n].olds /\ Once(n, "switched")   \* DrainJudge,
                         /\ lease[E.w][E.k] = E.v                                        \* Revoke,
                         /\ lease' = [lease EXCEPT ![E.w][E.k] = 0]
                         /\ gone' = gone \cup {<<E.w, E.k>>} /\ Leased                            \* DrainSee
    [] E.a = "fence"  -> IF E.s \in fence[E.k] THEN \E n \in Rot : <<n, E.k>> \in looked /\ SealShard(n, E.k, E.s)
                         ELSE kek[E.k] \in {"draining", "sealed", "retired"} /\ UNCHANGED vars

(* Rows. *)

Other(r) == UNCHANGED <<keyV, ctlV, workV, wr, rd, backup, nDek>>
Blob(r)  == blob' = [blob EXCEPT ![r] = <<E.blob, E.pay, E.text>>]

Stored(r) ==                 \* Written, with what is really in the bytes
  /\ row' = [row EXCEPT ![r] = [kid |-> E.k, real |-> E.real, ep |-> E.e, dek |-> E.dek, ct |-> E.ct, body |-> writes + 1]]
  /\ writes' = writes + 1 /\ Blob(r) /\ Other(r)

Wraps == E.real # 0 => E.real = E.k
Own   == Wraps /\ (E.dek # 0 => Born(E.dek) = E.k)       \* Wrap: a DEK that was made under this KEK

Keeps(r) == E.text = 0 \/ blob[r][3] \in {0, E.text}         \* else an older payload, or another

Moved(r) ==                  \* RewrapRead, then RewrapWrite: the row still was what was read
  \E n \in Rot :
    /\ E.old \in rot[n].olds /\ rot[n].new = E.k /\ rot[n].ep = E.e /\ Rewrapping(n)
    /\ r \in Frozen(n) /\ row[r] # NoRow /\ row[r].kid = E.old /\ blob[r][1] = E.was
    /\ Wraps /\ (Payload(n) <=> E.pay # 0)
    /\ Payload(n) => blob[r][2] = E.waspay
    /\ Payload(n) /\ E.dek # 0 => Born(E.dek) = E.k      \* Rewritten
    /\ row' = [row EXCEPT ![r] = [@ EXCEPT !.kid = E.k, !.real = E.real, !.ep = E.e, !.dek = E.dek,
                                          !.ct = IF E.pay # 0 THEN E.ct ELSE @,        \* RewrapRow
                                          !.body = IF Keeps(r) THEN @ ELSE @ - 1]]
    /\ blob' = [blob EXCEPT ![r] = <<E.blob, IF E.pay # 0 THEN E.pay ELSE @[2], IF E.text # 0 THEN E.text ELSE @[3]>>]
    /\ UNCHANGED writes

InRows ==
  LET r == E.r IN
  CASE E.a = "insert"  -> /\ <<E.k, E.e>> \in past /\ InsertOK(r, E.k, E.s)
                          /\ Own /\ Stored(r)
    [] E.a = "refused" -> (row[r] # NoRow \/ E.s \notin fence[E.k]) /\ UNCHANGED <<vars, blob>>
    [] E.a = "update"  -> /\ <<E.k, E.e>> \in past /\ UpdateOK(r, E.k, E.e, E.s)
                          /\ Own /\ Stored(r)
    [] E.a = "plant"   -> Stored(r)
    [] E.a = "label"   -> /\ row[r] # NoRow /\ row[r].kid = E.old /\ blob[r][1] = E.was /\ row[r].real = E.k    \* Adopt
                          /\ row' = [row EXCEPT ![r].kid = E.k] /\ UNCHANGED <<writes, blob>> /\ Other(r)
    [] E.a = "delete"  -> row' = [row EXCEPT ![r] = NoRow] /\ UNCHANGED <<writes, blob>> /\ Other(r)
    [] E.a = "replace" -> Moved(r) /\ Other(r)

(* Progress and the bucket. *)

Noted ==
  CASE E.a = "pass"  -> /\ E.done /\ rot[E.n].ph \notin Final => \E c \in read : c[1] = E.s /\ c[2] = 0 /\ c[3] >= When(E.n, Means(E.p))
                        /\ todo' = IF E.done THEN todo \ {<<E.n, E.p, E.s>>} ELSE todo \cup {<<E.n, E.p, E.s>>}
                        /\ UNCHANGED <<stored, marked>>
    [] E.a = "store" -> /\ E.seq \in 1 .. out /\ (E.seq = 1 \/ E.seq - 1 \in stored)      \* in order
                        /\ stored' = stored \cup {E.seq} /\ UNCHANGED <<todo, marked>>
    [] E.a = "mark"  -> /\ (1 .. E.seq) \subseteq stored /\ E.seq >= marked
                        /\ marked' = E.seq /\ UNCHANGED <<stored, todo>>

(* Pages of scans. A page that may be stale says nothing; any other shows rows as    *)
(* they are stored. The first page of a segment begins a chain, the next one takes   *)
(* it further from the cursor that it has come to.                                   *)

Reach ==
  LET whens == IF E.f = 0 THEN {Now} ELSE {c[3] : c \in {d \in read : d[1] = E.x /\ d[2] = E.f}}
      when  == CHOOSE w \in whens : \A v \in whens : v <= w
  IN IF whens = {} THEN read
     ELSE {c \in read : c[1] # E.x \/ c[2] # E.to \/ c[3] > when} \cup {<<E.x, E.to, when>>}

Here(r) ==                   \* the row is of this segment, or no page has ever said of which
  LET p == Places[t][r] IN
  p.src = E.src /\ (<<E.x, E.total>> \in p.in \/ \A q \in p.in : q[2] # E.total)

Page ==
  /\ E.fresh => \A p \in E.page : /\ row[p[1]].kid = p[2] /\ blob[p[1]][1] = p[3]
                                   /\ row[p[1]] # NoRow
  /\ read' = IF E.whole THEN Reach ELSE read
  /\ shown' = IF E.whole THEN shown \cup {p[1] : p \in E.page}
                               \cup {r \in DOMAIN Places[t] : row[r] = NoRow /\ Here(r)}
              ELSE shown

Act ==
  CASE E.c = "change" -> Changed
    [] E.c = "kms"    -> InKMS /\ UNCHANGED <<logV, seenV>>
    [] E.c = "drain"  -> /\ begun /\ InDrain /\ UNCHANGED <<logV, past, blob, todo, begun, read, shown, strange, corrupted>>
                         /\ looked' = IF E.a = "look" THEN looked \cup {<<lock, E.k>>} ELSE looked
    [] E.c = "rows"   -> /\ begun /\ InRows /\ UNCHANGED <<logV, past, todo, looked, begun, read, shown>>
                         /\ strange' = (strange \/ E.a = "plant")
                         /\ corrupted' = CASE E.a = "plant" /\ E.dek # E.ct -> corrupted \cup {E.r}
                                           [] E.a \in {"plant", "insert", "update", "delete"} \/ (E.a = "replace" /\ E.pay # 0)
                                              -> corrupted \ {E.r}
                                           [] OTHER -> corrupted
    [] E.c = "note"   -> begun /\ Noted /\ UNCHANGED <<vars, out, rec, past, blob, looked, begun, read, shown, strange, corrupted>>
    [] E.c = "scan"   -> begun /\ Page /\ UNCHANGED <<vars, logV, past, blob, todo, looked, begun, strange, corrupted>>
    [] OTHER          -> FALSE                   \* what can be in no run

(* Which action of rotation.tla that is. *)
Name ==
  CASE E.c = "change" ->
       (CASE E.a = "rotation_started" -> "Start"        [] E.a = "rows_counted" -> "Count"
          [] E.a = "kek_minted" -> "Mint"               [] E.a = "rows_rehearsed" -> "Rehearse"
          [] E.a = "dual_unwrap_passed" -> "DualUnwrap" [] E.a = "pointer_switched" -> "Switch"
          [] E.a = "old_kek_sealed" -> "Seal"           [] E.a = "emergency_took_over" -> "TakeOver"
          [] E.a = "rows_rewrapped" -> "Rewrapped"      [] E.a = "old_kek_retired" -> "Retire"
          [] E.a = "kms_rotation_completed" -> "Complete" [] E.a = "rolled_back" -> "PreSwitchFailure"
          [] E.a = "reminted" -> IF rot[E.n].ph = "started" THEN "Remint at started" ELSE "Remint"
          [] E.a = "kek_registered" -> "Register"       [] E.a = "kek_genesis" -> "Init"
          [] E.a = "recorded" -> "a record of its own"
          [] OTHER -> "a note")
    [] E.c = "kms" ->
       (CASE E.a = "create" -> "CreateKey"
          [] E.a = "claim"  -> IF E.k \in owner THEN "again" ELSE "Claim"
          [] E.a = "enable" -> "a key enabled"
          [] E.k \notin on -> "again"
          [] kek[E.k] # "none" -> "DisableRetired"
          [] E.k \notin owner /\ \E j \in owner : tag[j] = tag[E.k] -> "Lose"
          [] tag[E.k].a < rot[tag[E.k].n].att -> "DoomFailed"
          [] OTHER -> "ReapDecide")
    [] E.c = "drain" ->
       (CASE E.a = "lease" -> "PutLease" [] E.a = "renew" -> "Renew" [] E.a = "drop" -> "DropLease"
          [] E.a = "look" -> "DrainSee"  [] E.a = "revoke" -> "Revoke"
          [] OTHER -> IF E.s \in fence[E.k] THEN "SealShard" ELSE "again")
    [] E.c = "rows" ->
       (CASE E.a = "insert" -> "Commit of an insert" [] E.a = "update" -> "Commit of an update"
          [] E.a = "refused" -> "Commit refused"
          [] E.a = "delete" -> "DeleteRow"
          [] E.a = "label" -> "Adopt"
          [] E.a = "plant" -> IF E.k = 0 THEN "AppearUnlabelled"
                              ELSE IF row[E.r] # NoRow /\ blob[E.r][1] = E.blob THEN "Mislabel" ELSE "RestoreRow"
          [] OTHER -> IF E.pay # 0 THEN "RewrapWrite with a fresh DEK" ELSE "RewrapWrite")
    [] E.c = "scan" -> "a page"
    [] OTHER -> E.a

(* ScanRow of every row that a page has shown and that looks clean, at once. *)
Seeable == IF lock = 0 \/ rot[lock].ph \notin {"drained", "rewrapped", "retired"} THEN {}
           ELSE {r \in (Frozen(lock) \cap (shown \cup (Row \ DOMAIN Places[t]))) \ clean : LooksClean(lock, r)}
See     == /\ clean' = clean \cup Seeable
           /\ UNCHANGED <<keyV, ctlV, lease, seen, gone, rw, passV, dataV, cntV, logV, seenV, t, i>>
           /\ PrintT(<<"explained", t, i - 1, "ScanRow">>)

(* Every invariant and every property of steps that rotation.tla is checked for, but  *)
(* two. OldsDisabled and SupersededOff say that a key stays disabled: in a run a      *)
(* person may enable one, which rotation.tla does not have.                           *)
Says(name, ok) == ok \/ (PrintT(<<"violates", t, i, name>>) /\ FALSE)
(* RowIntegrity, but for rows that others have corrupted: of such a row a rewrap keeps the DEK. *)
RowsIntact == \A r \in Row :
  IF r \in corrupted' THEN E.c = "rows" /\ E.a = "replace" /\ E.r = r => row'[r].dek = row[r].dek
  ELSE row'[r].dek = row'[r].ct /\ (row'[r].real = 0 <=> row'[r].dek = 0)

Sound ==
  /\ Says("NoKeyOrphans", NoKeyOrphans') /\ Says("RetireAfterSwitch", RetireAfterSwitch')
  /\ Says("PointerUsable", PointerUsable') /\ Says("NewKekUsable", NewKekUsable')
  /\ Says("AtMostOneRotation", AtMostOneRotation') /\ Says("NoRollbackAfterSwitch", NoRollbackAfterSwitch')
  /\ Says("EmergencyForward", EmergencyForward') /\ Says("RowIntegrity", RowsIntact)
  /\ Says("ExposedDeksGone", ExposedDeksGone') /\ Says("SealedIsShut", SealedIsShut')
  /\ Says("LockIsRotation", LockIsRotation') /\ Says("NoPendingOver", NoPendingOver')
  /\ Says("ArbiterNamed", ArbiterNamed') /\ Says("EpochOfRows", EpochOfRows')
  /\ SoundSteps(Says, strange)

TNext ==
  /\ i <= Len(T)
  /\ IF Seeable # {} THEN See
     ELSE Act /\ i' = i + 1 /\ t' = t /\ Sound /\ PrintT(<<"explained", t, i, Name>>)

TSpec == TInit /\ [][TNext]_all
==============================================================================
