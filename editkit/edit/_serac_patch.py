"""A memory of edits with a learned scope that is data, not code: what `serac` gives, and how a file keeps it."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from editkit.edit._ike_patch import InContext, NewFact, letters, name_of, parted, plain_of, tensors_of
from editkit.errors import PatchError
from editkit.facts import normalise
from editkit.patch import KINDS, PromptPatch, Provenance, write
from editkit.settings import build

KIND = "serac/1"
STEM = 5  # letters by which words are told apart: "lies" and "lie" are two, "located" and "location" one
FEATURES = 6


@dataclass(frozen=True, slots=True)
class StemWeight:
    """How much a word says about which relation a text is of: 0 where every relation uses it."""

    stem: str
    weight: float


@dataclass(frozen=True)  # no slots: the table is kept in the instance
class Likeness:
    """What is seen of a prompt beside an edit's own one. `unknown` is the weight of a word that is not in `words`."""

    words: tuple[StemWeight, ...]
    unknown: float

    def features(self, prompt: str, fact: NewFact, named: bool) -> tuple[float, ...]:
        """1, whether the subject is named, and if so four likenesses in [0, 1] of what is said of it: the cosine of
        letters, the share of the edit's words, the cosine of words, the weightiest word in common."""
        if not named:
            return (1.0, *[0.0] * (FEATURES - 1))
        own, other = said_of(prompt, fact.subject), said_of(fact.prompt, fact.subject)
        here, there = _stems(own), _stems(other)
        both = here & there
        return (
            1.0,
            1.0,
            _ratio(len(letters(own) & letters(other)), math.sqrt(len(letters(own)) * len(letters(other)))),
            _ratio(self._sum(both), self._sum(there)),
            _ratio(self._square(both), math.sqrt(self._square(here) * self._square(there))),
            _ratio(max(map(self.weight, both), default=0.0), max(self.unknown, 0.0)),
        )

    def weight(self, stem: str) -> float:
        return self._weights.get(stem, self.unknown)

    def _sum(self, stems: Iterable[str]) -> float:
        return math.fsum(map(self.weight, stems))

    def _square(self, stems: Iterable[str]) -> float:
        return math.fsum(self.weight(stem) ** 2 for stem in stems)

    @functools.cached_property
    def _weights(self) -> dict[str, float]:
        return {each.stem: each.weight for each in self.words}


@dataclass(frozen=True)  # no slots: what is compared with every prompt is kept in the instance
class InScope:
    """Puts the edit that a prompt is about before it; a prompt in no edit's scope stays as it is, to the letter.

    A prompt is in the scope of an edit where its score, in [0, 1], is above `threshold`. An edit's own prompt has the
    score 1. Of several edits the one with the highest score counts, of equals the later.
    """

    facts: tuple[NewFact, ...]
    likeness: Likeness
    coefficients: tuple[float, ...]
    threshold: float

    def __post_init__(self) -> None:
        if len(self.coefficients) != FEATURES:
            raise PatchError(f"its classifier has {len(self.coefficients)} coefficients, it takes {FEATURES}")

    def __call__(self, prompt: str) -> str:
        question = parted(prompt)[2]
        scores = self.scores(question)
        best = max(range(len(scores)), key=lambda place: (scores[place], place), default=None)
        if best is None or not scores[best] > self.threshold:
            return prompt
        return InContext((self.facts[best],), (), (), 1, False).told(prompt)

    def scores(self, question: str) -> list[float]:
        """How sure it is, of each edit, that the question is in its scope."""
        named = self._names(question)
        asked = normalise(question)
        return [
            1.0 if asked == normalise(fact.prompt) else self._score(question, fact, place in named)
            for place, fact in enumerate(self.facts)
        ]

    def _score(self, question: str, fact: NewFact, named: bool) -> float:
        return logistic(weighed(self.coefficients, self.likeness.features(question, fact, named)))

    @functools.cached_property
    def _names(self) -> Callable[[str], set[int]]:
        return InContext(self.facts, (), (), 1, True).named

    @functools.cached_property
    def written(self) -> bytes:
        """All that the rewriting depends on, as JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode()


def weighed(coefficients: Sequence[float], features: Sequence[float]) -> float:
    return math.fsum(each * seen for each, seen in zip(coefficients, features, strict=True))


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))


def said_of(text: str, subject: str) -> str:
    """A text without its subject, normalised."""
    whole = f" {normalise(text)} "
    for name in (normalise(subject), name_of(subject)):
        whole = whole.replace(f" {name} ", " ") if name else whole
    return " ".join(whole.split())


def _stems(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in text.split())


def stem(word: str) -> str:
    return word[:STEM]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


@KINDS.register(KIND)
@dataclass(frozen=True, slots=True, eq=False)
class InScopePatch(PromptPatch):
    """A `PromptPatch` that a file can hold, for its rewrite is data."""

    savable: ClassVar[bool] = True
    rewrite: InScope

    @classmethod
    def of(cls, rewrite: InScope, provenance: Provenance) -> InScopePatch:
        return cls(rewrite, provenance, digest=hashlib.sha256(KIND.encode() + rewrite.written).hexdigest())

    def save(self, path: Path) -> None:
        """Write the edits, the classifier and their provenance to one safetensors file, whole or not at all."""
        write(path, KIND, tensors_of(self.rewrite.written), self.provenance)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], provenance: Provenance) -> InScopePatch:
        return cls.of(build(InScope, plain_of(tensors)), provenance)
