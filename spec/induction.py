"""Proves the safety of rotation.tla for any number of rows, writers, KEKs and rotations.

TLC visits every state of rotation.tla, but only with one or two rows, writers and rotations.
This program proves the same promises without a bound, by induction: an invariant Inv holds at
the start, every action keeps it, and it implies the promises. z3 decides each of these steps.
docs/proof.md explains the invariant; TestInduction ties every action to its text in rotation.tla.

    .venv/bin/python spec/induction.py             prove everything
    .venv/bin/python spec/induction.py -v          name every step, with its time
    .venv/bin/python spec/induction.py -without X  take the mechanism X away, show a state that breaks
    .venv/bin/python spec/induction.py -json       the result as JSON, for the test

How to read an action: it returns its conditions and its effect. s is the state before it, and the
effect maps each variable that changes to its value after it. What an action does not name stays.
Where the action leaves a condition of rotation.tla out, it may happen more often than there, so the
proof covers more. Names are those of rotation.tla.
"""

import json
import sys
import time

import z3
from z3 import And, If, Implies, Not, Or

# ---------------------------------------------------------------------------------------------
# Sorts. In a proof a sort has any number of elements. In the search for a counterexample it has
# the number of elements that is written here.

SORTS = {"Row": 1, "Table": 2, "Shard": 1, "Writer": 1, "Kek": 4, "Rot": 3, "Job": 1, "Backup": 1, "Sweep": 1, "Dek": 3}
PHASES = ["none", "started", "minted", "tested", "switched", "drained", "rewrapped", "retired", "completed", "rolledback", "superseded"]
STATES = ["none", "pending", "active", "draining", "sealed", "retired"]
STAGES = ["idle", "loaded", "leased", "ready", "wrapped"]
Phase, PH = z3.EnumSort("Phase", ["ph_" + p for p in PHASES])
State, KS = z3.EnumSort("State", ["kek_" + k for k in STATES])
Stage, PC = z3.EnumSort("Stage", ["pc_" + p for p in STAGES])
ph = dict(zip(PHASES, PH))
st = dict(zip(STATES, KS))
pc = dict(zip(STAGES, PC))

INT, BOOL = z3.IntSort(), z3.BoolSort()

# The variables, each with the sorts of its arguments and of its value. The name in rotation.tla
# follows where it differs.
VARIABLES = {
    # The registry and KMS.
    "kek": ("Kek", State),
    "on": ("Kek", BOOL),
    "epoch": ("Kek", INT),  # at which the pointer named the KEK, 0 if it never did: rot[n].ep of the n with rot[n].new = k
    "scanned": ("Kek", BOOL),  # a second scan has begun of it: not Early
    "left": ("Kek", BOOL),  # a rotation leaves it: in some rot[n].olds
    "exposed": ("Kek", BOOL),  # an emergency that has retired its old KEKs, or a rotation before it, leaves it
    "tagn": ("Kek", "Rot"), "taga": ("Kek", INT),  # tag
    "owner": ("Kek", BOOL),
    "doomed": ("Kek", BOOL),
    "sweep": ("Sweep", "Rot"), "found": ("Sweep", "Kek", BOOL),  # reaper; any number of sweeps
    # The rest of the control table.
    "ptr": ("Kek",), "ptrep": (INT,),
    "fence": ("Kek", "Shard", BOOL),
    "lock": ("Rot",),
    "phase": ("Rot", Phase), "was": ("Rot", Phase), "emergency": ("Rot", BOOL), "old": ("Rot", "Kek"),
    "olds": ("Rot", "Kek", BOOL), "new": ("Rot", "Kek"), "srcs": ("Rot", "Table", BOOL), "att": ("Rot", INT),
    "ep": ("Rot", INT),  # rot
    "src": ("Table", BOOL), "mark": ("Table", BOOL),
    "lease": ("Writer", "Kek", INT), "seen": ("Writer", "Kek", INT), "lost": (BOOL,),  # versions, 0 for none; harm
    # Rewrap.
    "clean": ("Row", BOOL), "halt": (BOOL,),
    "jn": ("Job", "Rot"), "jrow": ("Job", "Row"), "jfrom": ("Job", "Kek"), "jdek": ("Job", "Dek"),
    "jto": ("Job", "Kek"), "jep": ("Job", INT), "jwith": ("Job", "Dek"),  # rw; any number of workers to a row
    # The data plane.
    "there": ("Row", BOOL), "kid": ("Row", "Kek"), "real": ("Row", "Kek"), "rep": ("Row", INT),
    "dek": ("Row", "Dek"), "ct": ("Row", "Dek"),  # row
    "pc": ("Writer", Stage), "wk": ("Writer", "Kek"), "we": ("Writer", INT), "wdek": ("Writer", "Dek"),
    "wrow": ("Writer", "Row"), "wins": ("Writer", BOOL),  # wr
    "kept": ("Backup", BOOL), "bkid": ("Backup", "Kek"), "breal": ("Backup", "Kek"), "bep": ("Backup", INT),
    "bdek": ("Backup", "Dek"), "bct": ("Backup", "Dek"),  # backup; any number of them
}


class World:
    """The sorts and what never changes, for a proof or for the search for a counterexample."""

    def __init__(self, finite):
        self.finite, self.sorts, self.elements = finite, {}, {}
        for name, n in SORTS.items():
            if finite:
                self.sorts[name], self.elements[name] = z3.EnumSort(name + "_", [f"{name.lower()}{i}" for i in range(n)])
            else:
                self.sorts[name] = z3.DeclareSort(name)
        self.nokek, self.genesis = self.const("Kek", "nokek"), self.const("Kek", "genesis")
        self.norot, self.nodek = self.const("Rot", "norot"), self.const("Dek", "nodek")
        self.past = z3.Function("past", self.sorts["Kek"], BOOL)  # historic KEKs
        self.number = z3.Function("number", self.sorts["Rot"], INT)  # in the order in which they start
        self.table = z3.Function("table", self.sorts["Row"], self.sorts["Table"])  # TableOf
        self.born = z3.Function("born", self.sorts["Dek"], self.sorts["Kek"])  # Born

    def const(self, sort, name):
        return z3.Const(name, self.sort(sort))

    def sort(self, s):
        return self.sorts[s] if isinstance(s, str) else s

    def all(self, sort, body, join=And, quantifier=z3.ForAll):
        if self.finite:
            return join([body(e) for e in self.elements[sort]])
        x = self.const(sort, f"{sort.lower()}!{World.depth}")
        World.depth += 1
        b = body(x)
        World.depth -= 1
        return quantifier([x], b)

    depth = 0

    def state(self):
        """A state of which nothing is known, always the same one."""
        s = Bunch()
        for name, sorts in VARIABLES.items():
            sorts = [self.sort(x) for x in sorts]
            v = z3.Const(name, sorts[0]) if len(sorts) == 1 else cached(z3.Function(name, *sorts))
            s.values[name] = v
        return s

    def axioms(self):
        return And(
            self.nokek != self.genesis, Not(self.past(self.nokek)), Not(self.past(self.genesis)),
            all_("Rot", lambda n: all_("Rot", lambda m: Implies(self.number(n) == self.number(m), n == m))),
        )


def cached(f):
    """f, which builds the term for the same arguments once. Most of the time goes into building terms."""
    seen = {}

    def call(*xs):
        key = tuple(x.get_id() for x in xs)
        if key not in seen:
            seen[key] = xs, f(*xs)  # the arguments too: their ids are free once they are gone
        return seen[key][1]
    return call


