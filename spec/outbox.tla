-------------------------------- MODULE outbox --------------------------------
(***************************************************************************)
(* The audit chain: from a change in the control table to a write-once     *)
(* object in the bucket (journal.Registry.Apply, Journal.Publish,          *)
(* journal.Outbox, journal.AuditBucket; package audit).                    *)
(*                                                                         *)
(* An event is a number: the i-th change that was made; 0 is the beginning *)
(* of a generation. An object is [gen, seq, ev]: its key, which is the     *)
(* generation and the place in the chain, and the event that it tells of.  *)
(* Others may write into the bucket too, at any key that they know of: a   *)
(* person, a compromised function, or these steps themselves before the    *)
(* control table was set back to an earlier time. Their objects are        *)
(* Foreign. Where one is in the way, the chain goes on in a new            *)
(* generation, whose keys nobody knew before.                              *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets, TLC

CONSTANTS
  MaxEvent,   \* how many changes are made
  Publisher,  \* steps that publish, at once and again
  MaxForeign, \* how many objects others put
  Restores    \* the control table may be set back to an earlier time, once

VARIABLES
  made,     \* changes made in the control table
  outbox,   \* the outbox: a sequence of events; the place is the seq
  from,     \* where each generation begins (AUDIT_HEAD.generations): a sequence of seqs
  marked,   \* published up to here (AUDIT_HEAD.published_seq)
  bucket,   \* what is stored: a set of [gen, seq, ev]
  pub,      \* publishers: the records in hand, and how far each has put them
  done,     \* events whose step has returned success
  restored  \* the control table was set back

vars == <<made, outbox, from, marked, bucket, pub, done, restored>>

Foreign == MaxEvent + 1
Resting == [pc |-> "idle", todo |-> {}, mark |-> 0, gens |-> 0, box |-> <<>>]

Init ==
  /\ made = 0 /\ outbox = <<>> /\ from = <<1>> /\ marked = 0 /\ bucket = {} /\ done = {} /\ restored = FALSE
  /\ pub = [p \in Publisher |-> Resting]

Recorded(ev) == \E i \in 1 .. Len(outbox) : outbox[i] = ev
Gen(seq)     == Cardinality({g \in DOMAIN from : from[g] <= seq})
Taken(r)     == \E b \in bucket : b.gen = r.gen /\ b.seq = r.seq
Line         == {b \in bucket : b.gen = Gen(b.seq) /\ b.ev # Foreign}     \* the chain, as far as it is stored

Apply ==                \* Registry.Apply: the change and its record, seq and prev, in one transaction
  /\ made < MaxEvent
  /\ made' = made + 1
  /\ outbox' = Append(outbox, made + 1)
  /\ UNCHANGED <<from, marked, bucket, pub, done, restored>>

Plant(r) ==             \* somebody else writes an object, at a key that is free
  /\ Cardinality({b \in bucket : b.ev = Foreign}) < MaxForeign /\ ~Taken(r)
  /\ bucket' = bucket \cup {r}
  /\ UNCHANGED <<made, outbox, from, marked, pub, done, restored>>

Read(p) ==              \* Outbox.Unpublished: every record past the mark
  /\ pub[p].pc = "idle" /\ marked < Len(outbox)
  /\ pub' = [pub EXCEPT ![p] = [pc |-> "putting", mark |-> Len(outbox), gens |-> Len(from), box |-> outbox,
       todo |-> {[gen |-> Gen(i), seq |-> i, ev |-> outbox[i]] : i \in marked + 1 .. Len(outbox)}]]
  /\ UNCHANGED <<made, outbox, from, marked, bucket, done, restored>>

Put(p, r) ==            \* Vault.Put with If-None-Match: the same bytes again are no error, others halt
  /\ pub[p].pc = "putting" /\ r \in pub[p].todo
  /\ \A o \in pub[p].todo : r.seq <= o.seq          \* oldest first
  /\ IF Taken(r) /\ r \notin bucket                \* ErrTampered
       THEN /\ pub' = [pub EXCEPT ![p] = [@ EXCEPT !.pc = "halted", !.todo = {r}]]
            /\ UNCHANGED bucket
       ELSE /\ bucket' = bucket \cup {r}
            /\ pub' = [pub EXCEPT ![p].todo = @ \ {r}]
  /\ UNCHANGED <<made, outbox, from, marked, done, restored>>

