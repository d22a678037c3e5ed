"""Attributors: which words of a prompt an answer hangs on. One file each.

Here: words, their scores, and which of them are key words. Importing this loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from editkit.registry import Registry

if TYPE_CHECKING:
    from editkit.handle import ModelHandle

BETA = 3  # with fewer helpful words than this, all of them are key words
ALPHA = 0.5  # else those above this share of the most helpful one


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a prompt, and its place: prompt[start:stop] is the word with the punctuation around it."""

    text: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class WordScore:
    """A word and what it adds to the answer's mean log-probability per token (nats); higher is more important."""

    word: Word
    score: float


class Attributor(Protocol):
    """Scores every word of `prompt` for the continuation `answer`, in the order of the prompt."""

    def __call__(self, handle: ModelHandle, prompt: str, answer: str) -> tuple[WordScore, ...]: ...


ATTRIBUTORS: Registry[type[Attributor]] = Registry("attributor", "editkit.attribute")


def words_of(prompt: str) -> tuple[Word, ...]:
    """What stands between spaces and holds a letter or digit; its text has no punctuation around it."""
    found = []
    for match in re.finditer(r"\S+", prompt):
        text = re.sub(r"^[\W_]+|[\W_]+$", "", match[0])
        if text:
            found.append(Word(text, match.start(), match.end()))
    return tuple(found)


def without(prompt: str, word: Word) -> str:
    """The prompt with one of its words, and the space before it, left out."""
    left, right = prompt[: word.start], prompt[word.stop :]
    return left.rstrip(" ") + right if left.strip() else left + right.lstrip(" ")


def key_words(scores: Sequence[WordScore], *, beta: int = BETA, alpha: float = ALPHA) -> tuple[Word, ...]:
    """The words that carry the answer, in the order of the prompt: KeyTokens of unPact (arXiv:2509.24675).

    All words with a positive score where there are fewer than `beta` of them, else those above `alpha` times the
    highest score. The paper names no values for `beta` and `alpha`, nor its normalisation: these are our own.
    """
    helpful = [each for each in scores if each.score > 0]
    if len(helpful) >= beta:
        best = max(each.score for each in helpful)
        helpful = [each for each in helpful if each.score > alpha * best]
    return tuple(each.word for each in helpful)
