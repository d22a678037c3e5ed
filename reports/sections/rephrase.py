"""Does the change reach other wordings: over all of them, and by kind of wording."""

from __future__ import annotations

from reports.document import Block, Section, Text
from reports.record import Audit, Figure
from reports.sections import SECTIONS
from reports.sections._charts import intervals, points_of
from reports.sections._figures import (
    HEADLINE,
    by_variant,
    figure_table,
    folded,
    overall,
    questions,
    reads_only,
)
from reports.wording import variant_title

PROBE = "rephrase"


@SECTIONS.register("rephrase")
def section(audit: Audit) -> Section | None:
    whole = overall(audit, reads_only(PROBE))
    parts = by_variant(audit, reads_only(PROBE))
    if not whole:
        return None
    blocks: list[Block] = [
        Text("The same fact asked in words that the operator did not see. A fact that was learnt holds in all of them.")
    ]
    blocks += [_chart(task, found) for task in ("edit", "unlearn") if (found := _headline(parts, task))]
    blocks += [
        figure_table("Over all other wordings", whole),
        folded("By wording, all protocols", figure_table("By wording", parts, wording=True)),
    ]
    return Section("rephrase", "Other wordings", 20, tuple(blocks))


def _headline(figures: list[Figure], task: str) -> list[Figure]:
    return [f for f in figures if f.task == task and f.row.metric == HEADLINE[task, PROBE]]


def _chart(task: str, figures: list[Figure]) -> Block:
    name = figures[0].row.metric
    rows = [variant_title(f.row.variant or "") for f in figures]
    table = figure_table("By wording", figures, wording=True)
    title = {"edit": "Edits, by wording", "unlearn": "Forgetting, by wording"}[task]
    return intervals(title, points_of(figures, rows), "share", questions([name]), table) or table
