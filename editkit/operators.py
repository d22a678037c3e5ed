"""What an operator is: it computes a change and never applies it.

A method is a frozen dataclass whose fields are its hyperparameters. It is called with a handle, a request and a seed
and gives a patch; the handle is left as it was, to the bit. `Method.preset(architecture, model_name)` reads the
settings published for a model.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from importlib import resources
from importlib.metadata import version
from types import UnionType
from typing import Any, ClassVar, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints, runtime_checkable

from editkit import __version__
from editkit.facts import Edit, ForgetRequest
from editkit.handle import ModelHandle
from editkit.patch import Patch, Provenance, WeightPatch
from editkit.registry import Registry, UnknownName

Request = TypeVar("Request", contravariant=True)


class Operator(Protocol[Request]):
    """Computes a change and never applies it."""

    def __call__(self, handle: ModelHandle, request: Request, *, seed: int) -> Patch: ...


class EditOperator(Protocol):
    """Gives facts new objects; all edits of one call go into one patch. `progress` is told (what, done, of)."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(
        self,
        handle: ModelHandle,
        edits: Sequence[Edit],
        *,
        seed: int,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Patch: ...


@runtime_checkable
class EditsTogether(Protocol):
    """An edit operator that finds the patches of several edits, each by itself, faster together than one by one."""

    def each(
        self,
        handle: ModelHandle,
        edits: Sequence[Edit],
        *,
        seed: int,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> list[WeightPatch]: ...


def each(
    operator: EditOperator,
    handle: ModelHandle,
    edits: Sequence[Edit],
    *,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Patch]:
    """A patch for each edit by itself, on the model as it is."""
    if isinstance(operator, EditsTogether):
        return [*operator.each(handle, edits, seed=seed, progress=progress)]
    return [operator(handle, [edit], seed=seed, progress=progress) for edit in edits]


class UnlearnOperator(Protocol):
    """Makes a model forget examples and keep others. `progress` is told of each `training.TrainStep`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(
        self, handle: ModelHandle, request: ForgetRequest, *, seed: int, progress: Callable[[Any], None] | None = None
    ) -> Patch: ...


EDITS: Registry[type[EditOperator]] = Registry("edit", "editkit.edit")
UNLEARNERS: Registry[type[UnlearnOperator]] = Registry("unlearn", "editkit.unlearn")


def operator_class(name: str) -> tuple[str, type[Any]]:
    """("edit" | "unlearn", class) of a registered operator; raises UnknownName with the names that come near."""
    if name in EDITS:
        return "edit", EDITS[name]
    if name in UNLEARNERS:
        return "unlearn", UNLEARNERS[name]
    known = [*EDITS.names(), *UNLEARNERS.names()]
    near = difflib.get_close_matches(name, known) or known
    raise UnknownName(f"no operator named {name!r}; there is {', '.join(near)}")


def settings_of(operator: Any) -> dict[str, Any]:
    """The operator's fields as plain JSON values; `build` turns them back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(operator)))
    return plain


def build(kind: type[Any], settings: Mapping[str, Any], where: str = "") -> Any:
    """A dataclass from plain values, nested ones too. Unknown names and wrong types are refused with the near ones."""
    values = check_settings(kind, settings, where)
    lacking = [f.name for f in fields(kind) if f.name not in values and f.default is MISSING is f.default_factory]
    if lacking:
        raise ValueError(f"{where or kind.__name__} needs {', '.join(lacking)}; no preset gives it for this model")
    return kind(**values)


def check_settings(kind: type[Any], settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Plain values as the types their fields have; what is not given may be missing. Raises ValueError."""
    known = {f.name: f for f in fields(kind)}
    hints = get_type_hints(kind)
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known) or sorted(known)
            raise ValueError(f"no setting {where + name!r}; there is {', '.join(near)}")
    return {name: _fitted(hints[name], value, f"{where}{name}") for name, value in settings.items()}


NONE = "none"  # how TOML, which has no null, says that a setting is off


def _fitted(hint: Any, value: Any, where: str) -> Any:
    """A plain value as the type its field has."""
    if is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, f"{where}.")  # type: ignore[arg-type]
    origin = get_origin(hint)
    if origin is tuple and isinstance(value, list | tuple):
        inner = get_args(hint)[0]
        return tuple(_fitted(inner, item, where) for item in value)
    if origin in (Union, UnionType):
        return (
            None
            if value in (None, NONE)
            else _fitted(next(a for a in get_args(hint) if a is not type(None)), value, where)
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (isinstance(hint, type) and not isinstance(value, hint)) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"setting {where!r} is {value!r}, expected {hint.__name__}")
    return value


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings published or measured for a kind of model, with their source."""

    settings: Mapping[str, Any]
    source: str


def preset_for(name: str, handle: ModelHandle) -> Preset:
    """The preset of operator `name` for a model: the most specific table of presets/<name>.toml that matches.

    A table matches by config values (`match = {model_type = "llama", num_hidden_layers = 30}`); a preset without
    `match` is for all. A setting "depth:0.27" is that share of the model's blocks, rounded down.
    """
    config = handle.model.config.to_dict()
    found = [p for p in _tables(name) if all(config.get(k) == v for k, v in p.get("match", {}).items())]
    if not found:
        return Preset({}, "defaults of the operator")
    best = max(found, key=lambda p: len(p.get("match", {})))
    settings = {k: _at_depth(v, handle.layers) for k, v in best.get("settings", {}).items()}
    return Preset(settings, best["source"])


def configured(name: str, handle: ModelHandle, overrides: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The operator with the preset for this model and the user's own settings on top, and the preset's source."""
    _, kind = operator_class(name)
    preset = preset_for(name, handle)
    return build(kind, _merged(preset.settings, overrides or {})), preset.source


def _tables(name: str) -> list[dict[str, Any]]:
    file = resources.files("editkit").joinpath("presets", f"{name}.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))["preset"] if file.is_file() else []


def _at_depth(value: Any, layers: int) -> Any:
    if isinstance(value, str) and value.startswith("depth:"):
        return min(layers - 1, int(float(value.removeprefix("depth:")) * layers))
    if isinstance(value, list):
        return [_at_depth(v, layers) for v in value]
    return value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def provenance_of(name: str, operator: Any, handle: ModelHandle, request: Any, seed: int, **notes: Any) -> Provenance:
    """What a patch says of its making. `notes` are the method's own findings (losses, steps)."""
    asked = hashlib.sha256(json.dumps(_plain(request), sort_keys=True).encode()).hexdigest()
    versions = {package: version(package) for package in ("torch", "transformers")} | {"editkit": __version__}
    on_top_of = [patch.digest for patch in handle.patches]
    notes = notes | ({"on_top_of": on_top_of} if on_top_of else {})
    return Provenance(name, settings_of(operator), seed, handle.base_digest, asked, versions, notes)


def _plain(request: Any) -> Any:
    if is_dataclass(request) and not isinstance(request, type):
        return asdict(request)
    return [_plain(item) for item in request]
