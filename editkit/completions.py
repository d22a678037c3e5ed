"""Examples as batches, and log p(completion | prompt) with gradients: the one place where labels are masked.

A loss sees log-probabilities of completion tokens only; the unembedding is applied at the positions that predict them,
never to [batch, length, vocabulary]. (`editkit.scoring` answers questions; this is for what is differentiated.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editkit.facts import Example
from editkit.forward import attention, unembed
from editkit.handle import ModelHandle
from editkit.tokens import Padded, PromptTooLong, encode_pair, pad, pad_id_of

PART_TOKENS = 512  # padded tokens read at once


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as ids; the completion begins at `start`."""

    ids: tuple[int, ...]
    start: int

    @property
    def tokens(self) -> int:
        """Number of completion tokens: those that count."""
        return len(self.ids) - self.start


def encode_examples(handle: ModelHandle, examples: Sequence[Example]) -> list[Encoded]:
    """Ids of prompt and completion. Raises PromptTooLong where the context cannot hold them."""
    encoded = []
    for example in examples:
        prompt = example.prompt
        for rewrite in handle.prompt_rewrites:
            prompt = rewrite(prompt)
        ids, completion = encode_pair(handle.tokenizer, prompt, example.completion)
        if len(ids) + len(completion) > handle.context:
            raise PromptTooLong(
                f"example {example.prompt[:60]!r}… has {len(ids) + len(completion)} tokens, {handle.name!r} takes "
                f"{handle.context}; shorten it"
            )
        encoded.append(Encoded((*ids, *completion), len(ids)))
    return encoded


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples padded on the right. `rows` are their places in the list they come from; `predicts` marks the positions
    whose hidden state predicts a completion token; `targets` are these tokens and `owner` their rows in the batch."""

    rows: Int[Tensor, " batch"]
    padded: Padded
    predicts: Bool[Tensor, "batch length"]
    targets: Int[Tensor, " n"]
    owner: Int[Tensor, " n"]


def collate(handle: ModelHandle, examples: Sequence[Encoded], rows: Sequence[int]) -> Batch:
    """The examples at `rows`, padded, with everything but completion tokens masked."""
    chosen = [examples[row] for row in rows]
    padded = pad([e.ids for e in chosen], side="right", pad_id=pad_id_of(handle.tokenizer), device=handle.device)
    predicts = torch.zeros_like(padded.mask)
    for place, example in enumerate(chosen):
        predicts[place, example.start - 1 : len(example.ids) - 1] = True
    targets = padded.ids[:, 1:][predicts[:, :-1]]
    return Batch(torch.tensor(rows, device=handle.device), padded, predicts, targets, predicts.nonzero()[:, 0])


def parts(examples: Sequence[Encoded], rows: Sequence[int], tokens: int = PART_TOKENS) -> Iterator[list[int]]:
    """Rows in groups of like length, longest first, of at most `tokens` padded tokens (at least one row)."""
    group: list[int] = []
    for row in sorted(rows, key=lambda r: (-len(examples[r].ids), r)):
        if group and (len(group) + 1) * len(examples[group[0]].ids) > tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Per example of a batch: log p(completion | prompt) in nats, summed over its tokens; the number of tokens; whether
    each of them is the most likely one."""

    total: Float[Tensor, " batch"]
    tokens: Int[Tensor, " batch"]
    argmax: Bool[Tensor, " batch"]


def answer_logits(handle: ModelHandle, batch: Batch) -> Float[Tensor, "n vocabulary"]:
    """Logits at the positions that predict completion tokens, in the order of `batch.targets`."""
    padded = batch.padded
    hidden = handle.backbone(
        input_ids=padded.ids, attention_mask=padded.mask.long(), position_ids=padded.positions, use_cache=False
    ).last_hidden_state
    return unembed(handle, hidden[batch.predicts])


def read(handle: ModelHandle, batch: Batch) -> Answers:
    """Forward pass; `total` carries gradients where they are on."""
    logits = answer_logits(handle, batch)
    logprob = logits.gather(-1, batch.targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
    missed = (logits.detach().argmax(-1) != batch.targets).long()
    zeros = torch.zeros(len(batch.rows), device=logprob.device)
    total = zeros.index_add(0, batch.owner, logprob)
    tokens = zeros.long().index_add(0, batch.owner, torch.ones_like(batch.targets))
    return Answers(total, tokens, zeros.long().index_add(0, batch.owner, missed) == 0)


def read_all(handle: ModelHandle, examples: Sequence[Encoded]) -> Answers:
    """All examples, in their order, without gradients, under the same attention as in training."""
    total = torch.zeros(len(examples), device=handle.device)
    argmax = torch.zeros(len(examples), dtype=torch.bool, device=handle.device)
    with torch.no_grad(), gradient_attention(handle):
        for rows in parts(examples, range(len(examples))):
            batch = collate(handle, examples, rows)
            answers = read(handle, batch)
            total[batch.rows], argmax[batch.rows] = answers.total, answers.argmax
    return Answers(total, torch.tensor([e.tokens for e in examples], device=handle.device), argmax)


def share(answers: Answers) -> float:
    """Share of examples whose completion the model would give, 0 to 1; NaN for no examples."""
    return float(answers.argmax.float().mean()) if len(answers.argmax) else math.nan


def gradient_attention(handle: ModelHandle) -> AbstractContextManager[None]:
    """Within the block: eager attention on a CPU, where its backward pass is faster; elsewhere the model's own."""
    eager = handle.device.type == "cpu"
    return attention(handle, "eager" if eager else handle.attention_implementation)
