"""The table of docs/truth.md: how every edit operator does on real facts in the embedded model.

    python tools/truth.py rome memit …    # audits these (it resumes) and keeps docs/truth/<operator>.json
    python tools/truth.py                 # only writes the table, from what is kept

Each of `FACTS` facts that the model knows is edited by itself, asked about and rolled back: at its own prompt, in other
wordings, at its neighbours, and in questions that need it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from editkit.files import write_text
from editkit.operators import EDITS
from reports.audit import run
from reports.record import Audit, Change, Figure
from reports.spec import make_spec, resolved

DOCS = Path(__file__).resolve().parent.parent / "docs"
KEPT, TABLE, RUNS = DOCS / "truth", DOCS / "truth.md", Path("runs") / "truth"
FACTS = 100
PROBES = ("rewrite", "rephrase", "neighborhood", "multi_hop")
METRICS = {
    "efficacy_accuracy": "efficacy",
    "generalization_accuracy": "generalization",
    "specificity_accuracy": "specificity",
    "portability_accuracy": "portability",
    "degeneration": "degenerate text",
}
HEAD = """# How the edit operators do on real facts

`{model}`, {facts} facts of `{source}` that it knows, each edited by itself and rolled back; 95 % intervals, clustered
by fact. The first four columns are shares of prompts at which every token of the answer is the most likely one (higher
is better): the new object at the edit's own prompt, the new object in other wordings, the old object at neighbours that
had it before, the new consequence in questions that need the fact. Degenerate text is the share of answers that are
empty or repeat themselves (lower is better). The norm is that of the change beside the weights', median over facts; the
time is that of one edit, found together with the others where the operator can.

Made by `make truth`, or by `python tools/truth.py OPERATOR …` for some: each row says of what day it is. Presets for
this model were chosen on a handful of facts of the same kind, some of them among these. Where an operator could not
edit a fact, the row says for how many it could.

"""
COLUMNS = ("operator", *METRICS.values(), "norm", "s an edit", "facts", "day")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("operators", nargs="*", choices=[[], *EDITS.names()], metavar="OPERATOR")
    options.add_argument("--facts", type=int, default=FACTS)
    given = options.parse_args()
    if given.operators:
        for name, row in _measured(given.operators, given.facts).items():
            write_text(KEPT / f"{name}.json", json.dumps(row, indent=1) + "\n")
    write_text(TABLE, table([json.loads(file.read_text(encoding="utf-8")) for file in sorted(KEPT.glob("*.json"))]))


def _measured(names: Sequence[str], facts: int) -> dict[str, dict[str, Any]]:
    spec = resolved(
        make_spec(
            {
                "facts": {"n": facts},
                "operators": [{"name": name, "arms": ["single"]} for name in names],
                "probes": list(PROBES),
            }
        )
    )
    audit = run(spec, RUNS / "-".join(names), command="make truth")
    return {name: _row(audit, name) for name in names}


def _row(audit: Audit, name: str) -> dict[str, Any]:
    changes: list[Change] = [change for change in audit.changes if change.operator == name]
    figures: list[Figure] = [f for f in audit.figures if f.operator == name and not (f.row.stratum or f.row.variant)]
    after = {f.row.metric: f.row.after for f in figures if f.row.metric in METRICS}
    norms = [change.relative_norm for change in changes if change.relative_norm is not None]
    return {
        "operator": name,
        "model": audit.spec["model"]["name"],
        "source": audit.spec["facts"]["source"],
        "of": len(audit.facts),
        "facts": len(changes),
        "figures": {metric: [e.value, e.low, e.high, e.n] for metric, e in after.items()},
        "norm": statistics.median(norms) if norms else None,
        "seconds": statistics.mean(change.seconds for change in changes),
        "settings": dict(changes[0].settings),
        "settings_source": changes[0].settings_source,
        "environment": dict(audit.environment),
        "day": datetime.now(UTC).date().isoformat(),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The page, from rows that are kept."""
    if not rows:
        return HEAD.format(model="the embedded model", facts="some", source="world") + "Nothing is measured yet.\n"
    head = HEAD.format(model=rows[0]["model"], facts=rows[0]["of"], source=rows[0]["source"])
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return head + "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    figures = [_share(row["figures"].get(metric)) for metric in METRICS]
    norm = "" if row["norm"] is None else f"{row['norm']:.3f}"
    facts = str(row["facts"]) if row["facts"] == row["of"] else f"{row['facts']} of {row['of']}"
    return [f"`{row['operator']}`", *figures, norm, f"{row['seconds']:.2f}", facts, row["day"]]


def _share(figure: Sequence[Any] | None) -> str:
    if figure is None or figure[0] is None:
        return "–"
    value, low, high, _ = figure
    return f"{value:.2f}" if low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
