"""Is what the changed model writes still language."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from probes.metrics._marks import is_class
from probes.metrics._metric import Side, per_case
from probes.verdict import Class, Verdict


@per_case("both", [], better="lower", whatever_applies=True)
def degeneration(verdict: Verdict, side: Side) -> float | None:
    """Over all questions asked, how often is the answer empty or a repetition of itself?

    Every question about a fact counts once, whichever probes ask it, and also where its premise fails: whether a text
    is one does not depend on what the unchanged model knew. All degenerate is 1.
    """
    return is_class(verdict, side, Class.DEGENERATE)


@per_case("both", ["fluency"], better="higher", unit="bits", whatever_applies=True)
def fluency(verdict: Verdict, side: Side) -> float | None:
    """How varied is a text of fifty drawn tokens, as the entropy of its pairs and triples of words?

    A third of the entropy of the pairs and two thirds of that of the triples, as in ROME (Meng et al. 2022,
    arXiv:2202.05262, "GE"). What counts is a fall below the unchanged model: a text that goes in circles has few
    different triples. Differs from the authors' code: bits as they are, where theirs are multiplied by 100; texts of 50
    tokens instead of 100, so that no number can be compared with theirs (50 words have at most log2(49) = 5.6).
    """
    reply = verdict.answer.before if side == "before" else verdict.answer.after
    words = WORD.findall(reply.text.casefold())
    return (_entropy(words, 2) + 2 * _entropy(words, 3)) / 3


WORD = re.compile(r"\w+|[^\w\s]")


def _entropy(words: Sequence[str], length: int) -> float:
    """Of the runs of `length` words, in bits; 0 where there is none."""
    runs = Counter(zip(*(words[start:] for start in range(length)), strict=False))
    total = runs.total()
    return -sum(count / total * math.log2(count / total) for count in runs.values())
