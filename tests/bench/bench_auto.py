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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench_moments import Asked, asked_of
from bench_sequential import known_records
from rich.console import Console
from rich.table import Table

from editkit.auto import auto_preset
from editkit.facts import EditRecord
from editkit.handle import ModelHandle
from editkit.models import DEFAULT_MODEL
from editkit.operators import Preset, each, operator_class, preset_for
from editkit.scoring import score_pairs
from editkit.settings import build
from probes.estimate import proportion

NO_WIDTH = 577  # that a preset is for


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("operators", nargs="*", default=("rome", "memit", "ft_l"))
    options.add_argument("--facts", type=int, default=40)
    options.add_argument("--model", default=DEFAULT_MODEL)
    given = options.parse_args()
    handle = ModelHandle.load(given.model)
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
            row = (name, label, *_figures(handle, name, preset, records, asked), spent, preset.source)
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


def _figures(
    handle: ModelHandle, name: str, preset: Preset, records: Sequence[EditRecord], asked: Sequence[Any]
) -> list[str]:
    operator = build(operator_class(name)[1], preset.settings)
    hits: list[list[tuple[float, int]]] = [[], [], []]
    for fact, patch in enumerate(each(operator, handle, [record.edit for record in records], seed=0)):
        parts: Sequence[Asked] = asked[fact]
        with handle.patched(patch):
            for kind, pairs in enumerate(parts):
                hits[kind] += [(float(score.argmax), fact) for score in score_pairs(handle, pairs)] if pairs else []
    found = [proportion([hit for hit, _ in own], [fact for _, fact in own]) for own in hits]
    return [f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in found]


if __name__ == "__main__":
    main()