class Bunch:
    """A state: a value or a function for each variable. It notes what is read of it."""

    def __init__(self):
        self.values, self.read = {}, set()

    def __getattr__(self, name):
        self.read.add(name)
        return self.values[name]

    def after(self, effect):
        assert effect.keys() <= VARIABLES.keys(), effect.keys() - VARIABLES.keys()
        t = Bunch()
        t.values = self.values | {name: cached(v) if callable(v) else v for name, v in effect.items()}
        return t


UNBOUNDED, FINITE = World(False), World(True)
W = UNBOUNDED  # the world that formulas are built in
OFF = set()  # mechanisms taken away
ASKED = set()  # mechanisms that a formula asked for


def on(mechanism):
    assert mechanism in WITHOUT, mechanism
    ASKED.add(mechanism)
    return mechanism not in OFF


def needs(mechanism, condition):
    """The condition, unless the mechanism is taken away."""
    return condition if on(mechanism) else z3.BoolVal(True)


def all_(sort, body):
    return W.all(sort, body)


def some(sort, body):
    return W.all(sort, body, Or, z3.Exists)


def put(f, *at):
    """put(f, x, v) is f with f(x) = v; put(f, x, y, v) likewise."""
    *at, value = at
    return lambda *xs: If(And([x == a for x, a in zip(xs, at)]), value, f(*xs))


def within(x, names, of):
    return Or([x == of[n] for n in names.split()])


def never(*_):
    return z3.BoolVal(False)


# ---------------------------------------------------------------------------------------------
# What rotation.tla defines under the same names.

ORDER = PHASES[1:9]  # Order


def reached(p, name):
    return Or([p == ph[x] for x in ORDER[ORDER.index(name):]])


def Reached(s, n, name):
    return reached(s.phase(n), name)


def Once(s, n, name):
    return Or(reached(s.was(n), name), Reached(s, n, name))


def Final(p):
    return within(p, "completed rolledback superseded", ph)


def PreSw(p):
    return within(p, "started minted tested", ph)


def At(s, n, name):
    return And(n != W.norot, s.phase(n) == ph[name], needs("lock", s.lock == n))


def Registered(s, k):
    return within(s.kek(k), "active draining sealed", st)


def NotYet(s, k):
    return And(W.past(k), s.kek(k) == st["none"])


def Resolves(s, k):
    return And(s.on(k), Or(Registered(s, k), NotYet(s, k)))


def Made(s, k):
    return s.tagn(k) != W.norot


def Told(s, t):
    return Or(s.src(t), s.mark(t))


def Early(s, k):
    return Not(s.scanned(k))


def Unstarted(s, n):
    return And(n != W.norot, all_("Rot", lambda i: Implies(i != W.norot, (W.number(i) < W.number(n)) == (s.phase(i) != ph["none"]))))


def SameTag(s, j, k):
    return And(s.tagn(j) == s.tagn(k), s.taga(j) == s.taga(k))


def Hopeless(s, k):
    """A key that no rotation can register any more."""
    n = s.tagn(k)
    return Or(s.kek(k) == st["retired"],
              And(s.kek(k) == st["none"],
                  Or(And(Not(s.owner(k)), some("Kek", lambda j: And(s.owner(j), SameTag(s, j, k)))),
                     s.taga(k) < s.att(n), Final(s.phase(n)))))


# ---------------------------------------------------------------------------------------------
# The invariant: the conjunction of these clauses.

CLAUSES, ACTIONS, PROMISES, STEPS = {}, {}, {}, {}


def named(table):
    def register(f):
        table[f.__name__] = f
        return f
    return register


clause, action, promise, step = named(CLAUSES), named(ACTIONS), named(PROMISES), named(STEPS)


@clause
def Nothing(s):
    """No KEK, no rotation and no DEK are none of the others."""
    return And(s.kek(W.nokek) == st["none"], Not(s.on(W.nokek)), s.epoch(W.nokek) == 0, Not(Made(s, W.nokek)),
               s.phase(W.norot) == ph["none"], s.new(W.norot) == W.nokek, s.ep(W.norot) == 0)


@clause
def Pointer(s):
    """The pointer's KEK is the one that is active; epochs count up to its own."""
    return And(s.ptrep >= 1, s.epoch(s.ptr) == s.ptrep, s.kek(s.ptr) == st["active"],
               all_("Kek", lambda k: And(s.epoch(k) >= 0, Implies(k != s.ptr, s.epoch(k) < s.ptrep), Implies(s.kek(k) == st["active"], k == s.ptr))))


@clause
def Epochs(s):
    """A KEK has an epoch from its switch on; a historic KEK has none, and no rotation has made it."""
    return all_("Kek", lambda k: And(
        Implies(s.epoch(k) > 0, Or(Registered(s, k), s.kek(k) == st["retired"])),
        Implies(within(s.kek(k), "active draining", st), s.epoch(k) > 0),
        Implies(s.kek(k) == st["sealed"], Or(s.epoch(k) > 0, W.past(k))),
        Implies(W.past(k), And(s.epoch(k) == 0, Not(Made(s, k)), within(s.kek(k), "none sealed retired", st)))))


@clause
def RetiredIsOlder(s):
    """The pointer named every retired KEK before every KEK that resolves and that it has named."""
    return all_("Kek", lambda k: all_("Kek", lambda j: Implies(
        And(s.kek(k) == st["retired"], Registered(s, j), s.epoch(j) > 0), s.epoch(k) < s.epoch(j))))


@clause
def Lock(s):
    """The lock is held by the one rotation that runs, and that is the last to have started."""
    return all_("Rot", lambda n: And(
        Implies(n != W.norot, (s.lock == n) == Not(Or(s.phase(n) == ph["none"], Final(s.phase(n))))),
        Implies(And(s.lock != W.norot, s.phase(n) != ph["none"]), W.number(n) <= W.number(s.lock))))


@clause
def Record(s):
    """What a rotation's record says in each phase."""
    def of(n):
        p, k = s.phase(n), s.new(n)
        return And(
            Implies(p == ph["none"], And(k == W.nokek, all_("Kek", lambda j: Not(s.olds(n, j))))),
            Implies(within(p, "none started minted tested rolledback", ph), s.ep(n) == 0),
            Implies(p == ph["started"], k == W.nokek),
            Implies(within(p, "minted tested", ph), s.kek(k) == st["pending"]),
            Implies(within(p, "rolledback superseded", ph), Implies(And(k != W.nokek, s.ep(n) == 0), s.kek(k) == st["retired"])),
            Implies(Once(s, n, "switched"), s.ep(n) != 0),
            Implies(s.was(n) != ph["none"], within(p, "rolledback superseded", ph)),
            Implies(s.ep(n) != 0, And(k != W.nokek, s.ep(n) == s.epoch(k), s.ep(n) >= 1, n != W.norot)),
            Implies(p == ph["rolledback"], Not(s.emergency(n))))
    return all_("Rot", of)


@clause
def Running(s):
    """The pointer is the old KEK's until the switch of the rotation that runs, then the new one's."""
    n = s.lock
    return Implies(n != W.norot, And(
        Implies(PreSw(s.phase(n)), And(s.old(n) == s.ptr, s.olds(n, s.ptr))),
        Implies(s.ep(n) != 0, And(s.new(n) == s.ptr, s.ep(n) == s.ptrep))))


