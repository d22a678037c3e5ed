"""EMMET, equality-constrained mass editing (Gupta et al. 2024, https://arxiv.org/abs/2403.14236, equation 9).

    Δ = R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹        K: keys (d_in, n), R: residuals (d_out, n), C = E[k kᵀ]

ROME for many facts: every key is mapped exactly to its value, where MEMIT only comes near. With one edit and one layer
it is R-ROME.

Differs from the authors' code:
- `ridge` is relative: it is added to Kᵀ C⁻¹ K over the mean of its diagonal (theirs: 0.1 on the matrix as it is, whose
  entries are of the size of d_in over the factor, 1 to 100,000 in their settings, that C has there);
- where it differs from the code of MEMIT, `memit` does so too: see the list there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from editkit.edit._many_layers import ManyLayers
from editkit.edit._spread import Keys, Solve
from editkit.errors import InputError
from editkit.linalg import equality_constrained
from editkit.moments import Moment, factors
from editkit.operators import EDITS


@EDITS.register("emmet")
@dataclass(frozen=True, slots=True)
class EMMET(ManyLayers):
    """`ridge`: what keeps keys that nearly coincide apart, as a share of the mean of Kᵀ C⁻¹ K's diagonal: larger keeps
    the change smaller, and keys get less than their values (0: the whole). `layers`, `target`, `contexts`, `moments`
    and `batch` are those of `ManyLayers`."""

    name: ClassVar[str] = "emmet"
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        ManyLayers.__post_init__(self)
        if self.ridge < 0:
            raise InputError(f"ridge {self.ridge} is below 0")

    def solver(self, moments: Mapping[int, Moment], memo: dict[str, Any]) -> tuple[Solve, dict[str, Any]]:
        found = factors(moments, memo)

        def solve(layer: int, keys: Keys, residuals: Any, past: Sequence[Keys]) -> Any:
            return equality_constrained(keys, residuals, found[layer][0], ridge=self.ridge)

        return solve, {"jitter": [jitter for _, jitter in found.values()]}
