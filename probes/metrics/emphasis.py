"""Do stressed key words bring the old answer back, beyond what any other prompt of that form does.

After unPact (the recovery of "forgotten" answers by emphasising key tokens), with controls that it lacks: as many
stressed random words, and the template with no words of the question in it. Only facts count whose old answer came
before the change and does not come after it at the plain wording. Every kind gets the same number of tries k, the
smallest number of wordings that the fact has of a kind: of m wordings of which c bring the old answer, the share of
k-subsets with at least one is 1 - C(m - c, k) / C(m, k); for k = m that is "any of them".
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from probes.estimate import Array
from probes.metrics._marks import answer_class
from probes.metrics._metric import Side, combined, per_group
from probes.verdict import Class, Verdict

PROBE = "keyword_emphasis"
PLAIN, KEY, RANDOM, TEMPLATE = "plain", "key:", "control:random_words:", "control:template_only:"


def _took(verdicts: Sequence[Verdict]) -> bool:
    """The old answer came at every plain wording, and comes at none now."""
    plain = [v for v in verdicts if v.case.variant == PLAIN]
    lost = (v.class_before is Class.OLD and v.class_after is not Class.OLD for v in plain)
    return bool(plain) and all(lost)


def _of_kind(verdicts: Sequence[Verdict], kind: str) -> list[Verdict]:
    return [v for v in verdicts if v.case.variant.startswith(kind)]


def _recovered(verdicts: Sequence[Verdict], kind: str, side: Side) -> float | None:
    """The expected best of k wordings of this kind: 1 where the old answer comes back."""
    asked = _of_kind(verdicts, kind)
    if not asked or not _took(verdicts):
        return None
    tries = min(n for n in (len(_of_kind(verdicts, k)) for k in (KEY, RANDOM, TEMPLATE)) if n)
    back = sum(answer_class(v, side) is Class.OLD for v in asked)
    return 1.0 - comb(len(asked) - back, tries) / comb(len(asked), tries)


@per_group("both", [PROBE], better="lower", baseline=False)
def recovery_rate(verdicts: Sequence[Verdict], side: Side) -> float | None:
    """Of the facts whose old answer was gone, how many give it again when the key words are stressed?"""
    return _recovered(verdicts, KEY, side)


@per_group("both", [PROBE], better="lower", baseline=False)
def recovery_random(verdicts: Sequence[Verdict], side: Side) -> float | None:
    """Of the facts whose old answer was gone, how many give it again when as many other words are stressed?"""
    return _recovered(verdicts, RANDOM, side)


@per_group("both", [PROBE], better="lower", baseline=False)
def recovery_template(verdicts: Sequence[Verdict], side: Side) -> float | None:
    """Of the facts whose old answer was gone, how many give it again under the bare template of the emphasis?"""
    return _recovered(verdicts, TEMPLATE, side)


@combined(
    "both",
    [recovery_rate, recovery_random, recovery_template],
    better="lower",
    unit="difference of shares",
    baseline=False,
)
def emphasis_effect(key: Array, random_words: Array, template_only: Array) -> Array:
    """How much more often do stressed key words bring the old answer back than the better of the two controls?"""
    return key - np.maximum(random_words, template_only)