@clause
def Leaving(s):
    """The rotation that runs leaves every KEK of the registry but the one that it has switched to. Where a normal one may still be rolled back these are historic KEKs."""
    n = s.lock
    calm = Or(n == W.norot, And(PreSw(s.phase(n)), Not(s.emergency(n))))
    return all_("Kek", lambda k: Implies(And(Registered(s, k), k != s.ptr), And(
        Implies(calm, And(W.past(k), s.kek(k) == st["sealed"])), Implies(n != W.norot, s.olds(n, k)))))


@clause
def Olds(s):
    """What rotations leave is registered or retired; a rotation that has switched does not leave its new KEK, nor has one before it."""
    return And(
        all_("Rot", lambda n: all_("Kek", lambda k: Implies(s.olds(n, k), And(
            n != W.norot, s.left(k), Implies(s.ep(n) != 0, s.epoch(k) < s.ep(n)))))),
        all_("Kek", lambda k: Implies(s.left(k), And(k != W.nokek, Or(Registered(s, k), s.kek(k) == st["retired"])))),
        Implies(And(s.lock != W.norot, s.ep(s.lock) != 0), Not(s.left(s.ptr))))


@clause
def LeftBehind(s):
    """After the retirement every KEK that the rotation leaves is retired."""
    return all_("Rot", lambda n: Implies(Reached(s, n, "retired"), all_("Kek", lambda k: Implies(
        s.olds(n, k), s.kek(k) == st["retired"]))))


@clause
def NotBeforeItsOlds(s):
    """No KEK is retired before those that its rotation leaves."""
    return all_("Rot", lambda n: all_("Kek", lambda k: Implies(
        And(s.ep(n) != 0, s.olds(n, k), s.kek(s.new(n)) == st["retired"]), s.kek(k) == st["retired"])))


@clause
def Scanned(s):
    """A second scan has begun of every retired KEK that a row may have been under."""
    return And(all_("Kek", lambda k: Implies(And(s.kek(k) == st["retired"], Or(s.epoch(k) > 0, W.past(k))), s.scanned(k))),
               Implies(Reached(s, s.lock, "rewrapped"), all_("Kek", lambda k: Implies(s.olds(s.lock, k), s.scanned(k)))))


@clause
def Exposed(s):
    """What an emergency has exposed is retired."""
    return And(all_("Kek", lambda k: Implies(s.exposed(k), s.kek(k) == st["retired"])),
               all_("Rot", lambda n: Implies(And(s.emergency(n), Reached(s, n, "retired")), all_("Rot", lambda i: all_("Kek", lambda k: Implies(
                   And(W.number(i) <= W.number(n), s.olds(i, k)), s.exposed(k)))))))


@clause
def Fence(s):
    """A shard is open only of the pointer's KEK, all of them, or of one that drains; nothing drains after the seal."""
    return And(all_("Shard", lambda h: s.fence(s.ptr, h)),
               all_("Kek", lambda k: And(
                   all_("Shard", lambda h: Implies(s.fence(k, h), Or(k == s.ptr, s.kek(k) == st["draining"]))),
                   Implies(s.kek(k) == st["draining"], And(s.lock != W.norot, within(s.phase(s.lock), "started minted tested switched", ph))))))


@clause
def Keys(s):
    """A key has one tag and an alias has one key; what is registered owns the alias of its attempt."""
    def of(k):
        n = s.tagn(k)
        return And(
            Implies(Made(s, k), And(s.taga(k) >= 1, s.taga(k) <= s.att(n), k != W.genesis, s.phase(n) != ph["none"])),
            Implies(s.owner(k), Made(s, k)),
            Implies(And(Made(s, k), s.kek(k) != st["none"]), And(s.owner(k), Or(s.kek(k) == st["retired"], s.new(n) == k))),
            Implies(s.kek(k) == st["pending"], And(Made(s, k), s.new(n) == k, within(s.phase(n), "minted tested", ph))),
            Implies(And(Not(Made(s, k)), k != W.genesis, Not(W.past(k))), And(s.kek(k) == st["none"], s.epoch(k) == 0, Not(s.on(k)), Not(s.doomed(k)))),
            all_("Kek", lambda j: Implies(And(s.owner(j), s.owner(k), SameTag(s, j, k)), j == k)))
    return And(all_("Kek", of), all_("Rot", lambda n: Implies(s.new(n) != W.nokek, And(
        s.tagn(s.new(n)) == n, s.taga(s.new(n)) == s.att(n), s.kek(s.new(n)) != st["none"]))))


@clause
def Enabled(s):
    """What is disabled, or will be, is retired or can no longer be registered. A sweep has found keys of its own rotation."""
    return And(
        all_("Kek", lambda k: And(
            Implies(s.doomed(k), And(Made(s, k), Hopeless(s, k))),
            Implies(And(Made(s, k), Not(s.on(k))), Hopeless(s, k)),
            Implies(And(Not(Made(s, k)), Or(W.past(k), k == W.genesis), Not(s.on(k))), s.kek(k) == st["retired"]))),
        all_("Sweep", lambda q: all_("Kek", lambda k: Implies(And(s.sweep(q) != W.norot, s.found(q, k)), s.tagn(k) == s.sweep(q)))),
        all_("Sweep", lambda q: Implies(s.sweep(q) != W.norot, s.phase(s.sweep(q)) != ph["none"])))


@clause
def Sources(s):
    """A row is in a table that is a source or marked; the rotation that runs looks at every source."""
    return And(
        all_("Row", lambda r: Implies(s.there(r), Told(s, W.table(r)))),
        Implies(And(s.lock != W.norot, Not(Reached(s, s.lock, "retired"))), all_("Table", lambda t: Implies(s.src(t), s.srcs(s.lock, t)))))


@clause
def Writers(s):
    """A writer has a KEK, the epoch and a DEK that belong together; it has marked the table before it writes."""
    return all_("Writer", lambda w: Implies(s.pc(w) != pc["idle"], And(
        s.epoch(s.wk(w)) == s.we(w), s.we(w) >= 1,
        Implies(s.wdek(w) != W.nodek, W.born(s.wdek(w)) == s.wk(w)),
        Implies(s.pc(w) == pc["wrapped"], And(s.wdek(w) != W.nodek, s.mark(W.table(s.wrow(w))))))))


def fresh(s, k, d):
    """Under an emergency's KEK, and under one that nobody has registered, are only DEKs that were made under it."""
    return Implies(Or(NotYet(s, k), And(Made(s, k), s.new(s.tagn(k)) == k, s.emergency(s.tagn(k)))), W.born(d) == k)


@clause
def Rows(s):
    """The KEKs of a row resolve; its epoch is that of the KEK that wraps its DEK, or there is none."""
    return all_("Row", lambda r: Implies(s.there(r), And(
        s.real(r) != W.nokek, Or(Registered(s, s.real(r)), NotYet(s, s.real(r))),
        Implies(s.kid(r) != W.nokek, Or(Registered(s, s.kid(r)), NotYet(s, s.kid(r)))),
        Or(s.rep(r) == 0, s.rep(r) == s.epoch(s.real(r))),
        s.dek(r) == s.ct(r), fresh(s, s.real(r), s.ct(r)))))


