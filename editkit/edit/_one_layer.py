"""ROME and R-ROME but for their update: what each gives in `update` is all in which they differ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from editkit.edit._locate_then_edit import Contexts, Plan, each_alone, one_after_another
from editkit.edit._search import Progress, Target, TargetSearch
from editkit.facts import Edit, check_edits
from editkit.handle import ModelHandle
from editkit.moments import MomentSettings, factors, second_moments
from editkit.operators import provenance_of
from editkit.patch import LowRankDelta, WeightPatch
from editkit.wide import computed_in_float32


@dataclass(frozen=True, slots=True)
class OneLayer:
    """`layer`: number of the block whose `mlp_out` is edited. `target`: how the value is searched under which the model
    says the new object. `contexts`: what stands before the prompt in the search, and where the key is read: more of
    them make an edit hold in more places, and take longer. `moments`: on which text C is measured, and how much."""

    name: ClassVar[str]

    layer: int
    target: TargetSearch = field(default_factory=TargetSearch)
    contexts: Contexts = field(default_factory=Contexts)
    moments: MomentSettings = field(default_factory=MomentSettings)

    @staticmethod
    @abstractmethod
    def update(target: Target, factor: Float[Tensor, "d_in d_in"]) -> tuple[Tensor, Tensor]:
        """The factors (d_out, 1) and (1, d_in) of the change, from the lower Cholesky factor of C."""

    @computed_in_float32
    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> WeightPatch:
        """A low-rank patch of one matrix, one rank an edit, each edit made on the model with those before it; `notes`
        tell how each search went.

        Raises SolveError, which names the subject, where no trustworthy change is found, InputError where there is no
        edit, no such layer or no token of the subject, and PromptTooLong where an edit does not fit the model's
        context."""
        check_edits(edits)
        plan, about = self._plan(handle, progress)
        delta, searches = one_after_another(handle, edits, plan, seed=seed, progress=progress)
        return self._patch(handle, delta, edits, seed, {"searches": searches} | about)

    @computed_in_float32
    def each(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> list[WeightPatch]:
        """A patch for each edit by itself, as a call for that edit alone gives it, found together: faster."""
        plan, about = self._plan(handle, progress)
        found = each_alone(handle, edits, plan, seed=seed, progress=progress)
        return [
            self._patch(handle, delta, [edit], seed, {"searches": [search]} | about)
            for edit, (delta, search) in zip(edits, found, strict=True)
        ]

    def touches(self, handle: ModelHandle) -> tuple[str]:
        """The name of the one matrix that it changes."""
        return (handle.weight_name("mlp_out", self.layer),)

    def _plan(self, handle: ModelHandle, progress: Progress | None) -> tuple[Plan, dict[str, Any]]:
        moments = second_moments(handle, [self.layer], self.moments, progress=progress)
        moment, (factor, jitter) = moments[self.layer], factors(moments, handle.memo)[self.layer]
        plan = Plan(self.layer, self.target, self.contexts, lambda target: self.update(target, factor))
        return plan, {"moment_tokens": moment.tokens, "moment": moment.key, "jitter": jitter}

    def _patch(
        self, handle: ModelHandle, delta: LowRankDelta, edits: Sequence[Edit], seed: int, notes: dict[str, Any]
    ) -> WeightPatch:
        (weight,) = self.touches(handle)
        return WeightPatch({weight: delta}, provenance_of(self.name, self, handle, edits, seed, **notes))
