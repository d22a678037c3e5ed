"""ROME, MEMIT and AlphaEdit here and in EasyEdit, in one process, on the same facts and with the same settings:

    python tests/bench/bench_easyedit.py [FACTS [MODEL]]

EasyEdit is run through the operator `easyeditor`: the release on PyPI (ROME, MEMIT), or a checkout on PYTHONPATH
(AlphaEdit too), which is what its users have. First one edit alone: ours with all contexts in every step ("same
settings") and with the preset, each in float32 and in the products that the CPU is fast at. A target is "held" as far
as it is likely after contexts that neither search has seen. EasyEdit samples its contexts once a process, the operator
once a call: its time is what an edit adds to a call that makes another one first. Then FACTS facts (100) in one change, beside one at a time.
The floor is the arithmetic of the searched rows at the rate of products measured on the same threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from bench_rome import FACTS, HELD_OUT_SEED, SEED, gemm_rate, step_flops
from rich.console import Console
from rich.table import Table

from editkit.data import load
from editkit.edit._locate_then_edit import Contexts
from editkit.edit.rome import ROME
from editkit.errors import UnableError
from editkit.facts import Edit, Fact
from editkit.handle import ModelHandle
from editkit.models import DEFAULT_MODEL
from editkit.operators import configured
from editkit.patch import WeightPatch
from editkit.scoring import score_pairs

OTHER = Edit(Fact("Germany", "capital", "Berlin", "The capital of {} is"), "Lima")
Arm = Callable[[Sequence[Edit]], WeightPatch]


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    handle = ModelHandle.load(sys.argv[2] if len(sys.argv) > 2 else DEFAULT_MODEL)
    console = Console(width=120)
    console.print(_alone(handle))
    print("facts in one change: method, arm, facts, s a fact, times faster, share that takes")
    for row in _together(handle, number):  # as they come: a hundred facts take minutes
        print(*row, sep=" | ", flush=True)
    console.print(f"{torch.get_num_threads()} threads")


def _alone(handle: ModelHandle) -> Table:
    preset: ROME = configured("rome", handle)[0]
    held = Contexts().before(handle, HELD_OUT_SEED)[1:]
    arms = {"EasyEdit": ours(handle, configured("easyeditor", handle, {"method": "ROME"})[0])}
    for products in dict.fromkeys(("float32", "auto")):
        for drawn in dict.fromkeys((0, preset.target.tokens_per_step)):
            target = dataclasses.replace(preset.target, products=products, tokens_per_step=drawn)
            label = f"editkit, {products}, {drawn or 'all'} tokens a step"
            arms[label] = ours(handle, dataclasses.replace(preset, target=target))
    for arm in arms.values():  # contexts and moments are made, and everything is warm
        arm([OTHER])
    once = _timed(arms["EasyEdit"], [OTHER])[1]
    table = Table("fact", "arm", "seconds", "times faster", "floor s", "p(new) held", title="ROME, one edit alone")
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
            numbers = (f"{seconds:.1f}", f"{first / seconds:.1f}", _floor(handle, preset, edit, patch))
            table.add_row(edit.fact.subject, label, *numbers, f"{likely:.2f}")
    return table


def _floor(handle: ModelHandle, operator: ROME, edit: Edit, patch: WeightPatch) -> str:
    """Seconds that the steps of our searches must take; EasyEdit does not say how many it made."""
    searches = patch.provenance.notes.get("searches")
    if not searches:
        return ""
    settings = patch.provenance.settings["target"]
    target = dataclasses.replace(operator.target, tokens_per_step=settings["tokens_per_step"])
    own = dataclasses.replace(operator, target=target)
    return f"{searches[0]['steps'] * step_flops(handle, own, edit) / gemm_rate(handle, own, edit):.1f}"


def _together(handle: ModelHandle, number: int) -> Iterator[tuple[str, ...]]:
    base = load("world")
    edits = [
        base.edit_record(entry, seed=SEED).edit for entry in base.editable[:: len(base.editable) // number][:number]
    ]
    for method in ("MEMIT", "AlphaEdit"):
        mine = ours(handle, configured(method.lower(), handle)[0])
        peer = ours(handle, configured("easyeditor", handle, {"method": method})[0])
        mine(FACTS[:1])
        first = math.nan
        for label, arm in (("EasyEdit, one after another", peer), ("editkit, one at a time", mine)):
            try:
                few, one = (
                    (_timed(arm, edits[:count])[1] for count in (3, 1)) if arm is peer else (_each(arm, edits), 0.0)
                )
            except UnableError as error:
                yield method, label, str(error)
                continue
            seconds = (few - one) / (2 if arm is peer else 3)
            first = seconds if math.isnan(first) else first
            yield method, label, "3", f"{seconds:.2f}", f"{first / seconds:.1f}"
        patch, seconds = _timed(mine, edits)
        with handle.patched(patch):
            scores = score_pairs(handle, [(edit.fact.text, edit.target_new) for edit in edits])
        took = sum(score.argmax for score in scores) / len(scores)
        each = seconds / len(edits)
        yield method, "editkit, all in one", str(number), f"{each:.2f}", f"{first / each:.1f}", f"{took:.2f}"


def _each(arm: Arm, edits: Sequence[Edit]) -> float:
    return sum(_timed(arm, [edit])[1] for edit in edits[:3])


def _timed(arm: Arm, edits: Sequence[Edit]) -> tuple[WeightPatch, float]:
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        patch = arm(edits)
    return patch, time.perf_counter() - began


def ours(handle: ModelHandle, operator: Any) -> Arm:
    return lambda edits: operator(handle, edits, seed=SEED)


if __name__ == "__main__":
    main()
