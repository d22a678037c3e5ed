"""Which popularity strata break: of the changed fact, and of the facts that are asked beside it."""

from __future__ import annotations

from probes.estimate import proportion
from probes.metrics import METRICS
from probes.verdict import Expect
from reports.document import Block, Section, Table, Text
from reports.record import Audit, Figure
from reports.sections import SECTIONS
from reports.sections._charts import Point, intervals, points_of
from reports.sections._figures import HEADLINE, arms, figure_table, folded, level_of, overall, questions
from reports.sections._verdicts import broke
from reports.wording import arm_title, stratum_title, told


@SECTIONS.register("popularity")
def section(audit: Audit) -> Section | None:
    cut = [figure for figure in audit.figures if figure.row.stratum is not None]
    asked, points = _asked(audit)
    if not cut and not asked.rows:
        return None
    blocks: list[Block] = [Text(f"{_INTRODUCTION} {_unit(audit)}"), *_of_changed(cut), *_gap(audit)]
    if asked.rows:
        chart = intervals("By popularity of the fact that was asked", points, "share kept", _KEPT, asked)
        blocks.append(chart or asked)
    return Section("popularity", "Popularity", 60, tuple(blocks))


def _unit(audit: Audit) -> str:
    unit = audit.environment.get("popularity") or audit.spec.get("popularity")
    return (
        f"Unit of popularity: {unit}" if isinstance(unit, str) else "The data does not say what its popularity counts."
    )


def _of_changed(cut: list[Figure]) -> list[Block]:
    """By stratum of the fact that was changed: a chart a task, and all metrics folded away."""
    blocks: list[Block] = []
    for task, title in (("edit", "Edits"), ("unlearn", "Forgetting")):
        name = HEADLINE[task, "rephrase"]
        drawn = sorted((f for f in cut if f.task == task and f.row.metric == name), key=lambda f: f.row.stratum or "")
        if drawn:
            table = figure_table(f"{title} by popularity", drawn, stratum=True)
            points = points_of(drawn, [stratum_title(f.row.stratum) for f in drawn])
            title = f"{title}, by popularity of the changed fact"
            blocks.append(intervals(title, points, "share", questions([name]), table) or table)
    whole = figure_table("All metrics by popularity", cut, stratum=True)
    return [*blocks, folded("All metrics by popularity of the changed fact", whole)] if cut else blocks


def _gap(audit: Audit) -> list[Block]:
    gaps = overall(audit, lambda name: name in METRICS and METRICS[name].across_strata)
    measured = [figure for figure in gaps if figure.row.after.value is not None]
    return [figure_table("Between the strata", measured)] if measured else []


def _asked(audit: Audit) -> tuple[Table, list[Point]]:
    """By stratum of the asked fact: how much of what was right before is still right."""
    rows, points = [], []
    for operator, _, arm in arms(audit):
        stay = {  # a question that two probes ask is one question
            (item.verdict.case.group, item.verdict.case.prompt): item.verdict
            for item in audit.judged
            if (item.operator, item.arm) == (operator, arm)
            and item.verdict.case.expect is Expect.UNCHANGED
            and item.verdict.case.stratum is not None
        }.values()
        for stratum in sorted({verdict.case.stratum or "" for verdict in stay}):
            own = [v for v in stay if v.case.stratum == stratum and broke(v) is not None]
            kept = proportion([float(not broke(v)) for v in own], [v.case.group for v in own], level_of(audit))
            rows.append((arm_title(operator, arm), stratum_title(stratum), told(kept)))
            points.append((stratum, Point(stratum_title(stratum), arm_title(operator, arm), "after", kept)))
    columns = ("Change", "Popularity of the asked fact", "Kept, of those right before")
    table = Table("Kept by popularity of the asked fact", columns, tuple(rows), numeric=(2,), note=_KEPT)
    return table, [point for _, point in sorted(points, key=lambda placed: placed[0])]


_INTRODUCTION = (
    "Rare facts sit differently in a model than popular ones. A change that holds for one kind may break another."
)
_KEPT = "Of the other facts that the unchanged model wrote rightly, the share that it still does."
