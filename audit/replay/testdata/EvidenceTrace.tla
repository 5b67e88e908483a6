---------------------------- MODULE EvidenceTrace ----------------------------
(* Chains, held to evidence.tla: each record is the step that it claims to be,  *)
(* and says what that step makes. Printed is how many records each chain gets   *)
(* explained. TraceData has Chains, and what each begins with.                  *)
EXTENDS evidence, Sequences, TLC, TraceData

VARIABLES t, i

TInit ==
  /\ t \in 1 .. Len(Chains) /\ i = 1
  /\ ptr = [kek |-> 1, ep |-> Begins[t].ep]
  /\ kek = [k \in KEK |-> IF k = 1 THEN "active" ELSE "none"]
  /\ lock = 0 /\ rot = [n \in Rot |-> NoRot] /\ src = Begins[t].src

Is(e) ==
  CASE e.a = "Start"            -> e.mode \in {"normal", "emergency"} /\ Start(e.n, e.mode)
    [] e.a = "TakeOver"         -> e.ended = lock /\ TakeOver(e.n)
    [] e.a = "Register"         -> e.k \in KEK /\ Register(e.k)
    [] e.a = "AddSource"        -> AddSource(e.k) \/ (e.k \in src /\ Settled /\ UNCHANGED vars)    \* a new definition
    [] e.a = "RemoveSource"     -> RemoveSource(e.k)
    [] e.a = "Count"            -> rot[e.n].srcs \subseteq e.srcs /\ Count(e.n)
    [] e.a = "Mint"             -> e.new \in KEK /\ Mint(e.n, e.new)
    [] e.a = "Rehearse"         -> Rehearse(e.n)
    [] e.a = "DualUnwrap"       -> DualUnwrap(e.n)
    [] e.a = "PreSwitchFailure" -> PreSwitchFailure(e.n)
    [] e.a = "Remint"           -> Remint(e.n)
    [] e.a = "Switch"           -> Switch(e.n)
    [] e.a = "Seal"             -> Cardinality({k \in KEK : e.keks[k] # "unsaid"}) = 1 /\ Seal(e.n, CHOOSE k \in KEK : e.keks[k] # "unsaid")
    [] e.a = "Rewrapped"        -> rot[e.n].srcs \subseteq e.srcs /\ Rewrapped(e.n)
    [] e.a = "Retire"           -> Retire(e.n)
    [] e.a = "Complete"         -> rot[e.n].srcs \subseteq e.srcs /\ Complete(e.n)

Says(e) ==
  /\ IF ptr' # ptr THEN e.ptr = ptr' ELSE e.ptr.kek \in {0, ptr.kek}
  /\ \A k \in KEK : IF e.keks[k] = "unsaid" THEN kek'[k] = kek[k] ELSE e.keks[k] = kek'[k]
  /\ e.ph # "unsaid" => LET r == rot'[e.n] IN e.ph = r.ph /\ e.mode = r.mode /\ e.old = r.old /\ e.new = r.new

TNext ==
  /\ i <= Len(Chains[t])
  /\ Is(Chains[t][i]) /\ Says(Chains[t][i])
  /\ PrintT(<<"explained", t, i>>)
  /\ i' = i + 1 /\ t' = t

TSpec == TInit /\ [][TNext]_<<vars, t, i>>
=============================================================================
