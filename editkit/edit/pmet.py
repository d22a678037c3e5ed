"""PMET, precise model editing (Li et al. 2024, https://arxiv.org/abs/2308.08742).

    δ_a, δ_m = argmin −log p(new | a + δ_a, m + δ_m)        a, m: what attention and MLP of the last layer give
    Δ_l = R_l K_lᵀ (λ C_l + K_l K_lᵀ)⁻¹                     R_l = (m + δ_m − m now) / √(layers left)

MEMIT, but the search moves what attention gives beside what the MLP gives: so the MLP need not do what attention is
for. Only the MLP's part is kept and written, to the matrices that MEMIT changes. What lacks is measured at the MLP of
the last layer, which the layers below hardly move: each of them adds its whole part, the higher the larger.

Differs from the authors' code (as EasyEdit has it):
- the search ends when its loss is small, and then only (theirs weighs the new object a tenth once every token of it is
  the likeliest, and then also ends when the KL term is small);
- where a norm follows `mlp_out` (Gemma), what lacks is measured behind it: there the layers below add to the same;
- where it differs from the code of MEMIT, `memit` does so too: see the list there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from editkit.edit._least_squares import LeastSquares
from editkit.edit._places import AtAttentionAndMLP, Prepare
from editkit.operators import EDITS


@EDITS.register("pmet")
@dataclass(frozen=True, slots=True)
class PMET(LeastSquares):
    """`moment_weight`: λ, as how many keys the old ones weigh beside the new; the larger, the less the edit takes and
    the less the neighbours suffer. `target.clamp` bounds each of both residuals by its own value's norm. `layers`,
    `target`, `contexts`, `moments` and `batch` are those of `ManyLayers`."""

    name: ClassVar[str] = "pmet"
    share: ClassVar[Callable[[int], float]] = math.sqrt
    place: ClassVar[Prepare] = AtAttentionAndMLP.prepare
    of_block: ClassVar[bool] = False