Begin(p, r) ==          \* Outbox.Begin: a generation begins with the record that met another object, if none has meanwhile
                        \* and the chain is still the one that was read: its head is a hash of all of it
  /\ pub[p].pc = "halted" /\ r \in pub[p].todo
  /\ IF Len(from) = pub[p].gens /\ outbox = pub[p].box
       THEN from' = Append(from, r.seq) /\ outbox' = Append(outbox, 0)
       ELSE UNCHANGED <<from, outbox>>
  /\ pub' = [pub EXCEPT ![p] = Resting]
  /\ UNCHANGED <<made, marked, bucket, done, restored>>

Mark(p) ==              \* Outbox.MarkPublished: never back, and not before everything is put
  /\ pub[p].pc = "putting" /\ pub[p].todo = {}
  /\ marked' = IF pub[p].mark \in marked .. Len(outbox) THEN pub[p].mark ELSE marked    \* not past the head
  /\ pub' = [pub EXCEPT ![p] = Resting]
  /\ UNCHANGED <<made, outbox, from, bucket, done, restored>>

Crash(p) ==             \* between any two effects
  /\ pub[p].pc # "idle"
  /\ pub' = [pub EXCEPT ![p] = Resting]
  /\ UNCHANGED <<made, outbox, from, marked, bucket, done, restored>>

Return(ev) ==           \* Journal.Transition: finds its change made, and nothing left to publish
  /\ ev <= made /\ ev \notin done
  /\ \E i \in 1 .. marked : outbox[i] = ev
  /\ done' = done \cup {ev}
  /\ UNCHANGED <<made, outbox, from, marked, bucket, pub, restored>>

Restore(n) ==           \* point-in-time recovery to record n; steps that have read more go on
  /\ Restores /\ ~restored /\ n < Len(outbox)
  /\ restored' = TRUE
  /\ outbox' = SubSeq(outbox, 1, n)
  /\ from' = SubSeq(from, 1, 1 + Cardinality({i \in 1 .. n : outbox[i] = 0}))
  /\ marked' = IF marked > n THEN n ELSE marked
  /\ UNCHANGED <<made, bucket, pub, done>>

Plants    == \E g \in DOMAIN from, i \in 1 .. Len(outbox) + 1 : Plant([gen |-> g, seq |-> i, ev |-> Foreign])
Puts(p)   == \E r \in pub[p].todo : Put(p, r)
Begins(p) == \E r \in pub[p].todo : Begin(p, r)
SetBack   == \E n \in 0 .. Len(outbox) : Restore(n)

Next == \/ Apply
        \/ \E ev \in 1 .. MaxEvent : Return(ev)
        \/ Plants
        \/ \E p \in Publisher : Read(p) \/ Mark(p) \/ Crash(p) \/ Puts(p) \/ Begins(p)
        \/ SetBack

Spec == Init /\ [][Next]_vars
FairSpec ==             \* a publisher that is retried does not crash for ever
  /\ Spec /\ \A p \in Publisher : WF_vars(Read(p)) /\ SF_vars(Mark(p))
              /\ SF_vars(Begins(p))
              /\ \A i \in 1 .. MaxEvent + MaxForeign : SF_vars(\E r \in pub[p].todo : r.seq = i /\ Put(p, r))

AuditLinear ==          \* one object per key
  \A a, b \in bucket : a.gen = b.gen /\ a.seq = b.seq => a = b

AuditOnceInOrder ==     \* every change once, in the order in which they were made
  LET own == {b \in Line : b.ev > 0}
  IN \A a, b \in own : /\ a.ev = b.ev => a = b
                       /\ a.seq < b.seq => a.ev < b.ev

EveryEffectRecorded ==  \* no change without its record, no generation either
  /\ \A ev \in 1 .. made : Recorded(ev)
  /\ Len(from) = 1 + Cardinality({i \in DOMAIN outbox : outbox[i] = 0})

GenerationsInOrder ==   \* else nobody can tell where a record is
  \A i, j \in DOMAIN from : i < j => from[i] <= from[j]

MarkedIsStored ==       \* what is marked published is in the bucket, where the chain has its place
  \A i \in 1 .. marked : [gen |-> Gen(i), seq |-> i, ev |-> outbox[i]] \in bucket

DoneIsStored ==         \* a step that returned has its record in the bucket
  \A ev \in done : \E b \in Line : b.ev = ev

NoGaps ==               \* what is stored is the chain from its beginning on: no record before it is missing
  \A b \in Line : \A i \in 1 .. b.seq : [gen |-> Gen(i), seq |-> i, ev |-> outbox[i]] \in bucket

WrittenOnce  == [][bucket \subseteq bucket']_bucket
MarkMonotone == [][marked' >= marked]_marked

AllStored == \A ev \in 1 .. MaxEvent : made >= ev ~> \E b \in Line : b.ev = ev

Sym == Permutations(Publisher)
===============================================================================
