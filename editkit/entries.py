"""Facts in stock: relations with their wordings, and the entries that stand in them. No torch here.

An `Entry` is a fact with all that is known around it (aliases, popularity, what a user asked of it); a `FactTable`
holds relations, entries and the chains between relations, and finds them quickly. Readers give tables, `data.py`
makes records of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from editkit.facts import Fact, Question, check_template, fill, normalise

_plain = lru_cache(maxsize=1 << 16)(normalise)  # the same names and prompts are compared over and over

SMALLEST_UNSPACED = "\u2e80"  # scripts written without spaces (Chinese, Japanese …) begin about here


def mentions(text: str, phrase: str) -> bool:
    """Whether `phrase` occurs in `text` as whole words, whatever the case, accents and punctuation.

    Phrases of scripts that put no spaces between words are looked for as plain substrings.
    """
    wanted, whole = _plain(phrase), _plain(text)
    if not wanted:
        return phrase.casefold() in text.casefold()
    if any(letter >= SMALLEST_UNSPACED for letter in wanted):
        return wanted in whole
    return f" {wanted} " in f" {whole} "


def overlap(one: str, other: str) -> bool:
    """Whether one name stands inside the other: "dollar" and "US dollar"."""
    if _words(one).isdisjoint(_words(other)) and one.isascii() and other.isascii():
        return _plain(one) == _plain(other) == ""  # the usual case, decided without comparing texts
    return mentions(one, other) or mentions(other, one)


@lru_cache(maxsize=1 << 16)
def _words(name: str) -> frozenset[str]:
    return frozenset(_plain(name).split())


def occurrences(text: str, name: str) -> list[int]:
    """Where `name` stands in `text` as whole words, in its own spelling; a name without word edges matches anywhere."""
    before = r"(?<!\w)" if re.match(r"\w", name) else ""
    after = r"(?!\w)" if re.search(r"\w$", name) else ""
    if any(letter >= SMALLEST_UNSPACED for letter in name):
        before = after = ""
    return [match.start() for match in re.finditer(before + re.escape(name) + after, text)]


@dataclass(frozen=True, slots=True)
class Inverse:
    """The wordings that ask for the subject of a relation, the object being in the slot."""

    name: str
    prompt: str
    paraphrases: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for template in (self.prompt, *self.paraphrases, *self.questions):
            check_template(template, f"template of {self.name!r}")


@dataclass(frozen=True, slots=True)
class Relation:
    """How one relation is asked.

    Operators may see `prompt` and `train_templates`; `paraphrases` and `questions` are held out. All are templates
    with one "{}"; all but the questions end where the object is expected. `popularity` says what the popularity of
    an entry means, with its unit. A `hop_only` relation is never changed: it is a step of chains.
    """

    name: str
    subject_type: str
    object_type: str
    prompt: str
    train_templates: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    inverse: Inverse | None = None
    popularity: str = ""
    hop_only: bool = False

    def __post_init__(self) -> None:
        for template in self.templates:
            check_template(template, f"template of {self.name!r}")

    @property
    def seen(self) -> tuple[str, ...]:
        """The wordings that operators may be given."""
        return (self.prompt, *self.train_templates)

    @property
    def templates(self) -> tuple[str, ...]:
        """Every wording of the relation, seen and held out."""
        return (*self.seen, *self.paraphrases, *self.questions)


@dataclass(frozen=True, slots=True)
class Composition:
    """A chain x --first--> y --second--> z and the wordings that ask for z, x being in the slot.

    `first` names a relation or an inverse, `second` a relation.
    """

    first: str
    second: str
    templates: tuple[str, ...]
    questions: tuple[str, ...] = ()
    kind: str = "composition"

    def __post_init__(self) -> None:
        for template in (*self.templates, *self.questions):
            check_template(template, f"chain {self.first!r} to {self.second!r}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A fact in stock and what is known around it.

    `target_new`, `paraphrases`, `questions` and `neighborhood` are a user's own wishes; they are empty for the facts
    that come along. `stratum` is the quartile of `popularity` within the relation, "q1" least to "q4" most popular.
    """

    id: str
    fact: Fact
    aliases: tuple[str, ...] = ()
    subject_aliases: tuple[str, ...] = ()
    popularity: float | None = None
    stratum: str | None = None
    target_new: str | None = None
    paraphrases: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    neighborhood: tuple[Question, ...] = ()

    @property
    def relation(self) -> str:
        return self.fact.relation

    @property
    def names(self) -> tuple[str, ...]:
        """Every accepted spelling of the object, the usual one first."""
        return (self.fact.object, *self.aliases)

    @property
    def question(self) -> Question:
        """The direct prompt as a question with its right answer."""
        return self.ask(self.fact.prompt)

    def ask(self, template: str) -> Question:
        """The question that `template` makes of this entry."""
        return Question(
            prompt=fill(template, self.fact.subject),
            answer=self.fact.object,
            subject=self.fact.subject,
            relation=self.fact.relation,
            aliases=self.aliases,
            popularity=self.popularity,
            stratum=self.stratum,
        )


