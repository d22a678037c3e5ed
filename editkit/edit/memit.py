"""MEMIT, mass-editing memory (Meng et al. 2022b, https://arxiv.org/abs/2210.07229, equations 14 and 20).

    Δ_l = R_l K_lᵀ (λ C_l + K_l K_lᵀ)⁻¹        R_l = (z - h_L) / (layers left): what still lacks, spread over them

Several layers are changed, each by the least-squares update that gives the subjects' keys (d_in, n) their part of the
residuals (d_out, n) and leaves other keys as they are, in the metric of C = E[k kᵀ]; all edits of a batch in one solve.

Differs from the authors' code:
- values are searched for many edits in one batch (theirs: one after another), and only what a step can change is
  computed; the KL term is read after the whole of "{} is a" (theirs: at the subject's last token);
- one Cholesky factor of C a layer, and by Woodbury's identity a system of as many rows as there are edits (theirs: a
  dense solve with d_in rows for each batch): the update comes as two thin factors, in float64 both;
- layers are passed from the lowest to the highest without running the model anew for each, and without touching it;
- C is measured on text that the model writes from a seed (or a corpus that is given), not on Wikipedia; contexts are
  written by the model from a seed (theirs begin with five fixed words);
- where a norm follows `mlp_out` (Gemma), the residual is taken through it: see `before_norm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from editkit.edit._many_layers import ManyLayers
from editkit.edit._spread import Keys, Solve
from editkit.errors import InputError
from editkit.linalg import cholesky, least_change
from editkit.moments import Moment
from editkit.operators import EDITS


@EDITS.register("memit")
@dataclass(frozen=True, slots=True)
class MEMIT(ManyLayers):
    """`moment_weight`: λ, how much old keys weigh beside the new ones; the larger, the less the edit takes and the
    less the neighbours suffer."""

    name: ClassVar[str] = "memit"
    moment_weight: float = 15000.0

    def __post_init__(self) -> None:
        ManyLayers.__post_init__(self)
        if self.moment_weight <= 0:
            raise InputError(f"moment_weight {self.moment_weight} is not above 0; C must weigh something")

    def solver(self, moments: Mapping[int, Moment], memo: dict[str, Any]) -> tuple[Solve, dict[str, Any]]:
        factors = {layer: cholesky(moment.matrix) for layer, moment in moments.items()}

        def solve(layer: int, keys: Keys, residuals: Any, past: Keys) -> Any:
            return least_change(keys, residuals, factors[layer][0], weight=self.moment_weight)

        return solve, {"jitter": [jitter for _, jitter in factors.values()]}
