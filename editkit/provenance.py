"""Where a patch comes from, and how a file says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from editkit.errors import PatchError


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a patch comes from. `base` is the weights digest of the model it was computed on."""

    operator: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    base: str = ""
    request: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


_KINDS_OF_FIELDS: Mapping[str, Any] = {
    "operator": str,
    "settings": dict,
    "seed": int | None,
    "base": str,
    "request": str,
    "versions": dict,
    "notes": dict,
}


def read_provenance(text: str | None) -> Provenance:
    """What a file says of a patch's making. Raises PatchError with what is wrong with it."""
    try:
        given = json.loads(text or "")
    except ValueError as error:
        raise PatchError(f"its provenance is no JSON ({error})" if text else "it has no provenance") from None
    if not isinstance(given, dict):
        raise PatchError("its provenance is no JSON object")
    for name, value in given.items():
        if name not in _KINDS_OF_FIELDS:
            raise PatchError(f"its provenance has an unknown field {name!r}")
        if not isinstance(value, _KINDS_OF_FIELDS[name]):
            raise PatchError(f"provenance.{name} is {value!r}")
    if not isinstance(given.get("notes", {}).get("on_top_of", []), list):
        raise PatchError("provenance.notes.on_top_of is no list of digests")
    return Provenance(**given)


def written(provenance: Provenance) -> str:
    """As JSON, for a file's metadata."""
    return json.dumps(asdict(provenance), default=str)
