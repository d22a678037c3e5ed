"""PRUNE, restrain how ill-conditioned edits make a matrix (Ma et al. 2025, https://arxiv.org/abs/2405.16821, eq. 7).

    Δ_all = U diag(σ) Vᵀ        σ' = log_a(σ) − log_a(σ_W) + σ_W for each σ above σ_W, the largest of W

A guard: after many edits their sum has singular values beyond all of the matrix itself; those are brought near its
largest, the others stay.

Differs from the authors' code:
- the sum of all changes is restrained each time, on the unchanged matrix (theirs in later suites: the restrained sum is
  put on a matrix that is changed already); the patch holds what must be added for that;
- no singular value grows: σ' is σ where the formula, which rises faster than σ just above a σ_W below 1 / ln a, gives
  more (theirs: the formula alone);
- any operator that changes weights can be guarded; the change is dense where it was restrained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.edit._guard import Guard
from editkit.errors import InputError
from editkit.operators import EDITS
from editkit.patch import Delta, DenseDelta


@EDITS.register("prune")
@dataclass(frozen=True, slots=True)
class PRUNE(Guard):
    """`of`: the operator whose change is tamed; `base`: a, of the logarithm: the larger, the nearer to σ_W."""

    name: ClassVar[str] = "prune"
    base: float = 1.2

    def __post_init__(self) -> None:
        if self.base <= 1:
            raise InputError(f"base {self.base} is no base of a growing logarithm; it lies above 1")

    def tamed(
        self, weight: Float[Tensor, "d_out d_in"], delta: Delta, earlier: Float[Tensor, "d_out d_in"] | None
    ) -> tuple[Delta, dict[str, Any]]:
        change = delta.dense().to(weight.device).float()
        whole = change if earlier is None else change + earlier
        largest = float(torch.linalg.matrix_norm(weight, 2))
        left, sizes, right = torch.linalg.svd(whole, full_matrices=False)
        over = sizes > largest
        notes = {"singular_values_over": int(over.sum()), "largest": float(sizes[0]), "of_the_matrix": largest}
        if not over.any():
            return delta, notes
        lower = (sizes.log() - math.log(largest)) / math.log(self.base) + largest
        restrained = left * torch.where(over, torch.minimum(lower, sizes), sizes) @ right
        return DenseDelta(change + (restrained - whole)), notes
