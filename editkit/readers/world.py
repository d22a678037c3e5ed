"""The folder format of our own fact bases: relations.toml beside facts.jsonl."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from editkit.entries import Composition, Entry, FactTable, Inverse, Relation
from editkit.facts import Fact
from editkit.readers import READERS
from editkit.readers._errors import DataError, Problems
from editkit.readers._text import Line, rows_of, text_of


@READERS.register("world")
def read(path: Path, *, base: FactTable | None = None) -> FactTable:
    """The table of a folder with relations.toml and facts.jsonl."""
    del base  # it is complete in itself
    relations, compositions = _definitions(path / "relations.toml")
    problems = Problems(path / "facts.jsonl")
    rows = rows_of(path / "facts.jsonl", problems)
    problems.stop_if_any()
    entries = [_entry(row, relations, problems) for row in rows]
    problems.stop_if_any()
    return FactTable(relations, tuple(entry for entry in entries if entry is not None), compositions)


def _definitions(path: Path) -> tuple[dict[str, Relation], tuple[Composition, ...]]:
    try:
        raw = tomllib.loads(text_of(path))
        relations = {each["name"]: _relation(each) for each in raw["relation"]}
        compositions = tuple(Composition(**_tuples(each)) for each in raw.get("composition", []))
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path.name}: {error}; see the relations of the data set 'world' for the form") from error
    known = {*relations, *(each.inverse.name for each in relations.values() if each.inverse)}
    for each in compositions:
        if each.first not in known or each.second not in relations:
            raise DataError(
                f"{path.name}: a chain of {each.first!r} and {each.second!r}, but one of them is not defined"
            )
    return relations, compositions


def _relation(raw: dict[str, Any]) -> Relation:
    inverse = raw.pop("inverse", None)
    return Relation(**_tuples(raw), inverse=None if inverse is None else Inverse(**_tuples(inverse)))


def _tuples(raw: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}


def _entry(row: Line, relations: dict[str, Relation], problems: Problems) -> Entry | None:
    raw = row.fields
    try:
        relation = relations[raw["relation"]]
        return Entry(
            id=raw["id"],
            fact=Fact(raw["subject"], relation.name, raw["object"], relation.prompt),
            aliases=tuple(raw.get("aliases", ())),
            subject_aliases=tuple(raw.get("subject_aliases", ())),
            popularity=raw.get("popularity"),
            stratum=raw.get("stratum"),
        )
    except KeyError as error:
        problems.add(row.number, f"no field or relation {error}")
    except (TypeError, ValueError) as error:
        problems.add(row.number, str(error))
    return None
