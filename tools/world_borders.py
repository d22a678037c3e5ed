"""Who borders whom by land: the only neighbour, any, the largest, and the only one that two countries share."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import world_rules as rules
from world_names import country_aliases
from world_sources import Row, about, row

States = dict[str, dict[str, Any]]


def neighbours(states: States, code: str, unsure: bool = False) -> frozenset[str]:
    """The states that border a state by land; with `unsure` those too that do so by a territory overseas or nearly."""
    listed = {other for other in states[code]["neighbours"].split(",") if other in states}
    certain = {other for other in listed if not {frozenset((code, other))} & (rules.NO_BORDER | rules.BORDER_UNSURE)}
    doubted = {next(iter(pair - {code})) for pair in rules.BORDER_UNSURE if code in pair}
    return frozenset(certain | doubted if unsure else certain)


def names(country: dict[str, Any]) -> tuple[str, ...]:
    return (country["called"], *country_aliases(country["called"]))


def only(states: States) -> list[Row]:
    """Countries with exactly one neighbour by land, territories counted as neighbours too."""
    rows = []
    for code, country in states.items():
        near = neighbours(states, code, unsure=True)
        listed = {other for other in country["neighbours"].split(",") if other}
        if len(near) == 1 and near == listed == neighbours(states, code):
            rows.append(_row("border", code, states, next(iter(near))))
    return rows


def any_of(states: States) -> list[Row]:
    """Every country with a neighbour by land: the most populous one is the answer, all others are right as well.

    Those it borders overseas or nearly come last, so that the answer is never one of them.
    """
    rows = []
    for code, country in states.items():
        certain = neighbours(states, code)
        wide = neighbours(states, code, unsure=True)
        near = sorted(wide, key=lambda other: (other not in certain, -states[other]["population"], other))
        if certain:
            first, *others = (name for other in near for name in names(states[other]))
            rows.append(about("border_any", country, first, tuple(others)))
    return rows


def largest(states: States) -> list[Row]:
    """Countries one of whose several neighbours is clearly the largest, by people and by area, doubtful ones or not."""
    rows = []
    for code in states:
        found = {
            _clearly_first(states, neighbours(states, code, unsure), measure)
            for unsure in (False, True)
            for measure in ("population", "areakm2")
        }
        if len(neighbours(states, code)) > 1 and len(found) == 1 and None not in found:
            rows.append(_row("border_largest", code, states, found.pop() or ""))
    return rows


def _clearly_first(states: States, near: frozenset[str], measure: str) -> str | None:
    ordered = sorted(near, key=lambda other: -states[other][measure])
    if len(ordered) > 1 and states[ordered[0]][measure] < rules.LARGEST_BY * states[ordered[1]][measure]:
        return None
    return ordered[0] if ordered else None


def shared(states: States) -> list[Row]:
    """For each country the most populous pair of neighbours that no other country borders, doubtful borders counted."""
    near = {code: neighbours(states, code) for code in states}
    wide = {code: neighbours(states, code, unsure=True) for code in states}
    rows = []
    for code in states:
        pairs = [
            (min(states[one]["population"], states[other]["population"]), one, other)
            for one, other in combinations(
                sorted(each for each in near[code] if " and " not in states[each]["called"]), 2
            )
            if {between for between in states if {one, other} <= wide[between]} == {code}
        ]
        if pairs:
            people, *pair = max(pairs)
            rows.append(_shared_row(states, sorted(pair, key=lambda each: -states[each]["population"]), code, people))
    return rows


def _shared_row(states: States, pair: list[str], between: str, people: int) -> Row:
    one, other = (states[each] for each in pair)
    subject = f"{one['called']} and {other['called']}"
    first, *aliases = names(states[between])
    return row("border_both", f"{one['code']}-{other['code']}", subject, first, people, tuple(aliases))


def _row(relation: str, code: str, states: States, neighbour: str) -> Row:
    first, *aliases = names(states[neighbour])
    return about(relation, states[code], first, tuple(aliases))
