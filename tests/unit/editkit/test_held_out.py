"""What follows from a forgotten object: which consequences are asked, and that no question gives anything away."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit.data import FactBase, load
from editkit.entries import Composition, Entry, FactTable, Relation, mentions
from editkit.facts import Fact, Hop, normalise
from editkit.held_out import CONSEQUENCE, CONSEQUENCES

WORLD = load()
FIRST = sorted({chain.first for chain in WORLD.table.compositions if chain.kind != "inverse"})
BEGINNING = [entry for entry in WORLD.editable if entry.relation in FIRST]
SEEDS = st.integers(0, 2**32)


def consequences(base: FactBase, entry: Entry, seed: int = 0, known: set[str] | None = None) -> list[Hop]:
    hops = base.forget_record(entry, seed=seed, known=known).held_out.hops
    return [hop for hop in hops if hop.kind == CONSEQUENCE]


@settings(max_examples=80, deadline=None)
@given(entry=st.sampled_from(BEGINNING), seed=SEEDS)
def test_a_consequence_is_what_the_table_says_of_the_forgotten_object(entry: Entry, seed: int) -> None:
    hops = consequences(WORLD, entry, seed)
    assert len({hop.question.prompt for hop in hops}) == len(hops) <= CONSEQUENCES
    chained = {chain.second for chain in WORLD.table.compositions if chain.first == entry.relation}
    for hop in hops:
        own, step = hop.premises
        assert own == entry.question
        assert normalise(step.subject) == normalise(entry.fact.object) and step.relation in chained
        told = WORLD.table.find(step.relation, entry.fact.object)
        assert told is not None and told.question == step
        assert (hop.question.answer, hop.question.aliases) == (told.fact.object, told.aliases)
        assert (hop.question.subject, hop.question.relation) == (entry.fact.subject, step.relation)
        assert hop.question.stratum == entry.stratum and hop.answer_new is None


@settings(max_examples=80, deadline=None)
@given(entry=st.sampled_from(BEGINNING), seed=SEEDS)
def test_it_names_neither_the_forgotten_object_nor_its_answer(entry: Entry, seed: int) -> None:
    for hop in consequences(WORLD, entry, seed):
        for name in (*entry.names, hop.question.answer, *hop.question.aliases):
            assert not mentions(hop.question.prompt, name)


@pytest.mark.parametrize("relation", ["city_country", "us_city_state"])
def test_nearly_every_city_can_be_reached_by_more_than_its_own_prompt(relation: str) -> None:
    """Most cities have no landmark that leads to them, and are no capital."""
    entries = WORLD.entries_of(relation)[::4]
    reached = [entry for entry in entries if WORLD.forget_record(entry, seed=0).held_out.hops]
    assert len(reached) >= 0.95 * len(entries)


@settings(max_examples=40, deadline=None)
@given(entry=st.sampled_from(BEGINNING), seed=SEEDS)
def test_an_edit_is_asked_for_no_consequence_of_this_kind(entry: Entry, seed: int) -> None:
    """It has the old and the new answer in one question."""
    assert CONSEQUENCE not in {hop.kind for hop in WORLD.edit_record(entry, seed=seed).held_out.hops}


# A small world: the town T lies in the land L, and four relations tell of lands -----------------------------------

SHARED = {"sea": 4, "coin": 3, "king": 1, "song": 2}  # lands that have L's object of each relation


def small(**changed: str) -> FactBase:
    """Towns in lands; `changed` gives L another object of a relation."""
    relations = {name: Relation(name, "", "", f"The {name} of {{}} is") for name in ("land", *SHARED)}
    entries = [Entry("land/t", Fact("Town", "land", "Land0", "The land of {} is"))]
    for name, number in SHARED.items():
        for i in range(5):
            told = changed.get(name, f"{name} zero") if i < number else f"{name} number {i}"
            entries.append(Entry(f"{name}/{i}", Fact(f"Land{i}", name, told, f"The {name} of {{}} is")))
    chains = tuple(Composition("land", name, (f"The {name} of the land of {{}} is",)) for name in SHARED)
    table = FactTable(relations, tuple(entries), chains)
    return FactBase("small", None, table.entries, table)


def asked_for(base: FactBase, known: set[str] | None = None) -> list[str]:
    return [hop.question.relation for hop in consequences(base, base["land/t"], known=known)]


def test_what_fewest_share_is_asked_first() -> None:
    """The more lands share it, the better it can be guessed."""
    assert asked_for(small()) == ["king", "song", "coin"]


def test_a_known_step_goes_before_one_that_few_share() -> None:
    assert asked_for(small(), {"sea/0", "coin/0"}) == ["coin", "sea", "king"]
    assert asked_for(small(), set()) == ["king", "song", "coin"]


@pytest.mark.parametrize("given_away", ["Town", "land"])
def test_an_answer_that_stands_in_the_prompt_is_not_asked_for(given_away: str) -> None:
    assert asked_for(small(king=given_away)) == ["song", "coin", "sea"]


def test_a_subject_that_names_the_forgotten_object_has_no_consequence() -> None:
    base = small()
    named = Entry("land/t", Fact("Land0 Town", "land", "Land0", "The land of {} is"))
    assert not consequences(FactBase("named", None, (named,), base.table), named)
