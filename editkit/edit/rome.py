"""ROME, rank-one model editing (Meng et al. 2022, https://arxiv.org/abs/2202.05262, equation 2).

    Δ = r (C⁻¹ k̄)ᵀ / (kᵀ C⁻¹ k̄)        k: key of the prompt, k̄: mean over the contexts (d_in)
                                        r = v* - W k: residual (d_out), C = E[k kᵀ]

One MLP's second matrix is changed so that the subject's key brings forth a value under which the model says the new
object. Several edits are made one after another, each on the model with those before it.

As in the authors' code the direction is that of the mean key, and the divisor is taken with the key of the prompt
alone: it can come near zero, and the edit then disables the model (Gupta et al. 2024, arXiv:2403.07175). Here a small
divisor is an error that names `r_rome`, which has one key.

Differs from the authors' code:
- the KL term is read after the whole of "{} is a", as in the paper (theirs: at the subject's last token);
- settings are the code's, not the paper's (KL 0.0625 against 100, weight decay 0.5 against 0.0015), and weight decay
  is theirs: ‖r‖ / ‖v‖², the first power above and the second below;
- C is measured on text that the model writes from a seed (or a corpus that is given), not on Wikipedia; contexts are
  drawn with a seed, from openers instead of from an end-of-text token;
- C's factor is a float64 Cholesky, not a float32 inverse;
- the search computes only what a step can change: blocks above the layer, tokens from the subject's last one on.
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


@EDITS.register("rome")
@dataclass(frozen=True, slots=True)
class ROME(OneLayer):
    """Settings are those of `OneLayer`: `layer`, `target`, `contexts`, `moments`."""

    name: ClassVar[str] = "rome"

    @staticmethod
    def update(target: Target, factor: Float[Tensor, "d_in d_in"]) -> tuple[Tensor, Tensor]:
        return rank_one(target.key, target.residual, factor, at=target.own_key)
