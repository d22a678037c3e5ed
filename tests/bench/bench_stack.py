"""What a patch costs to put on and take off, and a thousand AlphaEdit edits one on top of the other. Run by hand:

    python tests/bench/bench_stack.py [EDITS] [--model smollm2-135m]

The sequence is real (each edit is searched on the model with all those before it, whose keys it must keep) but short:
`STEPS` steps and two contexts, so that what grows with the stack shows beside the search instead of drowning in it. The
floors are the arithmetic of the searched rows at the best and at the sustained rate of such products (see bench_rome.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from bench_rome import SEED, floors, gemm_rates, search_flops, tokens_a_step
from measured_model import ask_for_model, load_model, now
from rich.console import Console
from rich.table import Table

from editkit.data import load
from editkit.edit._locate_then_edit import Contexts
from editkit.edit.alphaedit import AlphaEdit
from editkit.facts import Edit
from editkit.handle import ModelHandle
from editkit.memory import give_back
from editkit.operators import configured
from editkit.patch import LowRankDelta, Patch, WeightPatch

STEPS, EACH_END, REPEATS = 5, 100, 20


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("edits", type=int, nargs="?", default=1000)
    ask_for_model(options)
    given = options.parse_args()
    edits, handle = given.edits, load_model(given)
    console = Console()
    console.print(_apply(handle))
    console.print(_sequence(handle, edits))


def _apply(handle: ModelHandle) -> Table:
    columns = ("patch", "KiB", "share of model", "digest ms", "apply ms", "floor ms", "rollback ms")
    rate = _copied_a_second(handle)
    table = Table(*columns, title=f"one patch, best of {REPEATS}; copies run at {rate / 1e9:.1f} GB/s")
    model = sum(p.numel() * p.element_size() for p in handle.model.parameters())
    for layers, rank in ((1, 1), (5, 1), (5, 100)):
        size = _bytes(_random_patch(handle, layers, rank))
        digest, on, off = _best(handle, lambda n=layers, r=rank: _random_patch(handle, n, r))  # type: ignore[misc]
        matrices = sum(handle.matrix(handle.weight_name("mlp_out", layer)).nbytes for layer in range(layers))
        times = (f"{1000 * each:.1f}" for each in (digest, on, matrices / rate, off))
        table.add_row(f"{layers} layers, rank {rank}", f"{size / 1024:.0f}", f"{size / model:.2%}", *times)
    return table


def _copied_a_second(handle: ModelHandle) -> float:
    """Bytes a second of copying one matrix after another: what changing them must take at the least."""
    matrices = [handle.matrix(handle.weight_name("mlp_out", layer)) for layer in range(handle.layers)]
    best = 0.0
    for _ in range(REPEATS):
        start = now(handle)
        copies = [matrix.clone() for matrix in matrices]
        best = max(best, sum(copy.nbytes for copy in copies) / (now(handle) - start))
    return best


def _best(handle: ModelHandle, make: Callable[[], WeightPatch]) -> tuple[float, float, float]:
    """Seconds for the digest, to put on and to take off."""
    rounds = []
    for _ in range(REPEATS):
        patch, start = make(), now(handle)
        patch.digest  # noqa: B018 (kept in the patch)
        named = now(handle)
        handle.apply(patch)
        on = now(handle)
        handle.rollback()
        rounds.append((named - start, on - named, now(handle) - on))
    return tuple(min(each) for each in zip(*rounds, strict=True))  # type: ignore[return-value]


def _random_patch(handle: ModelHandle, layers: int, rank: int) -> WeightPatch:
    random = torch.Generator().manual_seed(0)
    shapes = {name: handle.matrix(name).shape for name in (handle.weight_name("mlp_out", i) for i in range(layers))}
    return WeightPatch(
        {
            name: LowRankDelta(
                1e-4 * torch.randn(out, rank, generator=random), torch.randn(rank, inner, generator=random)
            )
            for name, (out, inner) in shapes.items()
        }
    )


def _bytes(patch: Patch) -> int:
    assert isinstance(patch, WeightPatch)
    factors = [tensor for delta in patch.deltas.values() for tensor in delta.tensors().values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*factors, *patch.kept.values()))


def _sequence(handle: ModelHandle, number: int) -> Table:
    preset: AlphaEdit = configured("alphaedit", handle)[0]
    operator = dataclasses.replace(
        preset, target=dataclasses.replace(preset.target, steps=STEPS), contexts=Contexts(lengths=(10,), each=1)
    )
    base = load("world")
    edits = [base.edit_record(entry, seed=0).edit for entry in base.editable[:number]]
    operator(handle, edits[:1], seed=SEED)  # moments, contexts and spectra are measured before the clock runs
    rates = gemm_rates(handle, operator, tokens_a_step(handle, operator, edits[0]))
    before, (seconds, memory, flops) = handle.fingerprint(), _one_after_another(handle, operator, edits)
    end, first = min(EACH_END, number // 2), memory[0]
    table = Table(
        "edits",
        "median s",
        "floors s",
        "resident MB",
        "patches MB",
        title=f"{number} AlphaEdit edits, {STEPS} steps each",
    )
    for begin in (*range(0, number - end, max(end, (number - end) // 4)), number - end):
        at, there = begin + end, handle.patches[: begin + end]
        table.add_row(
            f"{begin + 1} to {at}",
            f"{statistics.median(seconds[begin:at]):.3f}",
            floors(statistics.median(flops[begin:at]), rates),
            f"{memory[at - 1]:.0f} (+{memory[at - 1] - first:.0f})",
            f"{sum(map(_bytes, there)) / 2**20:.1f}",
        )
    ratio = statistics.median(seconds[-end:]) / statistics.median(seconds[:end])
    start = time.perf_counter()
    handle.rollback()
    back = time.perf_counter() - start
    same = "to the bit" if handle.fingerprint() == before else "NOT TO THE BIT"
    table.caption = f"last {end} over first {end}: {ratio:.2f}; all taken off in {1000 * back:.0f} ms, {same}"
    return table


def _one_after_another(
    handle: ModelHandle, operator: AlphaEdit, edits: Sequence[Edit]
) -> tuple[list[float], list[float], list[float]]:
    seconds, memory, flops = [], [], []
    for edit in edits:
        start = time.perf_counter()
        patch = operator(handle, [edit], seed=SEED)
        handle.apply(patch)
        seconds.append(time.perf_counter() - start)
        flops.append(search_flops(handle, operator, [edit], patch))
        give_back()  # what is freed is no memory that the stack needs
        memory.append(_resident())
    return seconds, memory, flops


def _resident() -> float:
    """Memory of this process now, in MB (Linux; elsewhere 0)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


if __name__ == "__main__":
    main()
