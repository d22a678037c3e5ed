"""The operator that a part of a spec asks for, with the settings that it shall have on a model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from editkit.auto import auto_preset
from editkit.handle import ModelHandle
from editkit.operators import configured, operator_class
from editkit.settings import build, merged
from reports.parts import OperatorPart
from reports.watch import Watch


def operator_of(
    part: OperatorPart, handle: ModelHandle, subjects: Collection[str], seed: int, watch: Watch
) -> tuple[Any, str]:
    """The operator and where its settings come from. `subjects` are those of the facts that it will change: a search
    for settings keeps away from them."""
    if part.preset == "published":
        return configured(part.name, handle, part.settings)
    watch.phase(f"Searching settings of {part.name}")

    def tell(what: str, done: int, total: int) -> None:
        watch.step(0, note=f"{what} ({done + 1}/{total})")

    found = auto_preset(part.name, handle, fixed=part.settings, avoid=subjects, seed=seed, progress=tell)
    _, kind = operator_class(part.name)
    return build(kind, merged(found.settings, part.settings)), found.source
