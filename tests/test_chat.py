"""A conversation that changes its mind, commands and turns under arbitrary input, and what survives a restart."""
import time

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sleeping_llm import Fact, SleepingLLM
from sleeping_llm.chat import COMMANDS

# what is tested here is what is kept, not how well it is recalled: a few steps are enough
SHORT = dict(context=dict(max_tokens=256, max_reply_tokens=2), sleep=dict(auto=False), memit=dict(v_steps=2, chat_contexts=1, raw_contexts=1), lora=dict(min_iters=1, iters_per_fact=1))

@pytest.fixture(scope='module')
def home(tmp_path_factory): return tmp_path_factory.mktemp('home')

@pytest.fixture(scope='module')
def mind(home):
    with SleepingLLM.open(home, SHORT, progress=False) as m: yield m

def history(mind): return [(r.subject, r.object, r.status) for r in mind.ledger.facts(live=False)]

CHEAP = [c for c in COMMANDS if c not in ('sleep', 'nap', 'status', 'quit')]
fuzz = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

@settings(fuzz, max_examples=150)
@given(name=st.sampled_from(CHEAP) | st.text(max_size=8).filter(lambda n: n.split(' ')[0].strip() not in COMMANDS), arg=st.text(max_size=12) | st.integers().map(str) | st.just('²') | st.just('9'*5000))
def test_any_command_gets_an_answer(mind, name, arg):
    said = mind.command(f'/{name} {arg}')
    assert isinstance(said, str) and said and mind.facts() == []
    if name.strip() and name.strip().split(' ')[0] not in COMMANDS: assert said.startswith('There is no command /')

@settings(fuzz, max_examples=8)
@given(st.text(max_size=60).filter(lambda t: not t.startswith('/')))
def test_any_turn_gets_a_reply(mind, text):
    assert isinstance(mind.chat(text), str)
    assert mind.tokens() <= 256 and mind.facts() == []

@pytest.mark.parametrize('unit', ['x ', '\x00', '\ud800', '> I live in Rome.\n', '😀'])
def test_a_megabyte_gets_a_reply(mind, unit):
    start = time.perf_counter()
    mind.chat(unit*(1_000_000//len(unit)))
    assert time.perf_counter()-start < 20 and mind.tokens() <= 256 and mind.facts() == []

def test_a_change_of_mind(mind):
    mind.chat('My sister Mara lives in Leeds, and I have two cats called Mog and Tab.')
    mind.chat("Actually, Mara lives in York.")
    mind.chat('My cat Tab ran away.')
    assert history(mind) == [('I', 'Mara', 'live'), ('Mara', 'Leeds', 'superseded'), ('I', 'Mog and Tab', 'superseded'), ('Mara', 'York', 'live'), ('I', 'Mog', 'live')]
    old, new = (next(r for r in mind.ledger.facts(live=False) if r.object == o) for o in ('Leeds', 'York'))
    assert old.superseded_by == new.id and old.valid_from < old.valid_until <= new.valid_from+1 and new.valid_until is None
    assert 'Leeds' in mind.chat(f'/why {new.id}')
    assert mind.heard == [] and mind.chat('My sister Mara lives in York.') is not None and mind.heard == []   # known already

def test_a_restart_knows_who_is_who(mind, home):
    mind.close()
    with SleepingLLM.open(home, SHORT, backend=mind.backend, progress=False) as again:
        again.chat('My sister moved to Bath.')
        assert ('Mara', 'Bath', 'live') in history(again) and ('Mara', 'York', 'superseded') in history(again)
        again.chat('Please forget where my sister lives.')
        again.chat("I don't live there any more.")   # there is nothing to end
        again.chat("Forget that Mara lives in Bath.")
        assert [h for h in history(again) if h[0] == 'Mara'] == []
        assert not any(w in t.text for t in again.ledger.turns() if t.role == 'user' for w in ('Bath', 'Leeds', 'York'))
        assert not any('Bath' in m['content'] for m in again.messages if m['role'] == 'user')

def test_what_is_outdated_is_unlearned(tmp_path, mind):
    "A LoRA that was taught a fact is replaced when the fact is over; undo brings the fact back"
    with SleepingLLM.open(tmp_path/'home', SHORT, backend=mind.backend, progress=False) as m:
        rec, = m.remember(Fact('I', 'plays', 'cello'))
        m.ledger.put_adapter({}, dict(night=1, folded=[[rec.edit, 0]]))   # as a night does that teaches it
        assert m.memory.folded() == {rec.edit}
        m.chat("I don't play the cello any more.")
        assert m.facts() == [] and m.ledger.get('outdated') is True
        m.memory.relearn()                            # as the next night does
        assert m.memory.folded() == set() and not m.ledger.get('outdated')
        m.undo()
        assert [(r.object, r.stage, r.scale) for r in m.facts()] == [('cello', 0, 1.0)]
