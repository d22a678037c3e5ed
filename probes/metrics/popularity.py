"""Do other facts of the changed relation stay, popular ones and rare ones."""

from __future__ import annotations

from probes.metrics._marks import generation, kept
from probes.metrics._metric import Side, per_case
from probes.verdict import Verdict


@per_case("both", ["popularity"], better="higher", baseline=False)
def relation_kept(verdict: Verdict, side: Side) -> float | None:
    """Of other facts of the changed relation that the model wrote rightly, how many does it still?

    They are drawn from every popularity stratum; the report tells them apart by the stratum of the asked fact.
    """
    return kept(generation, verdict, side)
