"""How the metrics read one verdict: 1.0, 0.0, or None where it does not count.

A degenerate text is no success under any protocol, whatever its probabilities say: a share of successes counts it as a
failure, a share of failures (`unless_babble`) does not count it. How often it comes is told by `degeneration`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from probes.estimate import Array
from probes.metrics._metric import Side
from probes.verdict import Class, Marks, Verdict

Protocol = Callable[[Verdict, Side], float | None]


def marks(verdict: Verdict, side: Side) -> Marks:
    return verdict.before if side == "before" else verdict.after


def answer_class(verdict: Verdict, side: Side) -> Class:
    return verdict.class_before if side == "before" else verdict.class_after


def is_class(verdict: Verdict, side: Side, wanted: Class) -> float:
    return float(answer_class(verdict, side) is wanted)


def is_babble(verdict: Verdict, side: Side) -> bool:
    return answer_class(verdict, side) is Class.DEGENERATE


def contrast(verdict: Verdict, side: Side) -> float | None:
    """Does the probability contrast give what the case expects, and is the answer written then a text."""
    return _success(marks(verdict, side).contrast, verdict, side)


def argmax(verdict: Verdict, side: Side) -> float | None:
    """Do the most likely tokens under teacher forcing give what the case expects, and is the answer a text."""
    return _success(marks(verdict, side).argmax, verdict, side)


def generation(verdict: Verdict, side: Side) -> float | None:
    """Does the generated answer give what the case expects."""
    return _success(marks(verdict, side).generation, verdict, side)


def _success(mark: bool | None, verdict: Verdict, side: Side) -> float | None:
    return None if mark is None else float(mark and not is_babble(verdict, side))


def kept(protocol: Protocol, verdict: Verdict, side: Side) -> float | None:
    """Is what was right before still right; None where it was not right, so that 1.0 before by definition."""
    return protocol(verdict, side) if protocol(verdict, "before") == 1.0 else None


def unless_babble(verdict: Verdict, side: Side, share: float) -> float | None:
    """The share, None where the text is degenerate: that the old answer is missing from babble is no success."""
    return None if is_babble(verdict, side) else share


def harmonic(*shares: Array) -> Array:
    """The harmonic mean of shares, elementwise; 0 where one of them is 0, NaN where one is."""
    stacked = np.stack(shares)
    with np.errstate(divide="ignore"):
        return len(stacked) / (1.0 / stacked).sum(axis=0)