@clause
def NotExposed(s):
    """No row is under an exposed DEK; a backup that is has a retired KEK."""
    return And(all_("Row", lambda r: Implies(s.there(r), Not(s.exposed(W.born(s.ct(r)))))),
               all_("Backup", lambda b: Implies(And(s.kept(b), s.exposed(W.born(s.bct(b)))), s.kek(s.breal(b)) == st["retired"])))


@clause
def Clean(s):
    """What the second scan has seen, with no halt since it began, is not under a KEK that is left."""
    n = s.lock
    return Implies(And(n != W.norot, s.phase(n) == ph["rewrapped"], Not(s.halt)), all_("Row", lambda r: Implies(
        And(s.clean(r), s.there(r)), And(Not(s.olds(n, s.real(r))), Not(s.olds(n, s.kid(r)))))))


@clause
def Jobs(s):
    """A rewrap worker, however old, carries a row from a KEK that its rotation leaves to that rotation's new one."""
    def of(j):
        n = s.jn(j)
        return Implies(n != W.norot, And(
            s.ep(n) != 0, s.olds(n, s.jfrom(j)), s.jto(j) == s.new(n), s.jep(j) == s.ep(n),
            If(s.emergency(n), W.born(s.jwith(j)) == s.new(n), s.jwith(j) == s.jdek(j))))
    return all_("Job", of)


@clause
def Backups(s):
    """A backup is as some row was."""
    return all_("Backup", lambda b: Implies(s.kept(b), And(
        Or(s.epoch(s.breal(b)) > 0, W.past(s.breal(b))),
        Implies(s.bkid(b) != W.nokek, Or(s.epoch(s.bkid(b)) > 0, W.past(s.bkid(b)))),
        Or(s.bep(b) == 0, s.bep(b) == s.epoch(s.breal(b))),
        s.bdek(b) == s.bct(b), fresh(s, s.breal(b), s.bct(b)))))


@clause
def Leases(s):
    """No lease was revoked after it was renewed. No other clause speaks of leases."""
    return Not(s.lost)


@clause
def SwitchedBefore(s):
    """A retired old KEK is one that a rotation has switched away from."""
    return all_("Rot", lambda n: all_("Kek", lambda k: Implies(
        And(s.olds(n, k), s.kek(k) == st["retired"]), some("Rot", lambda m: And(s.olds(m, k), s.ep(m) != 0)))))


@clause
def Off(s):
    """A rotation that is completed has left none of its old KEKs enabled."""
    return all_("Rot", lambda n: all_("Kek", lambda k: Implies(And(s.phase(n) == ph["completed"], s.olds(n, k)), Not(s.on(k)))))


def Inv(s):
    return And([c(s) for c in CLAUSES.values()])


def Init(s):
    """The state of a site at its genesis."""
    return And(
        all_("Kek", lambda k: And(
            s.kek(k) == If(k == W.genesis, st["active"], st["none"]), s.on(k) == Or(k == W.genesis, W.past(k)),
            s.epoch(k) == If(k == W.genesis, 1, 0), s.tagn(k) == W.norot, Not(s.owner(k)), Not(s.doomed(k)),
            Not(s.scanned(k)), Not(s.left(k)), Not(s.exposed(k)),
            all_("Shard", lambda h: s.fence(k, h) == (k == W.genesis)))),
        s.ptr == W.genesis, s.ptrep == 1, s.lock == W.norot, Not(s.halt), Not(s.lost),
        all_("Rot", lambda n: And(
            s.phase(n) == ph["none"], s.was(n) == ph["none"], s.ep(n) == 0, s.new(n) == W.nokek, Not(s.emergency(n)),
            all_("Kek", lambda k: Not(s.olds(n, k))))),
        all_("Row", lambda r: And(Not(s.clean(r)), Implies(s.there(r), And(
            Or(s.real(r) == W.genesis, W.past(s.real(r))), s.kid(r) == s.real(r), W.born(s.ct(r)) == s.real(r), s.dek(r) == s.ct(r),
            s.rep(r) == If(s.real(r) == W.genesis, 1, 0), Told(s, W.table(r)))))),
        all_("Writer", lambda w: s.pc(w) == pc["idle"]), all_("Job", lambda j: s.jn(j) == W.norot),
        all_("Backup", lambda b: Not(s.kept(b))), all_("Sweep", lambda q: s.sweep(q) == W.norot))


# ---------------------------------------------------------------------------------------------
# The actions. Data plane.


@action
def PutMark(s, w: "Writer", t: "Table"):
    return [s.pc(w) != pc["idle"]], dict(mark=put(s.mark, t, True))


@action
def Load(s, w: "Writer"):
    return [s.pc(w) == pc["idle"]], dict(
        pc=put(s.pc, w, pc["loaded"]), wk=put(s.wk, w, s.ptr), we=put(s.we, w, s.ptrep), wdek=put(s.wdek, w, W.nodek))


# Leases. The conditions of the seal that wait for them (Drained) are left out: safety rests on none.


@action
def PutLease(s, w: "Writer"):
    """Or none: a writer that holds no lease writes all the same."""
    return [s.pc(w) == pc["loaded"]], dict(
        pc=put(s.pc, w, pc["leased"]), lease=put(s.lease, w, s.wk(w), 1))


@action
def RecheckPtr(s, w: "Writer"):
    """Or no recheck; a writer that finds another epoch is Crash."""
    return [within(s.pc(w), "loaded leased", pc)], dict(pc=put(s.pc, w, pc["ready"]))


@action
def Renew(s, w: "Writer"):
    """A holder that finds its lease revoked is Crash."""
    k = s.wk(w)
    return [s.pc(w) != pc["idle"], s.lease(w, k) > 0], dict(lease=put(s.lease, w, k, s.lease(w, k) + 1))


@action
def DropLease(s, w: "Writer", k: "Kek"):
    return [], dict(lease=put(s.lease, w, k, 0))


@action
def DrainJudge(s, w: "Writer", k: "Kek"):
    return [s.lease(w, k) > 0], dict(seen=put(s.seen, w, k, s.lease(w, k)))


@action
def Revoke(s, w: "Writer", k: "Kek"):
    hit = And(s.lease(w, k) > 0, needs("revoke-condition", s.lease(w, k) == s.seen(w, k)))
    return [s.seen(w, k) > 0], dict(
        seen=put(s.seen, w, k, 0), lease=put(s.lease, w, k, If(hit, 0, s.lease(w, k))),
        lost=Or(s.lost, And(hit, s.lease(w, k) != s.seen(w, k))))


@action
def Wrap(s, w: "Writer", r: "Row", d: "Dek", cached: BOOL):
    """A DEK from KMS, or the one that the writer has; a disabled key is Crash."""
    return [s.pc(w) == pc["ready"],
            If(cached, And(s.wdek(w) != W.nodek, d == s.wdek(w)), And(s.on(s.wk(w)), d != W.nodek, W.born(d) == s.wk(w))),
            needs("mark-first", s.mark(W.table(r)))], dict(
        pc=put(s.pc, w, pc["wrapped"]), wrow=put(s.wrow, w, r), wdek=put(s.wdek, w, d), wins=put(s.wins, w, Not(s.there(r))))


