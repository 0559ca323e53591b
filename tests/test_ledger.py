"""The ledger against a simple model, against being killed at every write, and against damaged files.

Run as a script, this file is the victim of the kill test: `python test_ledger.py DIRECTORY`."""
import json, os, shutil, signal, sqlite3, subprocess, sys, tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sleeping_llm import ledger as module
from sleeping_llm.facts import Fact
from sleeping_llm.doctor import examine, repair
from sleeping_llm.ledger import Ledger, LedgerError, LedgerLocked
from sleeping_llm.transfer import Export, read_export

MEMORY = '/dev/shm' if os.path.isdir('/dev/shm') else None      # many small homes: a disk in memory where there is one
NAMES = 'Ada Bo Cleo Dora Emil Finn Gwen Hugo Iris Jack'.split()


def some_fact(i): return Fact(NAMES[i % 10], 'lives in', f'Town{i}')


def factors(ids):
    "Factors that show which facts they carry"
    ids = np.array(sorted(ids), 'f4')
    return {5: (ids[None], ids[:, None])}


def carries(ledger, edit): return {int(i) for i in ledger.factors(edit)[5][0][0]}


def files(home): return {f'{p.parent.name}/{p.name}' for d in ('edits', 'adapters') for p in (home/d).iterdir()}


def snapshot(ledger):
    "Everything but the times"
    facts = [(r.id, r.subject, r.object, r.status, r.stage, r.recall, r.scale, r.source, r.edit, r.superseded_by, r.valid_until is None) for r in ledger.facts(live=False)]
    edits = [(e.id, e.fact_ids, e.scale, e.status, e.revision, sorted(carries(ledger, e.id)) if e.file else None) for e in ledger.edits(live=False)]
    return repr((facts, edits, [(e.kind, e.data) for e in ledger.events()], [t.text for t in ledger.turns()], [t.id for t in ledger.turns(unconsumed=True)],
                 ledger.get('night'), [(c.fact, c.recall) for c in ledger.checks()], [a and a[1] for a in (ledger.adapter(), ledger.adapter(back=1))],
                 [tuple(r) for r in ledger._sql('SELECT kind, undone FROM operations')]))


def visible(ledger):
    "What the weights are a function of"
    return ([(r.id, r.fact, r.stage, r.edit, r.scale) for r in ledger.facts()], [(e.id, e.fact_ids, e.scale, carries(ledger, e.id)) for e in ledger.edits()])


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    "A killed process leaves what it wrote whether flushed or not; so these tests need not wait for the disk"
    monkeypatch.setattr(os, 'fsync', lambda fd: None)


# Against a model

class Boom(Exception): pass


pick = st.integers(0, 99)


def one(some, k): return some[k % len(some)]


