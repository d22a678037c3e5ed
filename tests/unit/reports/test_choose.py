"""What the base model knows is asked once, where the probes find it; and the facts to change are even over strata."""

from __future__ import annotations

from collections import Counter

import pytest
from conftest import make_handle
from hypothesis import given
from hypothesis import strategies as st

from editkit.data import DataError, load
from editkit.entries import Entry
from editkit.facts import Fact
from editkit.scoring import tell_in_parts
from probes.ask import Job, Key, MemoryStore, _Asker, replies_to, run_probes
from probes.verdict import Reply
from reports.choose import NOT_KNOWN, SAMPLE, choose, evenly, select, spread
from reports.spec import FactsPart, make_spec
from reports.watch import Silent


def test_a_fact_asked_when_it_was_chosen_is_not_generated_again(monkeypatch):
    handle, base, store = make_handle("llama"), load("world"), MemoryStore()
    spec = make_spec({"facts": {"relations": ["capital"], "n": 2, "known_only": False}, "max_new_tokens": 4})
    generated: Counter[str] = Counter()

    def counted(handle, asks, **more):
        generated.update(ask.prompt for ask in asks if ask.generate)
        return tell_in_parts(handle, asks, **more)

    monkeypatch.setattr("probes.ask.tell_in_parts", counted)
    chosen = select(handle, base, spec, store, Silent())
    records = [base.edit_record(entry, seed=0, known=chosen.known) for entry in chosen.entries]
    assert all(generated[record.fact.text] == 1 for record in records)
    run_probes(handle, [], [Job("rewrite", r) for r in records], store=store, max_new_tokens=4)
    assert all(generated[record.fact.text] == 1 for record in records)
    before = generated.copy()
    assert replies_to(handle, [records[0].fact.text], store=store, max_new_tokens=4)
    assert generated == before


def test_a_reply_with_a_text_serves_where_only_its_scores_are_wanted(monkeypatch):
    handle, store = make_handle("llama"), MemoryStore()
    spoken = Reply("Paris", {"Paris": -1.0}, {"Paris": True})
    store.put([(Key(handle.state, "The capital of France is", True), spoken)])
    asker, wish = _Asker(handle, store, 3), ("The capital of France is", 0)
    with monkeypatch.context() as patched:
        patched.setattr("probes.ask.tell_in_parts", lambda _, asks, **__: pytest.fail("asked") if asks else iter(()))
        found = asker._replies({wish: ("Paris",)}, generate=False)
    assert found[wish] == spoken
    more = asker._replies({wish: ("Rome",)}, generate=False)[wish]
    assert set(more.logprob) == {"Rome"}, "a target that it lacks is asked for"


# Which facts are changed ---------------------------------------------------------------------------------------

WORLD = load("world")
STRATA = ("q1", "q2", "q3", "q4")
KNOWN_ONLY, ALL_FACTS = FactsPart(), FactsPart(known_only=False)


def fact(number: int, relation: str, stratum: str | None) -> Entry:
    return Entry(f"{number:03}", Fact(f"s{number}", relation, "o", "{} is"), stratum=stratum)


kinds = st.tuples(st.sampled_from("abcd"), st.sampled_from((None, *STRATA)))
facts = st.lists(kinds, min_size=1, max_size=40).map(lambda ks: [fact(i, *kind) for i, kind in enumerate(ks)])


@st.composite
def asked_and_known(draw):
    asked = draw(facts)
    return asked, frozenset(e.id for e in asked if draw(st.integers(0, 3)))


def beginnings(entries):
    """What was chosen, the next one, and what was left to choose it from."""
    order = list(evenly(entries))
    return [(order[:i], order[i], order[i:]) for i in range(len(order))]


@given(asked_and_known(), st.data())
def test_the_first_of_many_are_those_of_few_and_never_fewer_than_asked_for(given, data):
    asked, known = given
    part = data.draw(st.sampled_from([KNOWN_ONLY, ALL_FACTS]))
    usable = [e for e in asked if e.id in known or not part.known_only]
    if not usable:
        with pytest.raises(DataError, match="name other facts"):
            choose(WORLD, part, asked, None, known)
        return
    every = choose(WORLD, part, asked, None, known).entries
    assert sorted(every, key=asked.index) == usable
    n = data.draw(st.integers(1, len(usable)))
    assert choose(WORLD, part, asked, n, known).entries == every[:n]
    with pytest.raises(DataError, match=f"use --n {len(usable)}"):
        choose(WORLD, part, asked, len(usable) + 1, known)


