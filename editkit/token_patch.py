"""Patches that change what one module gives, each token by itself: the side memories of GRACE and WISE.

What such a patch does at a token depends on what the module reads and gives there and on nothing else: not on the row,
the place in it, or the tokens around. So prompts may be packed, padded and cached as without it.
"""

from __future__ import annotations

import functools
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.deltas import bytes_of
from editkit.errors import PatchError
from editkit.hooks import rewrite_by_input
from editkit.patch import Host, Provenance, write
from editkit.undo import Undo

Rewrite = Callable[[Float[Tensor, "... d_in"], Float[Tensor, "... d_out"]], Float[Tensor, "... d_out"]]
"""What a module reads and gives, token by token -> what it shall give."""


@dataclass(frozen=True, eq=False)  # no slots: the digest is kept in the instance
class TokenPatch:
    """Puts what a linear layer gives through a rewrite made of tensors. `module` is the layer's name.

    It is on as a hook behind those of earlier patches: of two patches of one layer the later has the last word.
    """

    savable: ClassVar[bool] = True
    kind: ClassVar[str]

    module: str
    provenance: Provenance

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """All that the rewrite depends on, as a file keeps it."""

    @property
    @abstractmethod
    def widths(self) -> tuple[int, int]:
        """(d_out, d_in) of the layer that it is for."""

    @abstractmethod
    def rewrite(self, device: torch.device) -> Rewrite:
        """The rewrite, its tensors on a device."""

    @abstractmethod
    def norm(self) -> float | None:
        """Frobenius norm of what is added to weights; None where nothing is."""

    def attach(self, host: Host, undo: Undo) -> None:
        weight = host.parameter(self._weight)
        there = tuple(weight.T.shape if host.is_transposed(self._weight) else weight.shape)
        if there != self.widths:
            raise PatchError(f"the patch is for a matrix {self.widths} at {self.module!r}, the model's is {there}")
        rewrite_by_input(host.model.get_submodule(self.module), self.rewrite(weight.device), undo)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over kind, module and the names, dtypes, shapes and bytes of all tensors, taken once."""
        state = hashlib.sha256(f"{self.kind} {self.module};".encode())
        for key, tensor in sorted(self.tensors.items()):
            state.update(f"{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
            state.update(bytes_of(tensor))
        return state.hexdigest()

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.module,)

    def relative_norm(self, host: Host) -> float | None:
        norm, there = self.norm(), float(torch.linalg.vector_norm(host.parameter(self._weight).detach().double()))
        return None if norm is None or not there else norm / there

    def save(self, path: Path) -> None:
        """Write tensors and provenance to one safetensors file, whole or not at all.

        Raises PatchError for a patch without `provenance.base`: nobody could tell which model it is for.
        """
        if not self.provenance.base:
            raise PatchError(f"cannot write {path}: the patch names no base; give provenance.base, the weights' digest")
        write(path, self.kind, {f"{self.module}:{key}": t for key, t in self.tensors.items()}, self.provenance)

    @property
    def _weight(self) -> str:
        return f"{self.module}.weight"


def parts_of(
    tensors: Mapping[str, Tensor], provenance: Provenance, names: Mapping[str, int]
) -> tuple[str, dict[str, Tensor]]:
    """(module, tensors by name) of a file that `TokenPatch.save` wrote. `names` are those it must hold, each with its
    number of dimensions. Raises PatchError where something else is in it, or a number that is none."""
    if not provenance.base:
        raise PatchError("its provenance names no `base`, the weights it was made for")
    modules = {key.rpartition(":")[0] for key in tensors}
    parts = {key.rpartition(":")[2]: tensor for key, tensor in tensors.items()}
    if len(modules) != 1 or parts.keys() != names.keys():
        raise PatchError(f"it holds {sorted(tensors)}, it takes {sorted(names)} of one module")
    for name, tensor in parts.items():
        if tensor.dtype != torch.float32:
            raise PatchError(f"its {name} are of {tensor.dtype}, not float32")
        if tensor.ndim != names[name]:
            raise PatchError(f"its {name} have shape {tuple(tensor.shape)}, they take {names[name]} dimensions")
        if tensor.isnan().any():
            raise PatchError(f"its {name} hold values that are no numbers")
    return modules.pop(), parts
