"""GradDiff, gradient difference (Liu et al. 2022, https://arxiv.org/abs/2203.12817; as a baseline in
TOFU, https://arxiv.org/abs/2401.06121).

    ℓ = −forget_weight · mean token NLL on what is forgotten + retain_weight · mean token NLL on what is kept

With retain_weight 0 it is plain gradient ascent.

Differs from the authors' code:
- it stops at a declared share of forget examples still answered, or when neighbours kept out of training collapse:
  the loss is not bounded below, and ascent without a stop destroys the model;
- prompt and padding tokens never count; dropout is off; AdamW's second moment decays by 0.99.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from editkit.completions import Batch, read
from editkit.facts import ForgetRequest
from editkit.handle import ModelHandle
from editkit.operators import UNLEARNERS, provenance_of
from editkit.patch import WeightPatch
from editkit.scope import EVERYTHING, Scope
from editkit.training import Objective, Progress, Schedule, Stopping, Term, descend
from editkit.unlearn._losses import ga, nll
from editkit.unlearn._request import examples_of
from editkit.wide import computed_in_float32


@UNLEARNERS.register("grad_diff")
@dataclass(frozen=True, slots=True)
class GradDiff:
    """`forget_weight`, `retain_weight`: of the two losses above; the more the second weighs, the more stays.
    `schedule`: how long and how hard it trains; `stopping`: when it ends before; `scope`: the parameters that move."""

    forget_weight: float = 1.0
    retain_weight: float = 1.0
    schedule: Schedule = field(default_factory=Schedule)
    stopping: Stopping = field(default_factory=Stopping)
    scope: Scope = EVERYTHING

    @computed_in_float32
    def __call__(
        self, handle: ModelHandle, request: ForgetRequest, *, seed: int, progress: Progress | None = None
    ) -> WeightPatch:
        """A patch after which the forget examples are no longer answered; `notes` say why training stopped."""
        examples = examples_of(handle, request, self.stopping, seed)

        def forget(batch: Batch) -> Float[Tensor, " batch"]:
            return ga(read(handle, batch).total)

        def retain(batch: Batch) -> Float[Tensor, " batch"]:
            return nll(read(handle, batch).total)

        terms = (
            Term("forget", examples.forget, forget, self.forget_weight, per="token"),
            Term("retain", examples.retain, retain, self.retain_weight, per="token"),
        )
        objective = Objective(terms, examples.forget, examples.watch, self.stopping)
        descent = descend(handle, objective, self.schedule, self.scope, seed=seed, progress=progress)
        return WeightPatch(descent.deltas, provenance_of("grad_diff", self, handle, request, seed, **descent.notes))
