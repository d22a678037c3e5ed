"""The lines of a journal: one JSON object each, with a `kind`; written, read, and refused with the line's number.

JSON has no number that is not finite: such a one is written as "NaN", "Infinity" or "-Infinity", and read back as what
it was wherever a number must stand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from editkit.errors import InputError

_TEXTS = {"header": ("spec", "code", "weights"), "settled": ("spec",)}  # what such entries must hold, all of it text


class RecordError(InputError):
    """A run folder whose record cannot be read; says which file and line."""


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Entries of the journal; a torn last line is passed over, any other broken line is an error."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            try:
                entry = json.loads(line)
            except ValueError as error:  # no JSON, or no UTF-8
                raise RecordError(f"{path}, line {number} is no JSON ({error}); the record is damaged") from None
            if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
                raise RecordError(f"{path}, line {number} is no entry of a record; the record is damaged")
            entry["line"] = number  # for what is found to be wrong with it later
            _check(entry, path)
            yield entry


def _check(entry: Mapping[str, Any], path: Path) -> None:
    """Refuse an entry that lacks what is read from it without a model of its fields."""
    lacking = [name for name in _TEXTS.get(entry["kind"], ()) if not isinstance(entry.get(name), str)]
    if lacking:
        raise RecordError(damaged(path, entry, f"no {', '.join(lacking)}"))
    at = entry.get("at", 0.0)
    if isinstance(at, bool) or not isinstance(at, int | float):
        raise RecordError(damaged(path, entry, f"at is {at!r}"))


def line_of(entry: Mapping[str, Any]) -> str:
    """An entry as a line, in ASCII, so that lone surrogates can be kept."""
    try:
        return json.dumps(entry, allow_nan=False) + "\n"
    except ValueError:  # a number that is not finite, which is rare
        return json.dumps(finite(entry), allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Plain data without numbers that are not finite: they become the words that JSON readers know."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def damaged(path: Path, entry: Mapping[str, Any], what: str) -> str:
    """One line that names file, line and kind of an entry, and the way out."""
    line = f", line {entry['line']}" if "line" in entry else ""
    whole = f"{path}{line}: an entry of kind {entry['kind']!r} is damaged ({what}); pass --fresh to begin anew"
    return " ".join(whole.split())


def cut_torn_tail(path: Path) -> None:
    """Take off what a kill in mid-write left of a last line."""
    if not path.exists():
        return
    with path.open("rb+") as stream:
        data = stream.read()
        if data and not data.endswith(b"\n"):
            stream.truncate(data.rfind(b"\n") + 1)
