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

from dataclasses import dataclass
from typing import ClassVar

from editkit.edit._least_squares import LeastSquares
from editkit.operators import EDITS


@EDITS.register("memit")
@dataclass(frozen=True, slots=True)
class MEMIT(LeastSquares):
    """`moment_weight`: λ, as how many keys the old ones weigh beside the new; the larger, the less the edit takes and
    the less the neighbours suffer. `layers`, `target`, `contexts`, `moments` and `batch` are those of `ManyLayers`."""

    name: ClassVar[str] = "memit"
