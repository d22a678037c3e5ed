"""What an audit shall do: read from TOML, checked, and written back fully resolved.

`resolved(spec)` is free of the place it is read in, and `settled(spec, …)` of presets: `to_toml` of both gives a file
that runs the same audit again from anywhere.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from editkit.data import data_folder, is_file, load
from editkit.errors import InputError
from editkit.files import sha256_of
from editkit.models import EMBEDDED
from editkit.settings import merged
from reports.parts import (
    AuditSpec,
    ClaimPart,
    FactsPart,
    ModelPart,
    OperatorPart,
    default_claims,
    without_null,
)

__all__ = [
    "AuditSpec",
    "ClaimPart",
    "FactsPart",
    "ModelPart",
    "OperatorPart",
    "SpecError",
    "default_claims",
    "make_spec",
    "read_spec",
    "resolved",
    "settled",
    "to_toml",
]


class SpecError(InputError):
    """A spec that cannot be run; the message names file, place and the way out."""


def read_spec(path: Path | None, overrides: Mapping[str, Any], options: Mapping[str, str] | None = None) -> AuditSpec:
    """The spec of a TOML file (None: the default one) with `overrides` on top, dotted names as nested mappings.

    `options` are the command line's names of places in the spec ("model.dtype": "--dtype"), for its messages.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    except OSError as error:
        raise SpecError(f"cannot read spec {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"spec {path} is no valid TOML: {error}") from None
    given = {place: name for place, name in (options or {}).items() if _stands_in(overrides, place)}
    return make_spec(merged(data, overrides), str(path) if path else "the command line", path, given)


def make_spec(
    data: Mapping[str, Any], where: str = "spec", path: Path | None = None, options: Mapping[str, str] | None = None
) -> AuditSpec:
    """A checked spec from plain data. Raises SpecError with all problems in one line."""
    try:
        return AuditSpec.model_validate(data)
    except ValidationError as error:
        problems = [_told(e, path, options or {}) for e in error.errors() if e["type"] != "default_factory_not_called"]
        raise SpecError(f"{where}: " + "; ".join(problems)) from None


def resolved(spec: AuditSpec) -> AuditSpec:
    """The spec as it reads from any folder, with the digest of its facts and the number of facts of each operator.

    Raises SpecError where it names a digest and the facts have another, DataError where there are no such facts.
    """
    source, name = spec.facts.source, spec.model.name
    digest = _digest_of(source)
    if spec.facts.sha256 not in (None, digest):
        raise SpecError(
            f"facts {source!r} have changed: the spec is of sha256 {str(spec.facts.sha256)[:12]}, there is "
            f"{digest[:12]}; restore them, or take sha256 out of the spec"
        )
    facts = {"source": str(Path(source).resolve()) if is_file(source) else source, "sha256": digest}
    here = Path(name).expanduser() if name.startswith("~") else Path(name)
    local = name.strip() and name not in EMBEDDED and here.exists()  # an empty path would be the current folder
    return spec.model_copy(
        update={
            "facts": spec.facts.model_copy(update=facts),
            "model": spec.model.model_copy(update={"name": str(here.resolve()) if local else name}),
            "operators": tuple(o.model_copy(update={"n": o.n or spec.facts.n}) for o in spec.operators),
        }
    )


def _digest_of(source: str) -> str:
    """sha256 of a user's file, or of a data set's card, which holds that of each of its files."""
    try:
        return sha256_of(Path(source) if is_file(source) else data_folder() / source / "card.toml")
    except OSError:
        load(source)  # says what is wrong
        raise


def settled(spec: AuditSpec, settings: Mapping[str, Mapping[str, Any]]) -> AuditSpec:
    """The spec with the settings that its operators had, by operator: presets and defaults written out."""
    operators = (
        o.model_copy(update={"settings": without_null(settings[o.name]), "preset": "published"}) for o in spec.operators
    )
    return spec.model_copy(update={"operators": tuple(operators)})


def to_toml(spec: AuditSpec) -> str:
    """The spec as TOML with every default written out."""
    return tomli_w.dumps(spec.model_dump(mode="json", exclude_none=True))


def _stands_in(data: Any, place: str) -> bool:
    head, _, rest = place.partition(".")
    return isinstance(data, Mapping) and head in data and (not rest or _stands_in(data[head], rest))


def _told(error: Any, path: Path | None, options: Mapping[str, str]) -> str:
    """One validation error as a sentence with its place: an option of the command line, or a line of the file."""
    place = ".".join(str(part) for part in error["loc"])
    option = next((name for known, name in options.items() if f"{place}.".startswith(f"{known}.")), None)
    line = None if option else _line_of(path, error["loc"])
    at, place = f"line {line}: " if line else "", option or place
    if error["type"] == "extra_forbidden":
        unknown = str(error["loc"][-1])
        known = _fields_at(error["loc"][:-1])
        near = difflib.get_close_matches(unknown, known) or known
        return f"{at}unknown key {place!r}; there is {', '.join(near)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{at}{place}: {message}" if place else f"{at}{message}"


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    parts = {"model": ModelPart, "facts": FactsPart, "operators": OperatorPart, "claims": ClaimPart}
    part = parts.get(str(location[0])) if location else AuditSpec
    return list(part.model_fields) if part else list(AuditSpec.model_fields)


def _line_of(path: Path | None, location: tuple[Any, ...]) -> int | None:
    """Where the last key of a location stands in the file, by a plain search: TOML readers keep no places."""
    names = [part for part in location if isinstance(part, str)]
    if path is None or not names:
        return None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.partition("=")[0].strip().strip("\"'") == names[-1] or line.strip().strip("[]") == names[-1]:
            return number
    return None
