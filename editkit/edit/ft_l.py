"""FT-L, fine-tuning one matrix within a bound on every entry (Zhu et al. 2020, https://arxiv.org/abs/2012.00363; as the
baseline "FT+L" in Meng et al. 2022, https://arxiv.org/abs/2202.05262, appendix E.2).

    min −log p(target_new | prompt)   over Δ with |Δ_ij| <= ε        Adam, projected after each step

All edits of one call are learned together.

Differs from the authors' code:
- each target token is predicted after the tokens before it (theirs predicts all of them at the prompt's last token);
  prompt and padding never count;
- the bound is on Δ itself and holds to the bit (theirs: on the rounded weight);
- all edits are one batch, and training stops when their mean loss is small (theirs skips single small batches);
- blocks below the layer are computed once: Δ cannot change what its matrix reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from editkit.edit._answer_row import answer_row
from editkit.edit._one_matrix import OneMatrix
from editkit.errors import InputError
from editkit.operators import EDITS


@EDITS.register("ft_l")
@dataclass(frozen=True, slots=True)
class FTL(OneMatrix):
    """`bound`: ε, the most that any entry of the matrix moves, in the units of its entries: below what the edits need
    they do not take, and the larger, the more neighbours go. `layer`, `learning_rate`, `steps` and `stop_below` are
    those of `OneMatrix`."""

    name: ClassVar[str] = "ft_l"
    row = staticmethod(answer_row)

    bound: float = 5e-4

    def __post_init__(self) -> None:
        OneMatrix.__post_init__(self)
        if self.bound <= 0:
            raise InputError(f"{self} needs bound > 0")

    def bounded(self, delta: Tensor) -> None:
        bound = _not_above(self.bound)
        delta.clamp_(-bound, bound)

    def notes(self, delta: Tensor) -> dict[str, Any]:
        return {"at_bound": float((delta.abs() >= _not_above(self.bound)).float().mean())}


def _not_above(bound: float) -> float:
    """The largest float32 that is not above the bound."""
    rounded = torch.tensor(bound, dtype=torch.float32)
    if rounded.item() > bound:
        rounded = torch.nextafter(rounded, torch.zeros(()))
    return rounded.item()
