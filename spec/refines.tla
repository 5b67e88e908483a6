------------------------------- MODULE refines -------------------------------
(* Each behaviour of rotation.tla is one of evidence.tla, once what records do *)
(* not tell is taken away.                                                     *)
EXTENDS rotation

Stated(r) == [ph |-> r.ph, mode |-> r.mode, old |-> r.old, olds |-> r.olds, srcs |-> r.srcs, cnt |-> r.cnt, new |-> r.new,
            reh |-> r.reh, att |-> r.att]

Chain == INSTANCE evidence WITH Source <- Table, rot <- [n \in Rot |-> Stated(rot[n])]

ChainBegins       == Chain!Init
EachRecordIsAStep == [][Chain!Next]_(Chain!vars)
=============================================================================
