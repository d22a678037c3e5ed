"""FT, plain fine-tuning of one matrix on the whole sentence: the baseline that everybody has at hand (as in Meng et al.
2022, https://arxiv.org/abs/2202.05262, appendix E.1, where it is the baseline "FT").

    min −(1/T) Σ log p(x_i | x_<i)   over Δ        x: the prompt and the new object, every token but the first; Adam

It teaches the prompt's wording along with the object. FT-M masks the prompt, FT-L bounds the change as well.

Differs from the authors' code:
- theirs counts the object alone, all its tokens predicted at the prompt's last one; here the prompt counts too, each
  token predicted from those before it, as in usual fine-tuning (`ft_m` counts the object alone);
- all edits of one call are learned together, and training stops when their mean loss is small;
- blocks below the layer are computed once: Δ cannot change what its matrix reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from editkit.edit._one_matrix import OneMatrix
from editkit.edit._upper import Row
from editkit.facts import Edit
from editkit.handle import ModelHandle
from editkit.operators import EDITS
from editkit.tokens import encode_pair


@EDITS.register("ft")
@dataclass(frozen=True, slots=True)
class FT(OneMatrix):
    """Settings are those of `OneMatrix`: `layer`, `learning_rate`, `steps`, `stop_below`; here the loss is that of the
    whole sentence."""

    name: ClassVar[str] = "ft"

    @staticmethod
    def row(handle: ModelHandle, edit: Edit) -> Row:
        ids, target = encode_pair(handle.tokenizer, edit.fact.text, edit.target_new)
        whole = (*ids, *target)
        return Row((), whole[:-1], whole[1:])

    def bounded(self, delta: Tensor) -> None:
        return

    def notes(self, delta: Tensor) -> dict[str, Any]:
        return {}
