"""What an operator is: it computes a change and never applies it.

A method is a frozen dataclass whose fields are its hyperparameters. It is called with a handle, a request and a seed
and gives a patch; the handle is left as it was, to the bit. `configured(name, handle)` gives one with the settings
that its preset has for the model.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib import resources
from importlib.metadata import version
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from editkit import __version__
from editkit.errors import InputError, MethodError
from editkit.facts import Edit, ForgetRequest
from editkit.handle import ModelHandle
from editkit.patch import Patch, Provenance
from editkit.registry import Registry, UnknownName
from editkit.settings import build, merged, settings_of

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
    ) -> Sequence[Patch]: ...


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


def each_that_can(
    operator: EditOperator,
    handle: ModelHandle,
    edits: Sequence[Edit],
    *,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Patch | MethodError]:
    """As `each`, but with the error in the place of an edit that the operator finds no change for.

    Edits found together fail together: they are halved until those that can be made are parted from the others. Where
    they are not found together, each is tried once.
    """
    if len(edits) > 1 and not isinstance(operator, EditsTogether):
        singly = ([edit] for edit in edits)
        return [made for one in singly for made in each_that_can(operator, handle, one, seed=seed, progress=progress)]
    try:
        return [*each(operator, handle, edits, seed=seed, progress=progress)]
    except MethodError as error:
        if len(edits) == 1:
            return [error]
    half = len(edits) // 2
    parts = (edits[:half], edits[half:])
    return [made for part in parts for made in each_that_can(operator, handle, part, seed=seed, progress=progress)]


@runtime_checkable
class Confined(Protocol):
    """An operator that says by a method which parameters it may change; a setting `scope: Scope` says it as well."""

    def touches(self, handle: ModelHandle) -> Sequence[str]: ...


@runtime_checkable
class Aside(Protocol):
    """An edit operator that leaves the weights as they are, and says what it adds instead."""

    def adds(self, handle: ModelHandle) -> str: ...


@runtime_checkable
class Preparing(Protocol):
    """An edit operator that makes something before its first edit on a model, which takes long and is then kept."""

    def lacks(self, handle: ModelHandle, edits: Sequence[Edit]) -> str:
        """What that is, or "" where it is there."""
        ...


@runtime_checkable
class Guarding(Protocol):
    """An operator that tames what another one changes: its setting `of` has that one's `name` and `settings`."""

    def inner(self, handle: ModelHandle) -> Any:
        """The other operator, with the settings that it has on this model."""
        ...


class UnlearnOperator(Protocol):
    """Makes a model forget examples and keep others. `progress` is told of each `training.TrainStep`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(
        self, handle: ModelHandle, request: ForgetRequest, *, seed: int, progress: Callable[[Any], None] | None = None
    ) -> Patch: ...


EDITS: Registry[type[EditOperator]] = Registry("edit", "editkit.edit")
UNLEARNERS: Registry[type[UnlearnOperator]] = Registry("unlearn", "editkit.unlearn")
REGISTRIES: Mapping[str, Registry[Any]] = {"edit": EDITS, "unlearn": UNLEARNERS}


def operator_class(name: str) -> tuple[str, type[Any]]:
    """("edit" | "unlearn", class) of a registered operator; raises UnknownName with the names that come near, and
    InputError for a name that both an edit and an unlearner bear."""
    there = [(task, registry[name]) for task, registry in REGISTRIES.items() if name in registry]
    if len(there) > 1:
        homes = " and ".join(f"{kind.__module__}.{kind.__qualname__}" for _, kind in there)
        raise InputError(f"two operators are named {name!r}: {homes}; rename one, or uninstall what brings it")
    if there:
        return there[0]
    known = [*EDITS.names(), *UNLEARNERS.names()]
    near = difflib.get_close_matches(name, known) or known
    raise UnknownName(f"no operator named {name!r}; there is {', '.join(near)}")


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings published or measured for a kind of model, with their source; or a `guess`, for all models."""

    settings: Mapping[str, Any]
    source: str
    guess: bool = False


def preset_for(name: str, handle: ModelHandle) -> Preset:
    """The preset of operator `name` for a model: the most specific table of presets/<name>.toml that matches.

    The file lies in the package that defines the operator's class, or in one around that. A table matches by config
    values (`match = {model_type = "llama", num_hidden_layers = 30}`); a preset without `match` is for all. A setting
    "depth:0.27" is that share of the model's blocks, rounded down, "d_in:1" so many times the inputs of `mlp_out`. A
    file with `like = "rome"` has that operator's tables, but for the settings it is `without`, with its own `settings`
    on top of each.
    """
    config = handle.model.config.to_dict()
    found = [p for p in _tables(name) if all(config.get(k) == v for k, v in p.get("match", {}).items())]
    if not found:
        return Preset({}, "defaults of the operator")
    best = max(reversed(found), key=lambda p: len(p.get("match", {})))  # of two that match alike a file's own
    settings = {k: _sized(v, handle) for k, v in best.get("settings", {}).items()}
    return Preset(settings, best["source"], guess="match" not in best)


def candidates(name: str, handle: ModelHandle) -> dict[str, list[Any]]:
    """Values worth trying on a model that no table of presets/<name>.toml is for, by setting ("target.clamp" is one
    within another), in the order in which they are to be tried: the file's table [auto], or that of the operator which
    it is `like`. Depths are numbers of layers, each value once."""
    data = _data(name)
    other = candidates(str(data["like"]), handle) if "like" in data else {}
    own = {setting: _sized(values, handle) for setting, values in data.get("auto", {}).items()}
    found = {key: values for key, values in (other | own).items() if key not in data.get("without", ())}
    return {
        setting: [v for place, v in enumerate(values) if v not in values[:place]] for setting, values in found.items()
    }


