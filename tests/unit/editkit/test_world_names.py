"""Other spellings in the shipped facts: enough of them that right answers count, none that means two things."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from editkit.data import FactBase, load
from editkit.facts import normalise

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def world() -> FactBase:
    return load("world")


def test_no_spelling_means_two_things(world: FactBase) -> None:
    for name in world.relations:
        if name == "border_any":
            continue  # each neighbour is right
        for spelt in (
            lambda e: (e.fact.object, e.names),
            lambda e: (e.fact.subject, (e.fact.subject, *e.subject_aliases)),
        ):
            meant: dict[str, str] = {}
            for usual, spellings in map(spelt, world.entries_of(name)):
                for each in spellings:
                    assert meant.setdefault(normalise(each), normalise(usual)) == normalise(usual), (name, each)


@pytest.mark.parametrize(
    ("entry_id", "spelling"),
    [
        ("largest_city/us", "New York"),
        ("largest_city/vn", "Saigon"),
        ("largest_city/mm", "Rangoon"),
        ("landmark_city/terracotta-army", "Xian"),
        ("capital/td", "NDjamena"),
        ("capital/gd", "Saint George's"),
        ("us_state_capital/mn", "St. Paul"),
        ("landmark_us_city/gateway-arch", "Saint Louis"),
        ("landmark_city/hermitage-museum", "St. Petersburg"),
        ("city_country/cd-kinshasa", "Democratic Republic of Congo"),
        ("city_country/cd-kinshasa", "DR Congo"),
        ("city_country/cd-kinshasa", "DRC"),
        ("city_country/cg-pointe-noire", "Republic of Congo"),
        ("city_country/cg-pointe-noire", "Congo Republic"),
        *(("city_country/us-chicago", name) for name in ("America", "USA", "U.S.", "U.S.A.")),
        *(("city_country/gb-london", name) for name in ("Britain", "Great Britain")),
        ("currency/de", "euros"),
        ("currency/in", "rupees"),
        ("currency/us", "dollars"),
        ("currency/za", "rands"),
        ("currency/se", "kronor"),
        ("currency/gy", "Guyanese dollar"),
        ("language/bn", "Bahasa Melayu"),
    ],
)
def test_known_spellings(world: FactBase, entry_id: str, spelling: str) -> None:
    assert spelling in world[entry_id].aliases


@pytest.mark.parametrize(
    ("entry_id", "spelling"),
    [
        ("city_country/gb-london", "England"),  # a part
        ("border_any/ie", "England"),
        ("city_country/cd-kinshasa", "Congo"),  # either
        ("city_country/cg-pointe-noire", "Congo"),
        ("currency/sn", "francs"),  # Switzerland's
        ("currency/qa", "rial"),  # Iran's
        ("language/bn", "Bahasa Malaysia"),
    ],
)
def test_what_is_no_spelling(world: FactBase, entry_id: str, spelling: str) -> None:
    assert normalise(spelling) not in map(normalise, world[entry_id].names)


def test_a_subject_has_its_other_names_too(world: FactBase) -> None:
    assert (
        "USA" in world["capital/us"].subject_aliases
        and "Saigon" in world["city_country/vn-ho-chi-minh-city"].subject_aliases
    )
    assert world.table.find("capital", "America") is world["capital/us"]


def test_every_currency_has_a_plural(world: FactBase) -> None:
    for entry in world.entries_of("currency"):
        assert len({normalise(name) for name in entry.names}) >= 2, entry.id
        assert f"{entry.fact.object}s" in entry.aliases, entry.id


def test_accents_are_optional(world: FactBase) -> None:
    for entry in world.entries:
        assert normalise(entry.fact.object).isascii() or entry.aliases, entry.id
    assert "Reykjavik" in world["capital/is"].aliases


def test_generator_refuses_a_spelling_with_two_meanings() -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'tools')!r}, {str(ROOT)!r}]\n"
        "from world_names import check_spellings\nfrom world_sources import row\n"
        "check_spellings([row('r', 'a', 'A', 'X', 1), row('r', 'b', 'B', 'Y', 1, ('Z',))])\n"
        "check_spellings([row('r', 'a', 'A', 'X', 1), row('r', 'b', 'B', 'Y', 1, ('x',))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "x of object in r: ['x', 'y']" in done.stderr and "Traceback" not in done.stderr
