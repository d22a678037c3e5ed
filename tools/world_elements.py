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
    """The elements whose abundance in the crust of the Earth is known: it is their popularity."""
    known = [each for each in periodic_table() if each["abundance_crust"] is not None]
    return [each for each in known if not math.isnan(each["abundance_crust"])]


def other_names(name: str) -> tuple[str, ...]:
    return rules.ELEMENT_NAMES.get(name, ())


def elements() -> list[Row]:
    """Symbols, atomic numbers, families and discoverers."""
    rows = []
    for element in common():
        name, abundance = element["called"], element["abundance_crust"]
        known = [row("element_number", name, name, str(element["atomic_number"]), abundance)]
        if element["symbol"] not in rules.SYMBOLS_THAT_ARE_WORDS:
            known.append(row("element_symbol", name, name, element["symbol"], abundance))
        if element["family"] in rules.ELEMENT_GROUPS and name not in rules.GROUP_UNSURE:
            group, *aliases = rules.ELEMENT_GROUPS[element["family"]]
            known.append(row("element_group", name, name, group, abundance, tuple(aliases)))
        discoverer, *aliases = discoverer_of(element)
        if discoverer:
            known.append(row("element_discoverer", name, name, discoverer, abundance, tuple(aliases)))
        rows += [{**fact, "subject_aliases": list(other_names(name))} for fact in known]
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
        row("discovered_element", element["symbol"].lower(), person, element["called"], element["abundance_crust"],
            other_names(element["called"]))
        for element in common()
        if (person := discoverer_of(element)[0]) and count[normalise(element["discoverers"]).split()[-1]] == 1
    ]  # fmt: skip


def next_elements() -> list[Row]:
    """The element that follows each one in the periodic table."""
    following = {each["atomic_number"] - 1: each["called"] for each in periodic_table()}
    return [
        {**row("element_next", each["called"], each["called"], name, each["abundance_crust"], other_names(name)),
         "subject_aliases": list(other_names(each["called"]))}
        for each in common()
        if (name := following.get(each["atomic_number"]))
    ]  # fmt: skip


def minerals() -> list[Row]:
    """Minerals that are ores of one metal, as popular as the metal."""
    abundance = {each["called"]: each["abundance_crust"] for each in common()}
    return [
        row("mineral_metal", mineral, mineral, metal, abundance[metal], other_names(metal))
        for mineral, metal in rules.MINERALS.items()
    ]


def group_numbers() -> list[Row]:
    """The column of the periodic table that a family of elements is, as popular as its elements together."""
    rows = []
    for family, number in rules.GROUP_NUMBERS.items():
        name = rules.ELEMENT_GROUPS[family][0]
        total = sum(each["abundance_crust"] for each in common() if each["family"] == family)
        rows.append(row("group_number", normalise(name).replace(" ", "-"), name, str(number), round(total, 6)))
    return rows
