"""R-ROME, ROME with one key (Gupta et al. 2024, "Rebuilding ROME", https://arxiv.org/abs/2403.07175, equation 8).

    Δ = r (C⁻¹ k̄)ᵀ / (k̄ᵀ C⁻¹ k̄)        k̄: mean key over the contexts (d_in), r: residual (d_out), C = E[k kᵀ]

ROME takes the direction from the mean key and divides by a product with the prompt's own key. That product can come
near zero, and a single edit then disables the model. With the mean in both places the divisor is positive by itself.

Differs from the authors' code:
- the residual is what the search found, added to the old value (theirs: the wanted value less the mean of the old
  values over the contexts);
- where it differs from the code of ROME, `rome` does so too: see the list there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from editkit.edit._one_layer import OneLayer
from editkit.edit._search import Target
from editkit.linalg import rank_one
from editkit.operators import EDITS


@EDITS.register("r_rome")
@dataclass(frozen=True, slots=True)
class RROME(OneLayer):
    """Settings are those of `OneLayer`: `layer`, `target`, `contexts`, `moments`."""

    name: ClassVar[str] = "r_rome"

    @staticmethod
    def update(target: Target, factor: Float[Tensor, "d_in d_in"]) -> tuple[Tensor, Tensor]:
        return rank_one(target.key, target.residual, factor)