@action
def Commit(s, w: "Writer", h: "Shard", again: BOOL):
    """A write that is refused is Crash."""
    k, e, r, d = s.wk(w), s.we(w), s.wrow(w), s.wdek(w)
    insert = And(Not(s.there(r)), needs("insert-fence", s.fence(k, h)))
    update = And(s.there(r), If(s.rep(r) != 0, needs("update-epoch", s.rep(r) <= e), needs("update-fence", s.fence(k, h))))
    return [s.pc(w) == pc["wrapped"], If(s.wins(w), insert, update)], dict(
        there=put(s.there, r, True), kid=put(s.kid, r, k), real=put(s.real, r, k), rep=put(s.rep, r, e),
        dek=put(s.dek, r, d), ct=put(s.ct, r, d), pc=put(s.pc, w, If(again, pc["ready"], pc["idle"])))


@action
def Crash(s, w: "Writer"):
    return [], dict(pc=put(s.pc, w, pc["idle"]))


@action
def DeleteRow(s, r: "Row"):
    return [], dict(there=put(s.there, r, False))


@action
def TakeBackup(s, r: "Row", b: "Backup"):
    return [s.there(r)], dict(
        kept=put(s.kept, b, True), bkid=put(s.bkid, b, s.kid(r)), breal=put(s.breal, b, s.real(r)), bep=put(s.bep, b, s.rep(r)),
        bdek=put(s.bdek, b, s.dek(r)), bct=put(s.bct, b, s.ct(r)))


@action
def RestoreRow(s, r: "Row", b: "Backup", h: "Shard"):
    """Through the fence; or raw before the second scan begins, or while the execution has halted before the retirement."""
    k = s.breal(b)

    def free(x):
        return Or(needs("restore-early", Early(s, x)), And(s.halt, s.kek(x) != st["retired"]))
    return [s.kept(b), Not(s.there(r)), Told(s, W.table(r)),
            Or(And(s.bkid(b) == k, s.fence(k, h)),
               And(free(k), Or(s.bkid(b) == W.nokek, needs("restore-label", free(s.bkid(b))))))], dict(
        there=put(s.there, r, True), kid=put(s.kid, r, s.bkid(b)), real=put(s.real, r, k), rep=put(s.rep, r, s.bep(b)),
        dek=put(s.dek, r, s.bdek(b)), ct=put(s.ct, r, s.bct(b)))


@action
def AppearUnlabelled(s, r: "Row", k: "Kek", d: "Dek"):
    return [Told(s, W.table(r)), Resolves(s, k), needs("foreign-early", Early(s, k)), W.born(d) == k], dict(
        there=put(s.there, r, True), kid=put(s.kid, r, W.nokek), real=put(s.real, r, k), rep=put(s.rep, r, 0),
        dek=put(s.dek, r, d), ct=put(s.ct, r, d))


@action
def Mislabel(s, r: "Row"):
    return [s.there(r), s.kid(r) != W.nokek], dict(kid=put(s.kid, r, s.ptr))


@action
def Adopt(s, r: "Row", k: "Kek"):
    """k is what the row was under when the label was computed."""
    return [s.there(r), s.kid(r) == W.nokek, Registered(s, k), s.on(k), needs("adopt-condition", k == s.real(r))], dict(
        kid=put(s.kid, r, k))


# Control plane.


def begin(s, m):
    """The record of a rotation that starts: what it leaves, and where it looks."""
    return dict(
        old=put(s.old, m, s.ptr), att=put(s.att, m, 1), new=put(s.new, m, W.nokek), ep=put(s.ep, m, 0),
        olds=lambda n, k: If(n == m, Registered(s, k) if on("all-olds") else k == s.ptr, s.olds(n, k)),
        left=lambda k: Or(s.left(k), Registered(s, k)), srcs=lambda n, t: If(n == m, s.src(t), s.srcs(n, t)))


@action
def Start(s, n: "Rot", emergency: BOOL):
    return [Unstarted(s, n), needs("lock", s.lock == W.norot)], dict(
        begin(s, n), lock=n, phase=put(s.phase, n, ph["started"]), was=put(s.was, n, ph["none"]),
        emergency=put(s.emergency, n, emergency))


@action
def TakeOver(s, m: "Rot"):
    """An emergency ends whatever runs, also an emergency."""
    n = s.lock
    pre = PreSw(s.phase(n))
    ended = If(And(pre, Not(s.emergency(n))), ph["rolledback"], ph["superseded"])
    return [n != W.norot, Unstarted(s, m)], dict(
        begin(s, m), lock=m, emergency=put(s.emergency, m, True), was=put(put(s.was, n, s.phase(n)), m, ph["none"]),
        phase=put(put(s.phase, n, ended) if on("supersede") else s.phase, m, ph["started"]),
        kek=lambda k: If(And(pre, k == s.new(n), k != W.nokek), st["retired"], s.kek(k)), clean=never, halt=z3.BoolVal(False))


@action
def Register(s, k: "Kek", h: "Shard"):
    return [NotYet(s, k), needs("register-idle", s.lock == W.norot)], dict(
        kek=put(s.kek, k, st["sealed"]), fence=s.fence if on("register-shut") else put(s.fence, k, h, True))


def Settled(s):
    return Or(s.lock == W.norot, Not(PreSw(s.phase(s.lock))))


@action
def AddSource(s, t: "Table"):
    n = s.lock
    joins = And(n != W.norot, Not(Reached(s, n, "retired")))
    return [Settled(s)], dict(src=put(s.src, t, True), srcs=lambda m, u: Or(s.srcs(m, u), And(needs("source-joins", joins), m == n, u == t))
                              if on("source-joins") else s.srcs(m, u))


@action
def RemoveSource(s, t: "Table"):
    return [needs("remove-census", all_("Row", lambda r: Implies(W.table(r) == t, Not(s.there(r))))),
            needs("remove-stopped", all_("Writer", lambda w: Implies(s.pc(w) == pc["wrapped"], W.table(s.wrow(w)) != t)))], dict(
        src=put(s.src, t, False), mark=put(s.mark, t, False))


# Mint.


@action
def CreateKey(s, n: "Rot", k: "Kek", a: INT):
    """A key that did not exist."""
    return [s.phase(n) != ph["none"], a >= 1, a <= s.att(n), k != W.nokek, k != W.genesis, Not(W.past(k)), Not(Made(s, k))], dict(
        tagn=put(s.tagn, k, n), taga=put(s.taga, k, a), on=put(s.on, k, True), owner=put(s.owner, k, False))


@action
def Claim(s, k: "Kek"):
    return [Made(s, k), needs("alias", all_("Kek", lambda j: Implies(s.owner(j), Not(SameTag(s, j, k)))))], dict(
        owner=put(s.owner, k, True))


@action
def Lose(s, k: "Kek"):
    return [Made(s, k), s.on(k), Not(s.owner(k)), some("Kek", lambda j: And(s.owner(j), SameTag(s, j, k)))], dict(
        doomed=put(s.doomed, k, True))


@action
def Mint(s, n: "Rot", k: "Kek"):
    """Without the census, which no data depends on."""
    return [At(s, n, "started"), Made(s, k), s.tagn(k) == n, needs("arbiter", And(s.owner(k), s.taga(k) == s.att(n))),
            s.kek(k) == st["none"]], dict(
        kek=put(s.kek, k, st["pending"]), phase=put(s.phase, n, ph["minted"]), new=put(s.new, n, k))


def Keep(s, n, k):
    ended = s.phase(n) == ph["rolledback"] if on("keep-superseded") else within(s.phase(n), "rolledback superseded", ph)
    return Or(k == s.old(n), k == s.ptr, And(Not(ended), k == s.new(n)))


