"""How long a ROME edit takes, beside what its arithmetic must take. Run by hand:

    python tests/bench/bench_rome.py [MODEL]

The floor counts the matrix products of the searched rows (forward, and again for the gradient of the input) in the
blocks above the layer, at the rate of such products measured on the same threads just before, in the precision of the
search. It leaves out the one-time run of prefixes and lower blocks, attention and the unembedding.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time

import torch
from rich.console import Console
from rich.table import Table

from editkit.edit._locate_then_edit import Contexts
from editkit.edit._many_layers import ManyLayers
from editkit.edit._search import rows_of_edit
from editkit.edit.rome import ROME
from editkit.facts import Edit, Fact
from editkit.handle import ModelHandle
from editkit.matrices import Matrix
from editkit.models import DEFAULT_MODEL
from editkit.moments import second_moments
from editkit.operators import configured
from editkit.products import BFLOAT16, resolved
from editkit.scoring import score_pairs

FACTS = [
    Edit(Fact("The Eiffel Tower", "city", "Paris", "{} is located in the city of"), "Rome"),
    Edit(Fact("Japan", "capital", "Tokyo", "The capital of {} is"), "Berlin"),
    Edit(Fact("Danielle Darrieux", "mother tongue", "French", "The mother tongue of {} is"), "English"),
]
SEED, HELD_OUT_SEED = 0, 1
LocateThenEdit = ROME | ManyLayers


def main() -> None:
    handle = ModelHandle.load(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL)
    preset: ROME = configured("rome", handle)[0]
    handle.base_digest  # noqa: B018 (taken once, before the clock runs)
    console = Console()
    start = time.perf_counter()
    moment = second_moments(handle, [preset.layer], preset.moments)[preset.layer]
    console.print(f"moment over {moment.tokens} tokens: {time.perf_counter() - start:.1f} s (0 where it was cached)")
    held = Contexts().before(handle, HELD_OUT_SEED)[1:]
    preset.contexts.before(handle, SEED)
    preset(handle, FACTS[:1], seed=SEED)  # warm up
    table = Table(
        "fact", "tokens a step", "seconds", "CPU s", "steps", "loss", "floor s", "GFLOP/s", "p(new) elsewhere"
    )
    for drawn in dict.fromkeys((0, preset.target.tokens_per_step or 64)):
        operator = dataclasses.replace(preset, target=dataclasses.replace(preset.target, tokens_per_step=drawn))
        for edit in FACTS:
            table.add_row(*measured(handle, operator, edit, held))
    console.print(table)
    console.print(f"{torch.get_num_threads()} threads; peak memory {peak_memory():.2f} GB")


def measured(handle: ModelHandle, operator: ROME, edit: Edit, held: list[str]) -> list[str]:
    rate = gemm_rate(handle, operator, tokens_a_step(handle, operator, edit))
    wall, cpu = time.perf_counter(), time.process_time()
    patch = operator(handle, [edit], seed=SEED)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    [search] = patch.provenance.notes["searches"]
    with handle.patched(patch):
        scores = score_pairs(handle, [(context + edit.fact.text, edit.target_new) for context in held])
    elsewhere = sum(math.exp(score.logprob) for score in scores) / len(scores)
    floor = search["steps"] * step_flops(handle, operator, edit) / rate
    drawn = tokens_a_step(handle, operator, edit)
    numbers = (f"{wall:.1f}", f"{cpu:.1f}", str(search["steps"]), f"{search['loss']:.3f}", f"{floor:.1f}")
    return [edit.fact.subject, str(drawn), *numbers, f"{rate / 1e9:.0f}", f"{elsewhere:.2f}"]


def tokens_a_step(handle: ModelHandle, operator: LocateThenEdit, edit: Edit) -> int:
    rows = rows_of_edit(handle, edit, operator.contexts.before(handle, SEED))
    width, contexts = max(len(row.suffix) for row in rows), len(rows) - 1
    if operator.target.tokens_per_step:
        contexts = min(contexts, max(1, operator.target.tokens_per_step // width))
    return (contexts + 1) * width


def step_flops(handle: ModelHandle, operator: LocateThenEdit, edit: Edit) -> float:
    """Of one step of one fact's search: forward, and again for the gradient of the input."""
    weights = sum(p.numel() for p in handle.module("block", 0).parameters() if p.dim() > 1)
    return 4 * tokens_a_step(handle, operator, edit) * weights * (handle.layers - 1 - last_layer(operator))


def last_layer(operator: LocateThenEdit) -> int:
    """The layer whose value is searched."""
    return operator.layer if isinstance(operator, ROME) else operator.layers[-1]


def gemm_rate(handle: ModelHandle, operator: LocateThenEdit, rows: int, seconds: float = 0.5) -> float:
    """The best rate seen, in FLOP/s, of a product of so many rows with the edited matrix, in the precision of the
    operator's search."""
    weight = handle.matrix(handle.weight_name("mlp_out", last_layer(operator))).detach()
    fast = resolved(handle, operator.target.products) == BFLOAT16
    weight = weight.bfloat16() if fast else weight
    x, laid_out = torch.randn(rows, weight.shape[1], dtype=weight.dtype), Matrix(weight, weight.dtype)
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        for product in (lambda: x @ weight.T, lambda: laid_out(x)):
            start = time.perf_counter()
            product()
            best = max(best, 2 * rows * weight.numel() / (time.perf_counter() - start))
    return best


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
