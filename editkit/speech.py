"""Greedy text of many prompts at once, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from editkit.forward import run, unembed
from editkit.handle import ModelHandle


@dataclass(frozen=True, slots=True)
class Speech:
    """When a greedy text ends: at as many tokens as it may have, at one of the ids `stops`, at a line break, or when
    `enough` says of the text so far that no more is wanted."""

    stops: frozenset[int]
    enough: Callable[[str], bool] | None = None

    def over(self, handle: ModelHandle, ids: Sequence[int], most: int) -> bool:
        if len(ids) >= most or ids[-1] in self.stops:
            return True
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
    most: Sequence[int],
    speech: Speech,
) -> Iterator[list[tuple[int, str]]]:
    """Step by step, the texts that end and the numbers of their rows.

    `lengths` are the prompts', `cache` their keys and values, padded on the left, `first` the first token of each text
    and `most` how many it may have. Rows that have ended leave the batch.
    """
    start = torch.tensor(lengths, device=handle.device)
    held = cache.get_seq_length()
    mask = torch.arange(held, device=handle.device)[None] >= (held - start)[:, None]
    spoken = [[token] for token in first]
    alive = list(range(len(lengths)))
    while True:
        going = [i for i, place in enumerate(alive) if not speech.over(handle, spoken[place], most[place])]
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
        for place, token in zip(alive, unembed(handle, hidden).argmax(-1).tolist(), strict=True):
            spoken[place].append(token)
