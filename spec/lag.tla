---------------------------------- MODULE lag ----------------------------------
(***************************************************************************)
(* KMS as AWS documents it: eventually consistent. Each host of KMS learns *)
(* of a new key, of its tag and of a DisableKey at its own time. Until     *)
(* all of them know, a call on that key may be served or refused, and the  *)
(* next call the other way.                                                *)
(*                                                                         *)
(* The configuration replaces what rotation.tla says of one call by what   *)
(* is said here: Serves <- LagServes, Refuses <- LagRefuses, KnownToAll <- *)
(* LagKnownToAll. PointerUsable then means: usable on every host.          *)
(*                                                                         *)
(* Changes become known in the order in which they were made. This is what *)
(* a bound in time says (AWS documents five minutes): when a change that   *)
(* old is known, so are those before it. Steps.settleTime waits that long. *)
(***************************************************************************)
EXTENDS rotation, Sequences

VARIABLE news    \* keys with a change that some host does not know yet, the oldest change first

Untold == {news[i] : i \in 1 .. Len(news)}

LagServes(k)     == k \in on \/ k \in Untold
LagRefuses(k)    == k \notin on \/ k \in Untold
LagKnownToAll(k) == k \notin Untold

Changed == (on' \ on) \cup (on \ on')    \* one key at most: each action has one effect

LInit == Init /\ news = << >>
GoOn ==                 \* news is of keys that change
  /\ Next
  /\ \/ Changed = {} /\ news' = news
     \/ \E k \in Changed : news' = Append(SelectSeq(news, LAMBDA j : j # k), k)

Spread ==               \* the oldest change has reached every host
  /\ news # << >>
  /\ news' = Tail(news)
  /\ UNCHANGED vars

LNext == GoOn \/ Spread
LSpec == LInit /\ [][LNext]_<<vars, news>>

(* Not promised: verify asks one host whether an old key is dead.             *)
DeadEverywhere == \A n \in Rot : rot[n].ph = "completed" => rot[n].olds \cap Untold = {}
=================================================================================
