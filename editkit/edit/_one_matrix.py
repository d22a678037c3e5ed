"""FT, FT-M and FT-L but for what each counts and bounds: gradient descent on one layer's `mlp_out`.

Blocks below the layer are computed once: a change of the matrix cannot change what it reads.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from editkit.blocks import frozen
from editkit.edit._adam import Adam
from editkit.edit._upper import Reads, Row, Upper, prepare, reads_of
from editkit.errors import InputError
from editkit.facts import Edit, check_edits
from editkit.forward import attention
from editkit.handle import ModelHandle
from editkit.operators import provenance_of
from editkit.patch import DenseDelta, WeightPatch
from editkit.training import TrainingError
from editkit.wide import computed_in_float32

Progress = Callable[[str, int, int], None]  # what is done, how much, of how much
ROWS = 64  # prompts at once: gradients of larger sets are summed over parts


@dataclass(frozen=True, slots=True)
class OneMatrix:
    """`layer`: number of the block whose `mlp_out` is trained. `learning_rate`: of Adam, about what a step moves each
    entry of the matrix; `steps`: of them, at the most; `stop_below`: the mean loss over all edits, in nats a token, at
    which it ends before. A higher rate, more steps or a lower loss make edits surer and cost more neighbours.
    """

    name: ClassVar[str]

    layer: int
    learning_rate: float = 5e-4
    steps: int = 25
    stop_below: float = 0.01

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.steps < 1:
            raise InputError(f"{self} needs learning_rate > 0 and steps >= 1")

    @staticmethod
    @abstractmethod
    def row(handle: ModelHandle, edit: Edit) -> Row:
        """What is read of an edit, and which of its tokens count in the loss."""

    @abstractmethod
    def bounded(self, delta: Tensor) -> None:
        """Take the change back, in place, to what is allowed."""

    @abstractmethod
    def notes(self, delta: Tensor) -> dict[str, Any]:
        """The method's own findings on the change."""

    @computed_in_float32
    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> WeightPatch:
        """A dense patch of one matrix; `notes` tell steps and loss. Nothing is random: the seed is only recorded.

        Raises InputError where there is no edit, no such layer or no token in a prompt or object, PromptTooLong where
        an edit does not fit the model's context, and TrainingError where the loss is not finite."""
        check_edits(edits)
        (name,) = self.touches(handle)
        with attention(handle, "eager"), frozen(handle.model), torch.inference_mode(False), torch.enable_grad():
            delta, notes = self._descend(handle, [self.row(handle, edit) for edit in edits], progress)
        about = provenance_of(self.name, self, handle, edits, seed, **notes, **self.notes(delta))
        return WeightPatch({name: DenseDelta(delta)}, about)

    def touches(self, handle: ModelHandle) -> tuple[str]:
        """The name of the one matrix that it changes."""
        return (handle.weight_name("mlp_out", self.layer),)

    def _descend(
        self, handle: ModelHandle, rows: Sequence[Row], progress: Progress | None
    ) -> tuple[Tensor, dict[str, Any]]:
        parts = [_Part.of(handle, self.layer, rows[i : i + ROWS]) for i in range(0, len(rows), ROWS)]
        shape = parts[0].upper.values.shape[-1], parts[0].upper.keys.shape[-1]
        delta = torch.zeros(shape, device=handle.device)
        adam = Adam(delta, self.learning_rate)
        for step in range(self.steps + 1):
            loss, grad = _loss_and_gradient(parts, delta, len(rows))
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} at step {step}; load the model in float32")
            done = loss < self.stop_below or step == self.steps
            if progress:
                progress("training", self.steps if done else step, self.steps)
            if done:
                break
            adam.step(grad)
            self.bounded(delta)
        return delta, {"steps": step, "loss": loss}


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Some of the prompts, read once."""

    upper: Upper
    reads: Reads

    @classmethod
    def of(cls, handle: ModelHandle, layer: int, rows: Sequence[Row]) -> _Part:
        return cls(prepare(handle, layer, rows), reads_of(rows, handle.device))


def _loss_and_gradient(parts: Sequence[_Part], delta: Tensor, rows: int) -> tuple[float, Tensor]:
    """Mean over all rows of their mean NLL, and its gradient in Δ."""
    moved = delta.detach().requires_grad_()
    total, gradient = 0.0, torch.zeros_like(delta)
    for part in parts:
        change = part.upper.keys.float() @ moved.T
        loss = part.reads.nll(part.upper.handle, part.upper.run(change)).sum() / rows
        gradient += torch.autograd.grad(loss, moved)[0]
        total += float(loss.detach())
    return total, gradient
