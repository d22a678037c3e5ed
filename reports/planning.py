"""What `editkit edit` prints of its plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from editkit.facts import EditRecord
from editkit.handle import ModelHandle
from reports.console import table
from reports.outlook import plan_rows, planned
from reports.watch import Watch


def show_plan(
    handle: ModelHandle,
    operator: Any,
    source: str,
    records: Sequence[EditRecord],
    seed: int,
    watch: Watch,
    *,
    trial: bool = True,
    strict: bool = True,
) -> None:
    """Try the operator on the first facts, and print what all of them will take and what stands against it; without a
    `trial`, what can be said beforehand. `strict` as in `planned`."""
    if trial:
        watch.phase("Trying the first facts")
    found = planned(handle, operator, [record.edit for record in records], seed, watch, trial=trial, strict=strict)
    table("Plan", ("", ""), plan_rows(handle, source, str(found.edits), found, records, targets=True))
