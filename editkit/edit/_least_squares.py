"""MEMIT and PMET but for what each searches for and how it is spread: least squares beside a layer's usual keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from editkit.edit._many_layers import ManyLayers
from editkit.edit._spread import Keys, Solve
from editkit.errors import InputError
from editkit.linalg import least_change
from editkit.moments import Moment, factors


@dataclass(frozen=True, slots=True)
class LeastSquares(ManyLayers):
    """`moment_weight`: λ, as how many keys the usual ones weigh beside those of the edits: the larger, the less the
    edit takes and the less the neighbours suffer. The other settings are those of `ManyLayers`."""

    moment_weight: float = 15000.0

    def __post_init__(self) -> None:
        ManyLayers.__post_init__(self)
        if self.moment_weight <= 0:
            raise InputError(f"moment_weight {self.moment_weight} is not above 0; C must weigh something")

    def solver(self, moments: Mapping[int, Moment], memo: dict[str, Any]) -> tuple[Solve, dict[str, Any]]:
        found = factors(moments, memo)

        def solve(layer: int, keys: Keys, residuals: Any, past: Sequence[Keys]) -> Any:
            return least_change(keys, residuals, found[layer][0], weight=self.moment_weight)

        return solve, {"jitter": [jitter for _, jitter in found.values()]}
