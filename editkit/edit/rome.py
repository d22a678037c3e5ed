"""ROME, rank-one model editing (Meng et al. 2022, https://arxiv.org/abs/2202.05262, equation 2).

    Δ = r (C⁻¹ k)ᵀ / (kᵀ C⁻¹ k)        k: key (d_in), r = v* - W k: residual (d_out), C = E[k kᵀ]

One MLP's second matrix is changed so that the subject's key brings forth a value under which the model says the new
object. Several edits are made one after another, each on the model with those before it.

Differs from the authors' code:
- one key, the mean over the contexts, in the solve and in the residual (theirs: the mean in one and the bare prompt's
  key in the other, so that the divisor can come near zero); a tiny divisor is an error;
- the KL term is read after the whole of "{} is a", as in the paper (theirs: at the subject's last token);
- settings are the code's, not the paper's (KL 0.0625 against 100, weight decay 0.5 against 0.0015), and weight decay
  is theirs: ‖r‖ / ‖v‖², the first power above and the second below;
- C is measured on text that the model writes from a seed (or a corpus that is given), not on Wikipedia; contexts are
  drawn with a seed, from openers instead of from an end-of-text token;
- C's factor is a float64 Cholesky, not a float32 inverse;
- the search computes only what a step can change: blocks above the layer, tokens from the subject's last one on.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from editkit.edit._locate_then_edit import Contexts, Plan, each_alone, one_after_another
from editkit.edit._search import Progress, TargetSearch
from editkit.facts import Edit
from editkit.handle import ModelHandle
from editkit.linalg import cholesky, rank_one
from editkit.moments import MomentSettings, second_moments
from editkit.operators import EDITS, provenance_of
from editkit.patch import LowRankDelta, WeightPatch


@EDITS.register("rome")
@dataclass(frozen=True, slots=True)
class ROME:
    """`layer`: number of the block whose `mlp_out` is edited."""

    layer: int
    target: TargetSearch = field(default_factory=TargetSearch)
    contexts: Contexts = field(default_factory=Contexts)
    moments: MomentSettings = field(default_factory=MomentSettings)

    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> WeightPatch:
        """A low-rank patch of one matrix, one rank an edit; `notes` tell how each search went. Raises SolveError."""
        plan, about = self._plan(handle, progress)
        delta, searches = one_after_another(handle, edits, plan, seed=seed, progress=progress)
        return self._patch(handle, delta, edits, seed, {"searches": searches} | about)

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
        moment = second_moments(handle, [self.layer], self.moments, progress=progress)[self.layer]
        factor, jitter = cholesky(moment.matrix)
        plan = Plan(self.layer, self.target, self.contexts, functools.partial(rank_one, factor=factor))
        return plan, {"moment_tokens": moment.tokens, "moment": moment.key, "jitter": jitter}

    def _patch(
        self, handle: ModelHandle, delta: LowRankDelta, edits: Sequence[Edit], seed: int, notes: dict[str, Any]
    ) -> WeightPatch:
        (name,) = self.touches(handle)
        return WeightPatch({name: delta}, provenance_of("rome", self, handle, edits, seed, **notes))