class Against(RuleBasedStateMachine):
    """The ledger beside plain dictionaries that say what it should hold.

    `status`: fact -> status. `revs`: edit -> {revision: facts it carries}, `cur`: edit -> current revision. `ops`: what each operation changed."""
    def __init__(self):
        super().__init__()
        self.dir = tempfile.TemporaryDirectory(dir=MEMORY)
        self.home = Path(self.dir.name).resolve()/'home'
        self.ledger = Ledger.open(self.home, model='m')
        self.status, self.stage, self.revs, self.cur, self.ops = {}, {}, {}, {}, []
        self.turns, self.heard, self.adapters = [], set(), []

    def teardown(self):
        self.ledger.close()
        self.dir.cleanup()

    # the model
    def live(self): return [f for f, s in self.status.items() if s == 'live']
    def carried(self, e): return self.revs[e].get(self.cur[e], set())
    def live_in(self, e): return {f for f in self.carried(e) if self.status[f] == 'live'}
    def edit_of(self, f): return next((e for e in self.revs if f in self.carried(e)), None)
    def edit_status(self, e): return 'purged' if self.cur[e] not in self.revs[e] else 'live' if self.live_in(e) else 'retired'
    def live_edits(self): return [e for e in self.revs if self.edit_status(e) == 'live']

    def drop_old(self, e): self.revs[e] = {r: c for r, c in self.revs[e].items() if r == self.cur[e]}

    def replace(self, e, op=None):
        ids, was = self.live_in(e), self.cur[e]
        lost = any(self.status[f] == 'forgotten' for f in self.carried(e))
        self.ledger.replace_edit(e, factors(ids))
        self.cur[e] = self.newest[e] = self.newest.get(e, 0) + 1
        self.revs[e][self.cur[e]] = ids
        if op is not None and not lost: op.append(('edit', e, was, self.cur[e]))
        else: self.drop_old(e)

    newest = property(lambda self: self.__dict__.setdefault('_newest', {}))

    # what may happen; `k` picks one of what there is
    @rule(n=st.integers(1, 3), ends=st.lists(pick, max_size=2), replace=st.booleans(), edit=st.sampled_from([True, True, False]))
    def remember(self, n, ends, replace, edit):
        old, op = list(dict.fromkeys(one(self.live(), k) for k in ends if self.live())), []
        with self.ledger.operation('remember'):
            new = []
            for i in range(n):
                rec = self.ledger.add_fact(some_fact(len(self.status)), source=i, supersedes=old if i == 0 else ())
                new.append(rec.id)
                self.status[rec.id], self.stage[rec.id] = 'live', 0
                op.append(('fact', rec.id, None, 'live'))
                if i == 0:
                    for f in old: self.status[f] = 'superseded'; op.append(('fact', f, 'live', 'superseded'))
            if edit:
                e = self.ledger.add_edit(new, factors(new), method='joint')
                self.revs[e], self.cur[e] = {0: set(new)}, 0
            if replace:
                for e in self.live_edits():
                    if self.carried(e) != self.live_in(e): self.replace(e, op)
        self.ops.append(op)

    @rule(k=pick)
    def fail(self, k):
        before = snapshot(self.ledger), files(self.home)
        with pytest.raises(Boom):
            with self.ledger.transaction():
                with self.ledger.operation('remember'):
                    new = [self.ledger.add_fact(some_fact(99), supersedes=self.live()[:1]).id]
                    self.ledger.add_edit(new, factors(new), method='joint')
                    for e in self.ledger.edits(): self.ledger.replace_edit(e.id, factors(e.fact_ids))
                    self.ledger.put_adapter({'x': np.ones(2)}, {})
                if self.status: self.ledger.forget(one(list(self.status), k))
                self.ledger.undo()
                raise Boom
        assert (snapshot(self.ledger), files(self.home)) == before

    @rule(times=st.integers(1, 3))
    def undo(self, times):
        for _ in range(times):
            done = False
            while self.ops and not done:
                for what, i, was, now in reversed(self.ops.pop()):
                    if what == 'fact' and self.status[i] == now: self.status[i] = was or 'undone'; done = True
                    if what == 'edit' and self.cur[i] == now and was in self.revs[i]: self.cur[i] = was; del self.revs[i][now]; done = True
            if done: self.ledger.undo()
            else:
                with pytest.raises(LedgerError, match='nothing to undo'): self.ledger.undo()
            self.as_the_model_says()

    @rule(k=pick, status=st.sampled_from(['superseded', 'undone']))
    def retire(self, k, status):
        if self.live():
            f = one(self.live(), k)
            self.ledger.retire(f, status)
            self.status[f] = status

    @rule(k=pick, within=st.booleans())
    def forget(self, k, within):
        if not self.status: return
        f, op = one(list(self.status), k), []
        if self.status[f] != 'forgotten': self.adapters = self.adapters[-1:]
        with self.ledger.operation('chat') if within else self.ledger.transaction():
            self.ledger.forget(f)
            self.status[f] = 'forgotten'
            for e in self.revs:
                gone = self.edit_status(e) == 'retired'
                self.revs[e] = {r: c for r, c in self.revs[e].items() if f not in c or (r == self.cur[e] and not gone)}
            e = self.ledger.fact(f).edit
            assert e == self.edit_of(f)
            if e is not None: self.replace(e, op if within else None)
        if within: self.ops.append(op)

    @rule(k=pick)
    def refresh(self, k):
        if self.live_edits(): self.replace(one(self.live_edits(), k))

    @rule()
    def write_what_is_unwritten(self):
        ids = [f for f in self.live() if self.edit_of(f) is None]
        if ids:
            e = self.ledger.add_edit(ids, factors(ids), method='joint')
            self.revs[e], self.cur[e] = {0: set(ids)}, 0
        elif self.live():
            with pytest.raises(LedgerError, match='already'): self.ledger.add_edit(self.live()[:1], factors([1]), method='joint')

    @rule(k=pick, scale=st.sampled_from([1.0, 0.5, 0.1, 0.0]), purge=st.booleans())
    def sleep(self, k, scale, purge):
        if self.live_edits():
            e = one(self.live_edits(), k)
            self.ledger.set_scale(e, scale)
            for f in self.live_in(e):
                self.stage[f] += 1
                assert self.ledger.set_fact(f, stage=self.stage[f], recall=0.5).scale == scale
        self.ledger.put_adapter({'a': np.full(3, k, 'f4')}, dict(k=k))
        self.adapters = (self.adapters + [k])[-2:]
        if purge:
            retired = [e for e in self.revs if self.edit_status(e) == 'retired']
            assert self.ledger.purge() == retired
            for e in self.revs: self.revs[e] = {} if e in retired else self.revs[e]; self.drop_old(e)

    @rule(text=st.text(max_size=20), role=st.sampled_from(['user', 'assistant']), n=st.integers(0, 3))
    def talk(self, text, role, n):
        self.turns.append((self.ledger.add_turn(role, text), role, text.encode('utf-8', 'replace').decode()))
        ids = [t.id for t in self.ledger.turns(unconsumed=True)][:n]
        self.ledger.consume(ids)
        self.heard |= set(ids)
        before = snapshot(self.ledger)
        self.ledger.close()
        self.ledger = Ledger.open(self.home, model='m')
        assert snapshot(self.ledger) == before

    # what must hold
    @invariant()
    def as_the_model_says(self):
        L = self.ledger
        assert {r.id: (r.status, r.stage, r.edit) for r in L.facts(live=False)} == {f: (s, self.stage[f], self.edit_of(f)) for f, s in self.status.items()}
        assert {tuple(x) for x in L._sql('SELECT edit, revision FROM revisions')} == {(e, n) for e, revs in self.revs.items() for n in revs}
        assert all((r.valid_until is None) == (r.status == 'live') for r in L.facts(live=False))
        assert {e.id: (e.status, set(e.fact_ids), e.revision) for e in L.edits(live=False)} == {e: (self.edit_status(e), self.live_in(e), self.cur[e]) for e in self.revs}
        assert [(t.id, t.role, t.text) for t in L.turns()] == self.turns
        assert {t.id for t in L.turns(unconsumed=True)} == {i for i, *_ in self.turns} - self.heard
        assert [a[1]['k'] for a in (L.adapter(back=1), L.adapter()) if a] == self.adapters and len(list((self.home/'adapters').iterdir())) == len(self.adapters)

    @invariant()
    def factors_carry_their_facts(self):
        for e in self.ledger.edits(): assert carries(self.ledger, e.id) == self.carried(e.id) and set(e.fact_ids) <= self.carried(e.id)

    @invariant()
    def forgotten_is_gone(self):
        gone = {f for f, s in self.status.items() if s == 'forgotten'}
        for (name,) in self.ledger._sql('SELECT file FROM revisions'): assert not gone & {int(i) for i in module.load((self.home/name).read_bytes())['5.U'][0]}
        assert all((r.subject, r.object, r.source) == ('', '', None) for r in self.ledger.facts(live=False) if r.id in gone)

    @invariant()
    def sound(self):
        assert self.ledger.check() == []
        assert files(self.home) == {r[0] for r in self.ledger._sql('SELECT file FROM revisions UNION SELECT file FROM adapters')}


