"""Text of many prompts at once, token by token: greedy answers, and free texts that are drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from editkit.forward import run, unembed
from editkit.handle import ModelHandle


@dataclass(frozen=True, slots=True)
class Free:
    """A text of `tokens` tokens, over line breaks and all, each drawn among the `top` likeliest."""

    tokens: int
    seed: int = 0
    top: int = 5


class Voice:
    """How one prompt speaks: `most` tokens, each the likeliest one, or for a `free` text drawn with dice of its own, so
    that what stands beside it in a batch moves nothing."""

    def __init__(self, most: int, free: Free | None = None, prompt: str = "") -> None:
        self.most, self.free = most, free
        self._dice = random.Random(f"{free.seed}/{prompt}") if free else random.Random()

    def next(self, logits: Tensor, likeliest: int) -> int:
        """The next token, by the (vocab,) logits of it, of which one is the likeliest."""
        if self.free is None:
            return likeliest
        likely = logits.topk(min(self.free.top, len(logits)))
        below = likely.values.double().softmax(-1).cumsum(-1)
        place = int((below < self._dice.random()).sum())
        return int(likely.indices[min(place, len(below) - 1)])


@dataclass(frozen=True, slots=True)
class Speech:
    """When a text ends: at as many tokens as it may have, or at one of the ids `stops`; an answer also at a line break,
    or when `enough` says of the text so far that no more is wanted."""

    stops: frozenset[int]
    enough: Callable[[str], bool] | None = None

    def over(self, handle: ModelHandle, ids: Sequence[int], voice: Voice) -> bool:
        if len(ids) >= voice.most or ids[-1] in self.stops:
            return True
        if voice.free:
            return False
        text = handle.tokenizer.decode(ids)
        return bool(text.strip()) and ("\n" in text.lstrip() or (self.enough is not None and self.enough(text)))

    def text(self, handle: ModelHandle, ids: Sequence[int]) -> str:
        kept = [i for i in ids if i not in self.stops]
        return str(handle.tokenizer.decode(kept, skip_special_tokens=True)).strip()


def stop_ids(handle: ModelHandle) -> frozenset[int]:
    """Ids that end a text: EOS of tokenizer, config and generation config."""
    stops: set[int] = set()
    generation = handle.model.generation_config.eos_token_id if handle.model.can_generate() else None
    for ids in (handle.tokenizer.eos_token_id, handle.model.config.eos_token_id, generation):
        if ids is not None:
            stops.update(ids if isinstance(ids, list) else [ids])
    return frozenset(stops)


def speak(
    handle: ModelHandle,
    lengths: Sequence[int],
    cache: DynamicCache,
    first: Sequence[int],
    voices: Sequence[Voice],
    speech: Speech,
) -> Iterator[list[tuple[int, str]]]:
    """Step by step, the texts that end and the numbers of their rows.

    `lengths` are the prompts', `cache` their keys and values, padded on the left, `first` the first token of each text
    and `voices` say how each goes on. Rows that have ended leave the batch.
    """
    start = torch.tensor(lengths, device=handle.device)
    held = cache.get_seq_length()
    mask = torch.arange(held, device=handle.device)[None] >= (held - start)[:, None]
    spoken = [[token] for token in first]
    alive = list(range(len(lengths)))
    while True:
        going = [i for i, place in enumerate(alive) if not speech.over(handle, spoken[place], voices[place])]
        ended = sorted({*alive} - {alive[i] for i in going})
        if ended:
            yield [(place, speech.text(handle, spoken[place])) for place in ended]
        if not going:
            return
        if len(going) < len(alive):
            keep = torch.tensor(going, device=handle.device)
            cache.batch_select_indices(keep)
            mask, alive = mask[keep], [alive[i] for i in going]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        last = torch.tensor([spoken[place][-1:] for place in alive], device=handle.device)
        hidden = run(handle.backbone, last, mask, mask.sum(1, keepdim=True) - 1, cache)[:, -1]
        logits = unembed(handle, hidden)
        for row, (place, token) in enumerate(zip(alive, logits.argmax(-1).tolist(), strict=True)):
            spoken[place].append(voices[place].next(logits[row], token))
