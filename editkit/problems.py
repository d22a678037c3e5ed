"""What can be seen to be wrong with edits before a model is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from editkit.errors import InputError
from editkit.facts import SLOT, Edit, Fact, contradiction, normalise
from editkit.handle import ModelHandle
from editkit.tokens import encode_pair, subject_span


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with edit number `place` (from 0), or with all (None), or with it and edit number `other` together.
    `fatal`: it cannot be made, by no operator or not by the one that is planned."""

    place: int | None
    text: str
    fatal: bool
    other: int | None = None


def problems(handle: ModelHandle, edits: Sequence[Edit], *, one_by_one: bool = False) -> list[Problem]:
    """All that can be seen of the edits without running the model, in their order. `one_by_one`: each is made by a call
    of its own, on top of those before it, so that of two for one prompt the later one holds; else both cannot be met.
    """
    found = [problem for place, edit in enumerate(edits) for problem in _of_one(handle, place, edit)]
    return [*found, *_contradictions(edits, one_by_one), *_of_model(handle)]


def _of_one(handle: ModelHandle, place: int, edit: Edit) -> Iterator[Problem]:
    fact = edit.fact
    try:
        ids, target = encode_pair(handle.tokenizer, fact.text, edit.target_new)
        span = subject_span(handle.tokenizer, fact.prompt, fact.subject)
    except InputError as error:
        yield Problem(place, str(error), True)
        return
    if len(ids) + len(target) > handle.context:
        needs = len(ids) + len(target)
        yield Problem(place, f"it needs {needs} tokens, the model takes {handle.context}; shorten the prompt", True)
    if _ends_elsewhere(handle, fact, span.last):
        text = f"the last token of {fact.subject!r} also holds what follows it in the prompt; put a space between"
        yield Problem(place, text, False)


def _ends_elsewhere(handle: ModelHandle, fact: Fact, last: int) -> bool:
    """Whether token number `last` of the prompt, the subject's last one, goes on after the subject."""
    offsets = handle.tokenizer(fact.text, return_offsets_mapping=True)["offset_mapping"]
    return bool(offsets[last][1] > fact.prompt.index(SLOT) + len(fact.subject))


def _contradictions(edits: Sequence[Edit], one_by_one: bool) -> Iterator[Problem]:
    """Edits that give one prompt two objects, and those whose prompts differ by no letter or digit."""
    first: dict[str, int] = {}
    like: dict[str, int] = {}
    for place, edit in enumerate(edits):
        prompt = edit.asked
        same, near = first.setdefault(prompt, place), like.setdefault(normalise(prompt), place)
        if edit.contradicts(edits[same]) and one_by_one:
            both = f"{edits[same].target_new!r} and {edit.target_new!r}"
            yield Problem(place, f"{prompt!r} is given {both}, one after the other; the later one holds", False, same)
        elif edit.contradicts(edits[same]):
            yield Problem(place, contradiction(edits[same], edit), True, same)
        elif same == place and edit.contradicts(edits[near]):
            both = f"{edits[near].target_new!r} and {edit.target_new!r}"
            text = (
                f"their prompts are alike but for case and signs, and are given {both}; if they ask the same, keep one"
            )
            yield Problem(place, text, False, near)


def _of_model(handle: ModelHandle) -> Iterator[Problem]:
    if handle.dtype == torch.float16:
        yield Problem(
            None,
            "float16 overflows above 65,504: changed weights, and what they bring forth, may; load the model in "
            "float32 or bfloat16",
            False,
        )
