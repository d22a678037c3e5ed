"""Is what the changed model writes still language."""

from __future__ import annotations

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
