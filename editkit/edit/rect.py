"""RECT, keep the largest relative changes of an edit (Gu et al. 2024, https://arxiv.org/abs/2401.04700, equation 7).

    Δ'_ij = Δ_ij where |Δ_ij / W_ij| is among the largest `keep` of its matrix, else 0

A guard: the entries that an edit moves least beside what they are do little for it and add up to damage.

Differs from the authors' code:
- any operator that changes weights can be guarded (theirs: written into ROME and MEMIT); the change is dense after it;
- W is the unchanged matrix also where edits are stacked, so that what an edit may change does not hang on those before
  it (theirs: the matrix as earlier edits left it);
- an entry that is 0 and stays 0 has not moved (theirs: 0 / 0 is no number, and counts as the largest).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.edit._guard import Guard
from editkit.errors import InputError
from editkit.operators import EDITS
from editkit.patch import Delta, DenseDelta


@EDITS.register("rect")
@dataclass(frozen=True, slots=True)
class RECT(Guard):
    """`of`: the operator whose change is tamed; `keep`: the share of each matrix's entries that may change."""

    name: ClassVar[str] = "rect"
    keep: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(f"keep {self.keep} is no share; it lies above 0 and at most at 1")

    def tamed(
        self, weight: Float[Tensor, "d_out d_in"], delta: Delta, earlier: Float[Tensor, "d_out d_in"] | None
    ) -> tuple[Delta, dict[str, Any]]:
        change = delta.dense().to(weight.device).float()
        relative = (change / weight).abs().nan_to_num(nan=0.0, posinf=torch.inf)  # 0 of 0 has not moved
        number = max(1, round(self.keep * change.numel()))
        bar = relative.flatten().kthvalue(change.numel() - number + 1).values
        kept = torch.where(relative >= bar, change, 0)
        return DenseDelta(kept), {"norm_kept": float(kept.norm() / change.norm()) if change.any() else 1.0}
