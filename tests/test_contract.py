"""The public contract on the embedded model: exact undo and forget, restart in another process, bad input."""
import subprocess,sys

import pytest

from sleeping_llm import Fact,SleepingLLM
from sleeping_llm.facts import FactError
from sleeping_llm.ledger import LedgerError,LedgerLocked

QUESTIONS = ("Where does Solveig Marsh live?","What is the capital of France?","Where do I live?")
PROMPTS = ("Solveig Marsh lives in","The capital of Italy is")
TEXT = "The ferry leaves at noon and takes two hours to cross the sound. In winter there is only one boat a day."
FACT = Fact("Solveig Marsh","lives in","Trondheim")

def state(mind): return [mind.ask(q) for q in QUESTIONS],[mind.complete(p) for p in PROMPTS]

@pytest.fixture(scope="module")
def home(tmp_path_factory): return tmp_path_factory.mktemp("home")

@pytest.fixture(scope="module")
def mind(home):
    with SleepingLLM.open(home, progress=False) as m: yield m

@pytest.mark.parametrize("how",["undo","forget"])
def test_exact_revert(mind, how):
    before,ppl = state(mind),mind.perplexity(TEXT)
    record, = mind.remember(FACT)
    assert "Trondheim" in mind.ask(QUESTIONS[0]) and "Trondheim" in mind.complete(PROMPTS[0])
    assert abs(mind.perplexity(TEXT)/ppl-1)<.02
    mind.undo() if how=="undo" else mind.forget(record.id)
    assert state(mind)==before
    assert abs(mind.perplexity(TEXT)/ppl-1)<1e-6
    assert mind.facts()==[]

def test_records(mind):
    a,b = mind.remember([Fact("I","live in","Tromsø"),Fact("Piet Aldous","works as","plumber")])
    assert [(r.subject,r.object,r.stage,r.scale,r.recall) for r in mind.facts()]==[("I","Tromsø",0,1.,None),("Piet Aldous","plumber",0,1.,None)]
    assert mind.remember(Fact("Piet Aldous","works as","plumber"))[0].id==b.id   # known already: not written twice
    assert "Troms" in mind.ask("Where do I live?")
    mind.undo()
    assert mind.facts()==[]

def test_bad_input_changes_nothing(mind):
    before = state(mind)
    for bad in (lambda: Fact("","lives in","Oslo"), lambda: Fact("x","y","z"*500), lambda: mind.remember(["no fact"]),
                lambda: mind.remember([Fact("Piet Aldous","lives in","Oslo"),Fact("Piet Aldous","lives in","Rome")])):
        with pytest.raises(FactError): bad()
    for bad in (lambda: mind.forget(999), lambda: mind.forget(Fact("Piet Aldous","lives in","Oslo"))):
        with pytest.raises(LedgerError): bad()
    assert state(mind)==before and mind.facts()==[]

def test_second_writer_is_refused(mind, home):
    with pytest.raises(LedgerLocked): SleepingLLM.open(home, backend=mind.backend)

def test_another_process_remembers(mind, home):
    mind.remember(FACT)
    answer = mind.ask(QUESTIONS[0])
    mind.close()
    code = f"from sleeping_llm import SleepingLLM\nwith SleepingLLM.open({str(home)!r}) as m: print(m.ask({QUESTIONS[0]!r}))"
    got = subprocess.run([sys.executable,"-c",code], capture_output=True, text=True, check=True).stdout.strip()
    assert got==answer and "Trondheim" in got
