"""The tables of docs/truth.md: how every edit operator does on real facts in the embedded model.

    python tools/truth.py rome memit …                        # audits these (it resumes), keeps docs/truth/world/*.json
    python tools/truth.py --counterfact FILE rome memit …     # the same on facts of CounterFact, in its authors' format
    python tools/truth.py                                     # only writes the tables, from what is kept

Each of `FACTS` facts is edited by itself, asked about and rolled back: at its own prompt, in other wordings, at its
neighbours, and in questions that need it; and a text is drawn, to see whether it is language still.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from editkit.files import write_text
from editkit.operators import EDITS
from probes.metrics import Row
from reports.audit import run
from reports.record import Audit, Change
from reports.spec import make_spec, resolved

DOCS = Path(__file__).resolve().parent.parent / "docs"
KEPT, TABLE, RUNS = DOCS / "truth", DOCS / "truth.md", Path("runs") / "truth"
FACTS = 100


@dataclass(frozen=True, slots=True)
class Column:
    """A metric, or its part on the prompts of one variant."""

    title: str
    metric: str
    variant: str | None = None


TEXT = (Column("degenerate text", "degeneration"), Column("fluency", "fluency"))
COLUMNS = {
    "world": (
        Column("efficacy", "efficacy_accuracy"),
        Column("generalization", "generalization_accuracy"),
        Column("specificity", "specificity_accuracy"),
        Column("portability", "portability_accuracy"),
        Column("disputed", "doubt_accuracy", "level 1"),
        Column("contradicted", "doubt_accuracy", "level 2"),
        *TEXT,
    ),
    "counterfact": (
        Column("efficacy (ES)", "efficacy_success"),
        Column("paraphrases (PS)", "generalization_success", "paraphrase"),
        Column("neighbours (NS)", "specificity_success"),
        Column("efficacy", "efficacy_accuracy"),
        Column("paraphrases", "generalization_accuracy", "paraphrase"),
        Column("neighbours", "specificity_accuracy"),
        *TEXT,
    ),
}
PROBES = {
    "world": ("rewrite", "rephrase", "neighborhood", "multi_hop", "doubt", "fluency"),
    "counterfact": ("rewrite", "rephrase", "neighborhood", "fluency"),
}
HEAD = """# How the edit operators do on real facts

`{model}`, each fact edited by itself and rolled back; 95 % intervals, clustered by fact. Shares are of prompts; higher
is better but for degenerate text, the share of answers that are empty or repeat themselves. Fluency is the entropy of
the pairs and triples of words in drawn texts of 50 tokens, in bits: what counts is a fall below the unchanged model.
The norm is that of the change beside the weights', median over facts; the time is that of one edit, found together with
the others where the operator can, on the threads named and beside other work: ratios of ten per cent say nothing.

Made by `make truth`, or by `python tools/truth.py OPERATOR …` for some: each row says of what day it is. Presets for
this model were chosen on a handful of facts of the shipped base, some of them among these. Where an operator could not
edit a fact, the row says for how many it could.
"""
HEADS = {
    "world": """
## Facts of the shipped base that the model knows

Every token of the answer must be the most likely one: of the new object at the edit's own prompt (efficacy), in other
wordings (generalization: paraphrases, questions, after other text, with slips of the pen …), of the old object at
neighbours that had it before (specificity), of the new consequence in questions that need the fact (portability).

""",
    "counterfact": """
## CounterFact

The first facts of a slice of CounterFact (Meng et al. 2022), whether the model knows them or not. ES, PS and NS are the
authors' protocol: the new object is likelier than the old one at the prompt and in the paraphrases, and the old one
stays likelier at the neighbours. Differs from theirs: text that is degenerate is no success, and of the neighbours only
those count that were right before. The three columns behind them ask more: every token the most likely one. The
paraphrases begin with an unrelated sentence, as they do there.

""",
}

SEQUENTIAL = """
## Edits one on top of the other

