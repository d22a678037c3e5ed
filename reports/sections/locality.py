"""Collateral damage: what was right before, should have stayed, and is not right any more."""

from __future__ import annotations

from probes.estimate import proportion
from probes.verdict import Expect, Verdict
from reports.document import Block, Exchanges, Heading, Section, Table, Text
from reports.record import Audit, Figure, questions_of
from reports.sections import SECTIONS
from reports.sections._charts import intervals, points_of
from reports.sections._figures import HEADLINE, arms, figure_table, level_of, overall, questions, reads_only
from reports.sections._verdicts import broke, changed_fact, exchange, facts_by_id, firsts, telling
from reports.wording import arm_title, metric_title, plural, probe_title, told

PROBE = "neighborhood"
_SHOWN = 6


@SECTIONS.register("locality")
def section(audit: Audit) -> Section | None:
    if not any(item.verdict.case.expect is Expect.UNCHANGED for item in audit.judged):
        return None
    whole = overall(audit, reads_only(PROBE))
    blocks: list[Block] = [Text(_INTRODUCTION), *_charts(whole), _damage(audit), *_examples(audit)]
    return Section("locality", "Collateral damage", 50, tuple(blocks))


def _charts(whole: list[Figure]) -> list[Block]:
    blocks: list[Block] = []
    for task, title in (("edit", "Neighbours of the edits"), ("unlearn", "Neighbours of what should be forgotten")):
        own = [f for f in whole if f.task == task]
        drawn = [f for f in own if f.row.metric == HEADLINE[task, PROBE]]
        if own:
            table = figure_table(title, own)
            points = points_of(drawn, [metric_title(f.row.metric) for f in drawn])
            blocks.append(intervals(title, points, "share", questions([HEADLINE[task, PROBE]]), table) or table)
    return blocks


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
            groups = [v.case.group for v in right]
            lost = proportion([float(bool(broke(v))) for v in right], groups, level_of(audit))
            rows.append((arm_title(operator, arm), probe_title(probe), str(len(own)), str(len(right)), told(lost)))
    columns = ("Change", "Asked about", "Asked", "Right before", "Of these wrong after")
    return Table("What was right and is not any more", columns, tuple(rows), numeric=(2, 3, 4))


def _examples(audit: Audit) -> list[Block]:
    """Cases that changed, spread over the arms and then over the changed facts."""
    facts, per_arm = facts_by_id(audit), []
    for operator, task, arm in arms(audit):
        lost = telling(v for v in _stay(audit, operator, arm) if broke(v))
        spread = firsts(lost, lambda verdict: verdict.case.group)
        per_arm.append([(arm_title(operator, arm), task, verdict) for verdict in spread])
    turns = [row[i] for i in range(_SHOWN) for row in per_arm if i < len(row)]
    once = firsts(turns, lambda turn: turn[2].case.prompt)[:_SHOWN]
    shown = tuple(exchange(v, title, changed_fact(v, task, facts)) for title, task, v in once)
    if shown:
        return [Heading("What was lost, for example"), Exchanges(shown)]
    stay = questions_of(item for item in audit.judged if item.verdict.case.expect is Expect.UNCHANGED)
    return [Text(f"No damage was found by {plural(stay, 'question')} about what should stay.")]


_INTRODUCTION = (
    "Questions about neighbours of the changed fact and about other facts of its relation. Only those count that the "
    "unchanged model answered rightly."
)
