"""The facts that come along and a user's own, and the records that are made of them. No torch here.

    facts = load("world")                      # or load("my_facts.jsonl")
    record = facts.edit_record(facts["capital/fr"], seed=0)

A data set is a folder with a card (`card.toml`); it is found in a checkout and in an installed wheel alike.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from editkit import held_out
from editkit.entries import Composition, Entry, FactTable, Relation, mentions
from editkit.facts import Edit, EditRecord, Example, ForgetRecord, HeldOut, fill, normalise
from editkit.files import sha256_of
from editkit.readers import READERS
from editkit.readers._errors import DataError
from editkit.readers._text import FORMATS

__all__ = [
    "Card",
    "Composition",
    "DataError",
    "Entry",
    "FactBase",
    "Relation",
    "check_card",
    "data_folder",
    "datasets",
    "load",
]

DEFAULT = "world"


@dataclass(frozen=True, slots=True)
class Card:
    """What `card.toml` says of a data set. `sha256` holds the hash of each file, `records` the facts per relation."""

    name: str
    title: str
    task: str
    description: str
    license: str
    reader: str
    citation: str
    popularity: str
    splits: dict[str, int]
    records: dict[str, int]
    sha256: dict[str, str]
    sources: tuple[dict[str, str], ...]


@dataclass(frozen=True, slots=True)
class FactBase:
    """Facts that may be changed, and the table of all that may be asked about them.

    `entries` are the facts of the data set, or of the user's file; `table` holds them and what comes along.
    `card` is None for a user's file.
    """

    name: str
    card: Card | None
    entries: tuple[Entry, ...]
    table: FactTable
    own: tuple[Entry, ...] = ()  # the user's facts: none of them ever serves as a retain example
    _by_id: dict[str, Entry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_id", {entry.id: entry for entry in self.table.entries})

    @property
    def relations(self) -> dict[str, Relation]:
        """Every relation by name, those that come along with a user's file included."""
        return self.table.relations

    @property
    def editable(self) -> tuple[Entry, ...]:
        """The entries that may be changed: all but those which only serve as steps of chains."""
        return tuple(entry for entry in self.entries if not self.relations[entry.relation].hop_only)

    def __getitem__(self, entry_id: str) -> Entry:
        try:
            return self._by_id[entry_id]
        except KeyError:
            near = difflib.get_close_matches(entry_id, self._by_id)
            raise DataError(f"no fact {entry_id!r} in {self.name!r}; near it: {', '.join(near) or 'nothing'}") from None

    def entries_of(self, relation: str) -> tuple[Entry, ...]:
        """The data set's or file's own entries of one relation."""
        return tuple(entry for entry in self.entries if entry.relation == relation)

    def range_of(self, relation: str) -> tuple[str, ...]:
        """The objects of one relation, each once, sorted; those that come along included."""
        return self.table.range_of(relation)

    def edit_record(self, entry: Entry, *, seed: int, known: Container[str] | None = None) -> EditRecord:
        """The edit of `entry` and the held-out questions about it.

        `target_new` is the user's, or is chosen by `seed` from the relation's range. `known` holds the ids of entries
        that the base model answers right: they are preferred as neighbours, as steps of chains and for the target.
        Raises DataError where the range holds no other object.
        """
        edit = self.edit(entry, seed=seed, known=known)
        return EditRecord(entry.id, edit, self._held_out(held_out.Change(entry, edit.target_new), seed, known))

    def edit(self, entry: Entry, *, seed: int, known: Container[str] | None = None) -> Edit:
        """The edit alone, as `edit_record` has it: many times faster than to look for questions."""
        target = entry.target_new or held_out.target_for(
            self.table, entry, self._prompts(entry), seed=seed, known=known
        )
        if target is None:
            raise DataError(
                f"no target_new for {entry.id!r}: relation {entry.relation!r} has no other object that would do; "
                "give one"
            )
        return Edit(entry.fact, target)

    def forget_record(self, entry: Entry, *, seed: int, known: Container[str] | None = None) -> ForgetRecord:
        """The fact to be forgotten, in each wording that operators may see, and the held-out questions about it."""
        change = held_out.Change(entry)
        wordings = dict.fromkeys((entry.fact.prompt, *self.relations[entry.relation].seen))
        examples = tuple(Example(fill(each, entry.fact.subject), entry.fact.object) for each in wordings)
        return ForgetRecord(entry.id, entry.fact, examples, self._held_out(change, seed, known))

    def retain_examples(
        self, exclude_ids: Iterable[str], n: int, seed: int, known: Container[str] | None = None
    ) -> tuple[Example, ...]:
        """At most `n` facts to keep while those of `exclude_ids` are forgotten, each in one wording.

        Half are of the forgotten relations, half of others, spread over the strata; known ones come first. None has or
        says a forgotten object or is about a forgotten subject in the same relation, and none ever stands in a
        neighborhood: what is measured there was never trained on.
        """
        gone = [self[each] for each in dict.fromkeys(exclude_ids)]
        relations = {entry.relation for entry in gone}
        names = [name for entry in gone for name in entry.names]
        usable = [entry for entry in self._retainable() if not _touches(entry, gone) and self._silent(entry, names)]
        source = held_out.dice(seed, "retain")
        close = list(held_out.spread((e for e in usable if e.relation in relations), source, known))
        far = list(held_out.spread((e for e in usable if e.relation not in relations), source, known))
        share = max(n - len(far), (n + 1) // 2) if gone else 0
        chosen = [*close[:share], *far[: n - min(share, len(close))]][:n]
        return tuple(self._example(entry, source.choice(self._silent(entry, names))) for entry in chosen)

    def _silent(self, entry: Entry, names: Iterable[str]) -> list[str]:
        """Wordings of a fact's relation that say none of the names ("the US state of" says one)."""
        seen = self.relations[entry.relation].seen
        return [template for template in seen if not any(mentions(template, name) for name in names)]

    def _retainable(self) -> list[Entry]:
        mine = {entry.id for entry in self.own}
        return [
            entry
            for entry in self.table.entries
            if entry.id not in mine
            and not held_out.is_probe_side(entry)
            and not self.relations[entry.relation].hop_only
        ]

    def _example(self, entry: Entry, template: str) -> Example:
        return Example(fill(template, entry.fact.subject), entry.fact.object)

    def _prompts(self, entry: Entry) -> list[str]:
        wordings = (entry.fact.prompt, *entry.paraphrases, *entry.questions, *self.relations[entry.relation].templates)
        asked = [fill(each, entry.fact.subject) for each in dict.fromkeys(wordings)]
        return asked + [question.prompt for question in entry.neighborhood]

    def _held_out(self, change: held_out.Change, seed: int, known: Container[str] | None) -> HeldOut:
        entry, table = change.entry, self.table
        paraphrases, questions = held_out.held_out_templates(self.relations[entry.relation], entry, change)
        return HeldOut(
            paraphrases=paraphrases,
            questions=questions,
            neighborhood=held_out.neighborhood(table, change, self.own, seed=seed, known=known),
            hops=held_out.hops(table, change, seed=seed, known=known),
            range=table.range_of(entry.relation),
            aliases=entry.aliases,
            aliases_new=table.aliases_of(entry.relation, change.target_new) if change.target_new else (),
            popularity=entry.popularity,
            stratum=entry.stratum,
        )


def _touches(entry: Entry, gone: list[Entry]) -> bool:
    """Whether an entry has a forgotten object, names one, or is a forgotten fact itself."""
    return any(
        entry.id == other.id
        or normalise(entry.fact.object) == normalise(other.fact.object)
        or any(mentions(entry.fact.subject, name) for name in other.names)
        or (entry.relation == other.relation and normalise(entry.fact.subject) == normalise(other.fact.subject))
        for other in gone
    )


# Finding and loading --------------------------------------------------------------------------------------------


def data_folder() -> Path:
    """Where the data sets lie: inside an installed wheel, or beside the packages in a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "_datasets"
    return installed if installed.is_dir() else here.parent / "datasets"


def datasets() -> dict[str, Card]:
    """The cards of all data sets that come along, by name."""
    return {path.parent.name: read_card(path.parent) for path in sorted(data_folder().glob("*/card.toml"))}


def read_card(folder: Path) -> Card:
    """The card of a data folder; DataError if it is missing or lacks a field."""
    path = folder / "card.toml"
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        sources = tuple(raw.pop("sources", ()))
        return Card(**{name: raw[name] for name in Card.__slots__ if name != "sources"}, sources=sources)
    except OSError as error:
        raise DataError(f"no data set in {folder.name!r}: its card.toml cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
        raise DataError(f"{folder.name}/card.toml: {error}; a card holds {', '.join(Card.__slots__)}") from error


def check_card(folder: Path) -> Card:
    """The card, after the sha256 of every file it names was compared; DataError names the files that differ."""
    card = read_card(folder)
    wrong = [
        name
        for name, expected in card.sha256.items()
        if not (folder / name).is_file() or sha256_of(folder / name) != expected
    ]
    if wrong:
        raise DataError(
            f"{folder.name}: {', '.join(sorted(wrong))} is not what card.toml describes; "
            "restore the file, or make the data set again with its generator"
        )
    return card


def is_file(name_or_path: str | Path) -> bool:
    """Whether a user's file is meant, and no data set that comes along."""
    path = Path(name_or_path)
    return path.suffix.lower() in FORMATS or path.is_file()


def load(name_or_path: str | Path = DEFAULT) -> FactBase:
    """The facts of a data set by name ("world"), or of a user's .jsonl, .json or .csv file.

    Files of the data set are compared with its card. A user's facts of a relation that comes along are completed from
    there, and the facts that come along serve as further questions. Raises DataError, which names what is wrong.
    """
    path = Path(name_or_path)
    if is_file(name_or_path):
        return _user_facts(path)
    folder = data_folder() / str(name_or_path)
    if not str(name_or_path).strip() or path.name != str(name_or_path) or not (folder / "card.toml").is_file():
        there = sorted(each.parent.name for each in data_folder().glob("*/card.toml"))
        folder_given = bool(str(name_or_path).strip()) and path.is_dir()
        what = f"{str(path)!r} is a folder" if folder_given else f"no data set or file {str(name_or_path)!r}"
        raise DataError(f"{what}; there is {', '.join(there)}, or give a .jsonl, .json or .csv file")
    return _from_folder(folder)


@lru_cache(maxsize=4)
def _from_folder(folder: Path) -> FactBase:
    card = check_card(folder)
    table = READERS[card.reader](folder)
    return FactBase(card.name, card, table.entries, table)


def _user_facts(path: Path) -> FactBase:
    base = load(DEFAULT)
    read = READERS["facts_file"](path, base=base.table)
    table = base.table.extended(read.relations.values(), read.entries)
    return FactBase(path.stem, None, read.entries, table, own=read.entries)
