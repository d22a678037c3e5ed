"""Collateral damage: what was right before, should have stayed, and is not right any more."""

from __future__ import annotations

from probes.estimate import proportion
from probes.verdict import Expect, Verdict
from reports.document import Block, Exchanges, Section, Table, Text
from reports.record import Audit
from reports.sections import SECTIONS
from reports.sections._charts import intervals, points_of
from reports.sections._figures import HEADLINE, arms, data_of, figure_table, overall, reads_only
from reports.sections._verdicts import broke, changed_fact, exchange, facts_by_id, telling
from reports.wording import arm_title, metric_title, plural, probe_title, told

PROBE = "neighborhood"
_SHOWN = 6


@SECTIONS.register("locality")
def section(audit: Audit) -> Section | None:
    if not any(item.verdict.case.expect is Expect.UNCHANGED for item in audit.judged):
        return None
    whole = overall(audit, reads_only(PROBE))
    drawn = [f for f in whole if f.row.metric == HEADLINE.get((f.task, PROBE))]
    table = figure_table("Neighbours that stayed", whole)
    rows = [metric_title(f.row.metric) for f in drawn]
    description = "Of the neighbours' facts that the unchanged model wrote rightly, the share that it still does."
    chart = intervals("Neighbours that stayed", points_of(drawn, rows), "share", description, table)
    blocks: list[Block] = [Text(_INTRODUCTION), *([chart or table] if whole else []), _damage(audit), *_examples(audit)]
    return Section("locality", "Collateral damage", 50, tuple(blocks), {"figures": data_of(whole)})


def _stay(audit: Audit, operator: str, arm: str) -> list[Verdict]:
    own = (item.verdict for item in audit.judged if (item.operator, item.arm) == (operator, arm))
    return [verdict for verdict in own if verdict.case.expect is Expect.UNCHANGED]


def _damage(audit: Audit) -> Table:
    """By arm and probe: how much of what was right is wrong now."""
    rows = []
    for operator, _, arm in arms(audit):
        stay = _stay(audit, operator, arm)
        for probe in dict.fromkeys(verdict.case.probe for verdict in stay):
            own = [v for v in stay if v.case.probe == probe]
            right = [v for v in own if broke(v) is not None]
            lost = proportion([float(bool(broke(v))) for v in right], [v.case.group for v in right])
            rows.append((arm_title(operator, arm), probe_title(probe), str(len(own)), str(len(right)), told(lost)))
    columns = ("Change", "Asked about", "Asked", "Right before", "Of these wrong after")
    return Table("What was right and is not any more", columns, tuple(rows), numeric=(2, 3, 4))


def _examples(audit: Audit) -> list[Block]:
    """Cases that changed, spread over the arms and then over the changed facts."""
    facts, per_arm = facts_by_id(audit), []
    for operator, _, arm in arms(audit):
        lost = telling(v for v in _stay(audit, operator, arm) if broke(v))
        spread = list({verdict.case.group: verdict for verdict in reversed(lost)}.values())[::-1]
        per_arm.append([(arm_title(operator, arm), verdict) for verdict in spread])
    turns = [row[i] for i in range(_SHOWN) for row in per_arm if i < len(row)]
    shown = tuple(exchange(v, title, changed_fact(v, facts)) for title, v in turns[:_SHOWN])
    if shown:
        return [Exchanges(shown)]
    right = sum(item.verdict.case.expect is Expect.UNCHANGED for item in audit.judged)
    return [Text(f"No damage was found by {plural(right, 'question')} about what should stay.")]


_INTRODUCTION = (
    "Questions about neighbours of the changed fact and about other facts of its relation. Only those count that the "
    "unchanged model answered rightly."
)
