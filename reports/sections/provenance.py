"""Where the numbers come from: model, changes, versions, and the command that makes them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from reports.document import Block, Code, Details, Section, Table, Text
from reports.record import Audit, Change
from reports.sections import SECTIONS
from reports.wording import arm_title, number, plural

_MODEL = ("name", "layout", "model_type", "parameters", "layers", "hidden_size", "weights", "licence")
_FACTS_SHOWN = 3


@SECTIONS.register("provenance")
def section(audit: Audit) -> Section:
    packages = audit.environment.get("packages")
    environment = {key: value for key, value in audit.environment.items() if key != "packages"}
    blocks: list[Block] = [
        *([Code("The command to repeat it", audit.command)] if audit.command else []),
        _pairs("Model", _first(audit.model, _MODEL)),
        *_changes(audit),
        _pairs("Environment", {**environment, **_run(audit)}),
    ]
    if isinstance(packages, Mapping) and packages:
        blocks.append(Details(plural(len(packages), "package"), (_pairs("Packages", packages),)))
    if audit.spec:
        blocks.append(Details("The specification, fully resolved", (Code("Specification", _json(audit.spec)),)))
    return Section("provenance", "Provenance", 100, tuple(blocks), {"command": audit.command})


def _run(audit: Audit) -> dict[str, str]:
    started = {"started (UTC)": audit.started} if audit.started else {}
    return started | ({"took": f"{audit.seconds:,.0f} s"} if audit.seconds else {})


def _first(values: Mapping[str, Any], order: tuple[str, ...]) -> dict[str, Any]:
    known = {key: values[key] for key in order if key in values}
    return known | {key: value for key, value in values.items() if key not in known}


def _pairs(caption: str, values: Mapping[str, Any]) -> Block:
    if not values:
        return Text(f"{caption}: not recorded.", "note")
    rows = tuple((str(key).replace("_", " "), _worded(value)) for key, value in values.items())
    return Table(caption, ("What", "Value"), rows)


def _worded(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else _json(value)
    return f"{value:,}" if isinstance(value, int) else number(value)


def _changes(audit: Audit) -> list[Block]:
    if not audit.changes:
        return [Text("No change was computed.", "note")]
    columns = ("Change", "Facts", "Relative norm", "Parameters moved", "Seconds", "Seed", "Digest", "File")
    rows = tuple(_change_row(change) for change in audit.changes)
    note = "Relative norm: Frobenius norm of the change over that of the weights that it is added to."
    table = Table("Changes", columns, rows, numeric=(2, 4, 5), note=note)
    return [table, Details("Settings of the operators, and where they come from", tuple(_settings(audit)))]


def _change_row(change: Change) -> tuple[str, ...]:
    facts = ", ".join(change.facts[:_FACTS_SHOWN])
    more = f" and {len(change.facts) - _FACTS_SHOWN} more" if len(change.facts) > _FACTS_SHOWN else ""
    parameters = ", ".join(change.parameters[:_FACTS_SHOWN])
    others = f" and {len(change.parameters) - _FACTS_SHOWN} more" if len(change.parameters) > _FACTS_SHOWN else ""
    return (
        arm_title(change.operator, change.arm),
        facts + more,
        "no weights" if change.relative_norm is None else f"{change.relative_norm:.2g}",
        parameters + others,
        number(change.seconds),
        str(change.seed),
        change.digest[:12],
        change.file or "not kept",
    )


def _settings(audit: Audit) -> list[Block]:
    """One block for each operator and different settings; the notes of a change follow them."""
    found: dict[tuple[str, str], str] = {}
    for change in audit.changes:
        found.setdefault((change.operator, _json(change.settings)), change.settings_source or "source not recorded")
    return [Code(f"{operator}, {source}", settings) for (operator, settings), source in found.items()]


def _json(value: Any) -> str:
    return json.dumps(value, indent=2 if isinstance(value, Mapping) else None, ensure_ascii=False, default=str)
