"""Prompts with their answers, cut in two: a beginning that is read once, and a rest that is run again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from editkit.forward import copied, rows_of, run, unembed
from editkit.handle import ModelHandle
from editkit.packs import prefixes
from editkit.tokens import PromptTooLong, pad, pad_id_of

NOTHING = -1  # in the place of a token where an answer has fewer than the longest


@dataclass(frozen=True, slots=True)
class Question:
    """Token ids of a prompt and of its answer; what stands before `begin` is read once."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    begin: int

    @property
    def rest(self) -> tuple[int, ...]:
        return (*self.prompt[self.begin :], *self.answer[:-1])


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A batch of questions. `answers` are the tokens wanted, `places` where in the rest each is predicted."""

    ids: Int[Tensor, "rows length"]
    mask: Bool[Tensor, "rows both"]
    positions: Int[Tensor, "rows length"]
    cache: DynamicCache | None
    answers: Int[Tensor, "rows answer"]
    places: Int[Tensor, "rows answer"]

    def rows(self, rows: Int[Tensor, " n"]) -> Asked:
        """Some of the rows, as often as they are named."""
        cache = rows_of(self.cache, rows)
        return Asked(
            self.ids[rows], self.mask[rows], self.positions[rows], cache, self.answers[rows], self.places[rows]
        )

    def probability(self, handle: ModelHandle, model: nn.Module) -> Float[Tensor, " rows"]:
        """p(answer | prompt) of each row, all its tokens together, by a view of the handle's backbone."""
        return self.logprob(handle, model).exp()

    def logprob(self, handle: ModelHandle, model: nn.Module) -> Float[Tensor, " rows"]:
        """Its logarithm, nats."""
        hidden = run(model, self.ids, self.mask, self.positions, copied(self.cache))
        states = hidden.gather(1, self.places[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = unembed(handle, states)
        wanted = self.answers.clamp(min=0)[..., None]
        log_probs = logits.gather(-1, wanted).squeeze(-1) - logits.logsumexp(-1)
        return log_probs.masked_fill(self.answers == NOTHING, 0).sum(-1)


@torch.no_grad()
def asked(handle: ModelHandle, questions: Sequence[Question]) -> Asked:
    """Read the beginnings. Raises PromptTooLong where a question does not fit the model's context."""
    longest = max(len(each.prompt) + len(each.answer) for each in questions)
    if longest > handle.context:
        raise PromptTooLong(
            f"a fact needs {longest} tokens, {handle.name!r} takes {handle.context}; shorten the prompt"
        )
    device = handle.device
    rest = pad([each.rest for each in questions], side="right", pad_id=pad_id_of(handle.tokenizer), device=device)
    begins = torch.tensor([each.begin for each in questions], device=device)
    mask, cache = rest.mask, None
    if begins.any():
        cache, before = prefixes(handle, [each.prompt[: each.begin] for each in questions])
        mask = torch.cat([before, rest.mask], 1)
    answers = pad_sequence([torch.tensor(each.answer) for each in questions], True, NOTHING).to(device)
    first = torch.tensor([len(each.prompt) - each.begin - 1 for each in questions], device=device)
    places = (first[:, None] + torch.arange(answers.shape[1], device=device)).clamp(max=rest.ids.shape[1] - 1)
    return Asked(rest.ids, mask, rest.positions + begins[:, None], cache, answers, places)
