"""Norm bound, stop the growth of an edited matrix (the norm growth that Gupta et al. 2024, https://arxiv.org/abs/2401.07453
and Fang et al. 2025, https://arxiv.org/abs/2410.02355 find behind the collapse after many edits).

    Δ' = s Δ with the largest s <= 1 for which ‖Δ_earlier + s Δ‖ <= `most` ‖W‖ (Frobenius)

A guard: however many edits come, a matrix never moves further from what it was than the bound.

Differs from the authors' code: it is nobody's code; those papers measure the norm, this bounds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from editkit.edit._guard import Guard
from editkit.errors import InputError
from editkit.operators import EDITS
from editkit.patch import Delta, DenseDelta, LowRankDelta


@EDITS.register("norm_bound")
@dataclass(frozen=True, slots=True)
class NormBound(Guard):
    """`of`: the operator whose change is tamed; `most`: the norm of all changes of a matrix beside its own."""

    name: ClassVar[str] = "norm_bound"
    most: float = 0.1

    def __post_init__(self) -> None:
        if self.most <= 0:
            raise InputError(f"most {self.most} is not above 0; nothing could change")

    def tamed(
        self, weight: Float[Tensor, "d_out d_in"], delta: Delta, earlier: Float[Tensor, "d_out d_in"] | None
    ) -> tuple[Delta, dict[str, Any]]:
        change = delta.dense().to(weight.device).double()
        bound = self.most * float(weight.double().norm())
        before = change * 0 if earlier is None else earlier.double()
        share = _largest_share(
            float(change.square().sum()), float((change * before).sum()), float(before.square().sum()), bound
        )
        return _scaled(delta, share), {"share": share}


def _largest_share(square: float, product: float, before: float, bound: float) -> float:
    """The largest s in [0, 1] with s² square + 2 s product + before <= bound²; 0 where even no step is within."""
    if square == 0 or square + 2 * product + before <= bound**2:
        return 1.0
    root = product**2 - square * (before - bound**2)
    return min(1.0, max(0.0, (-product + math.sqrt(root)) / square)) if root > 0 else 0.0


def _scaled(delta: Delta, share: float) -> Delta:
    if isinstance(delta, LowRankDelta):
        return LowRankDelta(delta.left * share, delta.right)
    return DenseDelta(delta.value * share)