@action
def ReapBegin(s, q: "Sweep", n: "Rot"):
    return [s.phase(n) != ph["none"]], dict(
        sweep=put(s.sweep, q, n), found=lambda p, k: If(p == q, And(Made(s, k), s.tagn(k) == n), s.found(p, k)))


@action
def ReapDecide(s, q: "Sweep"):
    n = s.sweep(q)
    waits = Not(And(s.new(n) == W.nokek, Not(Final(s.phase(n)))))
    return [n != W.norot, needs("reap-waits", waits)], dict(
        sweep=put(s.sweep, q, W.norot), doomed=lambda k: Or(s.doomed(k), And(s.on(k), s.found(q, k), Not(Keep(s, n, k)))))


@action
def DoomFailed(s, n: "Rot", k: "Kek"):
    return [s.owner(k), s.on(k), s.tagn(k) == n, s.taga(k) < s.att(n), k != s.new(n), k != s.old(n), k != s.ptr], dict(
        doomed=put(s.doomed, k, True))


@action
def DisableDoomed(s, k: "Kek"):
    return [s.doomed(k)], dict(on=put(s.on, k, False), doomed=put(s.doomed, k, False))


@action
def DualUnwrap(s, n: "Rot"):
    """Without the rehearsal, which no data depends on."""
    return [At(s, n, "minted"), s.on(s.new(n))], dict(phase=put(s.phase, n, ph["tested"]))


@action
def PreSwitchFailure(s, n: "Rot"):
    k = s.new(n)
    return [n != W.norot, needs("lock", s.lock == n),
            PreSw(s.phase(n)) if on("psf-before-switch") else Not(Or(s.phase(n) == ph["none"], Final(s.phase(n)))),
            needs("emergency-forward", Not(s.emergency(n)))], dict(
        kek=lambda j: If(And(j == k, k != W.nokek), st["retired"], s.kek(j)), phase=put(s.phase, n, ph["rolledback"]), lock=W.norot)


@action
def Remint(s, n: "Rot"):
    k = s.new(n)
    return [n != W.norot, needs("lock", s.lock == n), PreSw(s.phase(n)), s.emergency(n)], dict(
        kek=lambda j: If(And(j == k, k != W.nokek), st["retired"], s.kek(j)), phase=put(s.phase, n, ph["started"]),
        new=put(s.new, n, W.nokek), att=put(s.att, n, s.att(n) + 1))


@action
def Switch(s, n: "Rot"):
    k, o = s.new(n), s.old(n)
    return [At(s, n, "tested"), s.ptr == o, s.kek(k) == st["pending"], s.kek(o) == st["active"]], dict(
        ptr=k, ptrep=s.ptrep + 1, kek=put(put(s.kek, k, st["active"]), o, st["draining"]), epoch=put(s.epoch, k, s.ptrep + 1),
        fence=lambda j, h: Or(s.fence(j, h), j == k), phase=put(s.phase, n, ph["switched"]), ep=put(s.ep, n, s.ptrep + 1))


@action
def SealShard(s, n: "Rot", k: "Kek", h: "Shard"):
    """One shard, at any time after the switch, also for a rotation that is over."""
    return [s.olds(n, k), needs("seal-after-switch", Once(s, n, "switched"))], dict(fence=put(s.fence, k, h, False))


@action
def Seal(s, n: "Rot", k: "Kek"):
    kek = put(s.kek, k, st["sealed"])
    last = all_("Kek", lambda j: Implies(s.olds(n, j) if on("seal-every-old") else j == s.old(n), kek(j) != st["draining"]))
    return [At(s, n, "switched"), s.olds(n, k), s.kek(k) == st["draining"],
            needs("seal-all", all_("Shard", lambda h: Not(s.fence(k, h))))], dict(
        kek=kek, phase=put(s.phase, n, If(last, ph["drained"], ph["switched"])), clean=never)


# Rewrap.


@action
def RewrapRead(s, n: "Rot", r: "Row", j: "Job", d: "Dek"):
    """In an emergency d is fresh. Also from a table that the rotation does not look at."""
    return [Once(s, n, "drained"), s.there(r), s.olds(n, s.kid(r)), s.real(r) == s.kid(r),
            If(And(s.emergency(n), on("fresh-dek")), W.born(d) == s.new(n), d == s.dek(r))], dict(
        jn=put(s.jn, j, n), jrow=put(s.jrow, j, r), jfrom=put(s.jfrom, j, s.kid(r)), jdek=put(s.jdek, j, s.dek(r)),
        jto=put(s.jto, j, s.new(n)), jep=put(s.jep, j, s.ep(n)), jwith=put(s.jwith, j, d))


@action
def RewrapWrite(s, j: "Job", done: BOOL):
    """At any time after RewrapRead, any number of times; a refused write changes nothing."""
    r, n = s.jrow(j), s.jn(j)
    return [n != W.norot, needs("rewrap-no-upsert", s.there(r)),
            needs("rewrap-condition", And(s.kid(r) == s.jfrom(j), s.real(r) == s.jfrom(j), s.dek(r) == s.jdek(j)))], dict(
        there=put(s.there, r, True), kid=put(s.kid, r, s.jto(j)), real=put(s.real, r, s.jto(j)),
        rep=put(s.rep, r, s.jep(j) if on("rewrap-epoch") else s.rep(r)), dek=put(s.dek, r, s.jwith(j)),
        ct=put(s.ct, r, If(s.emergency(n), s.jwith(j), s.ct(r))), jn=put(s.jn, j, If(done, W.norot, n)))


def LooksClean(s, n, r):
    deep = Implies(Reached(s, n, "rewrapped"), s.real(r) == s.new(n))
    labelled = s.kid(r) == s.new(n) if on("strict-pass") else And(s.kid(r) != W.nokek, s.kid(r) != s.old(n))
    return Or(Not(s.there(r)), And(labelled, needs("deep", deep)), s.kid(r) == W.nokek if not on("no-skip") else False)


@action
def ScanRow(s, n: "Rot", r: "Row"):
    return [within(s.phase(n), "drained rewrapped retired", ph), Not(s.halt), LooksClean(s, n, r)], dict(clean=put(s.clean, r, True))


@action
def Halt(s):
    return [], dict(halt=z3.BoolVal(True))


@action
def Resume(s):
    return [], dict(halt=z3.BoolVal(False), clean=never if on("fresh-scan") else s.clean)


def AllClean(s, n):
    return And(Not(s.halt), all_("Row", lambda r: Implies(s.srcs(n, W.table(r)), s.clean(r))))


@action
def Rewrapped(s, n: "Rot"):
    """The first pass is for speed; safety rests on the second, which begins here."""
    return [At(s, n, "drained")], dict(phase=put(s.phase, n, ph["rewrapped"]), scanned=lambda k: Or(s.scanned(k), s.olds(n, k)),
        clean=never if on("confirm") else s.clean)


@action
def Retire(s, n: "Rot"):
    return ([At(s, n, "rewrapped"), needs("second-scan", AllClean(s, n)),
             needs("retire-marks", all_("Table", lambda t: Implies(s.mark(t), s.srcs(n, t))))] if on("retire-last")
            else [n != W.norot, Not(Or(within(s.phase(n), "none retired", ph), Final(s.phase(n))))]), dict(
        kek=lambda k: If(s.olds(n, k), st["retired"], s.kek(k)), phase=put(s.phase, n, ph["retired"]), clean=never,
        exposed=lambda k: Or(s.exposed(k), And(s.emergency(n), s.left(k))))


