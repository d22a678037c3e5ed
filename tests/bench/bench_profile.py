"""Where the time of a change goes, by torch's profiler. Run by hand:

    python tests/bench/bench_profile.py [OPERATOR [FACTS]] [--model smollm2-135m]

The operators of torch by the time they took themselves, and what of it were matrix products: what is not could be saved,
what is can only be done at a better rate. The profiler itself makes small operators slower.
"""

from __future__ import annotations

import argparse
import time

from bench_sequential import known_records
from measured_model import ask_for_model, load_model
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from editkit.operators import configured

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn")
SHOWN = 20


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("operator", nargs="?", default="memit")
    options.add_argument("facts", type=int, nargs="?", default=16)
    ask_for_model(options)
    given = options.parse_args()
    name, number, handle = given.operator, given.facts, load_model(given)
    operator = configured(name, handle)[0]
    edits = [record.edit for record in known_records(handle, number)]
    operator(handle, edits[:1], seed=0)  # moments and contexts are made, and everything is warm
    start = time.perf_counter()
    operator(handle, edits, seed=0)
    plain = (time.perf_counter() - start) / len(edits)
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        operator(handle, edits, seed=0)
    profiled = (time.perf_counter() - start) / len(edits)
    events = sorted(found.key_averages(), key=lambda each: each.self_cpu_time_total, reverse=True)
    total = sum(each.self_cpu_time_total for each in events)
    table = Table("operator of torch", "calls", "share", title=f"{name}, {len(edits)} facts")
    for each in events[:SHOWN]:
        table.add_row(each.key, str(each.count), f"{each.self_cpu_time_total / total:.1%}")
    products = sum(each.self_cpu_time_total for each in events if any(word in each.key for word in PRODUCTS))
    table.caption = f"{plain:.2f} s a fact, {profiled:.2f} s with the profiler; products {products / total:.0%}"
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