TestAgainstModel = Against.TestCase
TestAgainstModel.settings = settings(max_examples=200, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(st.tuples(st.integers(1, 3), st.sets(st.integers(1, 12), max_size=2), st.booleans()), min_size=1, max_size=6))
def test_undo_is_exact(tmp_path_factory, plan):
    "However facts replace each other: each undo brings back what the weights were a function of before"
    with Ledger.open(tmp_path_factory.mktemp('home'), model='m') as L:
        seen = [visible(L)]
        for n, old, replace in plan:
            live = [r.id for r in L.facts()]
            with L.operation('remember'):
                new = [L.add_fact(some_fact(k), supersedes=[i for i in old if i in live] if k == 0 else ()).id for k in range(n)]
                L.add_edit(new, factors(new), method='joint')
                if replace:
                    for e in L.edits(): L.replace_edit(e.id, factors(e.fact_ids))
            seen.append(visible(L))
        while len(seen) > 1:
            assert visible(L) == seen.pop()
            L.undo()
        assert visible(L) == seen[0] == ([], [])
        with pytest.raises(LedgerError, match='nothing to undo'): L.undo()
        assert L.check() == []


def test_undo_walks_backwards(tmp_path):
    "One operation that adds a fact and ends it, and replaces an edit twice"
    with Ledger.open(tmp_path/'home') as L:
        _remember(L, 0)
        before = visible(L)
        with L.operation('remember'):
            b = L.add_fact(some_fact(1)).id
            L.replace_edit(1, factors([1, 98]))
            c = L.add_fact(some_fact(2), supersedes=[b, 1, b]).id
            L.add_edit([c], factors([c]), method='joint')
            _two(L)
            L.replace_edit(3, factors([4, 5, 99]))
        undone = L.undo()
        assert (undone.added, undone.superseded, undone.edits) == ((2, 3, 4, 5), (1,), (1, 3))
        assert visible(L) == before and {r.id: r.status for r in L.facts(live=False)} == {1: 'live', 2: 'undone', 3: 'undone', 4: 'undone', 5: 'undone'}
        assert L.check() == []