@dataclass(frozen=True, slots=True)
class FactTable:
    """Relations, entries and chains, with the look-ups that records need.

    An entry that comes later replaces an earlier one of the same relation and subject, or of the same id.
    """

    relations: dict[str, Relation] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    compositions: tuple[Composition, ...] = ()
    _by_relation: dict[str, tuple[Entry, ...]] = field(init=False, repr=False, compare=False)
    _by_subject: dict[tuple[str, str], Entry] = field(init=False, repr=False, compare=False)
    _by_object: dict[tuple[str, str], tuple[Entry, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_relation: dict[str, list[Entry]] = {}
        by_object: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            by_relation.setdefault(entry.relation, []).append(entry)
            by_object.setdefault((entry.relation, normalise(entry.fact.object)), []).append(entry)
        by_subject = {
            (entry.relation, normalise(name)): entry
            for entry in self.entries
            for name in (*entry.subject_aliases, entry.fact.subject)
        }
        object.__setattr__(self, "_by_relation", {name: tuple(found) for name, found in by_relation.items()})
        object.__setattr__(self, "_by_subject", by_subject)
        object.__setattr__(self, "_by_object", {key: tuple(found) for key, found in by_object.items()})

    def entries_of(self, relation: str) -> tuple[Entry, ...]:
        """The entries of one relation, in the order of the table; none for a relation it does not hold."""
        return self._by_relation.get(relation, ())

    def find(self, relation: str, subject: str) -> Entry | None:
        """The entry of this subject in this relation, whatever the case and accents of the name."""
        return self._by_subject.get((relation, normalise(subject)))

    def with_object(self, relation: str, name: str) -> tuple[Entry, ...]:
        """The entries of a relation that have this object."""
        return self._by_object.get((relation, normalise(name)), ())

    def range_of(self, relation: str) -> tuple[str, ...]:
        """The objects of one relation, each once, sorted: the typed answers among which a wrong one is looked for."""
        unique = {normalise(entry.fact.object): entry.fact.object for entry in reversed(self.entries_of(relation))}
        return tuple(sorted(unique.values()))

    def aliases_of(self, relation: str, name: str) -> tuple[str, ...]:
        """Other spellings of an object, from the entries that have it."""
        spellings = (alias for entry in self.with_object(relation, name) for alias in entry.aliases)
        return tuple(dict.fromkeys(spellings))

    def inverse_of(self, name: str) -> tuple[Relation, Inverse] | None:
        """The relation whose inverse has this name, and the inverse."""
        for relation in self.relations.values():
            if relation.inverse is not None and relation.inverse.name == name:
                return relation, relation.inverse
        return None

    def extended(self, relations: Iterable[Relation], entries: Iterable[Entry]) -> FactTable:
        """This table and more; new entries take the place of those with their id, or their relation and subject."""
        new = tuple(entries)
        ids = {entry.id for entry in new}
        keys = {(entry.relation, normalise(entry.fact.subject)) for entry in new}
        kept = tuple(
            entry
            for entry in self.entries
            if entry.id not in ids and (entry.relation, normalise(entry.fact.subject)) not in keys
        )
        merged = {**self.relations, **{relation.name: relation for relation in relations}}
        return FactTable(merged, (*new, *kept), self.compositions)
