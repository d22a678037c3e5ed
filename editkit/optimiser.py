"""AdamW for in-place training with little memory: narrow moments, gradients dropped as they are used.

Beside the parameters it holds 4 bytes for each, and 4 more where the model is in bfloat16 or float16: a float32 master.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

CHUNK = 1 << 20  # numbers touched at once, so that temporaries stay small
BETAS, EPSILON = (0.9, 0.99), 1e-8


class AdamW:
    """AdamW (Loshchilov and Hutter 2019) with moments in bfloat16: two bytes each instead of four.

    The second moment decays by 0.99, not 0.999: in bfloat16 a change of 0.1 % would be rounded away.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], *, rate: float, warmup: int, decay: float, clip: float | None
    ) -> None:
        """`parameters` are trainable and contiguous; `rate` is reached after `warmup` steps; `decay` is decoupled;
        `clip` bounds the common norm of the gradients."""
        self._parameters = dict(parameters)
        self.masters = {name: _master(p) for name, p in parameters.items()}
        self._moments = {name: _moments(p) for name, p in parameters.items()}
        self._rate, self._warmup, self._decay, self._clip = rate, warmup, decay, clip
        self._steps = 0

    def step(self) -> None:
        """Move every parameter that has a gradient, and drop the gradient."""
        self._steps += 1
        rate = self._rate * min(1.0, self._steps / max(1, self._warmup))
        shrink = self._shrinkage()
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            master = self.masters[name]
            columns = (master.view(-1), parameter.grad.reshape(-1), *self._moments[name])
            for chunk in zip(*(column.split(CHUNK) for column in columns), strict=True):
                self._move(*chunk, rate=rate, shrink=shrink)
            if master.dtype != parameter.dtype:
                parameter.data.copy_(master)
            parameter.grad = None

    def _move(self, value: Tensor, grad: Tensor, first: Tensor, second: Tensor, *, rate: float, shrink: float) -> None:
        grad = grad.to(value.dtype) * shrink
        mean = torch.lerp(grad, first.to(value.dtype), BETAS[0])
        square = torch.lerp(grad.square(), second.to(value.dtype), BETAS[1])
        first.copy_(mean)
        second.copy_(square)
        scale = square.div_(1 - BETAS[1] ** self._steps).sqrt_().add_(EPSILON)
        value.mul_(1 - rate * self._decay)
        value.addcdiv_(mean, scale, value=-rate / (1 - BETAS[0] ** self._steps))

    def _shrinkage(self) -> float:
        """What the gradients are multiplied with so that their common norm stays within `clip`."""
        if self._clip is None:
            return 1.0
        norms = [p.grad.norm() for p in self._parameters.values() if p.grad is not None]
        norm = float(torch.stack(norms).norm()) if norms else 0.0
        return min(1.0, self._clip / norm) if norm else 1.0


def _master(parameter: nn.Parameter) -> Tensor:
    """What is moved: the parameter itself; of a narrower one a float32 copy, as it would lose small updates."""
    return parameter.data.float() if parameter.dtype.itemsize < 4 else parameter.data


def _moments(parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
    first = torch.zeros(parameter.numel(), dtype=torch.bfloat16, device=parameter.device)
    return first, torch.zeros_like(first)