Each edit is made on the model as those before it left it; facts that the model knows come first, then others. Retention
is the share of all edits so far whose new object is the most likely at the edit's own prompt, elsewhere the same in
another wording, collateral the share of a hundred facts about other subjects that the unchanged model knew and that it
still knows. The norm is that of all changes beside the weights'. Made by `python tests/bench/bench_sequential.py
OPERATOR … --out docs/truth/sequential`.

"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("operators", nargs="*", choices=[[], *EDITS.names()], metavar="OPERATOR")
    options.add_argument("--facts", type=int, default=FACTS)
    options.add_argument("--counterfact", type=Path, metavar="FILE")
    given = options.parse_args()
    source = "counterfact" if given.counterfact else "world"
    facts = {"n": given.facts} | (_counterfact(given.counterfact) if given.counterfact else {})
    if given.operators:
        for row in _measured(given.operators, source, facts):
            write_text(KEPT / source / f"{row['operator']}.json", json.dumps(row, indent=1) + "\n")
    kept = {name: sorted((KEPT / name).glob("*.json")) for name in HEADS}
    alone = {name: [json.loads(file.read_text("utf-8")) for file in kept[name]] for name in kept}
    stacks = [file.read_text("utf-8").splitlines() for file in sorted((KEPT / "sequential").glob("*.jsonl"))]
    write_text(TABLE, page(alone, [json.loads(line) for lines in stacks for line in lines]))


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


def _measured(names: Sequence[str], source: str, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each operator, of one audit: the unchanged model is asked once for all."""
    parts = [{"name": name, "arms": ["single"]} for name in names]
    spec = resolved(make_spec({"facts": facts, "operators": parts, "probes": list(PROBES[source])}))
    audit = run(spec, RUNS / source / "-".join(names), command="make truth")
    return [_row(audit, name, source) for name in names]


def _row(audit: Audit, name: str, source: str) -> dict[str, Any]:
    changes: list[Change] = [change for change in audit.changes if change.operator == name]
    figures = [figure.row for figure in audit.figures if figure.operator == name]
    norms = [change.relative_norm for change in changes if change.relative_norm is not None]
    return {
        "operator": name,
        "model": audit.spec["model"]["name"],
        "of": len(audit.facts),
        "facts": len(changes),
        "figures": {column.title: _figure(figures, column, "after") for column in COLUMNS[source]},
        "before": {column.title: _figure(figures, column, "before") for column in COLUMNS[source]},
        "norm": statistics.median(norms) if norms else None,
        "seconds": statistics.mean(change.seconds for change in changes),
        "threads": torch.get_num_threads(),
        "settings": dict(changes[0].settings),
        "settings_source": changes[0].settings_source,
        "environment": dict(audit.environment),
        "day": datetime.now(UTC).date().isoformat(),
    }


def _figure(rows: Sequence[Row], column: Column, side: str) -> list[float | None] | None:
    """[value, low, high, cases]."""
    own = (r for r in rows if (r.metric, r.variant, r.stratum) == (column.metric, column.variant, None))
    estimate = next((getattr(row, side) for row in own), None)
    return None if estimate is None else [estimate.value, estimate.low, estimate.high, estimate.n]


def page(kept: Mapping[str, Sequence[dict[str, Any]]], stacked: Sequence[dict[str, Any]]) -> str:
    """The page, from rows that are kept: of edits alone, by source, and of edits one on top of the other."""
    model = next((row["model"] for rows in kept.values() for row in rows), "the embedded model")
    tables = [HEADS[source] + _table(COLUMNS[source], rows) for source, rows in kept.items() if rows]
    return HEAD.format(model=model) + "".join(tables) + (SEQUENTIAL + _sequence(stacked) if stacked else "")


def _sequence(rows: Sequence[dict[str, Any]]) -> str:
    titles = (
        "operator",
        "edits",
        "could not",
        "retention",
        "elsewhere",
        "collateral",
        "norm",
        "s an edit",
        "threads",
        "day",
    )
    cells = [
        (
            f"`{row['operator']}`",
            str(row["edits"]),
            str(row["failed"]),
            *(_share((*row[name], None)) for name in ("retention", "elsewhere", "collateral")),
            f"{row['norm']:.2f}",
            f"{row['seconds']:.2f}",
            str(row["threads"]),
            row["day"],
        )
        for row in rows
    ]
    return _markdown(titles, cells)


def _table(columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> str:
    titles = ("operator", *(column.title for column in columns), "norm", "s an edit", "threads", "facts", "day")
    largest = max(rows, key=lambda row: int(row["of"]))
    unchanged = [
        "unchanged",
        *(_share(largest["before"].get(c.title)) for c in columns),
        "",
        "",
        "",
        str(largest["of"]),
        "",
    ]
    cells = [unchanged, *(_cells(columns, row) for row in rows)]
    return _markdown(titles, cells)


def _markdown(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "| --- |" + " ---: |" * (len(titles) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)]) + "\n"


def _cells(columns: Sequence[Column], row: dict[str, Any]) -> list[str]:
    figures = [_share(row["figures"].get(column.title)) for column in columns]
    norm = "" if row["norm"] is None else f"{row['norm']:.3f}"
    facts = str(row["facts"]) if row["facts"] == row["of"] else f"{row['facts']} of {row['of']}"
    seconds = "–" if row["seconds"] is None else f"{row['seconds']:.2f}"  # – where a run was paused
    return [f"`{row['operator']}`", *figures, norm, seconds, str(row["threads"]), facts, row["day"]]


def _share(figure: Sequence[Any] | None) -> str:
    if figure is None or figure[0] is None:
        return "–"
    value, low, high, _ = figure
    return f"{value:.2f}" if low is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
