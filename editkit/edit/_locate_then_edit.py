"""What ROME and its kin share: contexts, and the loop over edits of one layer (the search for values: `_search`; the
update that is spread over several layers: `_spread`).

A method says which layer it edits and hands over its `solve`. The key of a fact is the mean, over the contexts, of
what `mlp_out` reads at the subject's last token; the search gives the residual, which is added to what `mlp_out` gives
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.edit._search import Progress, Target, TargetSearch, find_targets
from editkit.errors import InputError
from editkit.facts import Edit
from editkit.handle import ModelHandle
from editkit.linalg import SolveError
from editkit.patch import LowRankDelta, WeightPatch
from editkit.sampling import TextPlan, sampled_texts

CONTEXT_TOP_K = 5

Solve = Callable[[Target], tuple[Float[Tensor, "d_out 1"], Float[Tensor, "1 d_in"]]]


@dataclass(frozen=True, slots=True)
class Contexts:
    """Texts that the model writes and that are put before the prompt, so that the edit holds in other places too:
    `each` of every length in `lengths` (tokens), and always the prompt alone."""

    lengths: tuple[int, ...] = (5, 10)
    each: int = 10

    def __post_init__(self) -> None:
        if self.each < 0 or any(length < 1 for length in self.lengths):
            raise InputError(f"{self} needs each >= 0 (0: the prompt alone) and lengths of at least one token")

    def before(self, handle: ModelHandle, seed: int) -> list[str]:
        """What stands before the prompt; the first is ""."""
        plans = [TextPlan(self.each, length, seed, CONTEXT_TOP_K) for length in self.lengths if self.each]
        texts = [" ".join(text.translate(_NO_SLOTS).split()) for plan in plans for text in sampled_texts(handle, plan)]
        return ["", *(f"{text}. " for text in texts)]


_NO_SLOTS = str.maketrans("{}", "  ")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a method edits, and how: the layer whose `mlp_out` is changed, its search and its solve."""

    layer: int
    search: TargetSearch
    contexts: Contexts
    solve: Solve

    def delta(self, edit: Edit, target: Target) -> LowRankDelta:
        """The change that does what the search found. Raises SolveError, which names the subject."""
        try:
            left, right = self.solve(target)
        except SolveError as error:
            raise SolveError(f"cannot edit {edit.fact.subject!r} at layer {self.layer}: {error}") from None
        return LowRankDelta(left.float(), right.float())


def one_after_another(
    handle: ModelHandle, edits: Sequence[Edit], plan: Plan, *, seed: int, progress: Progress | None = None
) -> tuple[LowRankDelta, list[dict[str, Any]]]:
    """Edit `mlp_out` of one layer, each edit on top of those before it; gives the sum and notes on each edit.

    Raises SolveError, which names the subject, where no trustworthy update is found.
    """
    name = handle.weight_name("mlp_out", plan.layer)
    before = plan.contexts.before(handle, seed)
    deltas: list[LowRankDelta] = []
    notes = []
    with ExitStack() as stack:
        for number, edit in enumerate(edits):
            if progress:
                progress("searching values", number, len(edits))
            [target] = find_targets(handle, [edit], plan.layer, before, plan.search, seed=seed)
            deltas.append(plan.delta(edit, target))
            notes.append(target.notes)
            if number + 1 < len(edits):
                stack.enter_context(handle.patched(WeightPatch({name: deltas[-1]})))
    if progress:
        progress("searching values", len(edits), len(edits))
    whole = LowRankDelta(torch.cat([d.left for d in deltas], 1), torch.cat([d.right for d in deltas], 0))
    return whole, notes


def each_alone(
    handle: ModelHandle, edits: Sequence[Edit], plan: Plan, *, seed: int, progress: Progress | None = None
) -> list[tuple[LowRankDelta, dict[str, Any]]]:
    """Each edit on the model as it is, as `one_after_another` finds it for that edit alone, but searched together."""
    before = plan.contexts.before(handle, seed)
    targets = find_targets(handle, edits, plan.layer, before, plan.search, seed=seed, progress=progress)
    return [(plan.delta(edit, target), target.notes) for edit, target in zip(edits, targets, strict=True)]
