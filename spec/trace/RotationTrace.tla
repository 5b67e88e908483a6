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
(* somebody who once loaded the pointer. Actions that leave no trace (a    *)
(* scan that sees a clean row, the decision to disable a stray key) are    *)
(* taken as soon as they may be; they never take anything away.            *)
(***************************************************************************)
EXTENDS rotation, Sequences, TraceData

VARIABLES
  t, i,    \* which run, and its next event
  out,     \* records in the outbox
  stored,  \* records in the bucket
  past,    \* what the pointer has ever been: <<KEK, epoch>>
  looked,  \* KEKs whose leases were listed for a rotation: <<n, KEK>>
  blob,    \* of each row: which wrapped DEK and which payload are stored
  todo     \* passes over segments that are not done: <<n, pass, segment>>

logV  == <<out, stored>>
seenV == <<past, blob, todo, looked>>
all   == <<vars, t, i, logV, seenV>>

T == Traces[t]
E == T[i]

TInit ==
  /\ row = [r \in Row |-> NoRow] /\ Init            \* in this order: else TLC tries every set of rows
  /\ t \in 1 .. Len(Traces) /\ i = 1
  /\ out = Heads[t] /\ stored = 1 .. Puts[t]
  /\ past = {<<1, 1>>}
  /\ blob = [r \in Row |-> <<0, 0>>]
  /\ todo = {} /\ looked = {}

PassDone(n, pass) == \A x \in todo : <<x[1], x[2]>> # <<n, pass>>

(* Changes of the control table, each with its audit record. *)

Beside == {"source_added", "source_removed", "mark_removed", "rotation_resumed", "reading_restarted"}

Change ==
  CASE E.a = "rotation_started"       -> Start(E.n, E.m) /\ rot'[E.n].old = E.old
    [] E.a = "rows_counted"           -> Count(E.n)
    [] E.a = "kek_minted"             -> Mint(E.n, E.k)
    [] E.a = "rows_rehearsed"         -> Rehearse(E.n)
    [] E.a \in {"rotation_resumed", "reading_restarted"} -> lock = E.n /\ UNCHANGED vars
    [] E.a = "dual_unwrap_passed"     -> DualUnwrap(E.n)
    [] E.a = "pointer_switched"       -> Switch(E.n)
    [] E.a = "old_kek_sealed"         -> \E k \in KEK : <<k, "sealed">> \in E.states /\ Seal(E.n, k)
    [] E.a = "emergency_took_over"    -> lock = E.other /\ TakeOver(E.n) /\ rot'[E.n].old = E.old
    [] E.a = "rows_rewrapped"         -> PassDone(E.n, "rewrap") /\ Rewrapped(E.n)
    [] E.a = "old_kek_retired"        -> PassDone(E.n, "confirm") /\ Retire(E.n)
    [] E.a = "kms_rotation_completed" -> PassDone(E.n, "verify") /\ Complete(E.n)
    [] E.a = "rolled_back"            -> PreSwitchFailure(E.n)
    [] E.a = "reminted"               -> Remint(E.n)
    [] E.a = "kek_registered"         -> Register(E.k)
    [] E.a = "kek_genesis"            -> E.k = 1 /\ UNCHANGED vars
    [] E.a \in Beside                 -> UNCHANGED vars       \* all rows are in the first table here
    [] E.a = "recorded"               -> UNCHANGED vars       \* a record of its own
    [] OTHER                          -> FALSE

