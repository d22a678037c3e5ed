"""The fields of dataclasses as plain values (TOML, JSON), and back, checked."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from editkit.errors import InputError

NONE = "none"  # how TOML, which has no null, says that a setting is off


def settings_of(operator: Any) -> dict[str, Any]:
    """The operator's fields as plain JSON values; `build` turns them back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(operator)))
    return plain


def build(kind: type[Any], settings: Mapping[str, Any], where: str = "") -> Any:
    """A dataclass from plain values, nested ones too. Raises InputError, with the near names, for unknown names and
    wrong types."""
    values = check_settings(kind, settings, where)
    lacking = [f.name for f in fields(kind) if f.name not in values and f.default is MISSING is f.default_factory]
    if lacking:
        raise InputError(f"{where or kind.__name__} needs {', '.join(lacking)}; no preset gives it for this model")
    return kind(**values)


def check_settings(kind: type[Any], settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Plain values as the types their fields have; what is not given may be missing. Raises InputError."""
    known = {f.name: f for f in fields(kind)}
    hints = get_type_hints(kind)
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known) or sorted(known)
            raise InputError(f"no setting {where + name!r}; there is {', '.join(near)}")
    return {name: _fitted(hints[name], value, f"{where}{name}") for name, value in settings.items()}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both settings, nested ones too; where both give a value, that of `above`."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def _fitted(hint: Any, value: Any, where: str) -> Any:
    """A plain value as the type its field has."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        some = next(each for each in get_args(hint) if each is not type(None))
        return None if value in (None, NONE) else _fitted(some, value, where)
    if is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, f"{where}.")  # type: ignore[arg-type]
    if origin is tuple:
        return tuple(_fitted(get_args(hint)[0], item, where) for item in _listed(value, where))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if (isinstance(hint, type) and not isinstance(value, hint)) or (hint is int and isinstance(value, bool)):
        raise InputError(f"setting {where!r} is {value!r}, expected {hint.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"setting {where!r} is {value}, expected a finite number")
    return value


def _listed(value: Any, where: str) -> list[Any] | tuple[Any, ...]:
    if isinstance(value, list | tuple):
        return value
    raise InputError(f"setting {where!r} is {value!r}, expected a list")
