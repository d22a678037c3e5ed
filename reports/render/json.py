"""The report for programs: all figures, claims, facts and changes, with the words of the other reports beside them.

Each section carries its tables as the other reports show them, so that no number is in those alone; the cases are in
cases.parquet. Figures by wording are all here, the others show a choice of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from reports.document import Block, Chart, Details, Document, Section, Table
from reports.record import Audit, Claim, Figure
from reports.render import RENDERERS
from reports.wording import better, demand, metric_question, metric_title, ruling_text, told

FORMAT = "editkit-report/1"


@RENDERERS.register("json")
def render(document: Document, audit: Audit) -> str:
    """ASCII JSON with keys in a fixed order; numbers that are not finite are null."""
    body = {
        "format": FORMAT,
        "title": document.title,
        "ruling": audit.ruling().value,
        "started": audit.started,
        "seconds": audit.seconds,
        "command": audit.command,
        "model": audit.model,
        "environment": audit.environment,
        "spec": audit.spec,
        "facts": audit.facts,
        "passed_over": audit.passed_over,
        "changes": audit.changes,
        "claims": [_claim(claim, audit) for claim in audit.claims],
        "figures": [_figure(figure) for figure in audit.figures],
        "metrics": {name: _metric(name) for name in sorted({figure.row.metric for figure in audit.figures})},
        "cases": {
            "number": len(audit.judged),
            "questions": audit.questions(),
            "premises": len(audit.premises()),
            "file": "cases.parquet",
        },
        "notes": audit.notes,
        "sections": [_section(section) for section in document.sections],
    }
    return json.dumps(_plain(body), indent=1, allow_nan=False) + "\n"


def _claim(claim: Claim, audit: Audit) -> dict[str, Any]:
    words = {
        "demand": demand(claim.at_least, claim.at_most),
        "measured": told(claim.estimate),
        "verdict": ruling_text(claim, audit),
    }
    return _plain(claim) | {"text": words}


def _section(section: Section) -> dict[str, Any]:
    tables = [
        {"caption": table.caption, "columns": table.columns, "rows": table.rows}
        for table in dict.fromkeys(_tables(section.blocks))
        if not table.filterable
    ]
    return {"id": section.id, "title": section.title, "order": section.order, "data": section.data, "tables": tables}


def _tables(blocks: Sequence[Block]) -> Iterator[Table]:
    """All tables, those folded away and behind charts too."""
    for block in blocks:
        if isinstance(block, Table):
            yield block
        elif isinstance(block, Chart) and block.table is not None:
            yield block.table
        elif isinstance(block, Details):
            yield from _tables(block.blocks)


def _figure(figure: Figure) -> dict[str, Any]:
    row = figure.row
    words = {"before": told(row.before), "after": told(row.after), "difference": told(row.difference, signed=True)}
    return {"operator": figure.operator, "task": figure.task, "arm": figure.arm, **_plain(row), "text": words}


def _metric(name: str) -> dict[str, str]:
    return {"title": metric_title(name), "question": metric_question(name), "better": better(name)}


def _plain(value: Any) -> Any:
    """Nothing but what JSON knows; what it does not know is written as text."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple | set | frozenset) else str(value)
