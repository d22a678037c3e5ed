"""FT-L, fine-tuning one matrix within a bound on every entry (Zhu et al. 2020, https://arxiv.org/abs/2012.00363; as the
baseline "FT+L" in Meng et al. 2022, https://arxiv.org/abs/2202.05262, appendix E.2).

    min −log p(target_new | prompt)   over Δ with |Δ_ij| <= ε        Adam, projected after each step

All edits of one call are learned together.

Differs from the authors' code:
- each target token is predicted after the tokens before it (theirs predicts all of them at the prompt's last token);
  prompt and padding never count;
- the bound is on Δ itself and holds to the bit (theirs: on the rounded weight);
- all edits are one batch, and training stops when their mean loss is small (theirs skips single small batches);
- blocks below the layer are computed once: Δ cannot change what its matrix reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from editkit.blocks import frozen
from editkit.edit._adam import Adam
from editkit.edit._upper import Reads, Row, Upper, prepare, reads_of
from editkit.errors import InputError
from editkit.facts import Edit
from editkit.forward import attention
from editkit.handle import ModelHandle
from editkit.operators import EDITS, provenance_of
from editkit.patch import DenseDelta, WeightPatch
from editkit.tokens import encode_pair
from editkit.training import TrainingError

Progress = Callable[[str, int, int], None]  # what is done, how much, of how much
ROWS = 64  # prompts at once: gradients of larger sets are summed over parts


@EDITS.register("ft_l")
@dataclass(frozen=True, slots=True)
class FTL:
    """`layer`: number of the block whose `mlp_out` is trained; `bound`: ε; `stop_below`: mean loss in nats a token."""

    layer: int
    bound: float = 5e-4
    learning_rate: float = 5e-4
    steps: int = 25
    stop_below: float = 0.01

    def __post_init__(self) -> None:
        if self.bound <= 0 or self.learning_rate <= 0 or self.steps < 1:
            raise InputError(f"{self} needs bound > 0, learning_rate > 0 and steps >= 1")

    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> WeightPatch:
        """A dense patch of one matrix; `notes` tell steps and loss. Nothing is random: the seed is only recorded."""
        if not edits:
            raise InputError("no edits; give at least one")
        (name,) = self.touches(handle)
        with attention(handle, "eager"), frozen(handle.model), torch.inference_mode(False), torch.enable_grad():
            delta, notes = self._descend(handle, [_row(handle, edit) for edit in edits], progress)
        return WeightPatch({name: DenseDelta(delta)}, provenance_of("ft_l", self, handle, edits, seed, **notes))

    def touches(self, handle: ModelHandle) -> tuple[str]:
        """The name of the one matrix that it changes."""
        return (handle.weight_name("mlp_out", self.layer),)

    def _descend(
        self, handle: ModelHandle, rows: Sequence[Row], progress: Progress | None
    ) -> tuple[Tensor, dict[str, Any]]:
        parts = [_Part.of(handle, self.layer, rows[i : i + ROWS]) for i in range(0, len(rows), ROWS)]
        shape = parts[0].upper.values.shape[-1], parts[0].upper.keys.shape[-1]
        delta = torch.zeros(shape, device=handle.device)
        bound, adam = _not_above(self.bound), Adam(delta, self.learning_rate)
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
            delta.clamp_(-bound, bound)
        return delta, {"steps": step, "loss": loss, "at_bound": float((delta.abs() >= bound).float().mean())}


def _row(handle: ModelHandle, edit: Edit) -> Row:
    ids, target = encode_pair(handle.tokenizer, edit.fact.text, edit.target_new)
    return Row((), (*ids, *target[:-1]), tuple(target))


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


def _not_above(bound: float) -> float:
    """The largest float32 that is not above the bound."""
    rounded = torch.tensor(bound, dtype=torch.float32)
    if rounded.item() > bound:
        rounded = torch.nextafter(rounded, torch.zeros(()))
    return rounded.item()
