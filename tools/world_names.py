"""Other spellings of countries, cities, languages and currencies, and the check that none of them means two things."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from world_rules import CITY_NAMES, without_accents

from editkit.facts import normalise

APOSTROPHES = "'’ʻ"
# A part is no name of the whole ("England"), and a name that two countries have is none of either ("Congo", "Korea").
COUNTRY_ALIASES = {
    "Antigua and Barbuda": ("Antigua",),
    "Bosnia and Herzegovina": ("Bosnia", "Bosnia-Herzegovina"),
    "Brunei": ("Brunei Darussalam",),
    "Cape Verde": ("Cabo Verde",),
    "China": ("People's Republic of China", "PRC"),
    "Czechia": ("Czech Republic",),
    "Democratic Republic of the Congo": (
        "Democratic Republic of Congo", "DR Congo", "D.R. Congo", "DRC", "Zaire",
    ),
    "East Timor": ("Timor-Leste",),
    "Eswatini": ("Swaziland",),
    "Ivory Coast": ("Côte d'Ivoire",),
    "Kyrgyzstan": ("Kyrgyz Republic",),
    "Micronesia": ("Federated States of Micronesia",),
    "Myanmar": ("Burma",),
    "Netherlands": ("Holland",),
    "North Korea": ("Democratic People's Republic of Korea", "DPRK"),
    "North Macedonia": ("Macedonia",),
    "Republic of the Congo": ("Republic of Congo", "Congo Republic", "Congo-Brazzaville"),
    "Russia": ("Russian Federation",),
    "Saint Vincent and the Grenadines": ("Saint Vincent",),
    "Slovakia": ("Slovak Republic",),
    "South Korea": ("Republic of Korea",),
    "Syria": ("Syrian Arab Republic",),
    "São Tomé and Príncipe": ("São Tomé",),
    "Trinidad and Tobago": ("Trinidad",),
    "Turkey": ("Türkiye",),
    "United Arab Emirates": ("UAE", "U.A.E."),
    "United Kingdom": ("UK", "U.K.", "Britain", "Great Britain"),
    "United States": ("United States of America", "America", "USA", "US", "U.S.", "U.S.A."),
    "Vietnam": ("Viet Nam",),
}  # fmt: skip
CITY_ALIASES = {
    "Almaty": ("Alma-Ata",),
    "Antananarivo": ("Tananarive",),
    "Ashgabat": ("Ashkhabad",),
    "Astana": ("Nur-Sultan",),
    "Beijing": ("Peking",),
    "Bengaluru": ("Bangalore",),
    "Bern": ("Berne",),
    "Busan": ("Pusan",),
    "Chennai": ("Madras",),
    "Chișinău": ("Kishinev",),
    "Chattogram": ("Chittagong",),
    "Chisinau": ("Chișinău", "Kishinev"),
    "Chongqing": ("Chungking",),
    "Da Nang": ("Danang",),
    "Davao": ("Davao City",),
    "Dhaka": ("Dacca",),
    "Fes": ("Fez",),
    "Gomel": ("Homel",),
    "Gqeberha": ("Port Elizabeth",),
    "Guangzhou": ("Canton",),
    "Haiphong": ("Hai Phong",),
    "Ho Chi Minh City": ("Saigon", "HCMC"),
    "Karagandy": ("Karaganda",),
    "Kharkiv": ("Kharkov",),
    "Kolkata": ("Calcutta",),
    "Krakow": ("Cracow",),
    "Kyiv": ("Kiev",),
    "Lviv": ("Lvov",),
    "Marrakesh": ("Marrakech",),
    "Mek'ele": ("Mekelle",),
    "Mumbai": ("Bombay",),
    "Naypyidaw": ("Nay Pyi Taw",),
    "New Delhi": ("Delhi",),
    "New York City": ("New York", "NYC"),
    "Odesa": ("Odessa",),
    "Saint Petersburg": ("Leningrad",),
    "Sanaa": ("Sana'a",),
    "Thessaloniki": ("Salonica",),
    "Ulaanbaatar": ("Ulan Bator",),
    "Washington": ("Washington, D.C.", "Washington DC"),
    "Yangon": ("Rangoon",),
}


def spellings(names: Iterable[str]) -> tuple[str, ...]:
    """Names, each also without accents, without apostrophes, and with "Saint" and "St." exchanged; each once."""
    found: dict[str, None] = {}
    for name in names:
        saint = name.replace("Saint ", "St. ") if "Saint " in name else name.replace("St. ", "Saint ")
        for each in (name, without_accents(name), saint, without_accents(saint)):
            found |= dict.fromkeys((each, "".join(letter for letter in each if letter not in APOSTROPHES)))
    return tuple(found)


def country_aliases(called: str) -> tuple[str, ...]:
    """Other names of a country: without its article, with "&", and the common ones."""
    bare = called.removeprefix("the ")
    found = (bare, bare.replace(" and ", " & "), *COUNTRY_ALIASES.get(bare, ()))
    return tuple(name for name in dict.fromkeys(found) if name != called)


def city_aliases(name: str) -> tuple[str, ...]:
    """Other names of a city: the one of the source, and the common ones."""
    return (*CITY_ALIASES.get(name, ()), *(source for source, shown in CITY_NAMES.items() if shown == name))


# Languages ------------------------------------------------------------------------------------------------------

LANGUAGE_NAMES = {
    "bn": ("Bengali", "Bangla"),
    "dv": ("Dhivehi", "Maldivian", "Divehi"),
    "fa": ("Persian", "Farsi"),
    "zh": ("Chinese", "Mandarin"),
    "km": ("Khmer", "Cambodian"),
    "lo": ("Lao", "Laotian"),
    "ms": ("Malay", "Bahasa Melayu"),
    "id": ("Indonesian", "Bahasa Indonesia"),
    "es": ("Spanish", "Castilian"),
}
OWN_LANGUAGE_NAMES = {"MY": ("Bahasa Malaysia",)}  # what the language is called in one country only


def language_names(language: str, english: str, country: str) -> tuple[str, ...]:
    """The usual name of a language, then others."""
    return (*LANGUAGE_NAMES.get(language, (english,)), *OWN_LANGUAGE_NAMES.get(country, ()))


# Currencies -----------------------------------------------------------------------------------------------------

CURRENCY_WORDS = {
    "BAM": ("convertible mark", "mark"),
    "BYN": ("ruble", "rouble"),
    "CNY": ("yuan", "renminbi"),
    "GBP": ("pound", "sterling"),
    "ILS": ("shekel",),
    "MNT": ("tögrög", "tugrik"),
    "PLN": ("zloty", "złoty"),
    "PYG": ("guaraní",),
    "RUB": ("ruble", "rouble"),
    "TOP": ("pa'anga",),
    "USD": ("dollar", "American dollar"),
    "UZS": ("som", "so'm", "soum"),
    "XAF": ("CFA franc",),
    "XOF": ("CFA franc",),
}
CURRENCY_FULL = {"GYD": "Guyanese dollar", "KGS": "Kyrgyzstani som"}  # CLDR: "Guyanaese", "Kyrgystani"
# Plurals of the country's own, which CLDR replaces by English ones.
CURRENCY_PLURALS = {
    "BRL": ("reais",), "CRC": ("colones",), "GTQ": ("quetzales",), "LSL": ("maloti",), "MZN": ("meticais",),
    "PLN": ("złotych",), "PYG": ("guaraníes",), "TRY": ("lire",),
}  # fmt: skip
NO_PLURAL = frozenset({"sterling"})


def currency_names(code: str, one: str, many: str) -> tuple[str, ...]:
    """The currency's own word ("yen"), then its full name ("Japanese yen") and the plurals of both.

    `one` and `many` are the full names of CLDR.
    """
    one, many = _small_last(one), _small_last(many)
    single = (*CURRENCY_WORDS.get(code, (one.split()[-1],)), CURRENCY_FULL.get(code, one), one)
    regular = (f"{name}s" for name in single if name not in NO_PLURAL and not name.endswith("s"))
    bare = () if " " in single[0] else (many.split()[-1],)  # "francs" are not the CFA's alone
    plural = (*bare, many, *regular, *CURRENCY_PLURALS.get(code, ()))
    return tuple(dict.fromkeys((*single, *plural)))


def _small_last(name: str) -> str:
    *before, last = name.split()
    return " ".join((*before, last.lower()))


# The check ------------------------------------------------------------------------------------------------------

ANY_IS_RIGHT = frozenset({"border_any"})  # there the other right answers are the aliases


class TwoMeanings(SystemExit):
    """A spelling that stands for two objects, or two subjects, of one relation."""


def check_spellings(facts: Iterable[dict[str, Any]]) -> None:
    """Refuse a spelling of one object (or subject) that is one of another object (or subject) of the relation too."""
    meant: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for fact in facts:
        for role, aliases in (("object", "aliases"), ("subject", "subject_aliases")):
            if role == "object" and fact["relation"] in ANY_IS_RIGHT:
                continue
            for name in (fact[role], *fact[aliases]):
                meant[fact["relation"], role, normalise(name)].add(normalise(fact[role]))
    twice = [
        f"{' of '.join(key[:0:-1])} in {key[0]}: {sorted(names)}" for key, names in meant.items() if len(names) > 1
    ]
    if twice:
        raise TwoMeanings("spellings with two meanings; mend tools/world_names.py: " + "; ".join(sorted(twice)))
