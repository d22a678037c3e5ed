"""A forget request as token examples, with the retain examples that are only watched set apart."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from editkit.completions import Encoded, encode_examples
from editkit.facts import Example, ForgetRequest, normalise
from editkit.handle import ModelHandle
from editkit.training import Stopping


@dataclass(frozen=True, slots=True)
class Examples:
    """What is forgotten, what is trained to stay, and what is only watched."""

    forget: list[Encoded]
    retain: list[Encoded]
    watch: list[Encoded]


def examples_of(handle: ModelHandle, request: ForgetRequest, stopping: Stopping, seed: int) -> Examples:
    """The request in tokens. Some retain examples are kept out of training: neighbours in neither set show a collapse
    that trained ones hide."""
    watch = watched(request.retain, stopping.watch, seed)
    retain = [example for example in request.retain if example not in watch]
    return Examples(*(encode_examples(handle, part) for part in (request.forget, retain, watch)))


def watched(retain: Sequence[Example], portion: float, seed: int) -> list[Example]:
    """About `portion` of the retain examples, whole answers with all their wordings; never all of them."""
    answers = sorted({normalise(example.completion) for example in retain})
    random.Random(f"{seed} watch").shuffle(answers)
    chosen = set(answers[: min(round(portion * len(answers)), max(0, len(answers) - 1))])
    return [example for example in retain if normalise(example.completion) in chosen]
