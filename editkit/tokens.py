"""Prompts to token ids, and where a subject stands among them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from editkit.errors import InputError
from editkit.facts import SLOT, fill

NO_SPACE_BEFORE = tuple(".,;:!?)]}'\"’”\n\t ")
NO_SPACE_AFTER = tuple(" \n\t([{\"'“‘")
WITHOUT_SPACES = re.compile(  # scripts: Thai, Lao, Burmese, Khmer, Chinese and Japanese, and their punctuation
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]"
)


class PromptTooLong(InputError):
    """A prompt that the model's context cannot hold."""


def join(prompt: str, target: str) -> str:
    """Prompt and target as running text: one space between, unless either side already has what parts them or both are
    of a script that knows no spaces."""
    glued = prompt.endswith(NO_SPACE_AFTER) or target.startswith(NO_SPACE_BEFORE)
    glued = glued or bool(WITHOUT_SPACES.match(prompt[-1:]) and WITHOUT_SPACES.match(target))
    return prompt + target if glued else f"{prompt} {target}"


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """Ids of a prompt with the special tokens (BOS) that the tokenizer puts by itself."""
    ids: list[int] = tokenizer(prompt).input_ids
    # Some tokenizers close a text with EOS; a prompt to be continued must stay open.
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token or "\0"):
        ids = ids[:-1]
    if not ids:
        raise InputError(f"prompt {prompt!r} has no tokens; give it some text")
    return ids


def encode_pair(tokenizer: Any, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the target that continues it.

    The running text is tokenised as a whole, as a model would have read it; where the prompt's own ids are no prefix
    of that (a merge across the border), the target is tokenised by itself instead, so that the prompt never changes.
    """
    ids, whole = encode(tokenizer, prompt), encode(tokenizer, join(prompt, target))
    if whole[: len(ids)] == ids and len(whole) > len(ids):
        return ids, whole[len(ids) :]
    alone = join(prompt, target)[len(prompt) :]
    rest: list[int] = tokenizer(alone, add_special_tokens=False).input_ids
    if not rest:
        raise InputError(f"target {target!r} has no tokens; give it some text")
    return ids, rest


@dataclass(frozen=True, slots=True)
class Span:
    """Token positions [start, stop) in a sequence."""

    start: int
    stop: int

    @property
    def last(self) -> int:
        return self.stop - 1


def subject_span(tokenizer: Any, template: str, subject: str) -> Span:
    """Where the subject stands in `template` with its "{}" filled: positions of its first to its last token.

    Found by the character offsets of the fast tokenizer, so BOS, merges with a leading space, and a subject that
    occurs twice do not matter. Raises InputError where no token covers the subject.
    """
    if SLOT not in template:
        raise InputError(f"no '{{}}' in prompt {template!r}; put it where the subject goes")
    begin = template.index(SLOT)
    end = begin + len(subject)
    encoded = tokenizer(fill(template, subject), return_offsets_mapping=True)
    inside = [
        position
        for position, (left, right) in enumerate(encoded["offset_mapping"])
        if left < end and right > begin and right > left
    ]
    if not inside:
        raise InputError(f"no token of {fill(template, subject)!r} covers the subject {subject!r}")
    return Span(inside[0], inside[-1] + 1)


@dataclass(frozen=True, slots=True)
class Padded:
    """A batch of sequences of unequal length. Positions count from the first real token of each row."""

    ids: Int[Tensor, "batch length"]
    mask: Bool[Tensor, "batch length"]
    positions: Int[Tensor, "batch length"]


def pad(sequences: Sequence[Sequence[int]], *, side: str, pad_id: int, device: torch.device | str = "cpu") -> Padded:
    """Pad on the "left" or the "right". Explicit positions keep models with learned ones right under left padding."""
    if side not in ("left", "right"):
        raise ValueError(f"no padding side {side!r}; there is left, right")
    longest = max(len(s) for s in sequences)
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), longest), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), longest) if side == "left" else slice(0, len(sequence))
        ids[row, place] = torch.tensor(sequence, dtype=torch.long)
        mask[row, place] = True
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    return Padded(ids.to(device), mask.to(device), positions.to(device))


def pad_id_of(tokenizer: Any) -> int:
    """An id to fill up with: the tokenizer's own, else EOS, else 0. It is always masked, so it never matters which."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0
