"""Texts in the blocks that MEND edits and those above: gradients of their matrices, and what edits do to other texts.

Nothing below the lowest edited block ever changes, so each text is read through that part once and kept. The change of
a matrix is never built: its factors act on what the matrix reads, δ̃ (ũ · x) a token.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editkit.blocks import lower, upper
from editkit.completions import Batch, Encoded, collate, parts
from editkit.edit._linear import linear_layers
from editkit.forward import run, unembed
from editkit.handle import ModelHandle
from editkit.hooks import Seen, rewritten, traced


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """Of one matrix, for each text: what it reads, the gradient of the text's loss in what it gives, and where that
    gradient is not zero."""

    u: Float[Tensor, "texts length d_in"]
    delta: Float[Tensor, "texts length d_out"]
    used: Bool[Tensor, "texts length"]


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What is added to one matrix, for each of several edits: left.T @ right of each."""

    right: Float[Tensor, "edits rank d_in"]
    left: Float[Tensor, "edits rank d_out"]

    def of(self, x: Tensor, owner: Tensor) -> Tensor:
        """What it adds to the output for inputs (rows, length, d_in), row by row that of the row's own edit."""
        strengths = x.float() @ self.right[owner].transpose(1, 2)
        return strengths @ self.left[owner]


class Texts:
    """Reads texts of one model through the blocks from `first` on. Keeps texts x tokens x width numbers in memory."""

    def __init__(self, handle: ModelHandle, names: Sequence[str], first: int) -> None:
        linear = linear_layers(handle)
        self.handle, self.first = handle, first
        self.paths = {name: linear[name] for name in names}
        self._below: dict[Encoded, Tensor] = {}

    def gradients(self, texts: Sequence[Encoded]) -> dict[str, Factors]:
        """Factors of the gradient of each text's own loss (mean -log p of its completion's tokens)."""
        zeros: dict[str, Tensor] = {}
        with ExitStack() as stack:
            seen = stack.enter_context(traced(self.handle.model, self.paths.values()))
            added = {path: functools.partial(_add_zero, zeros, name) for name, path in self.paths.items()}
            stack.enter_context(rewritten(self.handle.model, added))
            batch, logits = self.logits(texts)
            grads = torch.autograd.grad(nll(batch, logits).sum(), [zeros[name] for name in self.paths])
        return {
            name: _factors(seen[path], grad, batch.padded.mask)
            for (name, path), grad in zip(self.paths.items(), grads, strict=True)
        }

    def changed(
        self, texts: Sequence[Encoded], changes: Mapping[str, Change], owner: Int[Tensor, " texts"]
    ) -> tuple[Batch, Float[Tensor, "n vocabulary"]]:
        """As `logits`, each text under the edit that owns it; differentiable in the changes."""
        with ExitStack() as stack:
            seen = stack.enter_context(traced(self.handle.model, self.paths.values()))  # first: the input is read below
            added = {path: functools.partial(_add, seen[path], changes[n], owner) for n, path in self.paths.items()}
            stack.enter_context(rewritten(self.handle.model, added))
            return self.logits(texts)

    def logits(self, texts: Sequence[Encoded]) -> tuple[Batch, Float[Tensor, "n vocabulary"]]:
        """The texts as a batch, and logits at the places that predict completion tokens, in the batch's order."""
        batch = collate(self.handle, texts, range(len(texts)))
        padded = batch.padded
        model = upper(self.handle, self.first - 1, self._hidden(texts)) if self.first else self.handle.backbone
        hidden = run(model, padded.ids, padded.mask, padded.positions)
        return batch, unembed(self.handle, hidden[batch.predicts])

    def _hidden(self, texts: Sequence[Encoded]) -> Float[Tensor, "texts length d"]:
        """What the block below the first edited one gives, padded on the right."""
        new = [text for text in dict.fromkeys(texts) if text not in self._below]
        for rows in parts(new, range(len(new))):
            self._read([new[row] for row in rows])
        return torch.nn.utils.rnn.pad_sequence([self._below[text] for text in texts], batch_first=True)

    @torch.no_grad()
    def _read(self, texts: Sequence[Encoded]) -> None:
        padded = collate(self.handle, texts, range(len(texts))).padded
        block = self.handle.arch.path("block", self.first - 1)
        with traced(self.handle.model, [block]) as seen:
            run(lower(self.handle, self.first - 1), padded.ids, padded.mask, padded.positions)
        given = seen[block].output
        assert given is not None
        self._below |= {text: given[row, : len(text.ids)].clone() for row, text in enumerate(texts)}


def nll(batch: Batch, logits: Float[Tensor, "n vocabulary"]) -> Float[Tensor, " batch"]:
    """Mean -log p of each text's completion tokens, nats."""
    lost = logits.logsumexp(-1) - logits.gather(-1, batch.targets[:, None]).squeeze(-1)
    return per_text(batch, lost)


def per_text(batch: Batch, values: Float[Tensor, " n"]) -> Float[Tensor, " batch"]:
    """Means over each text's places."""
    zeros = values.new_zeros(len(batch.rows))
    return zeros.index_add(0, batch.owner, values) / zeros.index_add(0, batch.owner, torch.ones_like(values))


def _add_zero(zeros: dict[str, Tensor], name: str, output: Tensor) -> Tensor:
    zeros[name] = torch.zeros_like(output, requires_grad=True)
    return output + zeros[name]


def _add(seen: Seen, change: Change, owner: Tensor, output: Tensor) -> Tensor:
    assert seen.input is not None
    return output + change.of(seen.input, owner).to(output.dtype)


def _factors(seen: Seen, grad: Tensor, mask: Tensor) -> Factors:
    assert seen.input is not None
    return Factors(seen.input.detach().float(), grad.float(), mask & (grad != 0).any(-1))
