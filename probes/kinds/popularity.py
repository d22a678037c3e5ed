"""Which popularity strata of the relation does the change break?

After Ma et al. 2024 (arXiv:2402.05827), who find that the popularity of a fact decides how well a change to it holds;
here the other facts of the relation are asked, from the least to the most popular.
"""

from __future__ import annotations

from editkit.facts import Record
from probes.kinds import PROBES, Context, Rounds
from probes.kinds._cases import each_prompt_once, neighbor_case, one_round


@PROBES.register("popularity")
def popularity(record: Record, context: Context) -> Rounds:
    """One case for each neighbour of the same relation that has a stratum, which is also its variant."""
    cases = [
        neighbor_case(record, context, question, probe="popularity", variant=question.stratum)
        for question in record.held_out.neighborhood
        if question.stratum is not None and question.relation == record.fact.relation and context.stays(question)
    ]
    return one_round(each_prompt_once(cases))
