"""A user's own facts: a .jsonl, .json or .csv file with `subject, relation, object, target_new, prompt` and more.

    {"subject": "France", "relation": "capital", "object": "Paris", "target_new": "Rome", "prompt": "{} is ruled from"}

The prompt holds one "{}", or the subject itself once. For a relation of the shipped facts the prompt may be missing;
wordings, aliases and popularity are then taken from there. One bad line stops everything.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from editkit.entries import Entry, FactTable, Relation
from editkit.facts import Fact, fill, normalise
from editkit.readers import READERS, _fields
from editkit.readers._errors import Problems
from editkit.readers._text import Line, rows_of

STRATA = 4


@READERS.register("facts_file")
def read(path: Path, *, base: FactTable | None = None) -> FactTable:
    """The table of a user's file; `base` completes what the file leaves out."""
    problems = Problems(path)
    rows = rows_of(path, problems)
    parts = path.suffix.lower() in (".csv", ".tsv")
    shipped = base or FactTable()
    entries = []
    for row in rows:
        said: list[str] = []
        entry = _Row(row.number, _present(row, parts), parts, path.stem, shipped).entry(said)
        for what in said:
            problems.add(row.number, what)
        if entry is not None and not said:
            entries.append((row.number, entry))
    _check_unique(entries, problems)
    if not rows and not problems.found:
        problems.add(None, "there is no fact in the file; give it at least one")
    problems.stop_if_any()
    found = _with_strata([entry for _, entry in entries])
    return FactTable(_relations(found, shipped), tuple(found), shipped.compositions)


def _present(row: Line, parts: bool) -> dict[str, Any]:
    """The fields that say something: null means absent, and so does an empty optional cell of a CSV file."""
    may_lack = {name for name in row.fields if name in _fields.OPTIONAL and name != "target_new"}
    return {
        name: value
        for name, value in row.fields.items()
        if value is not None and not (parts and name in may_lack and not value.strip())
    }


class _Row:
    """One row on its way to an entry."""

    def __init__(self, line: int, given: dict[str, Any], parts: bool, stem: str, shipped: FactTable) -> None:
        self.line, self.given, self.parts, self.stem, self.shipped = line, given, parts, stem, shipped

    def entry(self, said: list[str]) -> Entry | None:
        """The entry, or None; what is wrong goes to `said`."""
        said += _fields.missing(self.given)
        names = {
            what: _fields.gather(lambda what=what: _fields.name(self.given[what], what), said)
            for what in (*_fields.REQUIRED, "target_new")
            if what in self.given
        }
        if said:
            return None
        subject, relation, true = (names[what] for what in _fields.REQUIRED)
        prompt = _fields.gather(lambda: self._prompt(subject, relation), said)
        if prompt is None:
            return None
        match = self.shipped.find(relation, subject)
        entry = Entry(
            id=f"{self.stem}/{self.line}",
            fact=Fact(subject, relation, true, prompt),
            aliases=self.shipped.aliases_of(relation, true),
            subject_aliases=match.subject_aliases if match else (),
            popularity=match.popularity if match else None,
            stratum=match.stratum if match else None,
            target_new=names.get("target_new"),
        )
        return self._check_target(self._with_extras(entry, said), said)

    def _prompt(self, subject: str, relation: str) -> str:
        if "prompt" in self.given:
            return _fields.slotted(_fields.text(self.given["prompt"], "prompt"), subject, "prompt")
        if relation in self.shipped.relations:
            return self.shipped.relations[relation].prompt
        hint = _fields.near(relation, self.shipped.relations)
        raise _fields.FieldError(
            f"no field 'prompt', and {relation!r} is no relation that comes along{hint or '; add it'}"
        )

    def _with_extras(self, entry: Entry, said: list[str]) -> Entry:
        """The optional fields; those that come along with a known relation stand after the user's own."""
        readers = {
            "id": lambda value: _fields.text(value, "id"),
            "aliases": lambda value: tuple(dict.fromkeys((*self._names(value, "aliases"), *entry.aliases))),
            "paraphrases": lambda value: self._templates(value, "paraphrases", entry),
            "questions": lambda value: self._templates(value, "questions", entry),
            "neighborhood": lambda value: _fields.neighborhood(value, entry.relation, self.parts),
            "popularity": lambda value: _fields.number(value, "popularity"),
        }
        found: dict[str, Any] = {}
        for what, reader in readers.items():
            if what in self.given:
                found[what] = _fields.gather(lambda what=what, reader=reader: reader(self.given[what]), said)
        if "popularity" in found:
            found["stratum"] = None  # a quartile among the user's own numbers, given later
        return replace(
            entry, **{what: value for what, value in found.items() if value is not None or what == "stratum"}
        )

    def _names(self, value: Any, what: str) -> tuple[str, ...]:
        return tuple(_fields.name(each, what) for each in _fields.texts(value, what, self.parts))

    def _templates(self, value: Any, what: str, entry: Entry) -> tuple[str, ...]:
        given = _fields.texts(value, what, self.parts)
        return tuple(
            _fields.slotted(each, entry.fact.subject, f"{what} [{place}]") for place, each in enumerate(given, 1)
        )

    def _check_target(self, entry: Entry, said: list[str]) -> Entry:
        """The target must differ from the object in every spelling, and no prompt may say it."""
        target = entry.target_new
        if target is None:
            return entry
        if normalise(target) in {normalise(each) for each in entry.names}:
            said.append(f"target_new {target!r} is the object already ({entry.fact.object!r}); ask for another one")
        wordings = (entry.fact.prompt, *entry.paraphrases, *entry.questions)
        asked = [fill(each, entry.fact.subject) for each in wordings] + [each.prompt for each in entry.neighborhood]
        prompt = _fields.given_away(target, asked)
        if prompt is not None:
            said.append(
                f"target_new {target!r} stands in the prompt {prompt!r}, which gives the answer away; reword it"
            )
        return entry


def _check_unique(entries: list[tuple[int, Entry]], problems: Problems) -> None:
    ids: dict[str, int] = {}
    facts: dict[tuple[str, str], int] = {}
    for line, entry in entries:
        first = ids.setdefault(entry.id, line)
        if first != line:
            problems.add(line, f"id {entry.id!r} was used on line {first} already; give each fact its own")
        key = (entry.relation, normalise(entry.fact.subject))
        first = facts.setdefault(key, line)
        if first != line:
            problems.add(
                line,
                f"subject {entry.fact.subject!r} has a {entry.relation!r} on line {first} already; "
                "keep one row, and put other wordings into 'paraphrases'",
            )


def _with_strata(entries: list[Entry]) -> list[Entry]:
    """Quartiles of a user's own popularity numbers, where a relation has at least four of them."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.popularity is not None and entry.stratum is None:
            groups[entry.relation].append(entry)
    stratum = {}
    for group in groups.values():
        if len(group) >= STRATA:
            ordered = sorted(group, key=lambda entry: (entry.popularity, entry.id))
            stratum.update({entry.id: f"q{1 + STRATA * place // len(ordered)}" for place, entry in enumerate(ordered)})
    return [replace(entry, stratum=stratum.get(entry.id, entry.stratum)) for entry in entries]


def _relations(entries: list[Entry], shipped: FactTable) -> dict[str, Relation]:
    """The relations of the file: the shipped ones, or a bare one with the first prompt; a user may change them all."""
    found: dict[str, Relation] = {}
    for entry in entries:
        bare = Relation(entry.relation, "", "", entry.fact.prompt, popularity="as given in the file")
        found.setdefault(entry.relation, replace(shipped.relations.get(entry.relation, bare), hop_only=False))
    return found
