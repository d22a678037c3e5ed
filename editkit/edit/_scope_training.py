"""A classifier of (prompt, edit), trained from the facts that editkit brings: never on a held-out wording.

A pair's edit is a fact about another subject than those edited, in one of its seen wordings. The prompt is in scope
where it is another seen wording of the same fact, and out of scope where it asks the same of another subject, or
something else of the same subject. Some prompts stand after a sentence, some in the form of a dialogue.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from editkit.edit._ike_patch import InContext, NewFact
from editkit.edit._serac_patch import Likeness, StemWeight, stem, weighed
from editkit.entries import Entry, Relation, overlap
from editkit.facts import SLOT, fill, normalise

FORMS = (SLOT, SLOT, f"It is known to everybody. {SLOT}", f"Q: {SLOT}\nA:")
STEPS = 30
RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt, an edit, and whether the prompt is in its scope."""

    prompt: str
    fact: NewFact
    inside: bool

    @property
    def named(self) -> bool:
        return bool(InContext((self.fact,), (), (), 1, True).named(self.prompt))


@dataclass(frozen=True, slots=True)
class Stock:
    """What pairs are made of: relations worded in more than one way, and their facts."""

    relations: Sequence[Relation]
    entries: Sequence[Entry]

    def without(self, subjects: Sequence[str]) -> Stock:
        """Less the facts about these subjects, and about what has their name in its own."""
        kept = [e for e in self.entries if not any(overlap(e.fact.subject, subject) for subject in subjects)]
        return Stock(self.relations, kept)

    def likeness(self) -> Likeness:
        """Words by how few of the relations use them: log((R + 1) / n)."""
        used = Counter(word for relation in self.relations for word in _words(relation))
        most = math.log(len(self.relations) + 1)
        return Likeness(tuple(StemWeight(word, most - math.log(n)) for word, n in sorted(used.items())), most)

    def pairs(self, number: int, seed: int) -> list[Pair]:
        """`number` facts drawn with a seed, up to three pairs of each; none where nothing is in stock."""
        source = random.Random(seed)
        by_relation = {r.name: [e for e in self.entries if e.relation == r.name] for r in self.relations}
        usable = [relation for relation in self.relations if by_relation[relation.name]]
        return [p for _ in range(number if usable else 0) for p in self._drawn(source, usable, by_relation)]

    def _drawn(
        self, source: random.Random, usable: Sequence[Relation], by_relation: dict[str, list[Entry]]
    ) -> Iterator[Pair]:
        relation = source.choice(usable)
        entry, other = (source.choice(by_relation[relation.name]) for _ in range(2))
        own, wording = source.sample(relation.seen, 2)
        form, subject = source.choice(FORMS), entry.fact.subject
        fact = NewFact(subject, fill(own, subject), entry.fact.object)
        yield Pair(fill(form, fill(wording, subject)), fact, True)
        if not overlap(other.fact.subject, subject):
            yield Pair(fill(form, fill(wording, other.fact.subject)), fact, False)
        elsewhere = [r for r in usable if r.subject_type == relation.subject_type and r.name != relation.name]
        if elsewhere:
            yield Pair(fill(form, fill(source.choice(source.choice(elsewhere).seen), subject)), fact, False)


def _words(relation: Relation) -> set[str]:
    return {stem(word) for wording in relation.seen for word in normalise(wording.replace(SLOT, " ")).split()}


def fitted(pairs: Sequence[Pair], likeness: Likeness) -> tuple[float, ...]:
    """Coefficients of the logistic regression with the least loss, by Newton's method with a small ridge."""
    x = np.array([likeness.features(pair.prompt, pair.fact, pair.named) for pair in pairs])
    y = np.array([pair.inside for pair in pairs], dtype=float)
    w = np.zeros(x.shape[1])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-x @ w))
        curvature = (x * (p * (1 - p))[:, None]).T @ x / len(y) + RIDGE * np.eye(len(w))
        w -= np.linalg.solve(curvature, x.T @ (p - y) / len(y) + RIDGE * w)
    return tuple(round(float(each), 6) for each in w)  # the last digits differ between machines


def accuracy(pairs: Sequence[Pair], likeness: Likeness, coefficients: Sequence[float]) -> float:
    """The share of the pairs on whose right side the classifier is."""
    sums = [weighed(coefficients, likeness.features(p.prompt, p.fact, p.named)) for p in pairs]
    return sum((score > 0) == pair.inside for score, pair in zip(sums, pairs, strict=True)) / len(pairs)
