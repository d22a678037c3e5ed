"""FT-M, fine-tuning one matrix on the new object alone (Wang et al. 2023, EasyEdit, https://arxiv.org/abs/2308.07269;
measured beside FT-L in Zhang et al. 2024, https://arxiv.org/abs/2401.01286).

    min −(1/T) Σ log p(t_i | prompt, t_<i)   over Δ        all T tokens of the object, the prompt masked; Adam

All edits of one call are learned together, with no bound on the change: what FT-L gains by its bound shows beside it.

Differs from the authors' code:
- training stops when the mean loss is small, as FT-L's does, and all edits are one batch;
- one matrix, with no weight decay (theirs: whatever the settings name);
- blocks below the layer are computed once: Δ cannot change what its matrix reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from editkit.edit._answer_row import answer_row
from editkit.edit._one_matrix import OneMatrix
from editkit.operators import EDITS


@EDITS.register("ft_m")
@dataclass(frozen=True, slots=True)
class FTM(OneMatrix):
    """Settings are those of `OneMatrix`: `layer`, `learning_rate`, `steps`, `stop_below`; the loss is the object's."""

    name: ClassVar[str] = "ft_m"
    row = staticmethod(answer_row)

    def bounded(self, delta: Tensor) -> None:
        return

    def notes(self, delta: Tensor) -> dict[str, Any]:
        return {}
