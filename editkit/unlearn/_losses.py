"""Forget and retain losses as pure functions of log-probabilities: one number per example, nats, lower is descended.

log p(completion | prompt) is *summed* over the completion's tokens, as NPO and DPO take it. `nll` and `ga` are used
with the mean over all completion tokens of a step (`Term.per = "token"`), which is what a model's own cross-entropy
with labels of -100 on prompt and padding gives; `npo` with the mean over examples.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

PerExample = Float[Tensor, " batch"]


def nll(logp: PerExample) -> PerExample:
    """Negative log-likelihood, summed over tokens: descended on what shall be kept."""
    return -logp


def ga(logp: PerExample) -> PerExample:
    """Gradient ascent: the negative of `nll`. Not bounded below: it goes on for ever."""
    return logp


def npo(logp: PerExample, reference: PerExample, beta: float) -> PerExample:
    """(2/β) log(1 + r), r = (p/p_ref)^β. Bounded below by 0. Its gradient is that of `ga` times 2r / (1 + r): it fades
    as the example is forgotten, and becomes that of `ga` as β → 0."""
    return (2 / beta) * softplus(beta * (logp - reference))


def npo_at_reference(beta: float) -> float:
    """The value of `npo` where nothing has changed yet."""
    return 2 * math.log(2) / beta
