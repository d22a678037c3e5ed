"""Make `datasets/world/` from packages of the Python index.

    python tools/build_world.py [--out FOLDER]

`relations.toml` in that folder is written by hand; this command makes `facts.jsonl`, `sample.jsonl` and `card.toml`
beside it. The same packages give the same bytes. What the sources get wrong, leave open or have not followed up is
settled in `world_rules.py` and `world_element_rules.py`, each time with its reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections import Counter
from functools import lru_cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import world_borders as borders
import world_elements as chemistry
import world_landmarks as sights
import world_rules as rules
import world_steps as steps
from world_names import ANY_IS_RIGHT, check_spellings, city_aliases, country_aliases, currency_names, language_names
from world_sources import Row, about, cities, countries, key_of, package, row

from editkit.entries import mentions
from editkit.facts import normalise
from editkit.files import sha256_of, write_text

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_ROWS = 200


# Places ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def namesakes() -> dict[str, list[tuple[tuple[str, str], int]]]:
    """The (country, state) and people of every city by its plain name."""
    found: dict[str, list[tuple[tuple[str, str], int]]] = {}
    for city in cities():
        found.setdefault(normalise(city["name"]), []).append(
            ((city["countrycode"], city["admin1code"]), city["population"])
        )
    return found


def capitals(states: dict[str, Any]) -> list[Row]:
    accented = {(city["countrycode"], normalise(city["name"])): city["name"] for city in cities()}
    rows = []
    for code, country in states.items():
        name = rules.CAPITALS.get(code, country["capital"].strip())
        if not name or code in rules.NO_SINGLE_CAPITAL:
            continue
        if code not in rules.CAPITALS:  # there the spelling is chosen by hand
            name = accented.get((code, normalise(name)), name)
        rows.append(about("capital", country, name, city_aliases(name)))
    return rows


def continents(states: dict[str, Any]) -> list[Row]:
    return [
        about("continent", country, rules.CONTINENTS[country["continentcode"]])
        for code, country in states.items()
        if code not in rules.ON_TWO_CONTINENTS
    ]


def currencies(states: dict[str, Any]) -> list[Row]:
    english = package("babel", "babel.numbers").get_currency_name
    rows = []
    for code, country in states.items():
        if code not in rules.CURRENCY_IN_CHANGE:
            money = country["currencycode"]
            one, many = (english(money, count=count, locale="en") for count in (1, 2))
            name, *aliases = currency_names(money, one, many)
            rows.append(about("currency", country, name, tuple(aliases)))
    return rows


def languages(states: dict[str, Any]) -> list[Row]:
    """Countries with exactly one official language in CLDR, by law, which GeoNames lists first too."""
    official = package("babel", "babel.languages").get_official_languages
    english = package("babel", "babel").Locale("en").languages
    rows = []
    for code, country in states.items():
        by_law, used = ({rules.language_code(n) for n in official(code, False, custom)} for custom in (False, True))
        first = rules.language_code(country["languages"].split(",")[0])
        if not by_law == used == {first} or code in rules.LANGUAGE_IN_CHANGE | rules.LANGUAGE_OF_CUSTOM:
            continue
        name, *aliases = language_names(first, english[first], code)
        rows.append(about("language", country, name, tuple(aliases)))
    return rows


def city_countries(states: dict[str, Any]) -> list[Row]:
    """A country's largest cities; a name that another country's city shares is left out."""
    listed = [city for city in cities() if city["countrycode"] in states]
    count: Counter[str] = Counter()
    rows = []
    for city in listed:
        code, people = city["countrycode"], city["population"]
        twins = [size for (other, _), size in namesakes()[normalise(city["name"])] if other != code]
        if people < rules.SMALLEST_CITY or not rules.plain_name(city["name"]) or count[code] == rules.CITIES_A_COUNTRY:
            continue
        if max(twins, default=0) >= people * rules.TWIN_SHARE or code in rules.CITY_DISPUTED.get(city["name"], ()):
            continue
        count[code] += 1
        called = states[code]["called"]
        rows.append(
            row(
                "city_country",
                key_of(city["name"], code),
                city["name"],
                called,
                people,
                country_aliases(called),
                city_aliases(city["name"]),
            )
        )
    return rows


def us_states() -> tuple[list[Row], list[Row]]:
    """The states of the cities of the United States, and the capitals of its states."""
    states = {state.abbr: state for state in package("us", "us").states.STATES}
    american = [city for city in cities() if city["countrycode"] == "US" and city["admin1code"] in states]
    people: Counter[str] = Counter()
    for city in american:
        people[city["admin1code"]] += city["population"]
    located = []
    for city in american:
        if city["population"] < rules.SMALLEST_US_CITY or city["name"] in rules.US_CITY_UNSURE:
            continue
        if twins(city, "US") or max(twins(city), default=0) >= city["population"] * rules.TWIN_SHARE:
            continue
        name, state = city["name"], states[city["admin1code"]]
        located.append(
            row(
                "us_city_state",
                key_of(name, state.abbr),
                name,
                state.name,
                city["population"],
                called=city_aliases(name),
            )
        )
    governed = [
        row("us_state_capital", abbr.lower(), state.name, state.capital, people[abbr], city_aliases(state.capital))
        for abbr, state in states.items()
    ]
    return located, governed


def twins(city: dict[str, Any], country: str = "") -> list[int]:
    """The people of each other city of this name, in another state or country; only in `country` if that is given."""
    place = (city["countrycode"], city["admin1code"])
    same = namesakes()[normalise(city["name"])]
    return [people for other, people in same if other != place and country in ("", other[0])]


# The files ------------------------------------------------------------------------------------------------------


def answerless(facts: list[Row], relations: dict[str, Any]) -> list[Row]:
    """Drop facts whose answer, or a spelling of it, stands in a wording of their own relation, or whose answer names
    their subject ("Guatemala City"). A spelling that does so but holds a shorter one ("Singapore dollar") just goes."""
    kept = []
    for fact in facts:
        bare = fact["subject"].removeprefix("the ")
        if fact["relation"] not in ANY_IS_RIGHT:
            fact = {**fact, "aliases": [name for name in fact["aliases"] if not _needless(name, fact, bare)]}
        names = [fact["object"], *fact["aliases"]]
        relation = relations[fact["relation"]]
        lists = (relation.get(name, ()) for name in ("train_templates", "paraphrases", "questions"))
        wordings = [relation["prompt"], *chain.from_iterable(lists)]
        asked = [template.replace("{}", fact["subject"], 1) for template in wordings]
        inside = any(mentions(prompt, name) for prompt in asked for name in names)
        if not inside and not any(mentions(name, bare) for name in names):
            kept.append(fact)
    return kept


def _needless(name: str, fact: Row, bare: str) -> bool:
    """Whether a spelling names the subject, and an answer that gives it gives another accepted spelling too."""
    shorter = [other for other in (fact["object"], *fact["aliases"]) if not mentions(other, bare)]
    return mentions(name, bare) and any(mentions(name, other) for other in shorter)


def without_homonyms(facts: list[Row], relations: dict[str, Any]) -> list[Row]:
    """Drop facts about or with a country whose bare name is another place's too; it may stay one of many neighbours."""
    kept = []
    for fact in facts:
        relation = relations[fact["relation"]]
        asked = [fact[role] for role in ("subject", "object") if relation[f"{role}_type"].startswith("country")]
        if not any(mentions(name, other) for name in asked for other in rules.ALSO_ELSEWHERE):
            kept.append(fact)
    return kept


