"""Records made of the shipped facts: deterministic, and no question gives its answer away."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from editkit.data import DataError, FactBase, datasets, load
from editkit.entries import Entry, FactTable, Inverse, Relation, mentions, occurrences, overlap
from editkit.facts import EditRecord, Fact, Hop, fill, normalise
from editkit.held_out import CONSEQUENCE, NEIGHBORS, UNRELATED, is_probe_side

WORLD = load()
ENTRIES = st.sampled_from(WORLD.editable)
SEEDS = st.integers(0, 2**32)


def asked(record: EditRecord) -> list[str]:
    """Every prompt that a probe may make of a record."""
    held, subject = record.held_out, record.fact.subject
    wordings = (record.fact.prompt, *held.paraphrases, *held.questions)
    hops = [question.prompt for hop in held.hops for question in (hop.question, *hop.premises)]
    return [fill(each, subject) for each in wordings] + [q.prompt for q in held.neighborhood] + hops


@settings(max_examples=60, deadline=None)
@given(entry=ENTRIES, seed=SEEDS)
def test_no_prompt_names_the_target(entry: Entry, seed: int) -> None:
    record = WORLD.edit_record(entry, seed=seed)
    target = record.edit.target_new
    named = [prompt for prompt in asked(record) if mentions(prompt, target)]
    # the premise of a new consequence must name the new object: "The capital of South Korea is"
    premises = {hop.premises[-1].prompt for hop in record.held_out.hops if len(hop.premises) == 3}
    assert set(named) <= premises


@settings(max_examples=60, deadline=None)
@given(entry=ENTRIES, seed=SEEDS)
def test_the_target_is_another_object_of_the_range(entry: Entry, seed: int) -> None:
    record = WORLD.edit_record(entry, seed=seed)
    target = record.edit.target_new
    assert target in WORLD.range_of(entry.relation)
    assert not any(overlap(target, name) for name in entry.names)


@settings(max_examples=60, deadline=None)
@given(entry=ENTRIES, seed=SEEDS)
def test_the_neighborhood_shares_nothing_with_the_change(entry: Entry, seed: int) -> None:
    record = WORLD.edit_record(entry, seed=seed)
    changed = (entry.fact.subject, entry.fact.object, record.edit.target_new)
    neighborhood = record.held_out.neighborhood
    for question in neighborhood:
        assert not any(overlap(mine, theirs) for mine in changed for theirs in (question.subject, question.answer))
    assert len({question.prompt for question in neighborhood}) == len(neighborhood) == NEIGHBORS + UNRELATED
    assert sum(question.relation != entry.relation for question in neighborhood) >= UNRELATED


@settings(max_examples=40, deadline=None)
@given(entry=ENTRIES, seed=SEEDS)
def test_records_are_the_same_under_one_seed(entry: Entry, seed: int) -> None:
    known = {other.id for other in WORLD.entries[::2]}
    assert WORLD.edit_record(entry, seed=seed, known=known) == WORLD.edit_record(entry, seed=seed, known=known)
    assert WORLD.forget_record(entry, seed=seed, known=known) == WORLD.forget_record(entry, seed=seed, known=known)


def test_another_seed_gives_another_record() -> None:
    records = {WORLD.edit_record(WORLD["capital/fr"], seed=seed).edit.target_new for seed in range(20)}
    assert len(records) > 5


@settings(max_examples=60, deadline=None)
@given(entry=ENTRIES, seed=SEEDS)
def test_hops_need_the_fact(entry: Entry, seed: int) -> None:
    for hop in WORLD.edit_record(entry, seed=seed).held_out.hops:
        assert hop.answer_new is not None and not overlap(hop.answer_new, hop.question.answer)
        assert hop.kind in {"composition", "neighbour"}
        check_hop(hop, entry)


@settings(max_examples=60, deadline=None)
@given(entry=ENTRIES, seed=SEEDS)
def test_hops_lead_back_to_what_was_forgotten(entry: Entry, seed: int) -> None:
    record = WORLD.forget_record(entry, seed=seed)
    for hop in record.held_out.hops:
        assert hop.answer_new is None
        if hop.kind not in ("inverse", CONSEQUENCE):
            assert hop.question.answer == entry.fact.object
        check_hop(hop, entry)


def check_hop(hop: Hop, entry: Entry) -> None:
    """The changed fact is a premise, and the question says none of the answers that are accepted."""
    assert entry.question in hop.premises
    for answer in (hop.question.answer, *hop.question.aliases, hop.answer_new, *hop.aliases_new):
        assert answer is None or not mentions(hop.question.prompt, answer)
    assert len(hop.premises) >= 2 and all(premise.answer for premise in hop.premises)


@pytest.mark.parametrize(
    ("entry_id", "old", "new"),
    [
        ("capital/fr", "Paris", "Rome"),  # the changed fact is the chain's last link
        ("city_country/fr-lyon", "Paris", "Rome"),  # … and its first
    ],
)
def test_both_consequences_of_an_edit(entry_id: str, old: str, new: str) -> None:
    entry = WORLD[entry_id]
    wished = {"capital": "Rome", "city_country": "Italy"}[entry.relation]
    base = FactBase("mine", None, (entry,), WORLD.table)
    moved = Entry(entry.id, entry.fact, entry.aliases, target_new=wished)
    hops = base.edit_record(moved, seed=1).held_out.hops
    assert (old, new) in {(hop.question.answer, hop.answer_new) for hop in hops}


def test_each_chain_is_asked_through_two_subjects_where_there_are_two() -> None:
    hops = WORLD.edit_record(WORLD["capital/fr"], seed=0).held_out.hops
    over_cities = {hop.question.subject for hop in hops if hop.premises[0].relation == "city_country"}
    assert over_cities == {"Marseille", "Lyon"}  # Paris itself would say the answer


def test_the_inverse_is_asked_only_where_one_subject_has_the_object() -> None:
    capital = WORLD.forget_record(WORLD["capital/fr"], seed=0).held_out.hops
    assert {hop.question.answer for hop in capital if hop.kind == "inverse"} == {"France"}
    table = FactTable(
        {"seat": Relation("seat", "", "", "The seat of {} is", inverse=Inverse("of", "{} is the seat of"))},
        tuple(Entry(name, Fact(name, "seat", "Rome", "The seat of {} is")) for name in ("Here", "There")),
    )
    assert not FactBase("two", None, table.entries, table).forget_record(table.entries[0], seed=0).held_out.hops


@settings(max_examples=30, deadline=None)
@given(entries=st.lists(ENTRIES, min_size=1, max_size=4, unique=True), n=st.integers(0, 60), seed=SEEDS)
@example([WORLD["city_country/eg-alexandria"], WORLD["city_country/us-chicago"]], 60, 12)  # "the US state of {} …"
def test_retain_never_meets_forget_nor_neighborhood(entries: list[Entry], n: int, seed: int) -> None:
    retain = WORLD.retain_examples([entry.id for entry in entries], n, seed)
    assert len(retain) == n == len(set(retain))
    asked_elsewhere = {q.prompt for e in entries for q in WORLD.forget_record(e, seed=seed).held_out.neighborhood}
    for kept in retain:
        for entry in entries:
            assert normalise(kept.completion) != normalise(entry.fact.object)
            assert not any(mentions(kept.prompt, name) for name in entry.names)
    sides = {(entry.relation, entry.fact.subject): is_probe_side(entry) for entry in WORLD.entries}
    for entry in entries:
        for question in WORLD.forget_record(entry, seed=seed).held_out.neighborhood:
            assert sides[question.relation, question.subject]
    assert not {kept.prompt for kept in retain} & asked_elsewhere


def test_known_facts_come_first() -> None:
    known = {entry.id for entry in WORLD.entries_of("capital")[:60]}
    subjects = {WORLD[each].fact.subject for each in known}
    record = WORLD.edit_record(WORLD["capital/fr"], seed=3, known=known)
    same = [question for question in record.held_out.neighborhood if question.relation == "capital"]
    assert len(same) == NEIGHBORS and all(question.subject in subjects for question in same)
    assert record.edit.target_new in {WORLD[each].fact.object for each in known}
    retain = WORLD.retain_examples(["capital/fr"], 10, seed=3, known=known)
    assert sum(any(mentions(example.prompt, name) for name in subjects) for example in retain) >= 5


def test_strata_take_turns() -> None:
    strata = [q.stratum for q in WORLD.edit_record(WORLD["capital/fr"], seed=0).held_out.neighborhood[:NEIGHBORS]]
    assert {strata.count(each) for each in ("q1", "q2", "q3", "q4")} == {NEIGHBORS // 4}


def test_without_popularity_any_object_may_be_the_target() -> None:
    """Else the "popular half" would be the end of the alphabet."""
    gas = WORLD["element_discoverer/hydrogen"]
    assert gas.popularity is None
    targets = {WORLD.edit_record(gas, seed=seed).edit.target_new for seed in range(400)}
    assert targets == set(WORLD.range_of("element_discoverer")) - {gas.fact.object}


def test_forget_examples_use_only_what_operators_may_see() -> None:
    record = WORLD.forget_record(WORLD["capital/fr"], seed=0)
    relation = WORLD.relations["capital"]
    assert [example.prompt for example in record.examples] == [fill(each, "France") for each in relation.seen]
    assert {example.completion for example in record.examples} == {"Paris"}
    assert not {example.prompt for example in record.examples} & {
        fill(e, "France") for e in record.held_out.paraphrases
    }


def test_an_unknown_id_is_answered_with_its_neighbours() -> None:
    with pytest.raises(DataError, match=r"no fact 'capital/frr' in 'world'; near it: capital/fr"):
        WORLD["capital/frr"]


@pytest.mark.parametrize("name", ["wrld", "../world", "", "/etc"])
def test_an_unknown_data_set_is_answered_with_what_there_is(name: str) -> None:
    with pytest.raises(DataError, match=f"there is {', '.join(datasets())}, or give"):
        load(name)


def test_whole_words_only() -> None:
    assert mentions("Where is Côte d'Ivoire?", "cote d ivoire") and not mentions("the Nigerian capital", "Niger")
    assert mentions("法国的首都是巴黎吗", "巴黎")
    assert occurrences("Nigeria and Niger", "Niger") == [12] and occurrences("日本の首都", "日本") == [0]


@given(st.text(min_size=1), st.text(), st.text())
def test_a_name_is_mentioned_where_it_stands_alone(name: str, before: str, after: str) -> None:
    assert (
        mentions(f"{before} {name} {after}", name) or normalise(name) != normalise(f" {name} ") or not normalise(name)
    )


def test_range_is_typed_and_sorted() -> None:
    assert WORLD.range_of("continent") == ("Africa", "Asia", "Europe", "North America", "Oceania", "South America")
    assert WORLD.range_of("no such relation") == ()
    assert not any(WORLD.relations[entry.relation].hop_only for entry in WORLD.editable)
