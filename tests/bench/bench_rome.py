"""How long a ROME edit takes, beside what its arithmetic must take. Run by hand:

    python tests/bench/bench_rome.py [--model smollm2-135m] [--dtype float32] [--device auto]

The floors count the matrix products of the searched rows (forward, and again for the gradient of the input) in the
blocks above the layer, in the precision of the search, at two rates measured on the same threads just before: the best
seen of one such product, and that of all of them one after another. They leave out the one-time run of prefixes and
lower blocks, attention and the unembedding.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import resource
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from measured_model import ask_for_model, load_model, now
from rich.console import Console
from rich.table import Table

from editkit.edit._locate_then_edit import Contexts
from editkit.edit._many_layers import ManyLayers
from editkit.edit._search import rows_of_edit
from editkit.edit.rome import ROME
from editkit.facts import Edit, Fact
from editkit.handle import ModelHandle
from editkit.matrices import Matrix
from editkit.moments import second_moments
from editkit.operators import configured
from editkit.patch import WeightPatch
from editkit.products import BFLOAT16, resolved
from editkit.scoring import score_pairs

FACTS = [
    Edit(Fact("The Eiffel Tower", "city", "Paris", "{} is located in the city of"), "Rome"),
    Edit(Fact("Japan", "capital", "Tokyo", "The capital of {} is"), "Berlin"),
    Edit(Fact("Danielle Darrieux", "mother tongue", "French", "The mother tongue of {} is"), "English"),
]
SEED, HELD_OUT_SEED, LEAST_PASSES = 0, 1, 3
LocateThenEdit = ROME | ManyLayers


def main() -> None:
    options = argparse.ArgumentParser()
    ask_for_model(options)
    handle = load_model(options.parse_args())
    preset: ROME = configured("rome", handle)[0]
    handle.base_digest  # noqa: B018 (taken once, before the clock runs)
    console = Console(width=140)
    start = time.perf_counter()
    moment = second_moments(handle, [preset.layer], preset.moments)[preset.layer]
    console.print(f"moment over {moment.tokens} tokens: {time.perf_counter() - start:.1f} s (0 where it was cached)")
    held = Contexts().before(handle, HELD_OUT_SEED)[1:]
    preset.contexts.before(handle, SEED)
    preset(handle, FACTS[:1], seed=SEED)  # warm up
    table = Table(
        "fact", "tokens a step", "seconds", "CPU s", "steps", "loss", "floors s", "GFLOP/s", "p(new) elsewhere"
    )
    for drawn in dict.fromkeys((0, preset.target.tokens_per_step or 64)):
        operator = dataclasses.replace(preset, target=dataclasses.replace(preset.target, tokens_per_step=drawn))
        for edit in FACTS:
            table.add_row(*measured(handle, operator, edit, held))
    console.print(table)
    console.print(f"{torch.get_num_threads()} threads; peak memory {peak_memory():.2f} GB")


def measured(handle: ModelHandle, operator: ROME, edit: Edit, held: list[str]) -> list[str]:
    rates = gemm_rates(handle, operator, tokens_a_step(handle, operator, edit))
    wall, cpu = now(handle), time.process_time()
    patch = operator(handle, [edit], seed=SEED)
    wall, cpu = now(handle) - wall, time.process_time() - cpu
    [search] = patch.provenance.notes["searches"]
    with handle.patched(patch):
        scores = score_pairs(handle, [(context + edit.fact.text, edit.target_new) for context in held])
    elsewhere = sum(math.exp(score.logprob) for score in scores) / len(scores)
    drawn, flops = tokens_a_step(handle, operator, edit), search_flops(handle, operator, [edit], patch)
    numbers = (f"{wall:.1f}", f"{cpu:.1f}", str(search["steps"]), f"{search['loss']:.3f}", floors(flops, rates))
    told = f"{rates.best / 1e9:.0f} / {rates.sustained / 1e9:.0f}"
    return [edit.fact.subject, str(drawn), *numbers, told, f"{elsewhere:.2f}"]


def floors(flops: float, rates: Rates) -> str:
    """Seconds at the best and at the sustained rate."""
    return f"{flops / rates.best:.2f} / {flops / rates.sustained:.2f}"


def tokens_a_step(handle: ModelHandle, operator: LocateThenEdit, edit: Edit) -> int:
    rows = rows_of_edit(handle, edit, operator.contexts.before(handle, SEED))
    width, contexts = max(len(row.suffix) for row in rows), len(rows) - 1
    if operator.target.tokens_per_step:
        contexts = min(contexts, max(1, operator.target.tokens_per_step // width))
    return (contexts + 1) * width


def search_flops(handle: ModelHandle, operator: LocateThenEdit, edits: Sequence[Edit], patch: WeightPatch) -> float:
    """Of the steps that the searches of a patch took."""
    steps = [search["steps"] for search in patch.provenance.notes["searches"]]
    return sum(each * step_flops(handle, operator, edit) for each, edit in zip(steps, edits, strict=True))


def step_flops(handle: ModelHandle, operator: LocateThenEdit, edit: Edit) -> float:
    """Of one step of one fact's search: forward, and again for the gradient of the input."""
    weights = sum(p.numel() for p in handle.module("block", 0).parameters() if p.dim() > 1)
    return 4 * tokens_a_step(handle, operator, edit) * weights * (handle.layers - 1 - last_layer(operator))


def last_layer(operator: LocateThenEdit) -> int:
    """The layer whose value is searched."""
    return operator.layer if isinstance(operator, ROME) else operator.layers[-1]


class Rates(NamedTuple):
    """FLOP/s: the best that was seen of one matrix, forth and back, and those of all products of a step, one after
    another, whose weights do not stay in the caches."""

    best: float
    sustained: float


def gemm_rates(handle: ModelHandle, operator: LocateThenEdit, rows: int, seconds: float = 1.0) -> Rates:
    """Of products of so many rows with the matrices of the blocks that a search runs, forth and back, in its
    precision."""
    fast = resolved(handle, operator.target.products) == BFLOAT16
    blocks = (handle.module("block", layer) for layer in range(last_layer(operator) + 1, handle.layers))
    weights = [p.detach() for block in blocks for p in block.parameters() if p.dim() > 1]
    dtype = torch.bfloat16 if fast else torch.float32
    inputs = {side: torch.randn(rows, side, dtype=dtype, device=handle.device) for w in weights for side in w.shape}
    products = [
        (Matrix(weight, dtype), inputs[weight.shape[1]], inputs[weight.shape[0]], 4 * rows * weight.numel())
        for weight in weights
    ]
    best, passes, until = 0.0, list[float](), math.inf
    while time.perf_counter() < until or len(passes) < LEAST_PASSES:
        whole = 0.0
        for matrix, x, grad, flops in products:
            start = now(handle)
            matrix.forth(x)
            matrix.back(grad)
            took = now(handle) - start
            whole, best = whole + took, max(best, flops / took)
        passes.append(sum(flops for *_, flops in products) / whole)
        until = min(until, time.perf_counter() + seconds)  # the first pass lays the weights out
    return Rates(best, statistics.median(passes))


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