@given(asked_and_known(), st.integers(1, 3))
def test_passed_over_are_all_that_were_asked_and_are_not_known(given, n):
    asked, known = given
    unknown = sum(e.id not in known for e in asked)
    for number in (None, n):
        if len(known) >= (number or 1):
            chosen = choose(WORLD, KNOWN_ONLY, asked, number, known)
            assert chosen.passed_over == ({NOT_KNOWN: unknown} if unknown else {})
        if len(asked) >= (number or 1):
            assert choose(WORLD, ALL_FACTS, asked, number, known).passed_over == {}


@given(facts)
def test_no_stratum_gets_a_further_fact_before_another_that_has_facts_left(entries):
    for before, taken, left in beginnings(entries):
        have = Counter(e.stratum for e in before)
        for other in {e.stratum for e in left} - {None, taken.stratum}:
            assert have[other] >= (2 if taken.stratum is None else have[taken.stratum])


@given(facts)
def test_facts_without_a_stratum_have_their_turn_after_two_of_each(entries):
    """Or they would never come where strata are large."""
    for before, taken, left in beginnings(entries):
        have = Counter(e.stratum for e in before)
        if taken.stratum is not None and any(e.stratum is None for e in left):
            assert have[taken.stratum] <= have[None] + 2


@given(facts)
def test_where_strata_do_not_decide_relations_do_and_then_the_order_given(entries):
    for before, taken, left in beginnings(entries):
        have = Counter(e.relation for e in before)
        same = [e for e in left if e.stratum == taken.stratum]
        fewest = min(have[e.relation] for e in same)
        assert have[taken.relation] == fewest
        assert taken == min((e for e in same if have[e.relation] == fewest), key=entries.index)


@given(facts, st.integers(0, 99), st.randoms())
def test_the_choice_hangs_on_the_seed_and_on_no_order(entries, seed, random):
    shuffled = random.sample(entries, len(entries))
    assert list(evenly(spread(shuffled, seed))) == list(evenly(spread(entries, seed)))


def test_another_seed_chooses_other_facts():
    assert len({tuple(e.id for e in evenly(spread(WORLD.editable, seed)))[:8] for seed in range(5)}) == 5


def choice_from_world(monkeypatch, knows, n):
    """What is chosen where the model knows what `knows` says, and how many facts were asked each time."""
    asked = []

    def known_ids(handle, base, entries, *_):
        asked.append(len(entries))
        return frozenset(entry.id for entry in entries if knows(entry))

    monkeypatch.setattr("reports.choose.known_ids", known_ids)
    spec = make_spec({"facts": {"n": n}})
    return select(None, WORLD, spec, MemoryStore(), Silent()).entries, asked


def test_eight_facts_are_two_of_each_stratum_and_of_as_many_relations(monkeypatch):
    known = {entry.id for entry in WORLD.editable[::3]}
    eight, asked = choice_from_world(monkeypatch, lambda entry: entry.id in known, 8)
    assert Counter(e.stratum for e in eight) == dict.fromkeys(STRATA, 2)
    ranked = {e.relation for e in WORLD.editable if e.stratum}
    assert {e.relation for e in eight} == ranked and len(ranked) == 7
    three, _ = choice_from_world(monkeypatch, lambda entry: entry.id in known, 3)
    assert three == eight[:3] and len(asked) == 1


def test_a_stratum_that_is_not_known_has_no_fact_and_is_not_asked_for(monkeypatch):
    eight, asked = choice_from_world(monkeypatch, lambda entry: entry.stratum not in ("q1", None), 8)
    assert len(asked) == 1 and asked[0] < SAMPLE * len(WORLD.relations)
    assert Counter(e.stratum for e in eight)["q1"] == 0 and len(eight) == 8
    nobody, _ = choice_from_world(monkeypatch, lambda entry: entry.stratum is None, 8)
    assert len(nobody) == 8, "facts without a stratum are better than none"