def test_names_are_not_used_again(tmp_path):
    "What undo drops and what is written after it in the same transaction are different files, however the transaction ends"
    with Ledger.open(tmp_path/'home') as L:
        _two(L)
        with L.operation('remember'): L.retire(1); L.replace_edit(1, factors([2]))
        before = snapshot(L)
        with pytest.raises(Boom):
            with L.transaction(): L.undo(); L.replace_edit(1, factors([1, 2])); raise Boom
        assert snapshot(L) == before and L.check() == []
        with L.transaction(): L.undo(); L.replace_edit(1, factors([1, 2]))
        assert carries(L, 1) == {1, 2} and L.check() == []


def test_undo_does_not_bring_back_what_was_forgotten(tmp_path):
    with Ledger.open(tmp_path/'home') as L:
        _two(L)
        with L.operation('remember'):
            L.retire(1)
            L.retire(L.add_fact(some_fact(3)).id)
            L.replace_edit(1, factors([2]))
        L.forget(1)
        L.undo()
        assert [r.status for r in L.facts(live=False)] == ['forgotten', 'live', 'undone'] and carries(L, 1) == {2}


def test_an_operation_is_undone_once(tmp_path):
    with Ledger.open(tmp_path/'home') as L:
        _remember(L, 0)
        _remember(L, 1, old=[1])
        L.undo()
        L.retire(1)                     # looks as if the undone operation were still in place
        with pytest.raises(LedgerError, match='nothing to undo'): L.undo()
        assert [r.status for r in L.facts(live=False)] == ['superseded', 'undone']


# Killed at every write

def _remember(L, i, old=()):
    with L.operation('remember'):
        r = L.add_fact(some_fact(i), source=i, supersedes=old)
        L.add_edit([r.id], factors([r.id]), method='joint')


def _night(L):
    with L.transaction():
        L.put('night', (L.get('night') or 0) + 1)
        for r in L.facts(): L.set_fact(r.id, stage=1, recall=1.0); L.set_scale(r.edit, 0.5); L.add_check(r.id, 'chat', 1.0, 1)
        L.put_adapter({'a': np.ones(4, 'f4')}, dict(night=L.get('night')))
        L.consume([t.id for t in L.turns(unconsumed=True)])
        L.purge()


def _two(L):
    with L.operation('remember'):
        ids = [L.add_fact(some_fact(i)).id for i in (7, 8)]
        L.add_edit(ids, factors(ids), method='joint')


def _forget_one_of_two(L):
    with L.transaction():
        e = L.fact(3).edit
        L.forget(3)
        L.replace_edit(e, factors([4]))


def _import(L):
    fact = dict(subject='Kim', relation='lives in', prompt=None, source='a letter', created=1.0, valid_from=1.0, recall=None, checks=[['chat', 1.0, 1, 1.0]])
    L.take_in(Export(dict(model='m', edits=[], lora=None, state={}, facts=[fact | dict(id=1, object='Oslo', status='superseded', valid_until=2.0, superseded_by=2),
                                                                            fact | dict(id=2, object='Rome', status='live', valid_until=None, superseded_by=None)]), {}))


DAY = [lambda L: L.add_turn('user', 'I live in Porto.'), lambda L: _remember(L, 0), lambda L: _remember(L, 1, old=[1]), lambda L: L.undo(), _two, _night,
       lambda L: L.replace_edit(L.edits()[0].id, factors([1])), _forget_one_of_two, _night, lambda L: L.forget(1), _night, _import, lambda L: L.collect_garbage()]


def victim(home, kill_at, report):
    "Live the day; die at the `kill_at`-th thing that touches the disk. Returns how many there were"
    count = 0

    def tick(*_):
        nonlocal count
        if count == kill_at: os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def dangerous(f):
        def g(*args, **kw): tick(); return f(*args, **kw)
        return g

    def connect(path, mode):
        db = plain_connect(path, mode)
        db.set_trace_callback(tick)
        return db

    plain_connect, module._connect = module._connect, connect
    for name in ('fsync', 'replace', 'unlink', 'mkdir', 'chmod', 'open'): setattr(os, name, dangerous(getattr(os, name)))
    with Ledger.open(home, model='m') as L:
        for step in DAY: step(L); report()
    return count


