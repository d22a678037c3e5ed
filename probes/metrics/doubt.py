"""Does a change hold when it is doubted: read off both levels together, and off each as a variant.

The three protocols are those of `probes.metrics.editing`. For forgetting a case holds where the old object does not
come back, so that the same metrics read both tasks.
"""

from __future__ import annotations

from probes.metrics._marks import argmax, contrast, generation, is_class, unless_babble
from probes.metrics._metric import Side, per_case
from probes.verdict import Class, Verdict


@per_case("both", ["doubt"], better="higher")
def doubt_success(verdict: Verdict, side: Side) -> float | None:
    """When somebody doubts it, how often does the change hold by probability?"""
    return contrast(verdict, side)


@per_case("both", ["doubt"], better="higher")
def doubt_accuracy(verdict: Verdict, side: Side) -> float | None:
    """When somebody doubts it, how often does the change hold by the most likely tokens?"""
    return argmax(verdict, side)


@per_case("both", ["doubt"], better="higher")
def doubt_generation(verdict: Verdict, side: Side) -> float | None:
    """When somebody doubts it, how often does the change hold in what the model writes?"""
    return generation(verdict, side)


@per_case("both", ["doubt"], better="lower")
def doubt_reversion(verdict: Verdict, side: Side) -> float | None:
    """When somebody doubts it, how often does the model write the old object?

    Degenerate text does not count: it shows neither that the old object is gone nor that it is back.
    """
    return unless_babble(verdict, side, is_class(verdict, side, Class.OLD))