def with_strata(facts: list[Row]) -> list[Row]:
    """Quartiles of popularity within each relation that has one, q1 least popular; ties go by id, so that the parts
    are even."""
    out = []
    for relation in dict.fromkeys(fact["relation"] for fact in facts):
        own = [fact for fact in facts if fact["relation"] == relation]
        if not all("popularity" in fact for fact in own):
            out += own
            continue
        group = sorted(own, key=lambda fact: (fact["popularity"], fact["id"]))
        out += [{**fact, "stratum": f"q{1 + 4 * place // len(group)}"} for place, fact in enumerate(group)]
    return sorted(out, key=lambda fact: fact["id"])


def all_facts(relations: dict[str, Any]) -> list[Row]:
    states = countries()
    located, governed = us_states()
    spoken = languages(states)
    facts = [
        *capitals(states), *continents(states), *currencies(states), *spoken, *city_countries(states),
        *located, *governed, *chemistry.elements(),
        *borders.only(states), *borders.any_of(states), *borders.largest(states), *borders.shared(states),
        *steps.largest_cities(states), *steps.language_countries(states, spoken), *steps.state_steps(governed),
        *chemistry.discovered_elements(), *chemistry.next_elements(), *chemistry.minerals(),
        *chemistry.group_numbers(), *sights.landmarks(states),
    ]  # fmt: skip
    asked = [fact for fact in facts if fact["relation"] in relations]
    kept = answerless(without_homonyms(asked, relations), relations)
    check_spellings(kept)
    return with_strata(kept)


def lines(facts: list[Row]) -> str:
    return "".join(json.dumps(fact, ensure_ascii=False) + "\n" for fact in facts)


def sample_of(facts: list[Row]) -> list[Row]:
    """At most 200 rows, evenly spread over the sorted facts, and at least one of each relation."""
    first = {fact["relation"]: fact for fact in reversed(facts)}
    step = max(1, -(-len(facts) // (SAMPLE_ROWS - len(first))))
    even = facts[::step]
    missing = set(first) - {fact["relation"] for fact in even}
    return sorted((*even, *(first[relation] for relation in missing)), key=lambda fact: fact["id"])


def assignments(values: dict[str, str]) -> str:
    """Lines of TOML; a JSON string is a TOML string too."""
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def card(folder: Path, facts: list[Row], sample: list[Row]) -> str:
    """The card: where the facts come from, under which licence, and the sha256 of each file."""
    text = "# Made by tools/build_world.py; do not edit by hand.\n" + assignments(rules.CARD)
    for source in rules.SOURCES:
        text += "\n[[sources]]\n" + assignments({**source, "version": version(source["package"])})
    text += f"\n[splits]\nfacts = {len(facts)}\nsample = {len(sample)}\n\n[records]\n"
    counts = Counter(fact["relation"] for fact in facts)
    text += "".join(f"{name} = {count}\n" for name, count in sorted(counts.items()))
    text += "\n[sha256]\n"
    for name in ("facts.jsonl", "relations.toml", "sample.jsonl"):
        text += f"{json.dumps(name)} = {json.dumps(sha256_of(folder / name))}\n"
    return text


def build(source: Path, out: Path) -> int:
    """Write the three made files to `out` (which may be `source`, where relations.toml lies); gives the fact count."""
    definition = (source / "relations.toml").read_text(encoding="utf-8")
    relations = {relation["name"]: relation for relation in tomllib.loads(definition)["relation"]}
    facts = all_facts(relations)
    sample = sample_of(facts)
    if out != source:
        write_text(out / "relations.toml", definition)
    write_text(out / "facts.jsonl", lines(facts))
    write_text(out / "sample.jsonl", lines(sample))
    write_text(out / "card.toml", card(out, facts, sample))
    return len(facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "datasets" / "world", help="folder to write to")
    out = parser.parse_args().out.resolve()
    count = build(ROOT / "datasets" / "world", out)
    sys.stdout.write(f"{count} facts in {out}\n")


if __name__ == "__main__":
    main()
