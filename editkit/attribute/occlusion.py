"""Occlusion: how much less likely the answer is when a word is left out (unPact, arXiv:2509.24675).

    c_i = LP(x, y) - LP(x without word i, y)        LP(x, y): mean log-probability per token of y after x, nats

Differs from the paper: units are words, since leaving out a piece of a word changes how its neighbours are split into
tokens; the answer is the true object and not what the model wrote. A prompt of one word has no scores: nothing would be
left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from editkit.attribute import ATTRIBUTORS, WordScore, without, words_of
from editkit.handle import ModelHandle
from editkit.scoring import score_pairs

MeanLogprob = Callable[[Sequence[str], str], Sequence[float]]


def occlude(prompt: str, answer: str, mean_logprob: MeanLogprob) -> tuple[WordScore, ...]:
    """The scores of the prompt's words; `mean_logprob(prompts, answer)` is asked once, for the n + 1 prompts."""
    words = words_of(prompt)
    if len(words) < 2:
        return ()
    whole, *parts = mean_logprob([prompt, *(without(prompt, word) for word in words)], answer)
    return tuple(WordScore(word, whole - part) for word, part in zip(words, parts, strict=True))


@ATTRIBUTORS.register("occlusion")
@dataclass(frozen=True, slots=True)
class Occlusion:
    """Leaves each word out in turn; all prompts are read in one batch. For an audit: on the unchanged model."""

    def __call__(self, handle: ModelHandle, prompt: str, answer: str) -> tuple[WordScore, ...]:
        def mean_logprob(prompts: Sequence[str], target: str) -> list[float]:
            return [score.mean for score in score_pairs(handle, [(each, target) for each in prompts])]

        return occlude(prompt, answer, mean_logprob)