Wrote ==                      \* what the action changes is what was written, all of it
  /\ E.n # 0 => rot'[E.n].ph = E.ph /\ (E.other # 0 => E.a = "emergency_took_over" /\ rot'[E.other].ph = E.oph)
  /\ {<<k, kek'[k]>> : k \in {j \in KEK : kek'[j] # kek[j]}} = E.states
  /\ ptr' = IF E.moved THEN [kek |-> E.k, ep |-> E.e] ELSE ptr
  /\ fence' = IF E.opened = {} THEN fence ELSE [fence EXCEPT ![E.k] = @ \cup E.opened]
  /\ lock' = CASE E.lock = "taken" -> E.n [] E.lock = "released" -> 0 [] OTHER -> lock

Changed ==
  /\ Change
  /\ IF E.a \in {"kek_genesis", "recorded"} THEN TRUE ELSE Wrote
  /\ E.seq = out + 1 /\ out' = E.seq                          \* with its record
  /\ past' = past \cup {<<ptr'.kek, ptr'.ep>>}
  /\ todo' = IF E.a \in {"rotation_started", "emergency_took_over"}
               THEN todo \cup {<<E.n, p, s>> : p \in {"rewrap", "confirm", "verify"}, s \in E.segs}
               ELSE todo
  /\ UNCHANGED <<blob, stored, looked>>

(* Effects on KMS. *)

Stray(k) ==                  \* what a sweep, a loser or remint may have decided to disable
  LET n == tag[k].n IN
  /\ k \in Made /\ kek[k] = "none"
  /\ \/ \E j \in owner : j # k /\ tag[j] = tag[k]             \* Lose
     \/ tag[k].a < rot[n].att                                 \* DoomFailed, or a sweep since
     \/ ~MintUnderWay(n) /\ k \notin Keep(n)                  \* ReapBegin, ReapDecide

InKMS ==
  CASE E.a = "create"  -> CreateKey(E.n, E.att) /\ tag'[E.k].n = E.n
    [] E.a = "claim"   -> IF E.k \in owner THEN UNCHANGED vars ELSE Claim(E.k)
    [] E.a = "disable" -> IF E.k \notin on THEN UNCHANGED vars
                          ELSE IF Stray(E.k)
                            THEN on' = on \ {E.k} /\ UNCHANGED <<kek, tag, owner, doomed, reaper, unfit, ctlV, workV, dataV, cntV>>
                            ELSE DisableRetired(E.k)
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
                         ELSE kek[E.k] # "pending" /\ UNCHANGED vars

(* Rows. *)

Other(r) == UNCHANGED <<keyV, ctlV, workV, wr, rd, backup, nDek>>
Blob(r)  == blob' = [blob EXCEPT ![r] = <<E.blob, E.pay>>]
Fresh    == Dek(E.k, writes + 1)

Moved(r) ==                  \* RewrapRead, then RewrapWrite: the row still was what was read
  \E n \in Rot :
    /\ E.old \in rot[n].olds /\ rot[n].new = E.k /\ rot[n].ep = E.e /\ Rewrapping(n)
    /\ r \in Frozen(n) /\ row[r] # NoRow /\ row[r].kid = E.old /\ blob[r][1] = E.was
    /\ Payload(n) <=> E.pay # 0
    /\ Payload(n) => blob[r][2] = E.waspay
    /\ RewrapRow(n, r, Wrapping(n, r))
    /\ blob' = [blob EXCEPT ![r] = <<E.blob, IF E.pay # 0 THEN E.pay ELSE @[2]>>]
    /\ UNCHANGED writes

InRows ==
  LET r == E.r IN
  CASE E.a = "insert"  -> /\ <<E.k, E.e>> \in past /\ InsertOK(r, E.k, E.s)
                          /\ Written(r, E.k, E.e, Fresh) /\ writes' = writes + 1 /\ Blob(r) /\ Other(r)
    [] E.a = "refused" -> (row[r] # NoRow \/ E.s \notin fence[E.k]) /\ UNCHANGED <<vars, blob>>
    [] E.a = "update"  -> /\ <<E.k, E.e>> \in past /\ UpdateOK(r, E.k, E.e, E.s)
                          /\ Written(r, E.k, E.e, Fresh) /\ writes' = writes + 1 /\ Blob(r) /\ Other(r)
    [] E.a = "plant"   -> Written(r, E.k, E.e, Fresh) /\ writes' = writes + 1 /\ Blob(r) /\ Other(r)
    [] E.a = "delete"  -> row' = [row EXCEPT ![r] = NoRow] /\ UNCHANGED <<writes, blob>> /\ Other(r)
    [] E.a = "replace" -> Moved(r) /\ Other(r)

(* Progress and the bucket. *)

Noted ==
  CASE E.a = "pass"  -> /\ todo' = IF E.done THEN todo \ {<<E.n, E.p, E.s>>} ELSE todo \cup {<<E.n, E.p, E.s>>}
                        /\ UNCHANGED stored
    [] E.a = "store" -> E.seq \in 1 .. out /\ stored' = stored \cup {E.seq} /\ UNCHANGED todo
    [] E.a = "mark"  -> (1 .. E.seq) \subseteq stored /\ UNCHANGED <<stored, todo>>

Act ==
  CASE E.c = "change" -> Changed
    [] E.c = "kms"    -> InKMS /\ UNCHANGED <<logV, seenV>>
    [] E.c = "drain"  -> /\ InDrain /\ UNCHANGED <<logV, past, blob, todo>>
                         /\ looked' = IF E.a = "look" THEN looked \cup {<<lock, E.k>>} ELSE looked
    [] E.c = "rows"   -> InRows /\ UNCHANGED <<logV, past, todo, looked>>
    [] E.c = "note"   -> Noted /\ UNCHANGED <<vars, out, past, blob, looked>>

(* ScanRow of every row that looks clean, at once. *)
Seeable == IF lock = 0 \/ rot[lock].ph \notin {"drained", "rewrapped", "retired"} THEN {}
           ELSE {r \in Frozen(lock) \ clean : LooksClean(lock, r)}
See     == /\ clean' = clean \cup Seeable
           /\ UNCHANGED <<keyV, ctlV, lease, seen, gone, rw, passV, dataV, cntV, logV, seenV, t, i>>

Says(name, ok) == ok \/ (PrintT(<<"violates", t, i, name>>) /\ FALSE)
Sound ==
  /\ Says("NoKeyOrphans", NoKeyOrphans') /\ Says("RetireAfterSwitch", RetireAfterSwitch')
  /\ Says("PointerUsable", PointerUsable') /\ Says("NewKekUsable", NewKekUsable')
  /\ Says("AtMostOneRotation", AtMostOneRotation') /\ Says("NoRollbackAfterSwitch", NoRollbackAfterSwitch')
  /\ Says("EmergencyForward", EmergencyForward') /\ Says("RowIntegrity", RowIntegrity')
  /\ Says("ExposedDeksGone", ExposedDeksGone') /\ Says("SealedIsShut", SealedIsShut')

TNext ==
  /\ i <= Len(T)
  /\ IF Seeable # {} THEN See
     ELSE Act /\ i' = i + 1 /\ t' = t /\ Sound /\ PrintT(<<"explained", t, i>>)

TSpec == TInit /\ [][TNext]_all
==============================================================================
