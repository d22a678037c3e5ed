"""A change to a model that can be put on and taken off: four kinds.

    WeightPatch   parameter name -> Delta (dense, or low-rank factors)
    ModulePatch   module name -> module that takes its place
    HookPatch     module name -> rewrite of its output
    PromptPatch   prompt -> prompt

`attach(handle, undo)` registers on `undo` how each step is taken back *before* it takes the step, so that closing
`undo` restores the model to the bit from wherever an error or Ctrl-C struck.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from editkit.files import atomic_path
from editkit.hooks import rewrite_output


class PatchError(ValueError):
    """A patch that does not fit: wrong base model, unknown parameter, wrong shape, values that are not finite."""


class Host(Protocol):
    """What a patch needs of the thing it is attached to (a ModelHandle)."""

    model: nn.Module
    prompt_rewrites: list[Callable[[str], str]]

    def parameter(self, name: str) -> nn.Parameter: ...
    def is_transposed(self, name: str) -> bool: ...


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


@dataclass(frozen=True, slots=True)
class DenseDelta:
    """What is added to a parameter. Matrices of linear layers are (out, in) whatever way the module stores them."""

    value: Float[Tensor, "..."]

    def dense(self) -> Tensor:
        return self.value

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value}


@dataclass(frozen=True, slots=True)
class LowRankDelta:
    """left @ right is added to a matrix of shape (out, in)."""

    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank in"]

    def dense(self) -> Tensor:
        return self.left @ self.right

    def tensors(self) -> dict[str, Tensor]:
        return {"left": self.left, "right": self.right}


Delta = DenseDelta | LowRankDelta


class Patch(Protocol):
    """A change that can be put on a handle; `digest` names its content."""

    def attach(self, host: Host, undo: ExitStack) -> None: ...

    @property
    def provenance(self) -> Provenance: ...

    @property
    def digest(self) -> str: ...


@dataclass(frozen=True, slots=True, eq=False)
class WeightPatch:
    """Adds a delta to each named parameter: computed in float32 (float64 where the delta is), cast once.

    Parameters of any dtype and either storage order are served; the deltas themselves stay as they were given.
    """

    deltas: Mapping[str, Delta]
    provenance: Provenance = field(default_factory=Provenance)

    def attach(self, host: Host, undo: ExitStack) -> None:
        changed = {name: self._changed(host, name, delta) for name, delta in self.deltas.items()}  # all checked first
        for name, value in changed.items():
            parameter = host.parameter(name)
            kept = parameter.detach().clone()
            undo.callback(_overwrite, parameter, kept)
            _overwrite(parameter, value)

    def _changed(self, host: Host, name: str, delta: Delta) -> Tensor:
        parameter = host.parameter(name)
        if parameter.is_meta:
            raise PatchError(f"parameter {name!r} is offloaded (meta tensor); load the model without disk offload")
        added = delta.dense().to(parameter.device)
        if host.is_transposed(name):
            added = added.T
        if added.shape != parameter.shape:
            raise PatchError(f"delta of {name!r} has shape {tuple(added.shape)}, the model {tuple(parameter.shape)}")
        wide = torch.promote_types(added.dtype, torch.float32)
        value = (parameter.detach().to(wide) + added.to(wide)).to(parameter.dtype)
        if not torch.isfinite(value).all():
            raise PatchError(
                f"{name!r} would hold values that are not finite in {parameter.dtype}; "
                "use a wider dtype or a smaller edit"
            )
        return value

    @property
    def digest(self) -> str:
        state = hashlib.sha256()
        for key, tensor in sorted(_flat(self.deltas).items()):
            state.update(f"{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
            state.update(bytes_of(tensor))
        return state.hexdigest()

    def save(self, path: Path) -> None:
        """Write the patch and its provenance to one safetensors file, whole or not at all."""
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in _flat(self.deltas).items()}
        metadata = {"editkit_patch": "weight/1", "provenance": json.dumps(asdict(self.provenance), default=str)}
        with atomic_path(Path(path)) as temporary:
            save_file(tensors, str(temporary), metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> WeightPatch:
        """Read a patch that `save` wrote. Raises PatchError for anything else."""
        try:
            with safe_open(str(path), framework="pt") as stream:
                metadata = stream.metadata() or {}
                tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise PatchError(f"{path} is no patch file: {error}") from None
        if metadata.get("editkit_patch") != "weight/1":
            raise PatchError(f"{path} is a safetensors file but no patch; patches come from `editkit edit --save`")
        return cls(_unflat(tensors), Provenance(**json.loads(metadata["provenance"])))


@dataclass(frozen=True, slots=True, eq=False)
class ModulePatch:
    """Puts another module in the place of a named one; `wrap` gets the old module and gives the new one."""

    wrap: Mapping[str, Callable[[nn.Module], nn.Module]]
    provenance: Provenance = field(default_factory=Provenance)
    digest: str = ""

    def attach(self, host: Host, undo: ExitStack) -> None:
        for name, wrap in self.wrap.items():
            parent_name, _, leaf = name.rpartition(".")
            parent, old = host.model.get_submodule(parent_name), host.model.get_submodule(name)
            undo.callback(setattr, parent, leaf, old)
            setattr(parent, leaf, wrap(old))


@dataclass(frozen=True, slots=True, eq=False)
class HookPatch:
    """Puts the output of named modules through functions at inference time."""

    rewrites: Mapping[str, Callable[[Tensor], Tensor]]
    provenance: Provenance = field(default_factory=Provenance)
    digest: str = ""

    def attach(self, host: Host, undo: ExitStack) -> None:
        for name, rewrite in self.rewrites.items():
            undo.callback(rewrite_output(host.model.get_submodule(name), rewrite))


@dataclass(frozen=True, slots=True, eq=False)
class PromptPatch:
    """Puts every prompt through a function before it is asked; the weights stay as they are."""

    rewrite: Callable[[str], str]
    provenance: Provenance = field(default_factory=Provenance)
    digest: str = ""

    def attach(self, host: Host, undo: ExitStack) -> None:
        before = list(host.prompt_rewrites)
        undo.callback(host.prompt_rewrites.__setitem__, slice(None), before)
        host.prompt_rewrites.append(self.rewrite)


def bytes_of(tensor: Tensor) -> memoryview:
    """The raw bytes of a tensor, whatever its dtype."""
    return memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


@torch.no_grad()
def _overwrite(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.copy_(value)


def _flat(deltas: Mapping[str, Delta]) -> dict[str, Tensor]:
    return {f"{name}:{part}": tensor for name, delta in deltas.items() for part, tensor in delta.tensors().items()}


def _unflat(tensors: Mapping[str, Tensor]) -> Mapping[str, Delta]:
    names = dict.fromkeys(key.rpartition(":")[0] for key in tensors)
    return MappingProxyType({name: _delta(name, tensors) for name in names})


def _delta(name: str, tensors: Mapping[str, Tensor]) -> Delta:
    if f"{name}:value" in tensors:
        return DenseDelta(tensors[f"{name}:value"])
    return LowRankDelta(tensors[f"{name}:left"], tensors[f"{name}:right"])
