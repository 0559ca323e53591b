"""What is heard in the labelled conversations of conversations.json; errors on those marked held_out
were never looked at while the patterns were tuned (their author is the same, so they are no blind test)."""
import json, time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from sleeping_llm.extraction import hear, score
from sleeping_llm.facts import Fact, answer, contexts, questions

TALKS = json.loads((Path(__file__).parent/'conversations.json').read_text(encoding='utf-8'))

def totals(talks):
    "Right, wrong, missed and the list of errors over several conversations."
    rs = [score([(t['text'], [(a, Fact(*f)) for a in ('add', 'retract', 'forget') for f in t.get(a, [])]) for t in c['turns']]) for c in talks]
    return *(sum(r[i] for r in rs) for i in range(3)), [e for r in rs for e in r[3]]

@pytest.mark.parametrize('held_out', [False, True], ids=['development', 'held out'])
def test_precision_and_recall(held_out, record_property):
    talks = [c for c in TALKS if c['held_out']==held_out]
    right, wrong, missed, errors = totals(talks)
    precision, recall = right/(right+wrong), right/(right+missed)
    record_property('precision', precision); record_property('recall', recall)
    print(f'{len(talks)} conversations, {right+missed} facts: precision {precision:.3f}, recall {recall:.3f}')
    assert precision>=0.97 and recall>=0.90, errors

def test_the_set_is_large_enough():
    assert len(TALKS)>=12 and sum(c['held_out'] for c in TALKS)>=4
    assert all(10<=len(c['turns'])<=20 for c in TALKS)

def test_a_turn_takes_less_than_50_ms():
    turns = [t['text'] for c in TALKS for t in c['turns']]
    hear(turns[0])                                  # patterns are compiled once
    start = time.perf_counter()
    for i in range(20, len(turns)): hear(turns[i], turns[i-20:i])
    assert (time.perf_counter()-start)/(len(turns)-20)<0.05

@pytest.mark.parametrize('unit', ['a', '"', "'a ", '> ', 'I live in ', 'my sister Mara, who ', 'and, ', '``` ', '\x00', '😀', '\ud800', "I'm Ana. "])
def test_a_megabyte_is_heard_in_bounded_time(unit):
    start = time.perf_counter()
    hear(unit*(1_000_000//len(unit)), ['I have a dog.'])
    assert time.perf_counter()-start<3

WORDS = "I my sister Mara Tom who lives in works as a nurse and , . ? ! \" ' > if not don't I'm called has a dog named two Rex 12 is are we he she favorite color blue plays 🦊 \u200b \x00 ( ) : May 3 actually meant I've her his 's moved to 你 because like".split(' ')

@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=40).map(' '.join) | st.text(max_size=300))
def test_never_raises_and_objects_are_grounded(text):
    for h in hear(text, [text]):
        said = ' '.join(text.replace('’', "'").casefold().split())
        assert ' '.join(h.fact.object.replace('’', "'").casefold().split()) in said
        assert 0<=h.span[0]<h.span[1]<=len(text)
        assert answer(h.fact) and questions(h.fact) and contexts(h.fact)

@pytest.mark.parametrize('text', [
    'Do I live in Rome?', 'do you know where i live', 'If I lived in Rome I would have a dog called Rex.', 'I might live in Rome.', 'I wish I lived in Rome.',
    'Imagine I live in Rome. I work as a spy.', 'He says that I live in Rome.', 'According to my boss, I live in Rome.', 'I live in the past, my drummer says.',
    'He wrote: "remember that I live in Rome"', '> I live in Rome', '```\nI live in Rome\n```', 'Translate to French: I live in Rome.', 'Summarise this:\n\nI live in Rome.\nI am a nurse.',
    'You live in Rome.', 'You are called Sleepy.', 'I live in Rome, just kidding!', 'I used to live in Rome.', 'I was a nurse.', 'Maybe I live in Rome.',
    "I'm going to bed.", 'I love you.', 'I like your answer.', "I'm afraid that it rains.", 'Sounds like a nice day.', 'We should play chess and live in Rome.'])
def test_firewall(text): assert hear(text)==[]
