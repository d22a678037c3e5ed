"""The steps of chains in the shipped facts: neighbours that are truly neighbours, ways back that lead back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from editkit.data import FactBase, load
from editkit.entries import Entry
from editkit.facts import Hop, normalise

WORLD = load("world")
BORDERS = WORLD.entries_of("border_any")


def names_of_countries() -> dict[str, str]:
    """Every spelling of every country by its usual name."""
    spellings = {name: each.fact.object for each in WORLD.entries_of("city_country") for name in each.names}
    subjects = {each.fact.subject: each.fact.subject for each in WORLD.entries_of("currency")}
    return {normalise(name): usual for name, usual in {**subjects, **spellings}.items()}


COUNTRIES = names_of_countries()


def neighbours(entry: Entry) -> set[str]:
    """The usual names of all that is accepted; a spelling of no known country stays as it is."""
    return {COUNTRIES.get(normalise(name), name) for name in entry.names}


def relation(name: str) -> list[Entry]:
    return list(WORLD.entries_of(name))


def borders(name: str) -> set[str]:
    entry = WORLD.table.find("border_any", name)
    return neighbours(entry) if entry else set()


def test_each_accepted_neighbour_is_mutual() -> None:
    there = {entry.fact.subject: entry for entry in BORDERS}
    checked = [(one, other) for one, entry in there.items() for other in neighbours(entry) if other in there]
    assert len(checked) > 500
    assert [pair for pair in checked if pair[0] not in neighbours(there[pair[1]])] == []


def test_no_country_borders_itself() -> None:
    assert not [entry.id for entry in BORDERS if entry.fact.subject in neighbours(entry)]


def test_the_only_neighbour_is_the_only_one() -> None:
    for entry in relation("border"):
        assert borders(entry.fact.subject) in ({entry.fact.object}, set()), entry.id


def test_the_largest_neighbour_is_a_neighbour_and_no_only_one() -> None:
    single = {entry.fact.subject for entry in relation("border")}
    assert len(relation("border_largest")) >= 70
    for entry in relation("border_largest"):
        assert entry.fact.subject not in single
        assert not borders(entry.fact.subject) or entry.fact.object in borders(entry.fact.subject), entry.id


def test_two_countries_share_just_one_neighbour() -> None:
    everyone = {entry.fact.subject: neighbours(entry) for entry in BORDERS}
    assert len(relation("border_both")) >= 80
    for entry in relation("border_both"):
        pair = set(entry.fact.subject.split(" and "))
        assert len(pair) == 2 and pair <= set(COUNTRIES.values()), entry.id
        between = {country for country, near in everyone.items() if pair <= near}
        assert between <= {entry.fact.object}, entry.id  # a country may miss that says its neighbour: "Sudan"


@pytest.mark.parametrize(
    ("one", "other"),
    [("the United States", "Cuba"), ("Serbia", "Albania"), ("Spain", "Gibraltar"), ("Ireland", "England")],
)
def test_what_is_no_border_is_not_accepted(one: str, other: str) -> None:
    assert borders(one) and other not in borders(one)
    assert one not in borders(other)


@pytest.mark.parametrize(
    ("one", "other"), [("Brazil", "France"), ("Suriname", "France"), ("Canada", "Denmark"), ("Botswana", "Zambia")]
)
def test_a_border_overseas_is_right_but_never_the_answer_asked_for(one: str, other: str) -> None:
    for name, neighbour in ((one, other), (other, one)):
        assert neighbour in borders(name)
        asked = [WORLD.table.find(way, name) for way in ("border", "border_any", "border_largest")]
        assert neighbour not in [entry.fact.object for entry in asked if entry]


@pytest.mark.parametrize(
    ("step", "fact"),
    [
        ("language_country", "language"),
        ("discovered_element", "element_discoverer"),
        ("largest_city", "city_country"),
        ("us_state_largest_city", "us_city_state"),
    ],
)
def test_a_way_back_leads_back(step: str, fact: str) -> None:
    """Turned round, a step agrees with the relation that it asks back from, wherever both know the place."""
    assert any(
        chain.kind == "inverse" and (chain.first, chain.second) == (fact, step) for chain in WORLD.table.compositions
    )
    often = Counter(entry.fact.object for entry in relation(step))  # both Oregon's and Maine's is a Portland
    pairs = [(e, WORLD.table.find(fact, e.fact.object)) for e in relation(step) if often[e.fact.object] == 1]
    met = [(entry, turned) for entry, turned in pairs if turned is not None]
    assert len(met) > len(relation(step)) / 3
    assert [entry.id for entry, turned in met if turned.fact.object != entry.fact.subject] == []


@pytest.mark.parametrize("name", ["language_country", "discovered_element"])
def test_a_way_back_is_the_only_one(name: str) -> None:
    fact = {"language_country": "language", "discovered_element": "element_discoverer"}[name]
    assert [entry.id for entry in relation(name) if len(WORLD.table.with_object(fact, entry.fact.subject)) > 1] == []


def test_forgetting_asks_the_way_back() -> None:
    hops = WORLD.forget_record(WORLD["city_country/de-berlin"], seed=0).held_out.hops
    back = [hop for hop in hops if hop.kind == "inverse"]
    assert back and {hop.question.answer for hop in back} == {"Berlin"}
    assert all("Germany" in hop.question.prompt for hop in back)
    elsewhere = WORLD.forget_record(WORLD["city_country/de-hamburg"], seed=0).held_out.hops
    assert not [hop for hop in elsewhere if hop.kind == "inverse"]


def test_an_edit_is_never_asked_the_way_back() -> None:
    """After "Berlin is in France" the largest city in Germany is no longer determined."""
    for name in ("city_country/de-berlin", "language/pl", "element_discoverer/iodine"):
        assert "inverse" not in {hop.kind for hop in WORLD.edit_record(WORLD[name], seed=0).held_out.hops}


def test_any_neighbour_of_the_new_country_is_right() -> None:
    lyon = WORLD["city_country/fr-lyon"]
    moved = Entry(lyon.id, lyon.fact, lyon.aliases, target_new="Kenya")
    hops = FactBase("mine", None, (moved,), WORLD.table).edit_record(moved, seed=0).held_out.hops
    (hop,) = (hop for hop in hops if hop.premises[1].relation == "border_any")
    old, new = {hop.question.answer, *hop.question.aliases}, {hop.answer_new, *hop.aliases_new}
    assert {"Belgium", "Spain"} <= old and {"Uganda", "Ethiopia"} <= new and not old & new


@pytest.mark.parametrize("name", sorted(r.name for r in WORLD.relations.values() if not r.hop_only))
def test_every_changed_relation_chains_in_two_ways(name: str) -> None:
    """Steps of at least two relations lead to it or on from it, and some fact meets two of them."""
    chains = [chain for chain in WORLD.table.compositions if chain.kind != "inverse"]
    steps = {chain.first for chain in chains if chain.second == name} | {
        chain.second for chain in chains if chain.first == name
    }
    assert len(steps) >= 2
    ways = Counter(
        len({step for hop in WORLD.edit_record(entry, seed=0).held_out.hops for step in _others(hop, name)})
        for entry in WORLD.entries_of(name)[::4]
    )
    assert max(ways) >= 2


def _others(hop: Hop, name: str) -> set[str]:
    return {question.relation for question in hop.premises if question.relation != name}


def test_a_user_may_change_a_fact_of_a_step(tmp_path: Path) -> None:
    """Steps are never changed on their own account, but a user's own fact of such a relation is."""
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"subject": "Germany", "relation": "largest_city", "object": "Berlin"}) + "\n", "utf-8")
    base = load(path)
    assert [entry.fact.object for entry in base.editable] == ["Berlin"]
    assert base.edit_record(base.editable[0], seed=0).edit.target_new in WORLD.range_of("largest_city")
