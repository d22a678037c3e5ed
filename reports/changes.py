"""Patches of a run: computed once, kept in the run folder, read again when a run resumes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editkit.errors import MethodError
from editkit.handle import ModelHandle
from editkit.patch import Patch, PatchError, load_patch
from editkit.settings import settings_of
from reports.record import Change, Journal, part

FOLDER = "patches"
TOGETHER = 16  # changes found in one call: what a killed run loses at the most


@dataclass(frozen=True, slots=True)
class Computed:
    """The patches of changes by id, and what an operator said of those for which it found none."""

    made: dict[str, tuple[Patch, Change]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def file_of(change_id: str) -> str:
    """A file name for a change, free of anything a fact's id may hold."""
    return f"{FOLDER}/{re.sub(r'[^A-Za-z0-9._-]+', '-', change_id).strip('-')}.safetensors"


def kept(folder: Path, journal: Journal, change_id: str) -> tuple[Patch, Change] | None:
    """The patch of an earlier session of this run, if it is whole; one without a file has to be computed anew."""
    changes = (part("change", entry, journal.path) for entry in reversed(journal.entries("patch")))
    change = next((each for each in changes if each.id == change_id), None)
    if change is None or not change.file:
        return None
    try:
        patch = load_patch(folder / change.file)
    except PatchError:
        return None
    return (patch, change) if patch.digest == change.digest else None


def failed(journal: Journal) -> dict[str, str]:
    """What operators said, in this run, of the changes for which they found no patch, by id."""
    return {str(entry.get("id")): str(entry.get("text")) for entry in journal.entries("failed")}


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
    call: Callable[[list[str]], Sequence[Patch | MethodError]],
) -> Computed:
    """The patches of changes: those kept are read; `call` computes the others, which are saved and journaled.

    `wanted` holds the facts of each change by its id, and `call` is given ids of missing ones, some at a time. The time
    of a call is shared evenly by what it gives. What it gives an error for is journaled too, and never tried again.
    """
    found = {change_id: kept(folder, journal, change_id) for change_id in wanted}
    given_up = {change_id: text for change_id, text in failed(journal).items() if change_id in wanted}
    missing = [change_id for change_id, there in found.items() if there is None and change_id not in given_up]
    about = {"task": task, "settings": settings_of(operator), "settings_source": source, "seed": seed}
    for begin in range(0, len(missing), TOGETHER):
        some = missing[begin : begin + TOGETHER]
        began = time.perf_counter()
        outcomes = call(some)
        seconds = (time.perf_counter() - began) / len(some)
        for change_id, outcome in zip(some, outcomes, strict=True):
            if isinstance(outcome, MethodError):
                journal.append("failed", id=change_id, text=str(outcome))
                given_up[change_id] = str(outcome)
            else:
                change = _described(change_id, outcome, handle, seconds, facts=tuple(wanted[change_id]), **about)
                _keep(outcome, change, folder, journal)
                found[change_id] = outcome, change
    return Computed({change_id: there for change_id, there in found.items() if there is not None}, given_up)


def _described(change_id: str, patch: Patch, handle: ModelHandle, seconds: float, **about: Any) -> Change:
    name, arm = change_id.split("/")[:2]
    return Change(
        id=change_id,
        operator=name,
        arm=arm,
        digest=patch.digest,
        file=file_of(change_id) if patch.savable else "",
        seconds=round(seconds, 3),
        parameters=patch.parameters,
        relative_norm=patch.relative_norm(handle),
        notes=dict(patch.provenance.notes),
        **about,
    )


def _keep(patch: Patch, change: Change, folder: Path, journal: Journal) -> None:
    if change.file:
        patch.save(folder / change.file)
    journal.append("patch", body={field: getattr(change, field) for field in Change.__slots__})
