"""The page docs/truth.md, from the rows that tools/truth.py and tests/bench/bench_sequential.py keep."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truth_directions import COUNTERFACT, NEAR, WORLD, directions
from truth_parts import TITLES

DOCS = Path(__file__).resolve().parent.parent / "docs"
KEPT, TABLE = DOCS / "truth", DOCS / "truth.md"
PICTURE = KEPT / "sequential.svg"

Row = Mapping[str, Any]
KNOWS, UNCHANGED = "knows", "unchanged"


@dataclass(frozen=True, slots=True)
class Column:
    """A metric, or its part on the prompts of one variant."""

    title: str
    metric: str
    variant: str | None = None


TEXT = (Column("degenerate text", "degeneration"), Column("fluency", "fluency"))
COLUMNS = {
    WORLD: (
        Column("efficacy", "efficacy_generation"),
        Column("generalization", "generalization_generation"),
        Column("specificity", "specificity_generation"),
        Column("portability", "portability_generation"),
        Column("disputed", "doubt_generation", "level 1"),
        Column("contradicted", "doubt_generation", "level 2"),
        *TEXT,
    ),
    COUNTERFACT: (
        Column("efficacy (ES)", "efficacy_success"),
        Column("paraphrases (PS)", "generalization_success", "paraphrase"),
        Column("neighbours (NS)", "specificity_success"),
        Column("efficacy", "efficacy_accuracy"),
        Column("paraphrases", "generalization_accuracy", "paraphrase"),
        Column("neighbours", "specificity_accuracy"),
        *TEXT,
    ),
}
TOKENS = (
    Column("efficacy, tokens", "efficacy_accuracy"),
    Column("generalization, tokens", "generalization_accuracy"),
    Column("questions, tokens", "generalization_accuracy", "question"),
    Column("specificity, tokens", "specificity_accuracy"),
    Column("portability, tokens", "portability_accuracy"),
)
HEAD = """# How the edit operators do on real facts

`{model}`, each fact edited by itself and rolled back; 95 % intervals, clustered by fact. Shares are of prompts; higher
is better but for degenerate text, the share of answers that are empty or repeat themselves. Fluency is the entropy of
the pairs and triples of words in drawn texts of 50 tokens, in bits: what counts is a fall below the unchanged model.
The norm is that of the change beside the weights', median over facts; the time is that of one edit, found together with
the others where the operator can, on the threads named and beside other work: ratios of ten per cent say nothing.

Made by `make truth`, hours, or by `python tools/truth.py OPERATOR …` for some: each row says of what day it is. With
`--set NAME=VALUE` an operator has a row of its own (`easyeditor --set hparams.mom2_adjustment=true`, above what follows
its name), with `--facts 20` it is given fewer: EasyEdit's edits, which take it a minute or more here. Presets
for this model were chosen on a handful of facts of the shipped base, some of them among these; where each comes from
stands below. Where an operator could not edit a fact, the row says for how many it could.
"""
HEADS = {
    WORLD: """
## Facts of the shipped base that the model knows

What the model writes must be the new object at the edit's own prompt (efficacy), in other wordings (generalization:
paraphrases, questions, after other text, with slips of the pen …) and as the new consequence in questions that need the
fact (portability), and the old object at neighbours where it was written before (specificity). Under doubt the answer
is disputed and asked for again, or contradicted: the old object is asserted and the model made to agree.

How much could be had: "knows" is the share of the same prompts at which the unchanged model writes the old object.
Where it does not understand a wording itself, little can be asked of an edit. The facts:
{relations}.

""",
    COUNTERFACT: """
## CounterFact

Facts of a slice of CounterFact (Meng et al. 2022), its relations in turn, whether the model knows them or not. ES, PS
and NS are the authors' protocol: the new object is likelier than the old one at the prompt and in the paraphrases, and
the old one stays likelier at the neighbours. Differs from theirs: text that is degenerate is no success, and of the
neighbours only those count that were right before. The three columns behind them ask more: every token the most likely
one. The paraphrases begin with an unrelated sentence, as they do there. Made by `make truth COUNTERFACT=FILE`, or by
`python tools/truth.py --counterfact FILE OPERATOR …` for some; the file, in its authors' format, is not shipped.

