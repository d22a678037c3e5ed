"""What guards share: they take another operator's patch and tame it before anybody puts it on.

A guard is an edit operator whose setting `of` names another one, with that one's settings: `of = {name = "memit",
settings = {...}}`. Guards can guard guards.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from editkit.edit._search import Progress
from editkit.errors import InputError, MethodError
from editkit.facts import Edit
from editkit.handle import ModelHandle
from editkit.operators import EDITS, Confined, configured, each, provenance_of
from editkit.patch import Delta, WeightPatch


@dataclass(frozen=True, slots=True)
class Guarded:
    """The operator that is guarded: its registered `name`, and `settings` on top of its preset."""

    name: str = "memit"
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        EDITS[self.name]  # raises UnknownName


@dataclass(frozen=True, slots=True)
class Guard:
    """`of`: the operator whose change is tamed."""

    name: ClassVar[str]

    of: Guarded = field(default_factory=Guarded)

    @abstractmethod
    def tamed(
        self, weight: Float[Tensor, "d_out d_in"], delta: Delta, earlier: Float[Tensor, "d_out d_in"] | None
    ) -> tuple[Delta, dict[str, Any]]:
        """What is left of a change of one matrix, (out, in), and notes on it. `weight` is the unchanged matrix,
        `earlier` the sum of what the patches below have added to it."""

    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> WeightPatch:
        """The tamed change; `notes` tell what was taken away, and those of the guarded operator."""
        patch = self.inner(handle)(handle, edits, seed=seed, progress=progress)
        return self._tamed(handle, patch, edits, seed)

    def each(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> list[WeightPatch]:
        """A patch for each edit by itself, as a call for that edit alone gives it."""
        patches = each(self.inner(handle), handle, edits, seed=seed, progress=progress)
        return [self._tamed(handle, patch, [edit], seed) for edit, patch in zip(edits, patches, strict=True)]

    def touches(self, handle: ModelHandle) -> Sequence[str]:
        """What the guarded operator touches. Raises InputError for one that does not say."""
        inner = self.inner(handle)
        if not isinstance(inner, Confined):
            raise InputError(f"{self.of.name!r} does not say which matrices it changes, so {self.name} cannot guard it")
        return inner.touches(handle)

    def inner(self, handle: ModelHandle) -> Any:
        """The guarded operator, with its own preset for this model below the settings."""
        return configured(self.of.name, handle, self.of.settings)[0]

    def _tamed(self, handle: ModelHandle, patch: Any, edits: Sequence[Edit], seed: int) -> WeightPatch:
        if not isinstance(patch, WeightPatch):
            raise MethodError(f"{self.of.name!r} does not change weights, so there is nothing for {self.name} to guard")
        deltas: dict[str, Delta] = {}
        taken: dict[str, Any] = {}
        for name, delta in patch.deltas.items():
            weight = handle.unpatched(name).float()
            earlier = handle.matrix(name).float() - weight
            deltas[name], taken[name] = self.tamed(weight, delta, earlier if earlier.any() else None)
        notes = {"taken": taken, "guarded": dict(patch.provenance.notes)}
        return WeightPatch(deltas, provenance_of(self.name, self, handle, edits, seed, **notes), patch.kept)
