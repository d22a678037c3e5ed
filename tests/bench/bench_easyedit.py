"""ROME, MEMIT and AlphaEdit here and in EasyEdit, in one process, on the same facts and with the same settings:

    python tests/bench/bench_easyedit.py [ROME MEMIT AlphaEdit] [--facts 100] [--model smollm2-135m]

EasyEdit is run through the operator `easyeditor`: the release on PyPI (ROME, MEMIT), or a checkout on PYTHONPATH
(AlphaEdit too), which is what its users have. First one edit alone: ours with all contexts in every step ("same
settings") and with the preset, each in float32 and in the products that the CPU is fast at. A target is "held" as far
as it is likely after contexts that neither search has seen. EasyEdit samples its contexts once a process, the operator
once a call: its time is what an edit adds to a call that makes another one first. Then a hundred facts in one change,
beside a few of them that EasyEdit changes in one call, searching one after another (its time: what a fact more adds),
and that we change one by one; "take" is the share whose new object is the most likely. The floors are the arithmetic of
the searched rows at the best and at the sustained rate of such products (see bench_rome.py).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from bench_rome import FACTS, HELD_OUT_SEED, SEED, floors, gemm_rates, search_flops, tokens_a_step
from measured_model import ask_for_model, load_model
from rich.console import Console
from rich.table import Table

from editkit.data import load
from editkit.edit._locate_then_edit import Contexts
from editkit.edit.rome import ROME
from editkit.errors import UnableError
from editkit.facts import Edit, Fact
from editkit.handle import ModelHandle
from editkit.operators import configured
from editkit.patch import WeightPatch
from editkit.scoring import score_pairs

OTHER = Edit(Fact("Germany", "capital", "Berlin", "The capital of {} is"), "Lima")
METHODS = ("ROME", "MEMIT", "AlphaEdit")
FEW = 6  # facts that are not changed together with a hundred others
ROWS = 192  # tokens of a search of many facts that are run at once
Arm = Callable[[Sequence[Edit]], WeightPatch]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("methods", nargs="*", default=METHODS, choices=[METHODS, *METHODS], metavar="METHOD")
    options.add_argument("--facts", type=int, default=100)
    ask_for_model(options)
    given = options.parse_args()
    handle = load_model(given)
    console = Console(width=120)
    if "ROME" in given.methods:
        console.print(_alone(handle))
    print("many facts: method, arm, facts, s a fact, times faster, floors s a fact, share that takes")
    for method in given.methods:
        for row in _together(handle, method, given.facts) if method != "ROME" else ():
            print(*row, sep=" | ", flush=True)  # as they come: a hundred facts take minutes
    console.print(f"{torch.get_num_threads()} threads")


def _alone(handle: ModelHandle) -> Table:
    preset: ROME = configured("rome", handle)[0]
    held = Contexts().before(handle, HELD_OUT_SEED)[1:]
    mine: dict[str, ROME] = {}
    arms = {"EasyEdit": ours(handle, configured("easyeditor", handle, {"method": "ROME"})[0])}
    for products in dict.fromkeys(("float32", "auto")):
        for drawn in dict.fromkeys((0, preset.target.tokens_per_step)):
            target = dataclasses.replace(preset.target, products=products, tokens_per_step=drawn)
            label = f"editkit, {products}, {drawn or 'all'} tokens a step"
            mine[label] = dataclasses.replace(preset, target=target)
            arms[label] = ours(handle, mine[label])
    for arm in arms.values():  # contexts and moments are made, and everything is warm
        arm([OTHER])
    once = _timed(arms["EasyEdit"], [OTHER])[1]
    table = Table("fact", "arm", "seconds", "times faster", "floors s", "p(new) held", title="ROME, one edit alone")
    for edit in FACTS:
        first = math.nan
        for label, arm in arms.items():
            patch, seconds = _timed(arm, [edit])
            if label == "EasyEdit":
                seconds = _timed(arm, [OTHER, edit])[1] - once
            first = seconds if math.isnan(first) else first
            with handle.patched(patch):
                scores = score_pairs(handle, [(context + edit.fact.text, edit.target_new) for context in held])
            likely = sum(math.exp(score.logprob) for score in scores) / len(scores)
            numbers = (f"{seconds:.1f}", f"{first / seconds:.1f}", _floor(handle, mine.get(label), edit, patch))
            table.add_row(edit.fact.subject, label, *numbers, f"{likely:.2f}")
    return table


def _floor(handle: ModelHandle, operator: ROME | None, edit: Edit, patch: WeightPatch) -> str:
    """Seconds that the steps of our searches must take; EasyEdit does not say how many it made."""
    if operator is None:
        return ""
    rates = gemm_rates(handle, operator, tokens_a_step(handle, operator, edit))
    return floors(search_flops(handle, operator, [edit], patch), rates)


def _together(handle: ModelHandle, method: str, number: int) -> Iterator[tuple[str, ...]]:
    base = load("world")
    edits = [
        base.edit_record(entry, seed=SEED).edit for entry in base.editable[:: len(base.editable) // number][:number]
    ]
    few = edits[:FEW]
    operator = configured(method.lower(), handle)[0]
    mine, peer = ours(handle, operator), ours(handle, configured("easyeditor", handle, {"method": method})[0])
    mine(FACTS[:1])
    first = math.nan
    try:
        once = _timed(peer, few[:1])[1]
        patch, seconds = _timed(peer, few)
        first = (seconds - once) / (len(few) - 1)
        yield method, "EasyEdit", str(len(few)), f"{first:.2f}", "1.0", "", _take(handle, [(patch, few)])
    except UnableError as error:
        yield method, "EasyEdit", str(error)
    alone = [(*_timed(mine, [edit]), edit) for edit in few]
    each = sum(seconds for _, seconds, _ in alone) / len(few)
    first = each if math.isnan(first) else first
    take = _take(handle, [(patch, [edit]) for patch, _, edit in alone])
    flops = sum(search_flops(handle, operator, [edit], patch) for patch, _, edit in alone) / len(few)
    floor = floors(flops, gemm_rates(handle, operator, tokens_a_step(handle, operator, few[0])))
    yield method, "editkit, one at a time", str(len(few)), f"{each:.2f}", f"{first / each:.1f}", floor, take
    patch, seconds = _timed(mine, edits)
    each, flops = seconds / len(edits), search_flops(handle, operator, edits, patch) / len(edits)
    floor = floors(flops, gemm_rates(handle, operator, ROWS))
    numbers = (f"{each:.2f}", f"{first / each:.1f}", floor, _take(handle, [(patch, edits)]))
    yield method, "editkit, all in one", str(number), *numbers


def _take(handle: ModelHandle, changes: Sequence[tuple[WeightPatch, Sequence[Edit]]]) -> str:
    """The share of all edits whose new object is the most likely with their patch on."""
    right: list[bool] = []
    for patch, edits in changes:
        with handle.patched(patch):
            right += [score.argmax for score in score_pairs(handle, [(e.fact.text, e.target_new) for e in edits])]
    return f"{sum(right) / len(right):.2f}"


def _timed(arm: Arm, edits: Sequence[Edit]) -> tuple[WeightPatch, float]:
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        patch = arm(edits)
    return patch, time.perf_counter() - began


def ours(handle: ModelHandle, operator: Any) -> Arm:
    return lambda edits: operator(handle, edits, seed=SEED)


if __name__ == "__main__":
    main()
