"""Do facts about other subjects stay as they were?

CounterFact's neighbourhood (Meng et al. 2022, arXiv:2202.05262), and facts of other relations beside it.
"""

from __future__ import annotations

from editkit.facts import Record
from probes.kinds import PROBES, Context, Rounds
from probes.kinds._cases import each_prompt_once, neighbor_case, one_round


@PROBES.register("neighborhood")
def neighborhood(record: Record, context: Context) -> Rounds:
    """One case a neighbour, variant "same relation" or "other relation"; those that were wrong before do not apply."""
    cases = [
        neighbor_case(
            record,
            context,
            question,
            probe="neighborhood",
            variant="same relation" if question.relation == record.fact.relation else "other relation",
        )
        for question in record.held_out.neighborhood
        if context.stays(question)
    ]
    return one_round(each_prompt_once(cases))
