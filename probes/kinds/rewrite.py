"""Does the change show at the very prompt it was made for?

The prompt is asked as it is written in the fact, for that is what the operator was given.
"""

from __future__ import annotations

from editkit.facts import Record
from probes.kinds import PROBES, Context, Rounds
from probes.kinds._cases import about_fact, one_round


@PROBES.register("rewrite")
def rewrite(record: Record, context: Context) -> Rounds:
    """One case, variant "plain"."""
    return one_round([about_fact(record, context, probe="rewrite", variant="plain", prompt=record.fact.text)])
