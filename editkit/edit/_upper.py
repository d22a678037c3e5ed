"""The part of a model above one layer's `mlp_out`, made ready for a batch of sequences.

A change of what `mlp_out` gives can reach only later tokens and higher blocks. So everything else is computed once:
keys and values of each row's `prefix` (tokens before the first one that changes), and the hidden states of its
`suffix` in the changed block. A step then runs the upper blocks on the suffix tokens, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from editkit.blocks import after_change, lower, upper
from editkit.forward import copied, rows_of, run, unembed
from editkit.fused import Fused
from editkit.handle import ModelHandle
from editkit.hooks import traced
from editkit.packs import prefixes
from editkit.tokens import PromptTooLong, pad, pad_id_of


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence: what comes before the change, what it reaches, and which tokens are wanted at the suffix's end.

    `wanted[-1]` follows the whole suffix, `wanted[-2]` all but its last token, and so on.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    wanted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Upper:
    """Hidden states of a batch in the unchanged model, and all that is needed to run on from them.

    `keys` are what `mlp_out` reads at each suffix token, `values` what it gives (bias included).
    """

    handle: ModelHandle
    layer: int
    keys: Float[Tensor, "rows length d_in"]
    values: Float[Tensor, "rows length d_out"]
    hidden: Float[Tensor, "rows length d_out"]
    ids: Int[Tensor, "rows length"]
    mask: Bool[Tensor, "rows both"]
    positions: Int[Tensor, "rows length"]
    cache: DynamicCache | None

    def moved(self, change: Float[Tensor, "rows length d_out"]) -> Float[Tensor, "rows length d_out"]:
        """What the block gives when `mlp_out` gives `values + change`; differentiable in `change`."""
        return after_change(self.handle, self.layer, self.hidden, self.values, change)

    def run(
        self, change: Float[Tensor, "rows length d_out"], fused: Fused | None = None
    ) -> Float[Tensor, "rows length d_out"]:
        """Hidden states after the final norm when `mlp_out` gives `values + change`; differentiable in `change`.
        `fused` are the blocks above, if they can be run so."""
        moved = self.moved(change)
        if fused is not None and fused.reaches(self.mask.shape[1]):
            return fused.run(moved, self.positions, self.mask, self.cache)
        model = upper(self.handle, self.layer, moved)
        return run(model, self.ids, self.mask, self.positions, copied(self.cache))

    def rows(self, rows: Int[Tensor, " n"], width: int) -> Upper:
        """The same for some of the rows, whose suffixes have at most `width` tokens."""
        cut = self.ids.shape[1] - width
        return Upper(
            self.handle,
            self.layer,
            self.keys[rows, :width],
            self.values[rows, :width],
            self.hidden[rows, :width],
            self.ids[rows, :width],
            self.mask[rows, : self.mask.shape[1] - cut],
            self.positions[rows, :width],
            rows_of(self.cache, rows),
        )


def mlp_gives(handle: ModelHandle, layer: int, values: Float[Tensor, "... d_out"]) -> Float[Tensor, "... d_out"]:
    """What the MLP of block `layer` adds to the hidden states when its `mlp_out` gives `values`."""
    return handle.module("mlp_norm", layer)(values) if handle.arch.mlp_norm else values


@torch.no_grad()
def prepare(handle: ModelHandle, layer: int, rows: Sequence[Row]) -> Upper:
    """Read all rows once. Raises PromptTooLong where one does not fit the model's context."""
    longest = max(len(row.prefix) + len(row.suffix) for row in rows)
    if longest > handle.context:
        raise PromptTooLong(
            f"an edit needs {longest} tokens, {handle.name!r} takes {handle.context}; shorten the prompt"
        )
    filler = pad_id_of(handle.tokenizer)
    suffix = pad([row.suffix for row in rows], side="right", pad_id=filler, device=handle.device)
    begin = torch.tensor([len(row.prefix) for row in rows], device=handle.device)
    positions = suffix.positions + begin[:, None]
    mask, cache = suffix.mask, None
    if any(row.prefix for row in rows):
        cache, before = prefixes(handle, [row.prefix for row in rows])
        mask = torch.cat([before, suffix.mask], 1)
    block, matrix = handle.arch.path("block", layer), handle.arch.path("mlp_out", layer)
    with traced(handle.model, [block, matrix]) as seen:
        run(lower(handle, layer), suffix.ids, mask, positions, copied(cache))
    keys, values, hidden = seen[matrix].input, seen[matrix].output, seen[block].output
    assert keys is not None and values is not None and hidden is not None
    return Upper(handle, layer, keys, values, hidden, suffix.ids, mask, positions, cache)


@dataclass(frozen=True, slots=True, eq=False)
class Reads:
    """Where the wanted tokens of a batch are predicted: row, place in the suffix, token; `share` is the part of one
    that each has in its row's mean."""

    row: Int[Tensor, " n"]
    place: Int[Tensor, " n"]
    token: Int[Tensor, " n"]
    share: Float[Tensor, " n"]

    def nll(self, handle: ModelHandle, hidden: Float[Tensor, "rows length d"]) -> Float[Tensor, " rows"]:
        """Mean -log p of each row's wanted tokens, nats; 0 where none are wanted."""
        nothing = self.row.new_zeros(0)
        return self.nll_and_logits(handle, hidden, nothing, nothing)[0]

    def nll_and_logits(
        self, handle: ModelHandle, hidden: Float[Tensor, "rows length d"], row: Tensor, place: Tensor
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, "n vocabulary"]]:
        """The same, and the logits at further places: the unembedding, a large matrix for few rows, is read once."""
        states = hidden[torch.cat([self.row, row]), torch.cat([self.place, place])]
        wanted, others = unembed(handle, states).split([len(self.row), len(row)])
        log_probs = wanted.gather(-1, self.token[:, None]).squeeze(-1) - wanted.logsumexp(-1)
        losses = hidden.new_zeros(len(hidden), dtype=torch.float32).index_add(0, self.row, -log_probs * self.share)
        return losses, others


def reads_of(rows: Sequence[Row], device: torch.device) -> Reads:
    """The places where the rows' wanted tokens are read."""
    found = [
        (number, len(row.suffix) - len(row.wanted) + i, token, 1 / len(row.wanted))
        for number, row in enumerate(rows)
        for i, token in enumerate(row.wanted)
    ]
    row, place, token, share = zip(*found, strict=True)
    rows_read, places, tokens = (torch.tensor(part, device=device) for part in (row, place, token))
    return Reads(rows_read, places, tokens, torch.tensor(share, device=device))
