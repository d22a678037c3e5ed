"""An edit operator that finds no change for some facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from editkit.facts import Edit
from editkit.linalg import SolveError
from editkit.operators import provenance_of
from editkit.patch import DenseDelta, WeightPatch


@dataclass(frozen=True, slots=True)
class Picky:
    """Finds a change for all subjects but some, and for no more than `most` at once."""

    fails: tuple[str, ...] = ()
    most: int = 9
    asked: ClassVar[list[tuple[str, ...]]] = []

    def __call__(self, handle, edits: Sequence[Edit], *, seed, progress=None):
        self.asked.append(tuple(edit.fact.subject for edit in edits))
        for edit in edits:
            if edit.fact.subject in self.fails:
                raise SolveError(f"cannot edit {edit.fact.subject!r}: its key is nothing")
        if len(edits) > self.most:
            raise SolveError("keys of two facts coincide")
        name = handle.weight_name("mlp_out", 1)
        value = torch.full(handle.matrix(name).shape, 1e-3 * len(edits[0].fact.subject))
        return WeightPatch({name: DenseDelta(value)}, provenance_of("picky", self, handle, edits, seed))