@action
def DisableRetired(s, k: "Kek"):
    early = some("Rot", lambda n: And(Once(s, n, "switched"), s.olds(n, k)))
    return [s.kek(k) == st["retired"] if on("registry-first") else early], dict(on=put(s.on, k, False))


@action
def Complete(s, n: "Rot"):
    """Without the last scan: the promises about rows rest on the second."""
    return [At(s, n, "retired"), needs("disable-all", all_("Kek", lambda k: Implies(s.olds(n, k), Not(s.on(k)))))], dict(
        phase=put(s.phase, n, ph["completed"]), lock=W.norot, clean=never)


# Actions of rotation.tla that are not here, and why.
NOT_HERE = {
    "ReadRow": "a reader changes nothing but what it has in hand; ReadersServed is TLC's",
    "Decrypt": "as ReadRow",
    "DrainSee": "only the seal's wait for leases reads it, and the proof does without that wait",
    "Count": "the census, a courtesy before the switch: Mint here needs none",
    "Rehearse": "a courtesy before the switch: DualUnwrap here needs none",
}

# ---------------------------------------------------------------------------------------------
# The promises that Inv implies, as rotation.tla states them.


@promise
def NoKeyOrphans(s):
    return all_("Row", lambda r: Implies(s.there(r), And(Resolves(s, s.real(r)), Implies(s.kid(r) != W.nokek, Resolves(s, s.kid(r))))))


@promise
def RetireAfterSwitch(s):
    return all_("Rot", lambda n: all_("Kek", lambda k: Implies(
        And(s.olds(n, k), s.kek(k) == st["retired"]), some("Rot", lambda m: And(s.olds(m, k), s.ep(m) != 0)))))


@promise
def PointerUsable(s):
    return And(s.kek(s.ptr) == st["active"], s.on(s.ptr), all_("Shard", lambda h: s.fence(s.ptr, h)))


@promise
def NewKekUsable(s):
    return all_("Rot", lambda n: Implies(within(s.phase(n), "minted tested", ph), s.on(s.new(n))))


@promise
def AtMostOneRotation(s):
    def runs(n):
        return Not(Or(s.phase(n) == ph["none"], Final(s.phase(n))))
    return all_("Rot", lambda n: all_("Rot", lambda m: Implies(And(runs(n), runs(m)), n == m)))


@promise
def NoRollbackAfterSwitch(s):
    return all_("Rot", lambda n: Implies(s.phase(n) == ph["rolledback"], s.ep(n) == 0))


@promise
def EmergencyForward(s):
    return all_("Rot", lambda n: Implies(s.phase(n) == ph["rolledback"], Not(s.emergency(n))))


@promise
def RowIntegrity(s):
    return all_("Row", lambda r: Implies(s.there(r), And(s.dek(r) == s.ct(r), s.real(r) != W.nokek)))


@promise
def ExposedDeksGone(s):
    return all_("Rot", lambda n: Implies(And(s.emergency(n), Reached(s, n, "retired")), all_("Row", lambda r: Implies(
        s.there(r), all_("Rot", lambda i: Implies(W.number(i) <= W.number(n), Not(s.olds(i, W.born(s.ct(r))))))))))


@promise
def SealedIsShut(s):
    return all_("Kek", lambda k: Implies(s.kek(k) == st["sealed"], all_("Shard", lambda h: Not(s.fence(k, h)))))


@promise
def NoRenewedLeaseLost(s):
    return Not(s.lost)


@promise
def RegisteredOn(s):
    return all_("Kek", lambda k: Implies(Registered(s, k), s.on(k)))


@promise
def OldsDisabled(s):
    return all_("Rot", lambda n: Implies(s.phase(n) == ph["completed"], all_("Kek", lambda k: Implies(s.olds(n, k), Not(s.on(k))))))


# Promises about a step from s to t, each under the actions that could break it.


@step
def EpochMonotone(s, t):
    return And(t.ptrep >= s.ptrep, Implies(t.ptr != s.ptr, t.ptrep > s.ptrep))


@step
def KekForward(s, t):
    pairs = [("none", "pending"), ("pending", "active"), ("pending", "retired"), ("active", "draining"), ("draining", "sealed"), ("sealed", "retired")]
    return all_("Kek", lambda k: Or(
        s.kek(k) == t.kek(k), And(W.past(k), s.kek(k) == st["none"], t.kek(k) == st["sealed"]),
        *[And(s.kek(k) == st[a], t.kek(k) == st[b]) for a, b in pairs]))


@step
def EndedIsEnded(s, t):
    return all_("Rot", lambda n: Implies(Final(s.phase(n)), t.phase(n) == s.phase(n)))


@step
def ModeFixed(s, t):
    return all_("Rot", lambda n: Implies(s.phase(n) != ph["none"], t.emergency(n) == s.emergency(n)))


@step
def OneKekLeft(s, t):
    return all_("Rot", lambda n: Implies(And(s.phase(n) != ph["completed"], t.phase(n) == ph["completed"]),
                                         all_("Kek", lambda k: Registered(t, k) == (k == s.new(n)))))


# Mechanisms that can be taken away, and the steps that then break: the action, and the clauses
# of Inv (or promises about a step) that it no longer keeps.
WITHOUT = {
    "lock": "Start breaks Leaving, Lock",
    "insert-fence": "Commit breaks Clean, NotExposed, Rows",
    "update-epoch": "Commit breaks Clean, NotExposed, Rows",
    "update-fence": "Commit breaks Clean, NotExposed, Rows",
    "mark-first": "Wrap breaks Writers",
    "restore-early": "RestoreRow breaks Clean, NotExposed, Rows",
    "restore-label": "RestoreRow breaks Clean, Rows",
    "foreign-early": "AppearUnlabelled breaks Clean",
    "adopt-condition": "Adopt breaks Clean",
    "all-olds": "Start breaks Leaving; TakeOver breaks Leaving",
    "supersede": "TakeOver breaks Lock, Record",
    "register-idle": "Register breaks Leaving",
    "register-shut": "Register breaks Fence",
    "source-joins": "AddSource breaks Sources",
    "remove-census": "RemoveSource breaks Sources",
    "remove-stopped": "RemoveSource breaks Writers",
    "alias": "Claim breaks Enabled, Keys",
    "arbiter": "Mint breaks Enabled, Keys",
    "keep-superseded": "ReapDecide breaks Enabled",
    "reap-waits": "ReapDecide breaks Enabled",
    "psf-before-switch": "PreSwitchFailure breaks Fence, KekForward, Leaving, NotBeforeItsOlds, Pointer, Record, RetiredIsOlder, Rows, Scanned",
    "emergency-forward": "PreSwitchFailure breaks Fence, Leaving, Record",
    "seal-after-switch": "SealShard breaks Fence",
    "seal-every-old": "Seal breaks Fence",
    "seal-all": "Seal breaks Fence",
    "fresh-dek": "RewrapRead breaks Jobs",
    "rewrap-no-upsert": "RewrapWrite breaks Clean, NotExposed, Rows, Sources",
    "rewrap-condition": "RewrapWrite breaks Clean, NotExposed, Rows",
    "rewrap-epoch": "RewrapWrite breaks Rows",
    "strict-pass": "ScanRow breaks Clean",
    "deep": "ScanRow breaks Clean",
    "no-skip": "ScanRow breaks Clean",
    "fresh-scan": "Resume breaks Clean",
    "confirm": "Rewrapped breaks Clean",
    "second-scan": "Retire breaks NotExposed, Rows",
    "retire-marks": "Retire breaks NotExposed, Rows",
    "retire-last": "Retire breaks Fence, KekForward, Keys, NotExposed, Pointer, Record, Rows, Scanned, SwitchedBefore",
    "registry-first": "DisableRetired breaks Enabled",
    "disable-all": "Complete breaks Off",
    "revoke-condition": "Revoke breaks Leases",
}

