"""Adam on one tensor that is no parameter (Kingma and Ba 2015), with the usual constants.

`torch.optim` would serve, but importing its compiler takes longer than a whole edit.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8


class Adam:
    """Moves a tensor in place."""

    def __init__(self, value: Tensor, rate: float) -> None:
        self._value, self._rate = value, rate
        self._first, self._second = torch.zeros_like(value), torch.zeros_like(value)
        self._steps = 0

    @torch.no_grad()
    def step(self, grad: Tensor) -> None:
        """One step against `grad`."""
        self._steps += 1
        self._first.lerp_(grad, 1 - BETAS[0])
        self._second.lerp_(grad.square(), 1 - BETAS[1])
        scale = (self._second / (1 - BETAS[1] ** self._steps)).sqrt_().add_(EPSILON)
        self._value.addcdiv_(self._first, scale, value=-self._rate / (1 - BETAS[0] ** self._steps))
