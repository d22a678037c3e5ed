"""The tables of docs/truth.md: how every edit operator does on real facts in the embedded model.

    python tools/truth.py rome memit …                        # audits these (it resumes), keeps docs/truth/world/*.json
    python tools/truth.py all                                 # every edit operator there is: some hours
    python tools/truth.py --counterfact FILE rome memit …     # the same on facts of CounterFact, in its authors' format
    python tools/truth.py ike --set demonstrations=32         # with another setting, a row of its own
    python tools/truth.py [--check]                           # only writes the page, from what is kept, or checks it

Each of `FACTS` facts is edited by itself, asked about and rolled back: at its own prompt, in other wordings, at its
neighbours, and in questions that need it; and a text is drawn, to see whether it is language still.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from truth_curves import curves
from truth_directions import COUNTERFACT, WORLD
from truth_page import COLUMNS, KEPT, PICTURE, TABLE, TOKENS, Column, kept_page, kept_rows
from truth_parts import PARTS, Part, counts, knew, of_variant, shares

from editkit.facts import fill
from editkit.files import write_text
from editkit.operators import EDITS
from editkit.settings import merged
from probes.estimate import Estimate
from probes.metrics import Row
from reports.audit import run
from reports.options import setting
from reports.record import Audit, Change
from reports.spec import make_spec, resolved

RUNS = Path("runs") / "truth"
ALL = "all"
FACTS = 100
WORDED = "generalization_generation"
PROBES = {
    WORLD: ("rewrite", "rephrase", "neighborhood", "multi_hop", "doubt", "fluency"),
    COUNTERFACT: ("rewrite", "rephrase", "neighborhood", "fluency"),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("operators", nargs="*", choices=[[], ALL, *EDITS.names()], metavar="OPERATOR")
    options.add_argument("--facts", type=int, default=FACTS)
    options.add_argument("--counterfact", type=Path, metavar="FILE")
    options.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE")
    options.add_argument("--check", action="store_true")
    given = options.parse_args()
    source = COUNTERFACT if given.counterfact else WORLD
    facts = {"n": given.facts} | (_counterfact(given.counterfact) if given.counterfact else {})
    if given.operators:
        names = sorted(EDITS.names()) if ALL in given.operators else given.operators
        for row in _measured(names, source, facts, reduce(merged, given.set, {})):
            write_text(KEPT / source / f"{row['operator']}.json", json.dumps(row, indent=1) + "\n")
    if given.check:
        sys.exit(TABLE.read_text("utf-8") != kept_page())
    write_text(TABLE, kept_page())
    write_text(PICTURE, curves(kept_rows()[1]))


def _counterfact(path: Path) -> dict[str, Any]:
    """The facts of a file of CounterFact, as a file that an audit takes. A case that no such file can hold is left out:
    one that says the answer in a prompt, or its subject twice, or asks what another asks."""
    lines: dict[tuple[str, str], str] = {}
    for case in json.loads(path.read_text(encoding="utf-8")):
        asked = case["requested_rewrite"]
        subject, new, true = asked["subject"], asked["target_new"]["str"], asked["target_true"]["str"]
        wordings = [asked["prompt"].replace("{}", subject), *case["paraphrase_prompts"]]
        around = [*wordings, *case["neighborhood_prompts"]]
        if any(text.count(subject) != 1 for text in wordings) or any(new.lower() in text.lower() for text in around):
            continue
        row = {
            "id": f"counterfact/{case['case_id']}",
            "subject": subject,
            "relation": asked["relation_id"],
            "object": true,
            "target_new": new,
            "prompt": asked["prompt"],
            "paraphrases": case["paraphrase_prompts"],
            "neighborhood": [{"prompt": prompt, "answer": true} for prompt in case["neighborhood_prompts"]],
        }
        lines.setdefault((row["relation"], subject.casefold()), json.dumps(row, ensure_ascii=False))
    facts = RUNS / "counterfact.jsonl"
    write_text(facts, "\n".join(lines.values()) + "\n")
    return {"source": str(facts), "known_only": False}


def _measured(
    names: Sequence[str], source: str, facts: dict[str, Any], settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each operator, of one audit: the unchanged model is asked once for all."""
    parts = [{"name": name, "settings": settings, "arms": ["single"]} for name in names]
    spec = resolved(make_spec({"facts": facts, "operators": parts, "probes": list(PROBES[source])}))
    other = "".join(f"-{name}-{value}" for name, value in _dotted(settings))
    folder = "-".join(names) + other if len(names) < len(EDITS.names()) else ALL
    audit = run(spec, RUNS / source / folder, command=f"python tools/truth.py {' '.join(names)}")
    return [_row(audit, name, source) | {"operator": name + other, "set": settings} for name in names]


def _dotted(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """("target.clamp", 4.0) of settings within settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _row(audit: Audit, name: str, source: str) -> dict[str, Any]:
    changes: list[Change] = [change for change in audit.changes if change.operator == name]
    figures = [figure.row for figure in audit.figures if figure.operator == name]
    asked = (*COLUMNS[source], *(TOKENS if source == WORLD else ()))
    verdicts = [each.verdict for each in audit.judged if each.operator == name]
    own = {fact.id: fill(fact.prompt, fact.subject) for fact in audit.facts}
    wordings = {row.variant: _told(row.after) for row in figures if row.metric == WORDED and row.variant is not None}
    cuts = {column.title: Part(column.metric, of_variant(column.variant)) for column in COLUMNS[source]}
    cuts |= {each: Part(WORDED, of_variant(each)) for each in wordings} | PARTS
    norms = [change.relative_norm for change in changes if change.relative_norm is not None]
    return {
        "operator": name,
        "model": audit.spec["model"]["name"],
        "of": len(audit.facts),
        "facts": len(changes),
        "figures": {column.title: _figure(figures, column, "after") for column in asked},
        "before": {column.title: _figure(figures, column, "before") for column in asked},
        "wordings": wordings,
        "parts": _all_told(shares(PARTS, verdicts, own) | counts(verdicts)) if source == WORLD else {},
        "knew": _all_told(knew(cuts, verdicts, own)) if source == WORLD else {},
        "relations": dict(Counter(fact.relation for fact in audit.facts).most_common()),
        "norm": statistics.median(norms) if norms else None,
        "seconds": statistics.mean(change.seconds for change in changes),
        "threads": audit.environment["threads"],
        "settings": dict(changes[0].settings),
        "settings_source": changes[0].settings_source,
        "environment": dict(audit.environment) | {"facts": Path(audit.environment["facts"]).name},  # no one's folders
        "day": audit.started[:10],
    }


def _figure(rows: Sequence[Row], column: Column, side: str) -> list[float | None] | None:
    own = (r for r in rows if (r.metric, r.variant, r.stratum) == (column.metric, column.variant, None))
    return _told(next((getattr(row, side) for row in own), None))


def _all_told(estimates: Mapping[str, Estimate]) -> dict[str, list[float | None] | None]:
    return {name: _told(estimate) for name, estimate in estimates.items()}


def _told(estimate: Estimate | None) -> list[float | None] | None:
    """[value, low, high, cases]."""
    return None if estimate is None else [estimate.value, estimate.low, estimate.high, estimate.n]


if __name__ == "__main__":
    main()
