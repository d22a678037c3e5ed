"""Patches of a run: computed once, kept in the run folder, read again when a run resumes."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from editkit.handle import ModelHandle
from editkit.operators import settings_of
from editkit.patch import PatchError, WeightPatch
from reports.record import Change, Journal

FOLDER = "patches"


def file_of(change_id: str) -> str:
    """A file name for a change, free of anything a fact's id may hold."""
    return f"{FOLDER}/{re.sub(r'[^A-Za-z0-9._-]+', '-', change_id).strip('-')}.safetensors"


def kept(folder: Path, journal: Journal, change_id: str) -> tuple[WeightPatch, Change] | None:
    """The patch of an earlier session of this run, if it is whole."""
    for entry in journal.entries("patch"):
        if entry["body"]["id"] == change_id:
            change = Change(**(entry["body"] | {k: tuple(entry["body"][k]) for k in ("facts", "parameters")}))
            try:
                patch = WeightPatch.load(folder / change.file)
            except PatchError:
                return None
            return (patch, change) if patch.digest == change.digest else None
    return None


def compute(
    handle: ModelHandle,
    folder: Path,
    journal: Journal,
    *,
    wanted: Mapping[str, Sequence[str]],
    task: str,
    operator: Any,
    source: str,
    seed: int,
    call: Callable[[list[str]], Sequence[WeightPatch]],
) -> list[tuple[WeightPatch, Change]]:
    """The patches of changes: those kept are read; `call` computes the others, which are saved and journaled.

    `wanted` holds the facts of each change by its id, and `call` is given the ids of the missing ones. The time of a
    call is shared evenly by what it gives.
    """
    found = {change_id: kept(folder, journal, change_id) for change_id in wanted}
    missing = [change_id for change_id, there in found.items() if there is None]
    began = time.perf_counter()
    patches = call(missing) if missing else []
    seconds = (time.perf_counter() - began) / max(1, len(missing))
    for change_id, patch in zip(missing, patches, strict=True):
        name, arm = change_id.split("/")[:2]
        change = Change(
            id=change_id,
            operator=name,
            task=task,
            arm=arm,
            facts=tuple(wanted[change_id]),
            settings=settings_of(operator),
            settings_source=source,
            seed=seed,
            digest=patch.digest,
            file=file_of(change_id),
            seconds=round(seconds, 3),
            parameters=tuple(patch.deltas),
            relative_norm=relative_norm(handle, patch),
            notes=dict(patch.provenance.notes),
        )
        patch.save(folder / change.file)
        journal.append("patch", body={field: getattr(change, field) for field in Change.__slots__})
        found[change_id] = patch, change
    return [there for there in found.values() if there is not None]


def relative_norm(handle: ModelHandle, patch: WeightPatch) -> float:
    """Frobenius norm of the change over that of the weights it is added to."""
    moved = sum(float(torch.linalg.vector_norm(d.dense(), dtype=torch.float64)) ** 2 for d in patch.deltas.values())
    there = sum(float(torch.linalg.vector_norm(handle.parameter(n).detach().double())) ** 2 for n in patch.deltas)
    return math.sqrt(moved / there) if there else math.inf
