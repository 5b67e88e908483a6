-------------------------------- MODULE outbox --------------------------------
(***************************************************************************)
(* The audit chain: from a change in the control table to a write-once     *)
(* object in the bucket (rotation.Registry.Apply, Steps.publish,           *)
(* rotation.Outbox, rotation.Vault; package audit).                        *)
(*                                                                         *)
(* An event is a number: the i-th change that was made. A record is        *)
(* [seq, ev]: the place in the chain and the event that it tells of. The   *)
(* bucket maps an object key, which is the seq, to a record.               *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets, TLC

CONSTANTS
  MaxEvent,   \* how many changes are made
  Publisher,  \* steps that publish, at once and again
  Off         \* names of mechanisms taken away; {} is the code as it is

On(mechanism) == mechanism \notin Off

VARIABLES
  made,     \* changes made in the control table
  outbox,   \* the outbox: a sequence of events; the place is the seq
  marked,   \* published up to here (AUDIT_HEAD.published_seq)
  bucket,   \* what is stored: a set of [seq, ev]
  pub,      \* publishers: the records in hand, and how far each has put them
  done      \* events whose step has returned success

vars == <<made, outbox, marked, bucket, pub, done>>

Resting == [pc |-> "idle", todo |-> {}, mark |-> 0]

Init ==
  /\ made = 0 /\ outbox = <<>> /\ marked = 0 /\ bucket = {} /\ done = {}
  /\ pub = [p \in Publisher |-> Resting]

Recorded(ev) == \E i \in 1 .. Len(outbox) : outbox[i] = ev
Stored(seq)  == \E b \in bucket : b.seq = seq
Last == IF bucket = {} THEN 0 ELSE CHOOSE m \in {b.seq : b \in bucket} : \A b \in bucket : b.seq <= m

Apply ==                \* Registry.Apply: the change and its record, seq and prev, in one transaction
  /\ made < MaxEvent
  /\ made' = made + 1
  /\ outbox' = IF On("in-transaction") THEN Append(outbox, made + 1) ELSE outbox
  /\ UNCHANGED <<marked, bucket, pub, done>>

RecordLater(ev) ==      \* taken away: the record is a write of its own, which may never come
  /\ ~On("in-transaction") /\ ev <= made /\ ~Recorded(ev)
  /\ outbox' = Append(outbox, ev)
  /\ UNCHANGED <<made, marked, bucket, pub, done>>

Read(p) ==              \* Outbox.Unpublished: every record past the mark
  /\ pub[p].pc = "idle" /\ marked < Len(outbox)
  /\ pub' = [pub EXCEPT ![p] = [pc |-> "putting", mark |-> Len(outbox),
       todo |-> {[seq |-> IF On("seq-in-transaction") THEN i ELSE Last + i - marked, ev |-> outbox[i]] :
                 i \in marked + 1 .. Len(outbox)}]]
  /\ UNCHANGED <<made, outbox, marked, bucket, done>>

Put(p, r) ==            \* Vault.Put with If-None-Match: the same bytes again are no error, others halt
  /\ pub[p].pc = "putting" /\ r \in pub[p].todo
  /\ \A o \in pub[p].todo : r.seq <= o.seq          \* oldest first
  /\ IF On("write-once") /\ Stored(r.seq) /\ r \notin bucket
       THEN /\ pub' = [pub EXCEPT ![p] = IF On("seq-in-transaction") THEN [@ EXCEPT !.pc = "halted"] ELSE Resting]
            /\ UNCHANGED bucket
       ELSE /\ bucket' = bucket \cup {r}            \* without the condition the older one is shadowed
            /\ pub' = [pub EXCEPT ![p].todo = @ \ {r}]
  /\ UNCHANGED <<made, outbox, marked, done>>

Mark(p) ==              \* Outbox.MarkPublished: never back, and not before everything is put
  /\ pub[p].pc = "putting" /\ (On("put-before-mark") => pub[p].todo = {})
  /\ marked' = IF pub[p].mark > marked THEN pub[p].mark ELSE marked
  /\ pub' = [pub EXCEPT ![p] = Resting]
  /\ UNCHANGED <<made, outbox, bucket, done>>

Crash(p) ==             \* between any two effects
  /\ pub[p].pc # "idle"
  /\ pub' = [pub EXCEPT ![p] = Resting]
  /\ UNCHANGED <<made, outbox, marked, bucket, done>>

Return(ev) ==           \* Steps.transition: finds its change made, and nothing left to publish
  /\ ev <= made /\ ev \notin done
  /\ On("publish-before-done") => marked >= ev
  /\ done' = done \cup {ev}
  /\ UNCHANGED <<made, outbox, marked, bucket, pub>>

Next == \/ Apply
        \/ \E ev \in 1 .. MaxEvent : RecordLater(ev) \/ Return(ev)
        \/ \E p \in Publisher : Read(p) \/ Mark(p) \/ Crash(p) \/ \E r \in pub[p].todo : Put(p, r)

Spec == Init /\ [][Next]_vars
FairSpec ==             \* a publisher that is retried does not crash for ever
  /\ Spec /\ \A p \in Publisher : WF_vars(Read(p)) /\ SF_vars(Mark(p))
              /\ \A i \in 1 .. MaxEvent : SF_vars(\E r \in pub[p].todo : r.seq = i /\ Put(p, r))

AuditLinear ==          \* one record per sequence number
  \A a, b \in bucket : a.seq = b.seq => a = b

AuditOnceInOrder ==     \* every change once, in the order in which they were made
  \A a, b \in bucket : /\ a.ev = b.ev => a = b
                       /\ a.seq < b.seq => a.ev < b.ev

EveryEffectRecorded ==  \* no change without its record
  \A ev \in 1 .. made : Recorded(ev)

MarkedIsStored ==       \* what is marked published is in the bucket
  \A i \in 1 .. marked : \E b \in bucket : b.ev = outbox[i]

DoneIsStored ==         \* a step that returned has its record in the bucket
  \A ev \in done : \E b \in bucket : b.ev = ev

WrittenOnce  == [][bucket \subseteq bucket']_bucket
MarkMonotone == [][marked' >= marked]_marked

AllStored == \A ev \in 1 .. MaxEvent : made >= ev ~> \E b \in bucket : b.ev = ev

Sym == Permutations(Publisher)
===============================================================================
