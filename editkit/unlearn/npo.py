"""NPO, negative preference optimisation (Zhang et al. 2024, https://arxiv.org/abs/2404.05868).

    ℓ = (2/β) log(1 + (p_θ(y|x) / p_ref(y|x))^β) on what is forgotten + retain_weight · mean token NLL on what is kept

Gradient ascent that slows as an example is forgotten: its gradient is the ascent's times 2r/(1+r), r = (p_θ/p_ref)^β.

Differs from the authors' code:
- log p_ref is computed once for the forget examples instead of holding a second model;
- it stops at a declared share of forget examples still answered, or when neighbours kept out of training collapse;
- prompt and padding tokens never count; dropout is off; AdamW's second moment decays by 0.99.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from editkit.completions import Batch, read, read_all
from editkit.errors import InputError
from editkit.facts import ForgetRequest
from editkit.handle import ModelHandle
from editkit.operators import UNLEARNERS, provenance_of
from editkit.patch import WeightPatch
from editkit.scope import EVERYTHING, Scope
from editkit.training import Objective, Progress, Schedule, Stopping, Term, descend
from editkit.unlearn._losses import nll, npo
from editkit.unlearn._request import examples_of
from editkit.wide import computed_in_float32


@UNLEARNERS.register("npo")
@dataclass(frozen=True, slots=True)
class NPO:
    """`beta`: inverse temperature, > 0; small is close to gradient ascent. `forget_weight`, `retain_weight`: of the two
    losses above; the more the second weighs, the more stays. `schedule`: how long and how hard it trains; `stopping`:
    when it ends before; `scope`: the parameters that move."""

    beta: float = 0.1
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    schedule: Schedule = field(default_factory=Schedule)
    stopping: Stopping = field(default_factory=Stopping)
    scope: Scope = EVERYTHING

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise InputError(f"beta is {self.beta}; NPO needs beta > 0 (its limit 0 is grad_diff)")

    @computed_in_float32
    def __call__(
        self, handle: ModelHandle, request: ForgetRequest, *, seed: int, progress: Progress | None = None
    ) -> WeightPatch:
        """A patch after which the forget examples are no longer answered; `notes` say why training stopped."""
        examples = examples_of(handle, request, self.stopping, seed)
        reference = read_all(handle, examples.forget).total

        def forget(batch: Batch) -> Float[Tensor, " batch"]:
            return npo(read(handle, batch).total, reference[batch.rows], self.beta)

        def retain(batch: Batch) -> Float[Tensor, " batch"]:
            return nll(read(handle, batch).total)

        terms = (
            Term("forget", examples.forget, forget, self.forget_weight),
            Term("retain", examples.retain, retain, self.retain_weight, per="token"),
        )
        objective = Objective(terms, examples.forget, examples.watch, self.stopping)
        descent = descend(handle, objective, self.schedule, self.scope, seed=seed, progress=progress)
        return WeightPatch(descent.deltas, provenance_of("npo", self, handle, request, seed, **descent.notes))
