"""Edits one on top of the other: what is left of them, and of what the model knew besides. Run by hand:

    python tests/bench/bench_sequential.py [OPERATOR ...] [--edits 300] [--batch 1] [--out docs/truth/sequential]

Each call makes `--batch` edits, on the model as the calls before left it. After 1, 10, 100, 300 … edits: `retention`, the share of all edits so far whose new object is the most likely at the
edit's own prompt; `elsewhere`, the same in another wording; `collateral`, the share of facts about other subjects that
the unchanged model knew and still knows; the norm of the change beside that of the weights; seconds an edit. Intervals
are Wilson's, 95 %. Facts that the model knows come first; where they do not suffice, others follow. `--out` keeps a
file an operator, of which `tools/truth.py` makes a table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from measured_model import ask_for_model, load_model
from rich.console import Console
from rich.table import Table

from editkit.data import load
from editkit.entries import Entry
from editkit.errors import MethodError
from editkit.facts import EditRecord, fill
from editkit.files import write_text
from editkit.handle import ModelHandle
from editkit.operators import EDITS, configured
from editkit.patch import WeightPatch
from editkit.scoring import score_pairs
from editkit.settings import settings_of
from probes.estimate import proportion
from reports.environment import environment

LEFT_OUT = ("easyeditor",)  # three hundred of its edits are two hours
STOPS = (1, 10, 30, 100, 300, 1000)
OTHERS = 100
Pair = tuple[str, str]


def main() -> None:
    options = argparse.ArgumentParser()
    every = sorted({*EDITS.names()} - {*LEFT_OUT})
    options.add_argument("operators", nargs="*", default=every, choices=[every, *EDITS.names()], metavar="OPERATOR")
    options.add_argument("--edits", type=int, default=300)
    options.add_argument("--batch", type=int, default=1)
    ask_for_model(options)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    handle = load_model(given)
    records, others, known = _facts(handle, given.edits)
    rows = []
    for name in given.operators:
        own, (operator, source) = [], configured(name, handle)
        made = {"settings": settings_of(operator), "settings_source": source, "environment": dict(environment(handle))}
        for row in _sequence(handle, name, records, others, given.batch):
            row |= {"batch": given.batch, "known": sum(known[: row["edits"]]), "threads": torch.get_num_threads()}
            row |= made
            own.append(row | {"day": datetime.now(UTC).date().isoformat()})
            print(json.dumps(row), flush=True)  # what there is so far, should it be killed
            if given.out:
                file = given.out / (f"{name}.jsonl" if given.batch == 1 else f"{name}-by-{given.batch}.jsonl")
                write_text(file, "".join(f"{json.dumps(each)}\n" for each in own))
        rows += own
    Console(width=140).print(_table(rows))


def _facts(handle: ModelHandle, number: int) -> tuple[list[EditRecord], list[Pair], list[bool]]:
    """The edits, known facts about other subjects, and which of the edited facts the model knows."""
    base, (ordered, ids) = load("world"), _in_order(handle)
    held = [entry for entry in ordered if entry.id in ids][1::4][:OTHERS]
    subjects = {entry.fact.subject for entry in held}
    usable = [entry for entry in ordered if entry.fact.subject not in subjects][:number]
    records = [base.edit_record(entry, seed=0, known=ids) for entry in usable]
    return records, [(entry.fact.text, entry.fact.object) for entry in held], [entry.id in ids for entry in usable]


def known_records(handle: ModelHandle, number: int) -> list[EditRecord]:
    """Edits of facts that the model knows, relations in turn."""
    base, (ordered, ids) = load("world"), _in_order(handle)
    return [base.edit_record(entry, seed=0, known=ids) for entry in ordered if entry.id in ids][:number]


def _in_order(handle: ModelHandle) -> tuple[list[Entry], frozenset[str]]:
    """All facts, known ones first and relations in turn; and the ids of the known ones."""
    entries = [*load("world").editable]
    known = [score.argmax for score in score_pairs(handle, [(e.fact.text, e.fact.object) for e in entries])]
    ids = frozenset(entry.id for entry, right in zip(entries, known, strict=True) if right)
    turns: Counter[str] = Counter()
    ranks = []
    for place, entry in enumerate(entries):
        turns[entry.relation] += 1
        ranks.append((entry.id not in ids, turns[entry.relation], place))
    return [entries[place] for *_, place in sorted(ranks)], ids


def _sequence(handle: ModelHandle, name: str, records: Sequence[EditRecord], others: Sequence[Pair], batch: int) -> Any:
    operator, _ = configured(name, handle)
    operator(handle, [records[0].edit], seed=0)  # what is measured once does not count
    stops, failed, done, start = {s for s in (*STOPS, len(records)) if s <= len(records)}, 0, 0.0, time.perf_counter()
    for begin in range(0, len(records), batch):
        made = records[begin : begin + batch]
        try:
            handle.apply(operator(handle, [record.edit for record in made], seed=0))
        except MethodError:
            failed += len(made)
        number = begin + len(made)
        if number in stops:
            seconds = (time.perf_counter() - start - done) / number
            asked = time.perf_counter()
            yield {"operator": name, "edits": number, "failed": failed, "seconds": seconds} | _state(
                handle, records[:number], others
            )
            done += time.perf_counter() - asked
    handle.rollback()


def _state(handle: ModelHandle, records: Sequence[EditRecord], others: Sequence[Pair]) -> dict[str, Any]:
    own = [(record.fact.text, record.edit.target_new) for record in records]
    elsewhere = [
        (fill(record.held_out.paraphrases[0], record.fact.subject), record.edit.target_new)
        for record in records
        if record.held_out.paraphrases
    ]
    found = {
        what: _share(handle, pairs)
        for what, pairs in (("retention", own), ("elsewhere", elsewhere), ("collateral", others))
    }
    return found | {"norm": _norm(handle)}


def _share(handle: ModelHandle, pairs: Sequence[Pair]) -> list[float]:
    """(share, low, high)."""
    right = [float(score.argmax) for score in score_pairs(handle, pairs)]
    found = proportion(right, range(len(right)))
    return [found.value, found.low, found.high]


def _norm(handle: ModelHandle) -> float:
    """Of all that the patches add, beside the norm of the weights that they change."""
    names = {name for patch in handle.patches if isinstance(patch, WeightPatch) for name in patch.deltas}
    if not names:
        return 0.0
    now = {name: handle.matrix(name).float().clone() for name in names}
    patches = handle.patches
    handle.rollback()
    before = {name: handle.matrix(name).float() for name in names}
    moved = sum(float((now[name] - before[name]).norm()) ** 2 for name in names)
    there = sum(float(before[name].norm()) ** 2 for name in names)
    handle.restack(0, patches)
    return float((moved / there) ** 0.5)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("operator", "batch", "edits", "failed", "retention", "elsewhere", "collateral", "norm", "s an edit")
    table = Table(*columns)
    for row in rows:
        shares = (_told(*row[name]) for name in columns[4:7])
        numbers = (str(row["batch"]), str(row["edits"]), str(row["failed"]))
        table.add_row(row["operator"], *numbers, *shares, f"{row['norm']:.2f}", f"{row['seconds']:.2f}")
    return table


def _told(value: float, low: float | None, high: float | None) -> str:
    """One edit gives no interval."""
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