""",
}

BY_TOKENS = """
### By the most likely token

The same where every token of the answer must be the most likely one, under teacher forcing. An answer in a sentence
("The capital of …") is wrong by this count, and questions, a fifth of the other wordings, are answered so.

"""
WORDINGS = """
### Other wordings, one by one

What generalization is made of, as written: a gap to fill (cloze), the prompt after a sentence of introduction (context)
or after one about something else (distractor), asked politely, in other letters (casing), with one slip of the pen.

"""
GIVES_WAY = """
### Where it gives way

The prompt in other letters; neighbours by whether they are of the edited relation; what follows, for the official
language of a country and for all others; at how many neighbours the edit's new object is written (lower is better); and
how many of the drawn texts end after two words or fewer.

"""
SETTINGS = """
### Settings

Those of the preset for this model, and where it has them from.

"""
SEQUENTIAL = """
## Edits one on top of the other

Each edit is made on the model as those before it left it, or as many in one change as stand under "at once", on the
model as the changes before it left it; facts that the model knows come first{known}.
Retention is the share of all edits so far whose new object is the most likely at the edit's own prompt, elsewhere the
same in another wording, collateral the share of a hundred facts about other subjects that the unchanged model knew and
that it still knows. The norm is that of all changes beside the weights'. Made by `make truth`, or by
`python tests/bench/bench_sequential.py OPERATOR … --out docs/truth/sequential` for some, with `--batch 100` for a
hundred at once. EasyEdit's own code has no rows: a hundred of its edits take more than two hours here (`easyeditor`
after `bench_sequential.py` makes them).

![The three shares as the number of edits grows, a line an operator](truth/sequential.svg)

Dashed: a hundred edits at once.

"""
DIRECTIONS = """
## What the literature expects

Ruled by the rows above: *supported* where the intervals lie apart the way that is expected, *not supported* where they
lie apart the other way, *not decided* where they overlap. "Near 1" is an interval above {near}.