def forked(f):
    "Run `f` in a child; returns its exit status"
    if (pid := os.fork()) == 0:
        try: f(); os._exit(0)
        except BaseException: sys.excepthook(*sys.exc_info()); os._exit(1)
    return os.waitpid(pid, 0)[1]


def kill_everywhere(base):
    states = []
    with Ledger.open(base/'reference', model='m') as L:
        states.append(snapshot(L))
        for step in DAY: step(L); states.append(snapshot(L))
    n, killed, seen = 0, True, set()
    while killed:
        home, (r, w) = base/f'home{n}', os.pipe()
        status = forked(lambda: victim(home, n, lambda: os.write(w, b'.')))
        os.close(w)
        done = len(os.read(r, 1000))
        os.close(r)
        killed = os.WIFSIGNALED(status)
        assert killed or status == 0, status
        with Ledger.open(home, model='m') as L:
            now = snapshot(L)
            assert now in states[done:done + 2], f'killed at {n}, {done} steps done:\n{now}\nis neither\n{states[done]}\nnor\n{states[min(done+1, len(DAY))]}'
            assert L.check() == [] and files(home) == {r[0] for r in L._sql('SELECT file FROM revisions UNION SELECT file FROM adapters')}
            _remember(L, 50)                    # and life goes on
        seen.add((done, now == states[done]))
        n += 1
    print(json.dumps(dict(points=n - 1, steps=len({d for d, _ in seen}), finished=sum(not before for _, before in seen))))


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_killed_at_every_write():
    with tempfile.TemporaryDirectory(dir=MEMORY) as base: out = subprocess.run([sys.executable, __file__, base], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stdout + out.stderr
    res = json.loads(out.stdout.splitlines()[-1])
    # every step was interrupted, and some between their commit and their end, where the state after is the right one
    assert res['points'] > 250 and res['steps'] == len(DAY) + 1 and res['finished'] >= 4


# Damage

@pytest.fixture
def home(tmp_path):
    home = tmp_path/'home'
    with Ledger.open(home, model='m') as L:
        for i in range(40): _remember(L, i)
        L.put_adapter({'a': np.arange(8, dtype='f4')}, dict(rank=1))
        L.add_turn('user', 'hello')
    return home


def contents(home): return {p.name: p.read_bytes() for p in home.rglob('*') if p.is_file() and not p.name.startswith('lock') and not p.name.endswith(('-shm', '-wal'))}


def test_a_truncated_database_is_refused_and_left_alone(home):
    path = home/'ledger.sqlite'
    whole = path.read_bytes()
    for size in {0, 1, 50, 99, 100, 512, *range(4096, len(whole), 4096), *range(1000, len(whole), 5003), len(whole) - 1}:
        path.write_bytes(whole[:size])
        before = contents(home)
        with pytest.raises(LedgerError, match='ledger.sqlite is (damaged|empty|no ledger)'): Ledger.open(home, model='m')
        assert contents(home) == before
    path.write_bytes(whole)
    with Ledger.open(home, model='m') as L: assert len(L.facts()) == 40 and L.check() == []


def test_a_zeroed_page_is_refused_and_left_alone(home):
    path = home/'ledger.sqlite'
    whole = path.read_bytes()
    for at in range(0, len(whole), 4096):
        path.write_bytes(whole[:at] + bytes(4096) + whole[at + 4096:])
        before = contents(home)
        with pytest.raises(LedgerError, match='ledger.sqlite is (damaged|no ledger)'): Ledger.open(home, model='m')
        assert contents(home) == before


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_any_damage_to_a_factor_file_is_named(home, where, bit, cut):
    with Ledger.open(home, model='m') as L:
        for name, read in ((L.edits()[3].file, lambda: L.factors(L.edits()[3].id)), ('adapters/1.safetensors', L.adapter)):
            path = home/name
            sound = path.read_bytes()
            at = int(where*len(sound))
            path.write_bytes(sound[:at] if cut else sound[:at] + bytes([sound[at] ^ 1 << bit]) + sound[at+1:])
            with pytest.raises(LedgerError, match=name): read()
            assert len(L.check()) == 1 and name in L.check()[0]
            path.write_bytes(sound)
        assert L.check() == []


def test_a_missing_factor_file_is_named(home):
    (home/'edits/7.safetensors').unlink()
    with Ledger.open(home, model='m') as L:
        with pytest.raises(LedgerError, match='edits/7.safetensors cannot be read'): L.factors(7)
        assert len(L.check()) == 1


def test_not_ours(tmp_path):
    (tmp_path/'ledger.sqlite').write_text('a diary\n' * 1000)
    with pytest.raises(LedgerError, match='damaged'): Ledger.open(tmp_path)
    (tmp_path/'ledger.sqlite').unlink()
    db = sqlite3.connect(tmp_path/'ledger.sqlite')
    db.execute('CREATE TABLE t (x)')
    db.close()
    with pytest.raises(LedgerError, match='is no ledger of this program'): Ledger.open(tmp_path)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(min_size=1, max_size=60), cut=st.integers(1, 80))
