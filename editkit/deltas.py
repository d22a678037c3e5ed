"""What a patch adds to one matrix, in (out, in) orientation, dense or as low-rank factors; and as tensors of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.errors import PatchError


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


def flat(deltas: Mapping[str, Delta]) -> dict[str, Tensor]:
    return {f"{name}:{part}": tensor for name, delta in deltas.items() for part, tensor in delta.tensors().items()}


def unflat(tensors: Mapping[str, Tensor]) -> Mapping[str, Delta]:
    names = dict.fromkeys(key.rpartition(":")[0] for key in tensors)
    return MappingProxyType({name: _delta(name, tensors) for name in names})


def _delta(name: str, tensors: Mapping[str, Tensor]) -> Delta:
    parts = {key.rpartition(":")[2]: tensor for key, tensor in tensors.items() if key.rpartition(":")[0] == name}
    wrong = [str(tensor.dtype) for tensor in parts.values() if not tensor.is_floating_point()]
    if wrong:
        raise PatchError(f"the delta of {name!r} is of {wrong[0]}, no floating-point numbers")
    if parts.keys() == {"value"}:
        return DenseDelta(parts["value"])
    if parts.keys() == {"left", "right"}:
        left, right = parts["left"], parts["right"]
        if left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0]:
            return LowRankDelta(left, right)
        raise PatchError(f"the factors of {name!r}, {tuple(left.shape)} and {tuple(right.shape)}, do not fit together")
    raise PatchError(f"the delta of {name!r} has the parts {sorted(parts)}, it takes value, or left and right")


def bytes_of(tensor: Tensor) -> memoryview:
    """The raw bytes of a tensor, whatever its dtype."""
    return memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
