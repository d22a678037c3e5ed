"""All numbers before and after, by operator and arm; the three protocols side by side."""

from __future__ import annotations

from probes.metrics import METRICS
from reports.document import Block, Chart, Section, Table, Text
from reports.record import Audit, Figure
from reports.sections import SECTIONS
from reports.sections._charts import intervals, points_of
from reports.sections._figures import (
    arms,
    figure_table,
    folded,
    interval_note,
    overall,
    protocols,
)
from reports.wording import metric_title, plural


@SECTIONS.register("efficacy")
def section(audit: Audit) -> Section | None:
    figures = overall(audit)
    if not figures:
        return None
    blocks: list[Block] = [Text(f"{interval_note(audit)} All metrics over all questions, before and after. {_WHERE}")]
    operators = dict.fromkeys(operator for operator, _, _ in arms(audit))
    for operator in operators:
        own = [figure for figure in figures if figure.operator == operator]
        blocks += _of_operator(operator, own)
    side_by_side = protocols(audit)
    blocks += [side_by_side] if side_by_side else []
    return Section("efficacy", "Before and after", 10, tuple(blocks))


_WHERE = "What no table here shows, such as each metric by wording, is in report.json."


def _of_operator(operator: str, figures: list[Figure]) -> list[Block]:
    table = figure_table(f"All metrics of {operator}", figures)
    chart = _chart(operator, figures, table)
    return [chart] if chart else [folded(f"{operator}: {plural(len(figures), 'number')}", table)]


def _chart(operator: str, figures: list[Figure], table: Table) -> Chart | None:
    drawn = [f for f in figures if _is_share(f.row.metric) and f.row.after.value is not None]
    rows = [f"{metric_title(f.row.metric)} {_arrow(f.row.metric)}" for f in drawn]
    description = (
        f"Shares measured for {operator}, before and after, with their intervals. ↑ higher is better, ↓ lower."
    )
    return intervals(f"{operator}: all shares", points_of(drawn, rows), "share", description, table)


def _is_share(name: str) -> bool:
    """By the text as written and what has no protocol; the other protocols stand in the tables."""
    if name.endswith(("_success", "_accuracy", "_argmax")) and name != "forget_accuracy":
        return False
    return name not in METRICS or METRICS[name].unit == "share"


def _arrow(name: str) -> str:
    if name not in METRICS:
        return ""
    return "↑" if METRICS[name].better == "higher" else "↓"
