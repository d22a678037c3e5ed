"""GRACE, a codebook of learned values beside a layer (Hartvigsen et al. 2023, https://arxiv.org/abs/2211.11031).

    h' = v_i        where ‖a − k_i‖ = min_j ‖a − k_j‖ ≤ ε_i,  else  h' = W a

    k: what the layer reads at the last token of an edit's prompt        ε: how far around it the edit holds
    v = argmin −(1/T) Σ log p(t_i | prompt, t_<i)                        Adam, from v = W k

The layer is a block's `mlp_out`; no weight changes, and what lies outside all radii is equal to the bit. A second edit
near a key widens its radius where it wants the same object; else the radii share the way between. A patch on top of
others of the same layer is the next part of one codebook: its radii end halfway to the keys below, so those keep their
values, and a prompt that is edited again gets the newest.

Differs from the authors' code:
- every token is compared with the keys; theirs compares one token of a sequence, at a place remembered from the edit.
  So it does not matter how prompts are batched, and a text that goes on after an edited prompt, or contains one, is
  changed at that prompt's last token;
- it is always `mlp_out` (their settings for GPT-2 name the MLP's first matrix);
- labels are equal where all tokens are (theirs: where the means of the ids are);
- values begin as what the layer gives (their "warm"; their settings: at random), and all edits of one call are trained
  together, until the loss of each is small;
- an edit whose state another key takes over when it is added gets a key of its own at the end (theirs: is lost);
- blocks below the layer, and tokens before the first one that is replaced, are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editkit.blocks import frozen
from editkit.edit._adam import Adam
from editkit.edit._answer_row import answer_row
from editkit.edit._grace_patch import GracePatch, Growing, distances, nearest
from editkit.edit._search import Progress
from editkit.edit._upper import Reads, Row, Upper, prepare, reads_of
from editkit.errors import InputError
from editkit.facts import Edit
from editkit.forward import attention
from editkit.handle import ModelHandle
from editkit.operators import EDITS, provenance_of
from editkit.training import TrainingError

ROWS = 64  # prompts at once: gradients of larger sets are summed over parts
SAME = 1e-3  # what differs by so much of its norm is the same state, computed in another batch


@EDITS.register("grace")
@dataclass(frozen=True, slots=True)
class GRACE:
    """`layer`: number of the block beside whose `mlp_out` the codebook stands; `radius`: ε of a new key, in the units
    of what the matrix reads; `stop_below`: loss of each edit in nats a token."""

    name: ClassVar[str] = "grace"

    layer: int
    radius: float = 1.0
    learning_rate: float = 1.0
    steps: int = 100
    stop_below: float = 0.05

    def __post_init__(self) -> None:
        if self.radius < 0 or self.learning_rate <= 0 or self.steps < 1:
            raise InputError(f"{self} needs radius >= 0, learning_rate > 0 and steps >= 1")

    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> GracePatch:
        """A codebook for one layer; `notes` tell steps, loss and keys. Nothing is random: the seed is only recorded."""
        if not edits:
            raise InputError("no edits; give at least one")
        module = handle.weight_name("mlp_out", self.layer).removesuffix(".weight")
        rows = [answer_row(handle, edit) for edit in edits]
        _check_one_object_each(edits, rows)
        batches = [rows[begin : begin + ROWS] for begin in range(0, len(rows), ROWS)]
        with attention(handle, "eager"), frozen(handle.model), torch.inference_mode(False), torch.enable_grad():
            read = [prepare(handle, self.layer, batch).keys.float() for batch in batches]
            states = torch.cat([_at_ends(*each) for each in zip(read, batches, strict=True)])
            book = self._book(_keys_below(handle, module, states), states, [row.wanted for row in rows])
            parts = [_Part.of(handle, self.layer, book, *each) for each in zip(read, batches, strict=True)]
            values, notes = self._learned(parts, _starts(parts, len(book.keys)), progress)
        about = provenance_of(self.name, self, handle, edits, seed, **notes, keys=len(book.keys))
        return GracePatch(module, about, book.keys.cpu(), values.cpu(), book.radii.cpu())

    def _book(self, below: Tensor, states: Tensor, labels: Sequence[tuple[int, ...]]) -> Growing:
        """The keys of all edits, and how far each reaches."""
        book = Growing(self.radius, below, states[:0], states[:0, 0])
        for state, label in zip(states, labels, strict=True):
            book.add(state, label)
        book.settle(states, labels)
        return book

    def _learned(
        self, parts: Sequence[_Part], values: Tensor, progress: Progress | None
    ) -> tuple[Tensor, dict[str, Any]]:
        adam = Adam(values, self.learning_rate)
        for step in range(self.steps + 1):
            losses, gradient = _losses_and_gradient(parts, values)
            worst = float(losses.max())
            if not math.isfinite(worst):
                raise TrainingError(f"the loss is {worst} at step {step}; use a smaller learning rate")
            done = worst < self.stop_below or step == self.steps
            if progress:
                progress("training", self.steps if done else step, self.steps)
            if done:
                break
            adam.step(gradient)
        return values, {"steps": step, "loss": float(losses.mean()), "worst_loss": worst}


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Some of the prompts with their new objects, read once up to the layer. `keys` are the numbers of the keys that
    suffix tokens find, -1 for none."""

    upper: Upper
    reads: Reads
    keys: Int[Tensor, "rows length"]

    @classmethod
    def of(cls, handle: ModelHandle, layer: int, book: Growing, read: Tensor, rows: Sequence[Row]) -> _Part:
        """`read` is what the layer reads at each token of the whole rows. Values do not change that, so which key a
        token finds holds from the first step to the last."""
        number, inside = nearest(book.keys, book.radii, read)
        found = torch.where(inside, number, -1).tolist()
        firsts = [next(i for i, key in enumerate(own) if key >= 0) for own in found]
        cut = [Row(row.suffix[:at], row.suffix[at:], row.wanted) for row, at in zip(rows, firsts, strict=True)]
        upper = prepare(handle, layer, cut)
        keys = torch.full(upper.ids.shape, -1, device=handle.device)
        for own, numbers, row in zip(keys, found, cut, strict=True):
            begin, length = len(row.prefix), len(row.suffix)
            own[:length] = torch.tensor(numbers[begin : begin + length])
        return cls(upper, reads_of(cut, handle.device), keys)

    def change(self, values: Float[Tensor, "n d_out"]) -> Float[Tensor, "rows length d_out"]:
        """What is added to what the layer gives."""
        inside = (self.keys >= 0)[..., None]
        return torch.where(inside, values[self.keys.clamp(min=0)] - self.upper.values.float(), 0)


