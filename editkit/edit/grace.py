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
  together, until the loss of each is small (theirs: one after another, a fixed number of steps);
- an edit whose state another key takes over when it is added gets a key of its own at the end (theirs: is lost);
- blocks below the layer, and tokens before the first one that is replaced, are computed once.
"""

from __future__ import annotations

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
from editkit.facts import Edit, check_edits
from editkit.forward import attention
from editkit.handle import ModelHandle
from editkit.operators import EDITS, provenance_of
from editkit.training import TrainingError
from editkit.wide import computed_in_float32

ROWS = 64  # prompts at once: gradients of larger sets are summed over parts
SAME = 1e-3  # what differs by so much of its norm is the same state, computed in another batch


@EDITS.register("grace")
@dataclass(frozen=True, slots=True)
class GRACE:
    """`layer`: number of the block beside whose `mlp_out` the codebook stands. `radius`: ε of a new key, a distance in
    the units of what the matrix reads: larger reaches more wordings of an edit, and more of its neighbours.
    `learning_rate`: of Adam, about what a step moves each entry of a value, in the units of what the matrix gives;
    `steps`: of them, at the most; `stop_below`: the loss in nats a token below which every edit must come for it to end
    before: lower makes objects surer and reaches no further."""

    name: ClassVar[str] = "grace"

    layer: int
    radius: float = 1.0
    learning_rate: float = 1.0
    steps: int = 100
    stop_below: float = 0.05

    def __post_init__(self) -> None:
        if self.radius < 0 or self.learning_rate <= 0 or self.steps < 1:
            raise InputError(f"{self} needs radius >= 0, learning_rate > 0 and steps >= 1")

    def adds(self, handle: ModelHandle) -> str:
        """What it adds instead of changing weights, for a plan."""
        return f"no weights: keys and values beside {handle.weight_name('mlp_out', self.layer)}"

    @computed_in_float32
    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> GracePatch:
        """A codebook for one layer; `notes` tell steps, loss and keys. Nothing is random: the seed is only recorded.

        Raises InputError where there is no edit, no such layer or no token in a prompt or object, and where two edits
        give one prompt different objects; PromptTooLong where an edit does not fit the model's context; TrainingError
        where a loss is not finite."""
        check_edits(edits)
        return self._patches(handle, [edits], seed, progress)[0]

    @computed_in_float32
    def each(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> list[GracePatch]:
        """A codebook for each edit by itself, as a call for that edit alone gives it, trained together: faster."""
        return self._patches(handle, [[edit] for edit in edits], seed, progress) if edits else []

    def _patches(
        self, handle: ModelHandle, requests: Sequence[Sequence[Edit]], seed: int, progress: Progress | None
    ) -> list[GracePatch]:
        """A codebook for each request."""
        module = handle.weight_name("mlp_out", self.layer).removesuffix(".weight")
        with attention(handle, "eager"), frozen(handle.model), torch.inference_mode(False), torch.enable_grad():
            shelf = _Shelf.of(handle, self, module, requests)
            learned = self._learned(shelf, progress)
        patches = []
        for edits, book, (values, notes) in zip(requests, shelf.books, learned, strict=True):
            about = provenance_of(self.name, self, handle, edits, seed, **notes, keys=len(book.keys))
            patches.append(GracePatch(module, about, book.keys.cpu(), values.cpu(), book.radii.cpu()))
        return patches

    def _learned(self, shelf: _Shelf, progress: Progress | None) -> list[tuple[Tensor, dict[str, Any]]]:
        """The values of each codebook, as they are when the losses of all its edits are small, and notes."""
        values = shelf.starts()
        adam = Adam(values, self.learning_rate)
        found: dict[int, tuple[Tensor, dict[str, Any]]] = {}
        for step in range(self.steps + 1):
            losses, gradient = shelf.losses_and_gradient(values)
            if not torch.isfinite(losses).all():
                raise TrainingError(f"a loss is not finite at step {step}; use a smaller learning rate")
            for number, own in enumerate(losses.split([len(rows) for rows in shelf.rows])):
                worst = float(own.max())
                if number not in found and (worst < self.stop_below or step == self.steps):
                    notes = {"steps": step, "loss": float(own.mean()), "worst_loss": worst}
                    found[number] = shelf.of_book(values, number).clone(), notes
            done = len(found) == len(shelf.books)
            if progress:
                progress("training", self.steps if done else step, self.steps)
            if done:
                break
            adam.step(gradient)
        return [found[number] for number in range(len(shelf.books))]


@dataclass(frozen=True, slots=True, eq=False)
class _Shelf:
    """Codebooks that are trained together, and the rows of their edits. All values stand in one tensor, book by
    book."""

    rows: Sequence[Sequence[Row]]
    books: Sequence[Growing]
    parts: Sequence[_Part]

    @classmethod
    def of(cls, handle: ModelHandle, operator: GRACE, module: str, requests: Sequence[Sequence[Edit]]) -> _Shelf:
        """All books without values. What a layer reads does not depend on its values: which key a token finds holds
        from the first step to the last."""
        rows = [_rows(handle, edits) for edits in requests]
        flat = [row for own in rows for row in own]
        batches = [flat[begin : begin + ROWS] for begin in range(0, len(flat), ROWS)]
        read = [own for batch in batches for own in prepare(handle, operator.layer, batch).keys.float()]
        books: list[Growing] = []
        numbers: list[list[int]] = []  # of the key that each token of each row finds, -1 for none
        for own in rows:
            states = read[len(numbers) : len(numbers) + len(own)]
            ends = torch.stack([state[_end(row)] for state, row in zip(states, own, strict=True)])
            book = _grown(operator.radius, _keys_below(handle, module, ends), ends, [row.wanted for row in own])
            before = sum(len(earlier.keys) for earlier in books)
            for state in states:
                number, inside = nearest(book.keys, book.radii, state)
                numbers.append(torch.where(inside, number + before, -1).tolist())
            books.append(book)
        spans = [slice(begin, begin + ROWS) for begin in range(0, len(flat), ROWS)]
        return cls(rows, books, [_Part.of(handle, operator.layer, flat[span], numbers[span]) for span in spans])

    def starts(self) -> Float[Tensor, "n d_out"]:
        """What the layer gives where each key is found first."""
        found = torch.cat([part.keys.flatten() for part in self.parts]).tolist()
        given = torch.cat([part.upper.values.flatten(0, 1) for part in self.parts]).float()
        return given[[found.index(key) for key in range(sum(len(book.keys) for book in self.books))]].clone()

    def of_book(self, values: Float[Tensor, "n d_out"], number: int) -> Float[Tensor, "own d_out"]:
        return values.split([len(book.keys) for book in self.books])[number]

    def losses_and_gradient(self, values: Float[Tensor, "n d_out"]) -> tuple[Float[Tensor, " edits"], Tensor]:
        """Each edit's mean NLL, and the gradient of their sum."""
        moved = values.detach().requires_grad_()
        losses, gradient = [], torch.zeros_like(values)
        for part in self.parts:
            own = part.reads.nll(part.upper.handle, part.upper.run(part.change(moved)))
            gradient += torch.autograd.grad(own.sum(), moved)[0]
            losses.append(own.detach())
        return torch.cat(losses), gradient


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Some of the prompts with their new objects, read once up to the layer. `keys` are the numbers of the keys that
    suffix tokens find, -1 for none."""

    upper: Upper
    reads: Reads
    keys: Int[Tensor, "rows length"]

    @classmethod
    def of(cls, handle: ModelHandle, layer: int, rows: Sequence[Row], numbers: Sequence[Sequence[int]]) -> _Part:
        firsts = [next(i for i, key in enumerate(own) if key >= 0) for own in numbers]
        cut = [Row(row.suffix[:at], row.suffix[at:], row.wanted) for row, at in zip(rows, firsts, strict=True)]
        upper = prepare(handle, layer, cut)
        keys = torch.full(upper.ids.shape, -1, device=handle.device)
        for own, found, row in zip(keys, numbers, cut, strict=True):
            begin, length = len(row.prefix), len(row.suffix)
            own[:length] = torch.tensor(found[begin : begin + length])
        return cls(upper, reads_of(cut, handle.device), keys)

    def change(self, values: Float[Tensor, "n d_out"]) -> Float[Tensor, "rows length d_out"]:
        """What is added to what the layer gives."""
        inside = (self.keys >= 0)[..., None]
        return torch.where(inside, values[self.keys.clamp(min=0)] - self.upper.values.float(), 0)


def _grown(
    radius: float, below: Tensor, states: Float[Tensor, "edits d_in"], labels: Sequence[tuple[int, ...]]
) -> Growing:
    """The keys of some edits, and how far each reaches."""
    book = Growing(radius, below, states[:0], states[:0, 0])
    for state, label in zip(states, labels, strict=True):
        book.add(state, label)
    book.settle(states, labels)
    return book


def _rows(handle: ModelHandle, edits: Sequence[Edit]) -> list[Row]:
    """The edits' rows. Raises InputError where one prompt is to be continued in two ways."""
    rows = [answer_row(handle, edit) for edit in edits]
    wanted: dict[tuple[int, ...], tuple[int, ...]] = {}
    for edit, row in zip(edits, rows, strict=True):
        if wanted.setdefault(row.suffix[: _end(row) + 1], row.wanted) != row.wanted:
            raise InputError(f"two edits give {edit.fact.text!r} different objects; leave one of them out")
    return rows


def _end(row: Row) -> int:
    """Where the prompt's last token is."""
    return len(row.suffix) - len(row.wanted)


def _keys_below(handle: ModelHandle, module: str, states: Float[Tensor, "edits d_in"]) -> Float[Tensor, "m d_in"]:
    """Keys of the layer's patches that are on, but for those whose prompts are edited again."""
    patches = [patch for patch in handle.patches if isinstance(patch, GracePatch) and patch.module == module]
    keys = torch.cat([states[:0], *(patch.keys.to(states.device) for patch in patches)])
    again = distances(states, keys).amin(-1) <= SAME * keys.norm(dim=1)
    return keys[~again]
