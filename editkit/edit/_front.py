"""Texts on their way up through the blocks while the layers below them are being edited.

A change of `mlp_out` in a layer reaches everything above it. So that the layers of one edit can be done from the lowest
to the highest without running the whole model each time, the hidden states of all tokens are kept at the layer that is
next, and what a change does to them is added, not computed anew: the weights themselves are never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editkit.blocks import lower, upper
from editkit.edit._upper import after_change
from editkit.forward import run
from editkit.handle import ModelHandle
from editkit.hooks import traced
from editkit.tokens import PromptTooLong, pad, pad_id_of

TOGETHER = 512  # texts in one batch


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """What a layer's `mlp_out` reads and gives and what its block gives, at every token; and at each text's last token
    what block `last`, or a part of it, gives."""

    keys: Float[Tensor, "rows length d_in"]
    values: Float[Tensor, "rows length d_out"]
    hidden: Float[Tensor, "rows length d_out"]
    state: Float[Tensor, "rows d_out"]


@dataclass(slots=True, eq=False)
class Front:
    """Some texts, and their hidden states after block `passed` (none at first: -1)."""

    handle: ModelHandle
    ids: Int[Tensor, "rows length"]
    mask: Bool[Tensor, "rows length"]
    positions: Int[Tensor, "rows length"]
    passed: int = -1
    hidden: Float[Tensor, "rows length d_out"] | None = None

    @property
    def ends(self) -> Int[Tensor, " rows"]:
        """Where each text's last token is."""
        return self.mask.sum(1) - 1

    def last(self, tensor: Float[Tensor, "rows length d"]) -> Float[Tensor, "rows d"]:
        """A tensor's entries at the texts' last tokens."""
        return tensor[torch.arange(len(tensor), device=tensor.device), self.ends]

    def read(self, layer: int, last: int, part: str = "block") -> Read:
        """Run on to block `last` and see what `layer` does, and `part` of `last`. The front stays where it is."""
        parts = (("mlp_out", layer), ("block", layer), (part, last))
        names = [self.handle.arch.path(name, each) for name, each in parts]
        start = lower(self.handle, last) if self.hidden is None else upper(self.handle, self.passed, self.hidden, last)
        with traced(self.handle.model, names) as seen:
            run(start, self.ids, self.mask, self.positions)
        keys, values = seen[names[0]].input, seen[names[0]].output
        hidden, top = seen[names[1]].output, seen[names[2]].output
        assert keys is not None and values is not None and hidden is not None and top is not None
        return Read(keys, values, hidden, self.last(top).float())

    def rise(self, layer: int, seen: Read, change: Float[Tensor, "rows length d_out"]) -> None:
        """Pass block `layer`, whose `mlp_out` now gives `change` on top of what was seen."""
        self.hidden = after_change(self.handle, layer, seen.hidden, seen.values, change)
        self.passed = layer


def fronts(handle: ModelHandle, texts: Sequence[Sequence[int]]) -> Iterator[Front]:
    """The texts, as token ids, in batches and in their order. Raises PromptTooLong where one does not fit the model."""
    if (longest := max(map(len, texts))) > handle.context:
        raise PromptTooLong(
            f"an edit needs {longest} tokens, {handle.name!r} takes {handle.context}; shorten the prompt"
        )
    for begin in range(0, len(texts), TOGETHER):
        part = texts[begin : begin + TOGETHER]
        padded = pad(part, side="right", pad_id=pad_id_of(handle.tokenizer), device=handle.device)
        yield Front(handle, padded.ids, padded.mask, padded.positions)
