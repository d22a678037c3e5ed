"""What `--preset auto` finds on a model that nobody has tuned, beside the guess it starts from and what was tuned by
hand. Run by hand:

    python tests/bench/bench_auto.py [OPERATOR ...] [--facts 40]

The embedded model is shown to the presets as a model of a width that none of them knows. Each row edits the same known
facts, one at a time; none of their subjects is used by the search. Shares of prompts at which every token of the answer
is the most likely one, 95 %, clustered by fact; higher is better.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench_moments import asked_of, hits_of, told
from bench_sequential import known_records
from measured_model import ask_for_model, load_model
from rich.console import Console
from rich.table import Table

from editkit.auto import auto_preset
from editkit.handle import ModelHandle
from editkit.operators import each, operator_class, preset_for
from editkit.settings import build
from probes.estimate import proportion

NO_WIDTH = 577  # that a preset is for


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("operators", nargs="*", default=("rome", "memit", "ft_l"))
    options.add_argument("--facts", type=int, default=40)
    ask_for_model(options)
    given = options.parse_args()
    handle = load_model(given)
    records = known_records(handle, given.facts)
    asked = [asked_of(handle, record) for record in records]
    table = Table("operator", "settings", "efficacy", "generalization", "specificity", "search s", "source")
    for name in given.operators:
        tuned = preset_for(name, handle)
        with unknown(handle):
            began = time.perf_counter()
            found = auto_preset(name, handle, avoid={record.fact.subject for record in records})
            seconds = time.perf_counter() - began
            guess = preset_for(name, handle)
        arms = (("guess", guess, ""), ("auto", found, f"{seconds:.0f}"), ("tuned", tuned, ""))
        for label, preset, spent in arms:
            operator = build(operator_class(name)[1], preset.settings)
            hits = hits_of(handle, each(operator, handle, [record.edit for record in records], seed=0), asked)
            shown = [told(proportion(*zip(*own, strict=True))) for own in hits]
            row = (name, label, *shown, spent, preset.source)
            print(*row, sep=" | ", flush=True)
            table.add_row(*row)
    Console(width=160).print(table)


@contextmanager
def unknown(handle: ModelHandle) -> Iterator[None]:
    """Presets do not know the model within the block."""
    config = handle.model.config
    plain = config.to_dict
    config.to_dict = lambda: plain() | {"hidden_size": NO_WIDTH}
    try:
        yield
    finally:
        del config.to_dict


if __name__ == "__main__":
    main()
