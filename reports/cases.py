"""All cases of an audit as one table: a row a verdict, then a row a premise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from editkit.files import atomic_path
from probes.verdict import Case, Marks, Premise
from reports.present import encodable
from reports.record import Audit, Judged

CASES = "cases.parquet"
FORMAT = "editkit-cases/1"

_TEXTS, _FLAG, _NUMBER = pa.list_(pa.string()), pa.bool_(), pa.float64()
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("operator", "task", "arm", "probe", "variant", "fact", "relation")),
        *((name, pa.string()) for name in ("stratum", "expect", "prompt")),
        *((name, _TEXTS) for name in ("old", "new", "contrast")),
        *((name, pa.string()) for name in ("text_before", "text_after", "class_before", "class_after")),
        *((f"{protocol}_{side}", _FLAG) for side in ("before", "after") for protocol in Marks._fields),
        *((name, _NUMBER) for name in ("margin_before", "margin_after")),
        *((name, pa.string()) for name in ("logprob_before", "logprob_after")),  # JSON: target -> nats a token
        ("applies", _FLAG),
        ("passed", _FLAG),
        ("note", pa.string()),
    ],
    metadata={"format": FORMAT},
)  # fmt: skip


def write_cases(audit: Audit, path: Path) -> None:
    """Write the cases as Parquet with the columns of SCHEMA, in the order they were judged; premises come last.

    A premise has `expect` "premise"; `passed` is whether the unchanged model got it right; what is "after" is null.
    """
    rows = [_row(item) for item in audit.judged] + [_premise(*each) for each in audit.premises()]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary, compression="zstd")


def _row(item: Judged) -> dict[str, Any]:
    verdict = item.verdict
    row = _asked(item, verdict.case) | {
        "applies": verdict.applies,
        "passed": verdict.passed,
        "note": verdict.note or verdict.case.note,
    }
    return _storable_row(row | _side(item, "before") | _side(item, "after"))


def _premise(item: Judged, premise: Premise) -> dict[str, Any]:
    row = _asked(item, premise.case) | {
        "expect": "premise",
        "text_before": premise.reply.text,
        "class_before": premise.said.value,
        "logprob_before": json.dumps(premise.reply.logprob, sort_keys=True),
        "passed": premise.passed,
    }
    return _storable_row(dict.fromkeys(SCHEMA.names) | row)


def _asked(item: Judged, case: Case) -> dict[str, Any]:
    return {
        "operator": item.operator,
        "task": item.task,
        "arm": item.arm,
        "probe": case.probe,
        "variant": case.variant,
        "fact": case.group,
        "relation": case.relation,
        "stratum": case.stratum,
        "expect": case.expect.value,
        "prompt": case.prompt,
        "old": list(case.old),
        "new": list(case.new),
        "contrast": list(case.contrast),
    }


def _storable_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _storable(value) for name, value in row.items()}


def _side(item: Judged, side: str) -> dict[str, Any]:
    verdict = item.verdict
    if side == "before":
        reply, marks, kind, margin = verdict.answer.before, verdict.before, verdict.class_before, verdict.margin_before
    else:
        reply, marks, kind, margin = verdict.answer.after, verdict.after, verdict.class_after, verdict.margin_after
    protocols = {f"{name}_{side}": mark for name, mark in zip(marks._fields, marks, strict=True)}
    return protocols | {
        f"text_{side}": reply.text,
        f"class_{side}": kind.value,
        f"margin_{side}": margin,
        f"logprob_{side}": json.dumps(reply.logprob, sort_keys=True),
    }


def _storable(value: Any) -> Any:
    """Lone surrogates cannot be stored as UTF-8."""
    if isinstance(value, str):
        return encodable(value)
    return [encodable(text) for text in value] if isinstance(value, list) else value
