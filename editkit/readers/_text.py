"""From a file to rows: JSON Lines, JSON and CSV, each row with the line it begins on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from editkit.readers._errors import DataError, Problems

FORMATS = {".jsonl": "JSON Lines", ".ndjson": "JSON Lines", ".json": "JSON", ".csv": "CSV", ".tsv": "CSV"}
BLANKS = " \t\r\n"


class Line(NamedTuple):
    """A row of a file and the line it begins on, counted from 1."""

    number: int
    fields: dict[str, Any]


def rows_of(path: Path, problems: Problems) -> list[Line]:
    """The rows of a .jsonl, .json or .csv file; what cannot be parsed goes to `problems`."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise DataError(f"{path.name}: cannot read {suffix or 'a file without ending'}; give .jsonl, .json or .csv")
    text = text_of(path)
    if not text.strip():
        raise DataError(f"{path.name}: the file is empty; give it at least one fact")
    if FORMATS[suffix] == "CSV":
        return _csv_rows(text, problems)
    return _jsonl_rows(text, problems) if FORMATS[suffix] == "JSON Lines" else _json_rows(text, problems)


def text_of(path: Path) -> str:
    """The whole file as text; UTF-8, with or without a byte order mark."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from error
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path.name}, line 1: the file is UTF-16; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name}, line {line}: byte {raw[error.start]:#04x} is not UTF-8; save it as UTF-8"
        ) from error


def _jsonl_rows(text: str, problems: Problems) -> list[Line]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = _decoder().decode(line.strip(BLANKS))
        except (ValueError, RecursionError) as error:
            problems.add(number, _broken(error, "put one whole JSON object on each line"))
            continue
        _keep(found, number, value, problems)
    return found


def _json_rows(text: str, problems: Problems) -> list[Line]:
    """The elements of a JSON array, decoded one by one to know their lines."""
    found: list[Line] = []
    try:
        for position, value in _elements(text):
            _keep(found, text.count("\n", 0, position) + 1, value, problems)
    except json.JSONDecodeError as error:
        problems.add(error.lineno, _broken(error, "give a JSON array of objects"))
    except (ValueError, RecursionError) as error:
        problems.add(None, _broken(error, "give a JSON array of objects"))
    return found


def _elements(text: str) -> Iterator[tuple[int, Any]]:
    decoder = _decoder()
    position = _skip(text, 0)
    if text[position] != "[":
        raise json.JSONDecodeError("the file does not begin with '['", text, position)
    position = _skip(text, position + 1)
    while text[position : position + 1] != "]":
        value, end = decoder.raw_decode(text, position)
        yield position, value
        position = _skip(text, end)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            raise json.JSONDecodeError("expected ',' or ']'", text, position)
    if text[position + 1 :].strip():
        raise json.JSONDecodeError("text after the closing ']'", text, _skip(text, position + 1))


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in BLANKS:
        position += 1
    return position


def _keep(found: list[Line], number: int, value: Any, problems: Problems) -> None:
    if isinstance(value, dict):
        found.append(Line(number, value))
    else:
        problems.add(number, f"a row must be an object with named fields, not {type(value).__name__}")


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"field {name!r} stands twice; keep one")
        fields[name] = value
    return fields


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON; leave the field out")


def _broken(error: Exception, way_out: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON at column {error.colno} ({error.msg}); {way_out}"
    if isinstance(error, RecursionError):
        return f"JSON nested too deeply; {way_out}"
    return str(error)


def _csv_rows(text: str, problems: Problems) -> list[Line]:
    header = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found: list[Line] = []
    names: list[str] = []
    begins = 1
    try:
        for cells in reader:
            number, begins = begins, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = _column_names(cells, number, problems)
            elif len(cells) != len(names):
                problems.add(
                    number,
                    f"{len(cells)} cells where the header names {len(names)}; quote text that holds {delimiter!r}",
                )
            else:
                found.append(Line(number, dict(zip(names, cells, strict=True))))
    except csv.Error as error:
        problems.add(reader.line_num, f"broken CSV ({error}); quote texts that hold quotes or line breaks")
    return found


def _column_names(cells: list[str], number: int, problems: Problems) -> list[str]:
    names = [cell.strip() for cell in cells]
    for name in {name for name in names if names.count(name) > 1}:
        problems.add(number, f"column {name!r} stands twice; keep one")
    return names
