"""What taking one patch out of a stack does to the others.

Edits made one after another were each made on a model that had those before. When one of them goes, those above it
stand on ground that they were not made for; and any two that write through the same directions of a matrix act on each
other. `removal` measures both: by what the patches read, and by what the model says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.deltas import Delta, LowRankDelta
from editkit.handle import ModelHandle
from editkit.patch import Patch, WeightPatch
from editkit.scoring import TargetScore, score_pairs

LEAST = 1e-6  # of the largest singular value: what a change hardly reads it does not read


@dataclass(frozen=True, slots=True)
class Moved:
    """An edit's new object at its own prompt, with all patches on and without the one that was removed: log-probability
    in nats, and whether each of its tokens is the most likely one."""

    prompt: str
    target_new: str
    before: float
    after: float
    held: bool
    holds: bool


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A patch that stays. `made_on_top`: it was computed on a model that had the removed one. `overlap`, from 0 to 1:
    the share (of its Frobenius norm) of its change that reads what the removed one reads; None where there is no such
    share, and `apart` then says why. `edits` are none where the patch does not tell them."""

    place: int
    operator: str
    made_on_top: bool
    overlap: float | None
    edits: tuple[Moved, ...]
    apart: str = ""


@dataclass(frozen=True, slots=True)
class Removal:
    """What the removal of patch number `place` does: to its own edits, and to the patches that stay."""

    place: int
    operator: str
    own: tuple[Moved, ...]
    others: tuple[Neighbour, ...]

    @property
    def lost(self) -> int:
        """Edits of other patches that held and do not hold any more. Lower is better."""
        return sum(moved.held and not moved.holds for other in self.others for moved in other.edits)

    @property
    def gone(self) -> int:
        """Own edits that held and do not hold any more."""
        return sum(moved.held and not moved.holds for moved in self.own)


def removal(handle: ModelHandle, place: int) -> Removal:
    """Try what `handle.remove(place)` would do, and leave all patches where they are. Raises InputError where there is
    no such patch.

    What is asked are the edits that the patches tell of themselves, each at its own prompt.
    """
    patches = handle.patches
    with handle.without(place):
        after = _scored(handle, patches)
    before = _scored(handle, patches)
    gone = patches[place]
    moved = [
        tuple(_moved(edit, old, new) for edit, old, new in zip(edits_of(patch), *scores, strict=True))
        for patch, *scores in zip(patches, before, after, strict=True)
    ]
    others = tuple(
        Neighbour(
            number,
            patch.provenance.operator,
            gone.digest in patch.provenance.notes.get("on_top_of", ()),
            share := overlap(gone, patch),
            moved[number],
            "" if share is not None else apart(gone, patch),
        )
        for number, patch in enumerate(patches)
        if number != place
    )
    return Removal(place, gone.provenance.operator, moved[place], others)


def edits_of(patch: Patch) -> Sequence[Mapping[str, Any]]:
    """The edits that a patch was made for, as it tells them: prompt, subject, target_new; none where it does not."""
    return patch.provenance.notes.get("edits", ())


def overlap(one: Patch, other: Patch) -> float | None:
    """The share of the other's change, by its Frobenius norm, that reads directions which the first reads: 0 to 1.

    None where they have no matrix in common, or are no changes of weights: `apart` says which.
    """
    if not isinstance(one, WeightPatch) or not isinstance(other, WeightPatch):
        return None
    common = _common(one, other)
    shared = sum(_norm(_thin(other.deltas[name]) @ _read(one.deltas[name])) ** 2 for name in common)
    whole = sum(_norm(_thin(delta)) ** 2 for delta in other.deltas.values() if _is_matrix(delta))
    return math.sqrt(min(1.0, shared / whole)) if common and whole else None


def apart(one: Patch, other: Patch) -> str:
    """Why there is no `overlap` of two patches, in words."""
    if not isinstance(one, WeightPatch) or not isinstance(other, WeightPatch):
        beside = {patch.provenance.operator for patch in (one, other) if not isinstance(patch, WeightPatch)}
        return f"a change beside the weights ({', '.join(sorted(beside))}), where there is no matrix to compare"
    return "its change is zero" if _common(one, other) else "the two change no matrix in common"


def _common(one: WeightPatch, other: WeightPatch) -> list[str]:
    """The matrices that both change."""
    return [name for name in other.deltas if name in one.deltas and _is_matrix(one.deltas[name])]


def _is_matrix(delta: Delta) -> bool:
    return isinstance(delta, LowRankDelta) or delta.value.ndim == 2


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix))


def _thin(delta: Delta) -> Float[Tensor, "rank in"]:
    """A matrix of few rows that reads as the change does, with the same norms: its left side is a rotation away."""
    if isinstance(delta, LowRankDelta):
        return torch.linalg.qr(delta.left.double(), mode="r").R @ delta.right.double()
    return delta.value.double()


def _read(delta: Delta) -> Float[Tensor, "in rank"]:
    """An orthonormal basis of the directions that a change reads."""
    _, values, rows = torch.linalg.svd(_thin(delta), full_matrices=False)
    return rows[values > LEAST * values[0]].T


def _scored(handle: ModelHandle, patches: Sequence[Patch]) -> list[list[TargetScore]]:
    """The scores of each patch's own edits."""
    pairs = [[(edit["prompt"], edit["target_new"]) for edit in edits_of(patch)] for patch in patches]
    scores = iter(score_pairs(handle, [pair for own in pairs for pair in own]))
    return [[next(scores) for _ in own] for own in pairs]


def _moved(edit: Mapping[str, Any], before: TargetScore, after: TargetScore) -> Moved:
    return Moved(edit["prompt"], edit["target_new"], before.logprob, after.logprob, before.argmax, after.argmax)
