------------------------------ MODULE induction ------------------------------
(***************************************************************************)
(* The invariant of induction.py, clause by clause under the same names,   *)
(* over the variables of rotation.tla. TLC checks that it holds in every   *)
(* state of some variants, so that the proof is about this model and not   *)
(* about another one. docs/proof.md explains the clauses.                  *)
(***************************************************************************)
EXTENDS rotation

(* What induction.py keeps in variables of its own.                         *)
Epoch(k) ==
  LET named == {n \in Rot : rot[n].new = k /\ rot[n].ep # 0} IN
  IF k = 1 THEN 1 ELSE IF named = {} THEN 0 ELSE rot[CHOOSE n \in named : TRUE].ep
Left(k)    == \E n \in Rot : k \in rot[n].olds
Exposes(k) == \E n \in Rot : /\ rot[n].mode = "emergency" /\ Reached(n, "retired")
                             /\ \E i \in 1 .. n : k \in rot[i].olds

Running_(n)   == rot[n].ph \notin Final \cup {"none"}
SameTag(j, k) == tag[j] = tag[k]
Hopeless(k)   ==
  \/ kek[k] = "retired"
  \/ /\ kek[k] = "none"
     /\ \/ k \notin owner /\ \E j \in owner : SameTag(j, k)
        \/ tag[k].a < rot[tag[k].n].att
        \/ rot[tag[k].n].ph \in Final
Fresh(k, d) == (NotYet(k) \/ \E n \in Rot : rot[n].new = k /\ rot[n].mode = "emergency") => Born(d) = k

Pointer ==
  /\ ptr.ep >= 1 /\ Epoch(ptr.kek) = ptr.ep /\ kek[ptr.kek] = "active"
  /\ \A k \in KEK \ {ptr.kek} : Epoch(k) < ptr.ep /\ kek[k] # "active"

Epochs ==
  \A k \in KEK :
    /\ Epoch(k) > 0 => k \in Registered \/ kek[k] = "retired"
    /\ kek[k] \in {"active", "draining"} => Epoch(k) > 0
    /\ kek[k] = "sealed" => Epoch(k) > 0 \/ k \in Past
    /\ k \in Past => Epoch(k) = 0 /\ tag[k] = NoTag /\ kek[k] \in {"none", "sealed", "retired"}

RetiredIsOlder ==
  \A k, j \in KEK : kek[k] = "retired" /\ j \in Registered /\ Epoch(j) > 0 => Epoch(k) < Epoch(j)

Lock ==
  \A n \in Rot : (lock = n <=> Running_(n)) /\ (lock # 0 /\ rot[n].ph # "none" => n <= lock)

Record ==
  \A n \in Rot : LET x == rot[n] IN
    /\ x.ph = "none" => x.new = 0 /\ x.olds = {}
    /\ x.ph \in PreSw \cup {"none", "rolledback"} => x.ep = 0
    /\ x.ph = "started" => x.new = 0
    /\ x.ph \in {"minted", "tested"} => kek[x.new] = "pending"
    /\ x.ph \in {"rolledback", "superseded"} /\ x.new # 0 /\ x.ep = 0 => kek[x.new] = "retired"
    /\ Once(n, "switched") => x.ep # 0
    /\ x.was # "none" => x.ph \in {"rolledback", "superseded"}
    /\ x.ep # 0 => x.new # 0 /\ x.ep = Epoch(x.new)
    /\ x.ph = "rolledback" => x.mode = "normal"

Running ==
  lock # 0 =>
    /\ rot[lock].ph \in PreSw => rot[lock].old = ptr.kek /\ ptr.kek \in rot[lock].olds
    /\ rot[lock].ep # 0 => rot[lock].new = ptr.kek /\ rot[lock].ep = ptr.ep

Leaving ==
  \A k \in Registered \ {ptr.kek} :
    /\ lock = 0 \/ (rot[lock].ph \in PreSw /\ rot[lock].mode = "normal") => k \in Past /\ kek[k] = "sealed"
    /\ lock # 0 => k \in rot[lock].olds

Olds ==
  /\ \A n \in Rot : \A k \in rot[n].olds : rot[n].ep # 0 => Epoch(k) < rot[n].ep
  /\ \A k \in KEK : Left(k) => k \in Registered \/ kek[k] = "retired"
  /\ lock # 0 /\ rot[lock].ep # 0 => ~Left(ptr.kek)

LeftBehind == \A n \in Rot : Reached(n, "retired") => \A k \in rot[n].olds : kek[k] = "retired"

NotBeforeItsOlds ==
  \A n \in Rot : rot[n].ep # 0 /\ kek[rot[n].new] = "retired" => \A k \in rot[n].olds : kek[k] = "retired"

Scanned == \A k \in KEK : kek[k] = "retired" /\ (Epoch(k) > 0 \/ k \in Past) => ~Early(k)

Exposed == \A k \in KEK : Exposes(k) => kek[k] = "retired"

Fence ==
  /\ fence[ptr.kek] = Shard
  /\ \A k \in KEK :
       /\ fence[k] # {} => k = ptr.kek \/ kek[k] = "draining"
       /\ kek[k] = "draining" => lock # 0 /\ rot[lock].ph \in PreSw \cup {"switched"}

Keys_ ==
  /\ \A k \in Made :
       /\ tag[k].a \in 1 .. rot[tag[k].n].att /\ k # 1 /\ rot[tag[k].n].ph # "none"
       /\ kek[k] # "none" => k \in owner /\ (kek[k] = "retired" \/ rot[tag[k].n].new = k)
  /\ owner \subseteq Made
  /\ \A k \in KEK : kek[k] = "pending" => k \in Made /\ rot[tag[k].n].new = k /\ rot[tag[k].n].ph \in {"minted", "tested"}
  /\ \A k \in KEK \ (Made \cup {1} \cup Past) : kek[k] = "none" /\ Epoch(k) = 0 /\ k \notin on \cup doomed
  /\ \A j, k \in owner : SameTag(j, k) => j = k
  /\ \A n \in Rot : rot[n].new # 0 => tag[rot[n].new] = [n |-> n, a |-> rot[n].att] /\ kek[rot[n].new] # "none"

Enabled ==
  /\ \A k \in doomed : k \in Made /\ Hopeless(k)
  /\ \A k \in Made \ on : Hopeless(k)
  /\ \A k \in ({1} \cup Past) \ (Made \cup on) : kek[k] = "retired"
  /\ reaper.pc = "begun" => \A k \in reaper.set : tag[k].n = reaper.n

Sources ==
  /\ \A r \in Row : row[r] # NoRow => Told(TableOf(r))
  /\ lock # 0 /\ ~Reached(lock, "retired") => src \subseteq rot[lock].srcs

Writers ==
  \A w \in Writer : LET me == wr[w] IN me.pc # "idle" =>
    /\ Epoch(me.k) = me.e /\ me.e >= 1
    /\ me.d # 0 => Born(me.d) = me.k
    /\ me.pc = "wrapped" => me.d # 0 /\ TableOf(me.r) \in mark

Rows ==
  \A r \in Row : LET x == row[r] IN x # NoRow =>
    /\ x.real \in Registered \/ NotYet(x.real)
    /\ x.kid # 0 => x.kid \in Registered \/ NotYet(x.kid)
    /\ x.ep \in {0, Epoch(x.real)}
    /\ x.dek = x.ct /\ Fresh(x.real, x.ct)

NotExposed ==
  /\ \A r \in Row : row[r] # NoRow => ~Exposes(Born(row[r].ct))
  /\ backup # NoRow /\ Exposes(Born(backup.ct)) => kek[backup.real] = "retired"

Clean ==
  lock # 0 /\ rot[lock].ph = "rewrapped" /\ ~halt =>
    \A r \in clean : row[r].real \notin rot[lock].olds /\ row[r].kid \notin rot[lock].olds

Jobs ==
  \A n \in Rot, r \in Row : LET b == rw[n][r] IN b # NoWork =>       \* what rewrap workers carry
    /\ rot[n].ep # 0 /\ b.from \in rot[n].olds
    /\ b.with.kid = rot[n].new /\ b.with.real = rot[n].new /\ b.with.ep = rot[n].ep
    /\ IF rot[n].mode = "emergency" THEN Born(b.with.dek) = rot[n].new ELSE b.with.dek = b.dek

Backup ==
  backup # NoRow =>
    /\ Epoch(backup.real) > 0 \/ backup.real \in Past
    /\ backup.kid # 0 => Epoch(backup.kid) > 0 \/ backup.kid \in Past
    /\ backup.ep \in {0, Epoch(backup.real)}
    /\ backup.dek = backup.ct /\ Fresh(backup.real, backup.ct)

SwitchedBefore == RetireAfterSwitch

Off_ == \A n \in Rot : rot[n].ph = "completed" => rot[n].olds \cap on = {}
===============================================================================