def test_a_torn_conversation_costs_one_turn(tmp_path_factory, tail, cut):
    home = tmp_path_factory.mktemp('home')
    with Ledger.open(home) as L:
        L.add_turn('user', 'first')
        L.add_turn('user', 'second, which is torn: ' + 'x' * 20)
    path = home/'conversation.jsonl'
    torn = path.read_bytes()[:-cut]
    path.write_bytes(torn + tail.replace(b'\n', b'?'))
    with Ledger.open(home) as L:
        third = L.add_turn('user', 'third')
        texts = {t.id: t.text for t in L.turns()}
        assert texts[third] == 'third' and (texts[1] == 'first' or cut > 50)
        assert path.read_bytes().startswith(torn)


@pytest.mark.parametrize('keep', ['pages', 'bytes', 'nothing'])
def test_the_doctor_saves_what_can_be_read(home, keep):
    "Whatever is lost, the home opens again, what is left is sound, and the damaged file is kept"
    path = home/'ledger.sqlite'
    whole, found = path.read_bytes(), []
    damages = dict(pages=[whole[:at] + bytes(4096) + whole[at + 4096:] for at in range(0, len(whole), 3*4096)],
                   bytes=[whole[:n] for n in range(1000, len(whole), 9001)], nothing=[b'', b'x'])[keep]
    for damaged in damages:
        path.write_bytes(damaged)
        done, left = repair(home)
        assert done and left == [] and examine(home) == []
        with Ledger.open(home, model='m') as L:
            assert all(r.fact.object.startswith('Town') for r in L.facts())
            found.append(len(L.facts()))
            _remember(L, 50)
        aside = next(home.glob('damaged-*'))
        assert (aside/'ledger.sqlite').read_bytes() == damaged
        for d in home.glob('damaged-*'): shutil.rmtree(d)
        for p in home.glob('ledger.sqlite*'): p.unlink()
        for p in home.glob('*/*'): p.unlink()
    if keep == 'pages': assert sorted(found)[len(found)//2] == 40      # most pages hold no facts


# Export and import

@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(st.tuples(st.integers(1, 3), st.sets(st.integers(1, 12), max_size=2), st.sampled_from([1.0, 0.5, 0.0])), min_size=1, max_size=5), damage=st.floats(0, 1, exclude_max=True))
def test_what_is_exported_arrives(tmp_path_factory, plan, damage):
    "All live facts with their edits, scales and history; nothing at all from a damaged file"
    base = tmp_path_factory.mktemp('homes')
    with Ledger.open(base/'a', model='m') as a, Ledger.open(base/'b', model='m') as b, Ledger.open(base/'c', model='other') as c:
        for n, old, scale in plan:
            live = [r.id for r in a.facts()]
            with a.operation('remember'):
                new = [a.add_fact(some_fact(len(live) + 10*k), source=f'a letter of {k}', supersedes=[i for i in old if i in live] if k == 0 else ()).id for k in range(n)]
                a.set_scale(a.add_edit(new, factors(new), method='joint'), scale)
        a.export(base/'file')
        whole = (base/'file').read_bytes()
        at = int(damage*len(whole))
        (base/'bad').write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at+1:])
        with pytest.raises(LedgerError, match='Nothing was changed|newer version'): b.take_in(read_export(base/'bad'))
        assert b.facts(live=False) == []
        told = lambda L: [(r.subject, r.object, r.status, r.scale, r.source, r.created, r.valid_from, r.valid_until) for r in L.facts(live=False)]
        data = read_export(base/'file')
        b.take_in(data)
        known = {(x[0], x[1]) for x in told(a) if x[2] == 'live'}
        assert {(r.subject, r.object) for r in b.facts()} == known == {(c.fact(i).subject, c.fact(i).object) for i in c.take_in(data)}
        assert sorted(len(carries(b, e.id)) for e in b.edits()) == sorted(len(carries(a, e.id)) for e in a.edits()) and c.edits() == []
        assert b.take_in(data) == [] and b.check() == [] == c.check()
        if known: b.undo()
        assert b.facts() == [] and b.edits() == []


