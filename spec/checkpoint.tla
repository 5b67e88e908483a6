------------------------------- MODULE checkpoint -------------------------------
(***************************************************************************)
(* A pass over the rows is concluded from its checkpoints, one for each    *)
(* segment (rotation.Checkpoint, walk.go). They are items of the control   *)
(* table. Here somebody else may write them too: a person with a role that *)
(* can, or one who sets the item back to what it was. Such a writer cannot make *)
(* a MAC (rotation.SealCheckpoints), but can copy every MAC that he saw.   *)
(*                                                                         *)
(* Rows, steps and their order are those of rotation.tla; this module says *)
(* why its `clean` may be read from the checkpoints: a pass is concluded   *)
(* only if a worker of this pass has read every page of every segment.     *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets, TLC

CONSTANTS
  Segment,    \* the segments of the source
  MaxRot,     \* how many rotations
  MaxForged,  \* how many items somebody else writes
  Restarts    \* a pass may begin from the start

VARIABLES
  n,          \* the rotation that runs
  p,          \* its pass: "confirm", then "verify"
  store,      \* the checkpoint of each segment in this pass
  made,       \* the MACs that exist: what each was made for
  looked,     \* pages that a worker of this pass has read
  blind,      \* a pass was concluded although a page was not read
  forged      \* how many items somebody else has written

vars == <<n, p, store, made, looked, blind, forged>>

Pages   == 2                                      \* of each segment
NoMAC   == [n |-> 0, p |-> "none", s |-> "none", page |-> 0, done |-> FALSE]
Absent  == [page |-> 0, done |-> FALSE, mac |-> NoMAC]
Start   == [s \in Segment |-> Absent]

For(s, page, done) == [n |-> n, p |-> p, s |-> s, page |-> page, done |-> done]
Authentic(s)       == store[s].mac = For(s, store[s].page, store[s].done)
Kept(s)            == IF store[s].mac = NoMAC THEN Absent ELSE store[s]
Usable(s)          == Kept(s) = Absent \/ Authentic(s)

Init ==
  /\ n = 1 /\ p = "confirm" /\ store = Start /\ made = {} /\ looked = {} /\ blind = FALSE /\ forged = 0

(* A worker reads the next page and saves where it is. Without a MAC it begins *)
(* at the first page. One that finds a false MAC stops: a person looks.        *)
ReadPage(s) ==
  LET page == Kept(s).page + 1  done == page = Pages
      mac  == For(s, page, done) IN
  /\ Usable(s) /\ ~Kept(s).done /\ page <= Pages
  /\ store' = [store EXCEPT ![s] = [page |-> page, done |-> done, mac |-> mac]]
  /\ made' = made \cup {mac}
  /\ looked' = looked \cup {<<s, page>>}
  /\ UNCHANGED <<n, p, blind, forged>>

Conclude ==
  /\ \A s \in Segment : Usable(s) /\ Kept(s).done
  /\ blind' = (blind \/ looked # Segment \X (1 .. Pages))
  /\ IF p = "confirm" THEN p' = "verify" /\ n' = n ELSE p' = "confirm" /\ n' = n + 1
  /\ n' <= MaxRot
  /\ store' = Start /\ looked' = {}               \* other items, by the key
  /\ UNCHANGED <<made, forged>>

Restart ==          \* Steps.restartPass
  /\ Restarts
  /\ store' = Start /\ looked' = {}
  /\ UNCHANGED <<n, p, made, blind, forged>>

Forge(s) ==         \* somebody else writes the item, or deletes it
  /\ forged < MaxForged /\ forged' = forged + 1
  /\ \E page \in 0 .. Pages, done \in BOOLEAN, mac \in made \cup {NoMAC} :
       store' = [store EXCEPT ![s] = [page |-> page, done |-> done, mac |-> mac]]
  /\ UNCHANGED <<n, p, made, looked, blind>>

Next == Conclude \/ Restart \/ \E s \in Segment : ReadPage(s) \/ Forge(s)
Spec == Init /\ [][Next]_vars

(* What a conclusion says was looked at.                                       *)
SeenWhole == ~blind

Sym == Permutations(Segment)
NeverTwo == ~(n = 2 /\ p = "verify")              \* must be violated
=================================================================================