# ---------------------------------------------------------------------------------------------
# The proof.


class Known:
    """What is the same for every action in one world: a state, the axioms and the clauses of Inv."""

    def __init__(self, finite):
        self.state, self.axioms, self.clauses, self.reads = W.state(), W.axioms(), {}, {}
        for name, c in CLAUSES.items():
            self.state.read.clear()
            self.clauses[name] = c(self.state)
            self.reads[name] = set(self.state.read)


KNOWN = {}


def enter(finite):
    """Builds formulas in this world from now on."""
    global W
    W = FINITE if finite else UNBOUNDED
    if finite not in KNOWN:
        KNOWN[finite] = Known(finite)
    return KNOWN[finite]


def transition(known, name):
    """The action's conditions, what it changes, and the goals: what it must keep."""
    s, f = known.state, ACTIONS[name]
    guard, effect = f(s, *[z3.Const(f"{name}.{p}", W.sort(sort)) for p, sort in f.__annotations__.items()])
    t = s.after(effect)
    todo = {goal: CLAUSES[goal](t) for goal in CLAUSES if known.reads[goal] & effect.keys()}
    for goal, promised in STEPS.items():
        t.read.clear()
        formula = promised(s, t)
        if t.read & effect.keys():
            todo[goal] = formula
    return And(known.axioms, *guard), effect, todo


def rests_on(guard, todo):
    """In the finite world: for each goal the clauses that keep it, or a state in which the action does not."""
    known = KNOWN[True]
    z = z3.Solver()
    z.set("timeout", 60000)
    z.add(guard)
    labels = {z3.Bool("clause " + name): name for name in CLAUSES}
    for label, name in labels.items():
        z.add(Implies(label, known.clauses[name]))
    rests, broken = {}, {}
    for goal, formula in todo.items():
        z.push()
        z.add(Not(formula))
        r = z.check(list(labels))
        if r == z3.unsat:
            rests[goal] = [labels[x] for x in z.unsat_core()]
        else:
            broken[goal] = z.model() if r == z3.sat else "z3 finds neither a proof nor a state"
        z.pop()
    return rests, broken


def proved(known, guard, formula, names):
    """In the unbounded world: formula follows from the guard and these clauses, or else from all of them."""
    for clauses in (names, CLAUSES):
        z = z3.SimpleSolver()
        z.set("timeout", 20000)
        z.set("mbqi", False)
        z.add(guard, *[known.clauses[c] for c in clauses], Not(formula))
        if z.check() == z3.unsat:
            return True
    return False


def judge(name):
    """What the action does not keep: for each such goal a state, or a word for why there is none. Of what it keeps, the clauses that this rests on."""
    guard, _, todo = transition(enter(True), name)
    rests, broken = rests_on(guard, todo)
    known = enter(False)
    guard, _, todo = transition(known, name)
    for goal, clauses in rests.items():
        if not proved(known, guard, todo[goal], dict.fromkeys(clauses + [goal] * (goal in CLAUSES))):
            broken[goal] = "z3 finds neither a proof nor a state"
    return broken, rests


def happens(name):
    """The action is possible in a state of Inv, and changes it."""
    known = enter(True)
    guard, effect, _ = transition(known, name)
    differs = []
    for v, new in effect.items():
        old, sorts = known.state.values[v], VARIABLES[v]
        places = [[]]
        for sort in sorts[:-1]:
            places = [p + [e] for p in places for e in W.elements[sort]]
        differs += [old(*p) != new(*p) for p in places] if len(sorts) > 1 else [old != new]
    z = z3.Solver()
    z.add(guard, *known.clauses.values(), Or(differs))
    return z.check() == z3.sat


def askers():
    """The actions that ask for each mechanism."""
    out = {m: [] for m in WITHOUT}
    for name in ACTIONS:
        ASKED.clear()
        transition(enter(False), name)
        for m in ASKED:
            out[m].append(name)
    return out


def prove(report):
    """Proves that Inv holds at the start, is kept by every action, and implies the promises."""
    known = enter(False)
    start = Init(known.state)
    for name, c in known.clauses.items():
        z = z3.SimpleSolver()
        z.add(known.axioms, start, Not(c))
        report("Init", name, z.check() == z3.unsat)
    for name in ACTIONS:
        begun = time.process_time()
        broken, rests = judge(name)
        report(name, "", not broken, broken=broken, rests=rests, seconds=time.process_time() - begun)
        report(name, "can happen", happens(name))
    known = enter(False)
    for name, p in PROMISES.items():
        report("Inv", name, proved(known, known.axioms, p(known.state), CLAUSES))


def without(mechanism, actions):
    """The goals that each action breaks once the mechanism is taken away, each with a state."""
    out = {}
    OFF.add(mechanism)
    for name in actions:
        guard, _, todo = transition(enter(True), name)
        _, broken = rests_on(guard, todo)
        if broken:
            out[name] = broken
    OFF.clear()
    return out


def main(args):
    verbose, result = "-v" in args, {"proved": [], "failed": [], "without": {}}
    begun = time.process_time()

    def report(of, what, ok, broken=(), rests=(), seconds=0):
        label = f"{of} {what}".strip()
        result["proved" if ok else "failed"].append(label + "".join(f" {b}" for b in broken))
        if verbose or not ok:
            print(f"{label:40s} {'proved' if ok else 'FAILS'} {seconds:5.2f} s  {' '.join(broken)}", file=sys.stderr)

    if "-without" in args:
        mechanism = args[args.index("-without") + 1]
        for name, broken in without(mechanism, askers()[mechanism]).items():
            for goal, state in broken.items():
                print(f"{name} breaks {goal} in this state:\n{state}")
        return 0
    prove(report)
    asked = askers()
    for mechanism in WITHOUT:
        broken = without(mechanism, asked[mechanism])
        result["without"][mechanism] = {name: sorted(goals) for name, goals in sorted(broken.items())}
        unclear = [g for goals in broken.values() for g, state in goals.items() if isinstance(state, str)]
        said = "; ".join(f"{name} breaks {', '.join(sorted(goals))}" for name, goals in sorted(broken.items()))
        if verbose or said != WITHOUT[mechanism] or unclear:
            print(f"without {mechanism}: {said} {unclear}", file=sys.stderr)
        if said != WITHOUT[mechanism] or unclear:
            result["failed"].append("without " + mechanism)
    result["seconds"] = round(time.process_time() - begun, 1)
    if "-json" in args:
        result["actions"], result["not_here"], result["promises"], result["clauses"] = list(ACTIONS), NOT_HERE, [*PROMISES, *STEPS], list(CLAUSES)
        print(json.dumps(result))
    else:
        print(f"{len(result['proved'])} steps proved, {len(result['failed'])} failed, {len(WITHOUT)} mechanisms taken away, {result['seconds']} s")
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
