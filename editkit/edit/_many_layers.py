"""MEMIT, PMET, EMMET and AlphaEdit but for their update and share: what each method has in `_solver` is its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from editkit.edit._locate_then_edit import Contexts
from editkit.edit._places import AtMLP, Prepare
from editkit.edit._search import Progress, TargetSearch
from editkit.edit._spread import Found, Keys, Plan, Solve, as_patch, check_layers, each_by_itself, in_batches
from editkit.errors import InputError
from editkit.facts import Edit, check_edits
from editkit.handle import ModelHandle
from editkit.moments import Moment, MomentSettings, second_moments
from editkit.operators import provenance_of
from editkit.patch import WeightPatch
from editkit.wide import computed_in_float32

MEMIT_SEARCH = TargetSearch(clamp=0.75)
MEMIT_CONTEXTS = Contexts(lengths=(10,), each=5)


@dataclass(frozen=True, slots=True)
class ManyLayers:
    """`layers`: numbers of the blocks whose `mlp_out` is edited, from low to high; values are searched at the last.
    `target`: how the value is searched under which the model says the new object. `contexts`: what stands before the
    prompt in the search, and where keys are read: more of them make an edit hold in more places, and take longer.
    `moments`: on which text C is measured, and how much. `batch`: how many edits of one call share an update, the next
    batch on the model with those before; 0: all."""

    name: ClassVar[str]
    share: ClassVar[Callable[[int], float]] = float  # what the lacking part is divided by, of the layers left
    place: ClassVar[Prepare] = AtMLP.prepare  # where the search adds its residuals
    of_block: ClassVar[bool] = True  # it is the last block that lacks; else its MLP

    layers: tuple[int, ...]
    target: TargetSearch = MEMIT_SEARCH
    contexts: Contexts = MEMIT_CONTEXTS
    moments: MomentSettings = field(default_factory=MomentSettings)
    batch: int = 0

    def __post_init__(self) -> None:
        check_layers(self.layers)
        if self.batch < 0:
            raise InputError(f"batch {self.batch} is no number of edits; 0 means all together")

    @abstractmethod
    def solver(self, moments: Mapping[int, Moment], memo: dict[str, Any]) -> tuple[Solve, dict[str, Any]]:
        """The method's update, ready for the second moments of its layers; and notes on it. `memo` is the handle's:
        what would take long to make again in the next call."""

    @computed_in_float32
    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> WeightPatch:
        """A low-rank patch of each layer's matrix, one rank an edit; `notes` tell how each search went.

        Raises SolveError, which names the subject or the layer, where no trustworthy change is found, InputError where
        there is no edit, no such layer or no token of the subject, and PromptTooLong where an edit does not fit the
        model's context."""
        check_edits(edits)
        plan, about = self._plan(handle, progress)
        past = self.past(handle)
        found = in_batches(handle, edits, plan, self.batch, past, seed=seed, progress=progress)
        return self._patch(handle, found, edits, seed, about)

    @computed_in_float32
    def each(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> list[WeightPatch]:
        """A patch for each edit by itself, as a call for that edit alone gives it, found together: faster."""
        plan, about = self._plan(handle, progress)
        found = each_by_itself(handle, edits, plan, self.past(handle), seed=seed, progress=progress)
        return [self._patch(handle, each, [edit], seed, about) for edit, each in zip(edits, found, strict=True)]

    def touches(self, handle: ModelHandle) -> list[str]:
        """The names of the matrices that it changes."""
        return [handle.weight_name("mlp_out", layer) for layer in self.layers]

    def past(self, handle: ModelHandle) -> dict[int, list[Keys]]:
        """Keys of earlier edits by layer, which must keep what they bring forth: of the patches on the handle that say
        so."""
        there = [patch.kept for patch in handle.patches if isinstance(patch, WeightPatch)]
        names = zip(self.layers, self.touches(handle), strict=True)
        return {layer: [kept[name] for kept in there if name in kept] for layer, name in names}

    def _plan(self, handle: ModelHandle, progress: Progress | None) -> tuple[Plan, dict[str, Any]]:
        moments = second_moments(handle, self.layers, self.moments, progress=progress)
        solve, notes = self.solver(moments, handle.memo)
        about = {
            "moments": [moments[layer].key for layer in self.layers],
            "moment_tokens": moments[self.layers[0]].tokens,
        }
        kind = type(self)
        plan = Plan(self.layers, self.target, self.contexts, solve, kind.share, kind.place, kind.of_block)
        return plan, about | notes

    def _patch(
        self, handle: ModelHandle, found: Found, edits: Sequence[Edit], seed: int, about: dict[str, Any]
    ) -> WeightPatch:
        notes = {"searches": found.searches} | about
        kept = {handle.weight_name("mlp_out", layer): keys for layer, keys in found.keys.items()}
        return WeightPatch(
            as_patch(handle, found.deltas).deltas, provenance_of(self.name, self, handle, edits, seed, **notes), kept
        )
