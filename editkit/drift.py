"""How far patches have moved a model's matrices, beside the weights that none of them has touched."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.handle import ModelHandle
from editkit.patch import Patch, WeightPatch


@dataclass(frozen=True, slots=True)
class Drift:
    """Frobenius norms over that of the weights without any patch, all of the matrices that one patch changes: of what
    the patches below it have added to them, of what it adds itself, and of both together."""

    below: float
    own: float
    together: float


@torch.no_grad()
def drift(handle: ModelHandle, patch: Patch) -> Drift | None:
    """That of a patch which comes on top of those that are on the handle, None where it adds to no weights. What stands
    beside the weights (WISE's memory) is told alone."""
    if not isinstance(patch, WeightPatch):
        norm = patch.relative_norm(handle)
        return None if norm is None else Drift(0.0, norm, norm)
    there, squares = 0.0, [0.0, 0.0, 0.0]
    for name, delta in patch.deltas.items():
        base, own = handle.unpatched(name).float(), delta.dense().to(handle.device).float()
        before = handle.matrix(name).float() - base
        there += _square(base)
        for place, change in enumerate((before, own, before + own)):
            squares[place] += _square(change)
    return Drift(*(math.sqrt(square / there) for square in squares)) if there else None


def _square(change: Tensor) -> float:
    return float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
