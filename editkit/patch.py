"""A change to a model that can be put on and taken off: four kinds.

    WeightPatch   parameter name -> Delta (dense, or low-rank factors)
    ModulePatch   module name -> module that takes its place
    HookPatch     module name -> rewrite of its output
    PromptPatch   prompt -> prompt

A third party adds a kind that can be saved by an entry point in the group `editkit.patch`; see `KINDS`.

`attach(handle, undo)` registers on `undo` how each step is taken back *before* it takes the step, so that closing
`undo` restores the model to the bit from wherever an error or Ctrl-C struck.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from editkit.deltas import Delta, DenseDelta, LowRankDelta, bytes_of, flat, unflat
from editkit.errors import PatchError
from editkit.files import atomic_path
from editkit.hooks import rewrite_output
from editkit.provenance import Provenance, read_provenance, written
from editkit.registry import Registry
from editkit.stacked import Stacked
from editkit.tensor_files import disk_errors
from editkit.undo import Undo

__all__ = [
    "KINDS",
    "Delta",
    "DenseDelta",
    "HookPatch",
    "Host",
    "LowRankDelta",
    "ModulePatch",
    "Patch",
    "PatchError",
    "PromptPatch",
    "Provenance",
    "WeightPatch",
    "bytes_of",
    "load_patch",
]


class Host(Protocol):
    """What a patch needs of the thing it is attached to (a ModelHandle)."""

    model: nn.Module
    prompt_rewrites: list[Callable[[str], str]]
    weights: Stacked

    def parameter(self, name: str) -> nn.Parameter: ...
    def is_transposed(self, name: str) -> bool: ...


class Patch(Protocol):
    """A change that can be put on a handle.

    `digest` names the whole content: patches of one digest share the replies that are kept. `parameters` are the names
    of the parameters or modules that it changes.
    """

    savable: ClassVar[bool]

    def attach(self, host: Host, undo: Undo) -> None: ...

    def save(self, path: Path) -> None:
        """Write it, whole or not at all, for `load_patch` to read. Raises PatchError where it is not `savable`."""
        ...

    def relative_norm(self, host: Host) -> float | None:
        """Frobenius norm of the change over that of the weights it is added to, as they are without any patch; None
        where it adds to none."""
        ...

    @property
    def provenance(self) -> Provenance: ...

    @property
    def digest(self) -> str: ...

    @property
    def parameters(self) -> tuple[str, ...]: ...


class Savable(Protocol):
    """A kind of patch that a file can hold."""

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], provenance: Provenance) -> Patch: ...


# Kinds that a file can hold, by the word that stands in its metadata: `save` writes it (see `write`). A kind that only
# one operator gives stands beside it, and is found by the scan of the operators' folder.
KINDS: Registry[type[Savable]] = Registry("patch", "editkit.edit")


def load_patch(path: Path) -> Patch:
    """Read a patch of any kind that `save` wrote. Raises PatchError for anything else."""
    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise PatchError(f"{path} is no patch file: {error}") from None
    if "editkit_patch" not in metadata:
        raise PatchError(f"{path} is a safetensors file but no patch; patches come from `editkit edit --save`")
    kind = metadata["editkit_patch"]
    if kind not in KINDS:
        raise PatchError(f"{path} holds a patch of kind {kind!r}, known is {', '.join(KINDS)}; install what made it")
    try:
        return KINDS[kind].read(tensors, read_provenance(metadata.get("provenance")))
    except PatchError as error:
        raise PatchError(f"{path} is a damaged patch: {error}; make it again") from None
    except (KeyError, ValueError, TypeError) as error:
        raise PatchError(f"{path} is a damaged patch ({error!r}); make it again") from None


def write(path: Path, kind: str, tensors: Mapping[str, Tensor], provenance: Provenance) -> None:
    """Write a patch to one safetensors file, whole or not at all."""
    kept = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    metadata = {"editkit_patch": kind, "provenance": written(provenance)}
    with atomic_path(Path(path)) as temporary, disk_errors(Path(path)):
        save_file(kept, str(temporary), metadata=metadata)


KEPT = "kept"  # in a file, what follows the parameter's name


@KINDS.register("weight/1")
@dataclass(frozen=True, eq=False)  # no slots: the digest is kept in the instance
class WeightPatch:
    """Adds a delta to each named parameter: computed in float32 (float64 where the delta is), cast once.

    Parameters of any dtype and either storage order are served; the deltas themselves stay as they were given. `kept`
    is what later edits on top of this one need: by parameter name, keys (d_in, n) that must keep what they bring forth
    (AlphaEdit); by the name and ":" and another word, what that word says (UltraEdit's "features").
    """

    savable: ClassVar[bool] = True
    deltas: Mapping[str, Delta]
    provenance: Provenance = field(default_factory=Provenance)
    kept: Mapping[str, Tensor] = field(default_factory=dict)

    def attach(self, host: Host, undo: Undo) -> None:
        undo.callback(host.weights.back_to, host.weights.mark)
        for name, delta in self.deltas.items():
            change = functools.partial(_plus, name, delta, host.is_transposed(name))
            host.weights.put(name, host.parameter(name), change)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over names, dtypes, shapes and bytes of all tensors, taken once: they must not be written to."""
        state = hashlib.sha256()
        for key, tensor in sorted(self._tensors().items()):
            state.update(f"{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
            state.update(bytes_of(tensor))
        return state.hexdigest()

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(self.deltas)

    def relative_norm(self, host: Host) -> float | None:
        moved = sum(float(torch.linalg.vector_norm(d.dense(), dtype=torch.float64)) ** 2 for d in self.deltas.values())
        base = (host.weights.first(name, host.parameter(name)) for name in self.deltas)
        there = sum(float(torch.linalg.vector_norm(value, dtype=torch.float64)) ** 2 for value in base)
        return math.sqrt(moved / there) if there else None

    def save(self, path: Path) -> None:
        """Write the patch and its provenance to one safetensors file, whole or not at all.

        Raises PatchError for a patch without `provenance.base`: nobody could tell which model it is for.
        """
        if not self.provenance.base:
            raise PatchError(f"cannot write {path}: the patch names no base; give provenance.base, the weights' digest")
        write(path, "weight/1", self._tensors(), self.provenance)

    def _tensors(self) -> dict[str, Tensor]:
        return flat(self.deltas) | {f"{name}:{KEPT}": tensor for name, tensor in self.kept.items()}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], provenance: Provenance) -> WeightPatch:
        if not provenance.base:
            raise PatchError("its provenance names no `base`, the weights it was made for")
        kept = {key.rpartition(":")[0]: tensor for key, tensor in tensors.items() if key.endswith(f":{KEPT}")}
        return cls(unflat({k: t for k, t in tensors.items() if not k.endswith(f":{KEPT}")}), provenance, kept)

    @classmethod
    def load(cls, path: Path) -> WeightPatch:
        """Read a patch of weights that `save` wrote. Raises PatchError for anything else."""
        patch = load_patch(path)
        if not isinstance(patch, cls):
            raise PatchError(f"{path} holds a {type(patch).__name__}, not a {cls.__name__}")
        return patch


