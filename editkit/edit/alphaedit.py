"""AlphaEdit, edits confined to the null space of what must stay (Fang et al. 2025, https://arxiv.org/abs/2410.02355,
equation 12).

    Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + L₂ I)⁻¹        P: projection on the null space of C = E[k kᵀ]

MEMIT's least squares, but the update may only read directions in which the layer's usual keys are next to nothing; the
keys of earlier edits, K_p, must keep what they bring forth. A patch carries its keys: those of the AlphaEdit patches
that are on the model are the K_p of the next, so that edits made one after another need no state of their own.

Differs from the authors' code:
- the null space comes from a float64 eigendecomposition, and one that is empty is an error (theirs: the SVD of a
  float32 C; with nothing below the threshold the edit changes nothing without a word);
- `directions` may say which share of all directions is free, instead of a `threshold` on the second moment, whose
  size is another in every model;
- the update is solved in the coordinates of the null space, symmetric, by Woodbury's identity, and comes as two thin
  factors in float64 (theirs: a dense float32 solve that is not symmetric);
- where it differs from the code of MEMIT, `memit` does so too: see the list there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from editkit.edit._many_layers import ManyLayers
from editkit.edit._spread import Keys, Solve
from editkit.errors import InputError
from editkit.linalg import NullSpace, SolveError, null_space
from editkit.moments import Moment, spectrum
from editkit.operators import EDITS


@EDITS.register("alphaedit")
@dataclass(frozen=True, slots=True)
class AlphaEdit(ManyLayers):
    """`threshold`: directions with a second moment below it are free; `directions`, above 0: that share of them, those
    with the least, instead (a preset's goes out of force where `threshold` is set). The more are free, the more the
    edit takes and the less what must stay is kept. `ridge`: L₂, on the scale of a key's squared norm: larger keeps the
    update smaller. `layers`, `target`, `contexts`, `moments` and `batch` are those of `ManyLayers`."""

    name: ClassVar[str] = "alphaedit"
    ends: ClassVar[Mapping[str, Mapping[str, Any]]] = {"threshold": {"directions": 0.0}}
    threshold: float = 2e-2
    directions: float = 0.0
    ridge: float = 10.0

    def __post_init__(self) -> None:
        ManyLayers.__post_init__(self)
        if self.threshold <= 0 or not 0 <= self.directions < 1 or self.ridge <= 0:
            raise InputError(f"{self} needs threshold > 0, directions from 0 to below 1 and ridge > 0")

    def solver(self, moments: Mapping[int, Moment], memo: dict[str, Any]) -> tuple[Solve, dict[str, Any]]:
        spaces = memo[self.name] = {
            each: memo.get(self.name, {}).get(each) or self._space(layer, moment)
            for each, layer, moment in ((self._about(moment), layer, moment) for layer, moment in moments.items())
        }

        def solve(layer: int, keys: Keys, residuals: Any, past: Sequence[Keys]) -> Any:
            return spaces[self._about(moments[layer])].update(keys, residuals, past)

        return solve, {"null_space": [space.basis.shape[1] for space in spaces.values()]}

    def _about(self, moment: Moment) -> tuple[Any, ...]:
        """All that a null space depends on."""
        return moment.key, self.threshold, self.directions, self.ridge

    def _space(self, layer: int, moment: Moment) -> NullSpace:
        values, vectors = spectrum(moment)
        if self.directions and not (free := int(self.directions * len(values))):
            raise SolveError(
                f"cannot edit layer {layer}: directions {self.directions:g} of {len(values)} is not one direction, so "
                "the edit would change nothing; raise directions"
            )
        bound = float(values[free]) if self.directions else self.threshold
        try:
            return NullSpace(null_space(values, vectors, threshold=bound), self.ridge)
        except SolveError as error:
            raise SolveError(f"cannot edit layer {layer}: {error}") from None