# The door

def test_one_writer(tmp_path):
    hold = 'import sys, time\nfrom sleeping_llm.ledger import Ledger\nL = Ledger.open(sys.argv[1], model="m")\nL._sql("BEGIN IMMEDIATE"); L.put("night", 9)\nprint("open", flush=True)\ntime.sleep(60)'
    with Ledger.open(tmp_path/'home', model='m') as L: L.put('night', 1)
    p = subprocess.Popen([sys.executable, '-c', hold, str(tmp_path/'home')], stdout=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline() == 'open\n'
        with pytest.raises(LedgerLocked, match=f'process {p.pid}'): Ledger.open(tmp_path/'home', model='m')
    finally:
        p.kill()
        p.wait()
        p.stdout.close()
    with Ledger.open(tmp_path/'home', model='m') as L: assert L.get('night') == 1


def test_closed(tmp_path):
    L = Ledger.open(tmp_path/'home')
    L.close()
    L.close()
    with pytest.raises(LedgerError, match='closed'): L.facts()
    with Ledger.open(tmp_path/'home') as L: pass


def test_closing_in_a_transaction_drops_it(tmp_path):
    L = Ledger.open(tmp_path/'home')
    with pytest.raises(LedgerError, match='closed'):
        with L.transaction():
            _remember(L, 1)
            L.close()
    with Ledger.open(tmp_path/'home') as L: assert L.facts(live=False) == [] and L.check() == [] and files(L.home) == set()


def test_modes_and_links(tmp_path):
    desk = tmp_path/'desk'
    desk.mkdir(mode=0o755)
    (desk/'letter.txt').write_text('x')
    with Ledger.open(desk) as L:
        _remember(L, 1)
        L.add_turn('user', 'x')
        assert {oct(p.stat().st_mode & 0o777) for p in desk.rglob('*') if p.is_file() and p.name != 'letter.txt'} == {'0o600'}
        assert {oct((desk/d).stat().st_mode & 0o777) for d in ('edits', 'adapters')} == {'0o700'} and desk.stat().st_mode & 0o777 == 0o755
    home, out = tmp_path/'home', tmp_path/'out'
    home.mkdir()
    out.mkdir()
    (home/'edits').symlink_to(out)
    with pytest.raises(LedgerError, match='is a link'): Ledger.open(home)
    (tmp_path/'file').write_text('x')
    with pytest.raises(LedgerError, match='cannot use'): Ledger.open(tmp_path/'file')


def test_paths_stay_inside(home, tmp_path):
    (tmp_path/'1.safetensors').write_text('precious')
    db = sqlite3.connect(home/'ledger.sqlite')
    db.execute("UPDATE revisions SET file = '../1.safetensors' WHERE edit = 1")
    db.commit()
    db.close()
    with Ledger.open(home, model='m') as L:
        with pytest.raises(LedgerError, match='no file of this home'): L.factors(1)
        assert any('no file of this home' in w for w in L.check())
        with pytest.raises(LedgerError): L.forget(1)
    assert (tmp_path/'1.safetensors').read_text() == 'precious'


def test_models_do_not_mix(home):
    with pytest.raises(LedgerError, match="model 'm'"): Ledger.open(home, model='other')
    with Ledger.open(home) as L: assert len(L.facts()) == 40
    with Ledger.open(home, model='m') as L: assert len(L.facts()) == 40


def test_migrations(home, monkeypatch):
    with Ledger.open(home) as L: before = snapshot(L)
    bytes_before = contents(home)
    old = module.MIGRATIONS
    monkeypatch.setattr(module, 'MIGRATIONS', old + ['ALTER TABLE facts ADD COLUMN mood TEXT; CREATE TABLE half (x); CREATE TABLE half (x);'])
    with pytest.raises(LedgerError, match='half'): Ledger.open(home)
    assert contents(home) == bytes_before
    monkeypatch.setattr(module, 'MIGRATIONS', old + ["ALTER TABLE facts ADD COLUMN mood TEXT;"])
    with Ledger.open(home) as L:
        assert snapshot(L) == before and L._one('PRAGMA user_version') == 2
        assert {r['mood'] for r in L._sql('SELECT mood FROM facts')} == {None}
    monkeypatch.setattr(module, 'MIGRATIONS', old)
    with pytest.raises(LedgerError, match='newer version'): Ledger.open(home)


# Content and refusals

def test_forgotten_words_leave_the_disk(tmp_path):
    "Nowhere in the database, its write-ahead log or the factors, however often the fact was touched"
    word = b'Zanzibar'
    with Ledger.open(tmp_path/'home') as L:
        for i in range(30):
            _remember(L, i)
            if i == 15: told = L.add_fact(Fact('I', 'moved to', 'Zanzibar', prompt='{} moved to'), source='I moved to Zanzibar').id
        for stage in range(3): L.set_fact(told, stage=stage, recall=0.5)
        L.retire(told, by=30)
        assert any(word in p.read_bytes() for p in (tmp_path/'home').glob('ledger*'))
        L.forget(told)
        assert not any(word in p.read_bytes() for p in (tmp_path/'home').rglob('*') if p.is_file())
        L.forget(told)
        assert [e.data for e in L.events('forgotten')] == [dict(fact=told)]


def test_forget_within_an_operation_is_not_undone(tmp_path):
    with Ledger.open(tmp_path/'home') as L:
        _remember(L, 1)
        with L.operation('chat'):
            L.forget(1)
            _remember(L, 2)
        undone = L.undo()
        assert undone.added == (2,) and [r.status for r in L.facts(live=False)] == ['forgotten', 'undone']
        with pytest.raises(LedgerError, match='nothing to undo'): L.undo()


def test_refusals(tmp_path):
    with Ledger.open(tmp_path/'home') as L:
        _remember(L, 1)
        before = snapshot(L), files(L.home)
        U, V = np.ones((4, 2), 'f4'), np.ones((2, 3), 'f4')
        new = {1: (U, V)}
        for match, call in {
                'no fact 99': lambda: L.fact(99), 'there is no fact 98': lambda: L.retire(98), 'there is no row 97': lambda: L.set_fact(97, stage=1),
                'stage >= 0': lambda: L.set_fact(1, stage=-1), 'recall BETWEEN': lambda: L.set_fact(1, recall=1.5), 'scale BETWEEN': lambda: L.set_scale(1, 2),
                'use|forget': lambda: L.retire(1, 'forgotten'), 'has edit 1 already': lambda: L.add_edit([1], new, 'joint'), 'at least one fact': lambda: L.add_edit([], new, 'joint'),
                'edit 9 is unknown': lambda: L.replace_edit(9, new), 'no edit 9': lambda: L.factors(9), 'not finite': lambda: L.replace_edit(1, {1: (U*np.nan, V)}),
                r'are not \(d_out': lambda: L.replace_edit(1, {1: (V, U)}), 'float16 or float32': lambda: L.replace_edit(1, {1: (U.astype('f8'), V)}),
                'at least one layer': lambda: L.replace_edit(1, {}), 'number as a number': lambda: L.replace_edit(1, {'1': (U, V)}),
                'append-only': lambda: L._sql('DELETE FROM events'), 'is append': lambda: L._sql("UPDATE events SET kind = 'x'"),
                'FOREIGN KEY': lambda: L.add_check(99, 'chat', 1.0, 1)}.items():
            with pytest.raises(LedgerError, match=match): call()
        with pytest.raises(LedgerError, match='not live'): L.add_fact(some_fact(2), supersedes=[L.retire(1).id])
        with pytest.raises(LedgerError, match='outside a transaction'):
            with L.transaction(): L.collect_garbage()
        with pytest.raises(LedgerError, match='undo cannot'):
            with L.operation('remember'): L.undo()
        with pytest.raises(LedgerError, match='only a live edit'): L.replace_edit(1, new)
    with Ledger.open(tmp_path/'home2') as L:
        _remember(L, 1)
        assert (snapshot(L), files(L.home)) == before


@pytest.mark.parametrize('dtype', ['f2', 'f4'])
def test_factors_come_back_bit_for_bit(tmp_path, dtype):
    rng = np.random.default_rng(0)
    given = {k: (rng.normal(size=(7, n)).astype(dtype), rng.normal(size=(5, n)).astype(dtype).T) for k, n in ((3, 1), ('model.layers.4.mlp.down_proj', 2), (12, 0))}
    with Ledger.open(tmp_path/'home') as L:
        e = L.add_edit([L.add_fact(some_fact(0)).id], given, method='joint')
        back = L.factors(e)
    assert list(map(str, sorted(back, key=str))) == list(map(str, sorted(given, key=str)))
    for k in given:
        for a, b in zip(given[k], back[k]): assert a.dtype == b.dtype and np.array_equal(a, b)


if __name__ == '__main__': kill_everywhere(Path(sys.argv[1]).resolve())
