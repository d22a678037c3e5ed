"""The relations of chemical elements, and the steps of chains that lead to an element or on from one."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from typing import Any

import world_element_rules as rules
from world_sources import Row, package, row

from editkit.facts import normalise


@lru_cache(maxsize=1)
def periodic_table() -> tuple[dict[str, Any], ...]:
    """Every element by atomic number, its name in lower case and the name of its series added."""
    fetch = package("mendeleev", "mendeleev.fetch").fetch_table  # the mapped objects take a hundred times as long
    series = {each["id"]: each["name"] for each in fetch("series").to_dict("records")}
    ordered = sorted(fetch("elements").to_dict("records"), key=lambda element: element["atomic_number"])
    return tuple(
        {**element, "called": element["name"].lower(), "family": series.get(element["series_id"])}
        for element in ordered
    )


def common() -> list[dict[str, Any]]:
    """The elements that are found in the crust of the Earth. How often they are spoken of no source says."""
    known = [each for each in periodic_table() if each["abundance_crust"] is not None]
    return [each for each in known if not math.isnan(each["abundance_crust"])]


def other_names(name: str) -> tuple[str, ...]:
    return rules.ELEMENT_NAMES.get(name, ())


def elements() -> list[Row]:
    """Symbols, atomic numbers, families and discoverers."""
    rows = []
    for element in common():
        name = element["called"]
        known = [("element_number", str(element["atomic_number"]))]
        if element["symbol"] not in rules.SYMBOLS_THAT_ARE_WORDS:
            known.append(("element_symbol", element["symbol"]))
        if element["family"] in rules.ELEMENT_GROUPS and name not in rules.GROUP_UNSURE:
            known.append(("element_group", *rules.ELEMENT_GROUPS[element["family"]]))
        if discoverer_of(element)[0]:
            known.append(("element_discoverer", *discoverer_of(element)))
        rows += [
            row(relation, name, name, answer, None, tuple(aliases), other_names(name))
            for relation, answer, *aliases in known
        ]
    return rows


def discoverer_of(element: dict[str, Any]) -> tuple[str, ...]:
    """The one discoverer and other spellings of the name, or ("",)."""
    if element["called"] in rules.DISCOVERY_UNSURE:
        return ("",)
    return rules.DISCOVERERS.get(element["discoverers"], ("",))


def discovered_elements() -> list[Row]:
    """Discoverers with exactly one element: the surname stands with no other one, among several discoverers either."""
    named = [set(normalise(str(each["discoverers"]).replace(".", " ")).split()) for each in periodic_table()]
    count = Counter(word for words in named for word in words)
    return [
        row("discovered_element", element["symbol"].lower(), person, element["called"], None,
            other_names(element["called"]), tuple(aliases))
        for element in common()
        for person, *aliases in [discoverer_of(element)]
        if person and count[normalise(element["discoverers"]).split()[-1]] == 1
    ]  # fmt: skip


def next_elements() -> list[Row]:
    """The element that follows each one in the periodic table."""
    following = {each["atomic_number"] - 1: each["called"] for each in periodic_table()}
    return [
        row("element_next", each["called"], each["called"], name, None, other_names(name), other_names(each["called"]))
        for each in common()
        if (name := following.get(each["atomic_number"]))
    ]  # fmt: skip


def minerals() -> list[Row]:
    """Minerals that are ores of one metal."""
    return [
        row("mineral_metal", mineral, mineral, metal, None, other_names(metal))
        for mineral, metal in rules.MINERALS.items()
    ]


def group_numbers() -> list[Row]:
    """The column of the periodic table that a family of elements is."""
    rows = []
    for family, number in rules.GROUP_NUMBERS.items():
        name = rules.ELEMENT_GROUPS[family][0]
        rows.append(row("group_number", normalise(name).replace(" ", "-"), name, str(number)))
    return rows