class _OfCode:
    """What patches share that hold Python functions: a digest that is given, and no file.

    `digest` must name all that the functions depend on, for they cannot be looked into. Raises PatchError without one.
    """

    __slots__ = ()
    savable: ClassVar[bool] = False
    digest: str

    def __post_init__(self) -> None:
        if not self.digest:
            raise PatchError(
                f"a {type(self).__name__} without a digest would share its replies with every other; "
                "give one that names all it depends on"
            )

    def relative_norm(self, host: Host) -> float | None:
        return None

    def save(self, path: Path) -> None:
        raise PatchError(f"cannot write {path}: a {type(self).__name__} holds Python code, which no file can keep")


@dataclass(frozen=True, slots=True, eq=False)
class ModulePatch(_OfCode):
    """Puts another module in the place of a named one; `wrap` gets the old module and gives the new one."""

    wrap: Mapping[str, Callable[[nn.Module], nn.Module]]
    provenance: Provenance = field(default_factory=Provenance)
    digest: str = field(kw_only=True)

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(self.wrap)

    def attach(self, host: Host, undo: Undo) -> None:
        for name, wrap in self.wrap.items():
            parent_name, _, leaf = name.rpartition(".")
            parent, old = host.model.get_submodule(parent_name), host.model.get_submodule(name)
            undo.callback(setattr, parent, leaf, old)
            setattr(parent, leaf, wrap(old))


@dataclass(frozen=True, slots=True, eq=False)
class HookPatch(_OfCode):
    """Puts the output of named modules through functions at inference time."""

    rewrites: Mapping[str, Callable[[Tensor], Tensor]]
    provenance: Provenance = field(default_factory=Provenance)
    digest: str = field(kw_only=True)

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(self.rewrites)

    def attach(self, host: Host, undo: Undo) -> None:
        for name, rewrite in self.rewrites.items():
            rewrite_output(host.model.get_submodule(name), rewrite, undo)


@dataclass(frozen=True, slots=True, eq=False)
class PromptPatch(_OfCode):
    """Puts every prompt through a function before it is asked; the weights stay as they are."""

    rewrite: Callable[[str], str]
    provenance: Provenance = field(default_factory=Provenance)
    digest: str = field(kw_only=True)

    @property
    def parameters(self) -> tuple[str, ...]:
        return ()

    def attach(self, host: Host, undo: Undo) -> None:
        before = list(host.prompt_rewrites)
        undo.callback(host.prompt_rewrites.__setitem__, slice(None), before)
        host.prompt_rewrites.append(self.rewrite)


@torch.no_grad()
def _plus(name: str, delta: Delta, transposed: bool, value: Tensor) -> Tensor:
    """A parameter's value with the delta. Raises PatchError where the two do not fit."""
    if value.is_meta:
        raise PatchError(f"parameter {name!r} is offloaded (meta tensor); load the model without disk offload")
    added = delta.dense().to(value.device)
    if transposed:
        added = added.T
    if added.shape != value.shape:
        raise PatchError(f"delta of {name!r} has shape {tuple(added.shape)}, the model {tuple(value.shape)}")
    wide = torch.promote_types(added.dtype, torch.float32)
    changed = (value.to(wide) + added.to(wide)).to(value.dtype)
    if not torch.isfinite(changed).all():
        raise PatchError(
            f"{name!r} would hold values that are not finite in {value.dtype}; use a wider dtype or a smaller edit"
        )
    return changed