"""


def kept_page(folder: Path = KEPT) -> str:
    """The page, from the rows in a folder; `notes.md` there is its last section."""
    alone, stacked = kept_rows(folder)
    notes = folder / "notes.md"
    told = "\n" + filled(notes.read_text("utf-8"), alone, stacked) if notes.exists() else ""
    return page(alone, stacked) + told


def kept_rows(folder: Path = KEPT) -> tuple[dict[str, list[Row]], list[Row]]:
    """The rows of edits alone, by source, and of edits one on top of the other."""
    alone = {
        name: [json.loads(file.read_text("utf-8")) for file in sorted((folder / name).glob("*.json"))] for name in HEADS
    }
    stacks = [file.read_text("utf-8").splitlines() for file in sorted((folder / "sequential").glob("*.jsonl"))]
    return alone, [json.loads(line) for lines in stacks for line in lines]


def filled(text: str, alone: Mapping[str, Sequence[Row]], stacked: Sequence[Row] = ()) -> str:
    """The text with each `{operator/share}` as per cent, so that no number in it can be older than its row; `knows` is
    the unchanged model with the old object, `operator@counterfact` the operator (or the `unchanged` model) on those
    facts, `operator@100` after as many edits and `operator@300x100` after as many, a hundred at once."""
    rows = alone[WORLD]
    found: dict[str, Mapping[str, Any]] = {
        row["operator"]: row["figures"] | row["wordings"] | row["parts"] for row in rows
    }
    for row in alone.get(COUNTERFACT, ()):
        found |= {f"{row['operator']}@{COUNTERFACT}": row["figures"], f"{UNCHANGED}@{COUNTERFACT}": row["before"]}
    found |= {f"{row['operator']}@{row['edits']}{f'x{n}' if (n := row['batch']) > 1 else ''}": row for row in stacked}
    if rows:
        found[KNOWS] = rows[0]["knew"]

    def number(match: re.Match[str]) -> str:
        value = found[match[1]][match[2]][0]
        if 0 < value < 0.01:
            return f"{100 * value:.1f} %"
        return f"{100 * float(f'{value:.2f}'):.0f} %"  # rounded as in the tables

    return re.sub(r"\{([\w@.-]+)/([^}]+)\}", number, text)


def page(alone: Mapping[str, Sequence[Row]], stacked: Sequence[Row]) -> str:
    """The page, from rows of edits alone, by source, and of edits one on top of the other."""
    model = next((row["model"] for rows in alone.values() for row in rows), "the embedded model")
    parts = [HEAD.format(model=model)]
    for source, rows in alone.items():
        if rows:
            parts += [HEADS[source].format(relations=_relations(rows)), _table(COLUMNS[source], rows)]
        if rows and source == WORLD:
            names = tuple(dict.fromkeys(name for row in rows for name in row["wordings"]))
            parts += [WORDINGS, _shares("wordings", names, rows), GIVES_WAY, _shares("parts", TITLES, rows)]
            parts += [BY_TOKENS, _tokens(rows), SETTINGS, _settings(rows)]
    if stacked:
        parts += [SEQUENTIAL.format(known=_known(stacked)), _sequence(stacked)]
    rulings = directions(alone, stacked)
    return "".join(
        [*parts, DIRECTIONS.format(near=NEAR), _markdown(("expected", "here", "numbers"), rulings, numbers=False)]
    )


def _tokens(rows: Sequence[Row]) -> str:
    cells = [(f"`{row['operator']}`", *(_share(row["figures"].get(c.title)) for c in TOKENS)) for row in rows]
    return _markdown(("operator", *(column.title.partition(",")[0] for column in TOKENS)), cells)


def _shares(what: str, names: Sequence[str], rows: Sequence[Row]) -> str:
    """A column a name of what each row tells, below what the unchanged model knows at the same prompts."""
    largest = max(rows, key=lambda row: int(row["of"]))
    cells = [
        ("prompts", *(_prompts([row[what].get(name) for row in rows]) for name in names)),
        (KNOWS, *(_share(largest["knew"].get(name)) for name in names)),
        *((f"`{row['operator']}`", *(_share(row[what].get(name)) for name in names)) for row in rows),
    ]
    return _markdown(("operator", *names), cells)


def _settings(rows: Sequence[Row]) -> str:
    return _markdown(("operator", "from"), [(f"`{row['operator']}`", _source(row)) for row in rows], numbers=False)


def _source(row: Row) -> str:
    """Where its settings are from; what was given on top of a preset stands in the row's name."""
    source: str = row["settings_source"].replace("|", "\\|")
    return f"what its name says; else: {source}" if row.get("set") else source


def _relations(rows: Sequence[Row]) -> str:
    largest = max(rows, key=lambda row: int(row["of"]))
    return ", ".join(f"{number} {name}" for name, number in largest["relations"].items())


def _known(stacked: Sequence[Row]) -> str:
    told = max((row for row in stacked if "known" in row), key=lambda row: int(row["edits"]), default=None)
    return f" ({told['known']} of {told['edits']})" if told else ""


def _prompts(figures: Sequence[Any]) -> str:
    return str(max((figure[3] for figure in figures if figure is not None), default=0))


def _sequence(rows: Sequence[Row]) -> str:
    titles = (
        "operator",
        "at once",
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
            str(row["batch"]),
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


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    titles = ("operator", *(column.title for column in columns), "norm", "s an edit", "threads", "facts", "day")
    largest = max(rows, key=lambda row: int(row["of"]))
    asked = ["prompts", *(_prompts([row["figures"].get(c.title) for row in rows]) for c in columns)]
    unchanged = [UNCHANGED, *(_share(largest["before"].get(c.title)) for c in columns)]
    knows = [KNOWS, *(_share(largest["knew"].get(c.title)) for c in columns)]
    above = [asked, unchanged, *([knows] if largest["knew"] else [])]
    cells = [*([*row, *[""] * (len(titles) - len(row))] for row in above), *(_cells(columns, row) for row in rows)]
    return _markdown(titles, cells)


def _markdown(titles: Sequence[str], cells: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    lines = ["| " + " | ".join(titles) + " |", "| --- |" + (" ---: |" if numbers else " --- |") * (len(titles) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)]) + "\n"


def _cells(columns: Sequence[Column], row: Row) -> list[str]:
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