def _end(row: Row) -> int:
    """Where the prompt's last token is."""
    return len(row.suffix) - len(row.wanted)


def _at_ends(read: Float[Tensor, "rows length d_in"], rows: Sequence[Row]) -> Float[Tensor, "rows d_in"]:
    """What the layer reads at each prompt's last token."""
    return torch.stack([own[_end(row)] for own, row in zip(read, rows, strict=True)])


def _starts(parts: Sequence[_Part], keys: int) -> Float[Tensor, "n d_out"]:
    """What the layer gives where each key is found first."""
    flat = torch.cat([part.keys.flatten() for part in parts]).tolist()
    given = torch.cat([part.upper.values.flatten(0, 1) for part in parts]).float()
    return given[[flat.index(key) for key in range(keys)]].clone()


def _keys_below(handle: ModelHandle, module: str, states: Float[Tensor, "edits d_in"]) -> Float[Tensor, "m d_in"]:
    """Keys of the layer's patches that are on, but for those whose prompts are edited again."""
    patches = [patch for patch in handle.patches if isinstance(patch, GracePatch) and patch.module == module]
    keys = torch.cat([states[:0], *(patch.keys.to(states.device) for patch in patches)])
    again = distances(states, keys).amin(-1) <= SAME * keys.norm(dim=1)
    return keys[~again]


def _losses_and_gradient(parts: Sequence[_Part], values: Tensor) -> tuple[Float[Tensor, " edits"], Tensor]:
    """Each edit's mean NLL, and the gradient of their sum."""
    moved = values.detach().requires_grad_()
    losses, gradient = [], torch.zeros_like(values)
    for part in parts:
        own = part.reads.nll(part.upper.handle, part.upper.run(part.change(moved)))
        gradient += torch.autograd.grad(own.sum(), moved)[0]
        losses.append(own.detach())
    return torch.cat(losses), gradient


def _check_one_object_each(edits: Sequence[Edit], rows: Sequence[Row]) -> None:
    """Raises InputError where one prompt is to be continued in two ways."""
    wanted: dict[tuple[int, ...], tuple[int, ...]] = {}
    for edit, row in zip(edits, rows, strict=True):
        if wanted.setdefault(row.suffix[: _end(row) + 1], row.wanted) != row.wanted:
            raise InputError(f"two edits give {edit.fact.text!r} different objects; leave one of them out")