@dataclass(frozen=True, slots=True)
class Lost:
    """The share of what else SmolLM2-135M knew that was lost after so many edits (docs/truth.md)."""

    edits: int
    lost: float


def lost(name: str, *, at_once: bool) -> Lost | None:
    """When an operator's edits began to cost much, one on top of the other or many in one change: what its file of
    presets says under `sequence` and `at_once`. None where that was not measured, or never seen."""
    found = _data(name).get("at_once" if at_once else "sequence")
    return None if found is None else build(Lost, found)


def configured(name: str, handle: ModelHandle, overrides: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The operator with the preset for this model and the user's own settings on top, and the preset's source; of one
    that guards another also the other's."""
    _, kind = operator_class(name)
    preset = preset_for(name, handle)
    operator = build(kind, merged(preset.settings, with_what_ends(kind, overrides or {})))
    source = preset.source
    if open_to := [key for key in candidates(name, handle) if key.partition(".")[0] not in (overrides or {})]:
        source += f"; for this model a guess: --preset auto searches {', '.join(open_to)}" if preset.guess else ""
    if not isinstance(operator, Guarding):
        return operator, source
    of = settings_of(operator)["of"]
    _, other = configured(of["name"], handle, of["settings"])
    return operator, f"{source}; of {of['name']}: {other}"


def with_what_ends(kind: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A user's settings, and those that a preset may hold and that one of them puts out of force: of two that say one
    thing in two ways the user's counts. An operator names them in `ends`: {"threshold": {"directions": 0.0}}."""
    ends: Mapping[str, Mapping[str, Any]] = getattr(kind, "ends", {})
    return {key: value for name in given for key, value in ends.get(name, {}).items()} | dict(given)


def _tables(name: str) -> list[dict[str, Any]]:
    data = _data(name)
    return [*_like(data), *data.get("preset", [])]


def _data(name: str) -> dict[str, Any]:
    """What stands in an operator's file of presets; nothing where it has none."""
    _, kind = operator_class(name)
    for package in _packages_around(kind.__module__):
        file = resources.files(package).joinpath("presets", f"{name}.toml")
        if file.is_file():
            return _read(file.read_text(encoding="utf-8"), f"{package}: presets/{name}.toml")
    return {}


def _less(table: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a table but for those that a file says its operator is `without`."""
    return {key: value for key, value in table.get("settings", {}).items() if key not in data.get("without", ())}


def _like(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The presets of the operator that a file names by `like`, with the file's own `settings` on top of each."""
    if "like" not in data:
        return []
    other, own = str(data["like"]), data.get("settings", {})
    source = f"as {other} ({{}})" + (f"; {data['source']}" if "source" in data else "")
    return [
        {**table, "source": source.format(table["source"]), "settings": merged(_less(table, data), own)}
        for table in _tables(other)
    ]


def _packages_around(module: str) -> Iterator[str]:
    """The packages that a module lies in, the innermost first."""
    while package := module.rpartition(".")[0]:
        yield package
        module = package


def _read(text: str, where: str) -> dict[str, Any]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is no valid TOML: {error}") from None
    tables = data.get("preset", [])
    if not (tables or "like" in data) or not all(isinstance(table, dict) and table.get("source") for table in tables):
        raise InputError(f"{where} needs tables [[preset]], each with its `source`")
    return data


def _sized(value: Any, handle: ModelHandle) -> Any:
    """A setting that is given as a share of the model's depth or width, for this model."""
    if isinstance(value, str) and value.startswith("depth:"):
        return min(handle.layers - 1, int(float(value.removeprefix("depth:")) * handle.layers))
    if isinstance(value, str) and value.startswith("d_in:"):
        return float(value.removeprefix("d_in:")) * handle.matrix(handle.weight_name("mlp_out", 0)).shape[1]
    if isinstance(value, list):
        found = [_sized(v, handle) for v in value]  # in a flat model two depths are one layer
        return [v for place, v in enumerate(found) if found == value or v not in found[:place]]
    return value


def provenance_of(name: str, operator: Any, handle: ModelHandle, request: Any, seed: int, **notes: Any) -> Provenance:
    """What a patch says of its making. `notes` are the method's own findings (losses, steps); the patches below it and
    the edits that it was made for are told with them."""
    asked = hashlib.sha256(json.dumps(_plain(request), sort_keys=True).encode()).hexdigest()
    versions = {package: version(package) for package in ("torch", "transformers")} | {"editkit": __version__}
    on_top_of = [patch.digest for patch in handle.patches]
    notes |= {"on_top_of": on_top_of} if on_top_of else {}
    notes |= _told(request)
    return Provenance(name, settings_of(operator), seed, handle.base_digest, asked, versions, notes)


def _told(request: Any) -> dict[str, Any]:
    """The edits of a request, so that a patch can be asked for what it did; what is to be forgotten is not told."""
    if not isinstance(request, Sequence) or not all(isinstance(each, Edit) for each in request):
        return {}
    facts = ((edit.fact, edit.target_new) for edit in request)
    return {"edits": [{"prompt": f.text, "subject": f.subject, "target_new": new} for f, new in facts]}


def _plain(request: Any) -> Any:
    if is_dataclass(request) and not isinstance(request, type):
        return asdict(request)
    return [_plain(item) for item in request]
