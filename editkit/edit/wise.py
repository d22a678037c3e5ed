"""WISE, a side memory that is read where it has something to say (Wang et al. 2024, https://arxiv.org/abs/2405.14768).

    h' = W' a   where ‖(W' − W) a‖ > ε,  else  h' = W a         W': a copy of one matrix, trained on the edits

    L = −(1/T) Σ log p(t_i | prompt, t_<i)
        + λ (max(0, ‖Δ a_i‖ − α) + max(0, β − ‖Δ a_e‖) + max(0, γ − ‖Δ a_e‖ + ‖Δ a_i‖))       Δ = W' − W

    a: what the matrix reads, a_e in scope of an edit, a_i out of scope       ε: `share` of the least ‖Δ a_e‖

Edits are parted into shards; each trains a random share ρ of the entries, and TIES merges what they learn.

Differs from the authors' code:
- every token is routed by itself, by a hard threshold; theirs averages ‖Δ a‖ over a sequence and routes the whole of
  it. A module sees rows of several prompts and single tokens after cached ones, and where a prompt begins it cannot
  know; per token the answer does not depend on that;
- so a token is in scope, or it is not. `in_scope = "subject"`: the subject's last token alone, in all contexts; what
  comes after reads it by attention, and answer tokens need no scope. It serves layers low enough for that. "onward":
  that token and all after it, answer tokens too, which serves the high layers of the authors' settings;
- out of scope are all other tokens of the edits' texts (answers too, but for "onward") and text that the model writes
  (theirs: a locality prompt of the data set, which an operator of editkit must not see);
- ‖Δ a‖ as in the paper (their code puts the MLP's activation function before the difference);
- the threshold is taken after merging, from the matrix that is kept (theirs: the least seen while training);
- λ (theirs: 1), for with λ = 1 the margins of a small model's large states drown the edits;
- one shard is not trimmed; patches on top of one another each route for themselves, and both may speak;
- gradient descent without weight decay, ended when the loss is small; blocks below the layer are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editkit.blocks import frozen
from editkit.edit._locate_then_edit import Contexts
from editkit.edit._search import Progress, rows_of_edit
from editkit.edit._upper import Reads, Row, Upper, prepare, reads_of
from editkit.edit._wise_patch import WisePatch, merged
from editkit.errors import InputError
from editkit.facts import Edit, check_edits
from editkit.forward import attention
from editkit.handle import ModelHandle
from editkit.linalg import SolveError
from editkit.operators import EDITS, provenance_of
from editkit.sampling import TextPlan, sampled_texts
from editkit.tokens import encode
from editkit.training import TrainingError
from editkit.wide import computed_in_float32

ROWS = 64  # texts at once: gradients of larger sets are summed over parts
SUBJECT, ONWARD = "subject", "onward"
SCOPES = (SUBJECT, ONWARD)


@dataclass(frozen=True, slots=True)
class Margins:
    """Of ‖Δ a‖, in the units of what the matrix gives: out of scope at most `alpha`, in scope at least `beta`, and the
    two at least `gamma` apart. What they lack counts `weight` times beside the edits' loss (1 in the paper)."""

    alpha: float = 5.0
    beta: float = 20.0
    gamma: float = 10.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Unrelated:
    """Text out of scope, which the model writes: `texts` of `length` tokens. The more, the less of other texts the
    memory takes to be in scope."""

    texts: int = 24
    length: int = 24


@EDITS.register("wise")
@dataclass(frozen=True, slots=True)
class WISE:
    """`layer`: number of the block whose `mlp_out` has a side memory. `in_scope`: the tokens whose values it is trained
    to give, "subject" (the subject's last one, for low layers) or "onward" (all from there on, for high ones).

    `learning_rate`: of gradient descent, for each edit of a shard; `steps`: of each shard, at the most; `stop_below`:
    the mean loss in nats a token, with what the `margins` between what is in and out of scope lack, at which it ends
    before. A higher rate, more steps or a lower loss make edits surer. `bound`: of every entry of Δ.

    `share`: of the least ‖Δ a‖ in scope, the threshold: higher leaves more other texts alone, and more wordings out.
    `shards`: parts into which the edits are dealt, each with a random mask of its own: with more, fewer edits share
    entries and more is lost in merging; `mask`: ρ, the share of entries that a shard trains; `density`: of a shard's
    entries, those that merging keeps.

    `contexts`: what stands before the prompts in training: with more of them edits hold in more places. `unrelated`:
    text that stays out of scope."""

    name: ClassVar[str] = "wise"

    layer: int
    in_scope: str = SUBJECT
    learning_rate: float = 1.0
    steps: int = 70
    stop_below: float = 0.05
    margins: Margins = field(default_factory=Margins)
    share: float = 0.88
    mask: float = 0.2
    shards: int = 2
    density: float = 0.53
    bound: float = 1.0
    contexts: Contexts = field(default_factory=lambda: Contexts(each=5))
    unrelated: Unrelated = field(default_factory=Unrelated)

    def __post_init__(self) -> None:
        if self.in_scope not in SCOPES:
            raise InputError(f"in_scope is {self.in_scope!r}; there is {', '.join(SCOPES)}")
        if self.learning_rate <= 0 or self.bound <= 0 or self.steps < 1 or self.shards < 1:
            raise InputError(f"{self} needs learning_rate > 0, bound > 0, steps >= 1 and shards >= 1")
        if not (0 <= self.share < 1 and 0 < self.mask <= 1 and 0 < self.density <= 1):
            raise InputError(f"{self} needs 0 <= share < 1, 0 < mask <= 1 and 0 < density <= 1")

    def adds(self, handle: ModelHandle) -> str:
        """What it adds instead of changing weights, for a plan."""
        return f"no weights: a second {handle.weight_name('mlp_out', self.layer)} beside the first"

    @computed_in_float32
    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> WisePatch:
        """A side memory of one layer; `notes` tell of each shard, and how well scopes are apart. The seed draws masks,
        contexts and unrelated text.

        Raises SolveError where the layer cannot bring an edit about, InputError where there is no edit, no such layer
        or no token in a prompt or object, PromptTooLong where a text does not fit the model's context, and
        TrainingError where the loss is not finite."""
        check_edits(edits)
        module = handle.weight_name("mlp_out", self.layer).removesuffix(".weight")
        before = self.contexts.before(handle, seed)
        rows = [rows_of_edit(handle, edit, before)[:-1] for edit in edits]
        texts = [tuple(encode(handle.tokenizer, text)) for text in self._unrelated(handle, seed)]
        with attention(handle, "eager"), frozen(handle.model), torch.inference_mode(False), torch.enable_grad():
            delta, states, notes = self._learned(handle, _dealt(rows, self.shards), texts, seed, progress)
        inside, outside = (torch.linalg.vector_norm(part @ delta.T, dim=1) for part in states)
        threshold = self.share * inside.min()
        notes["threshold"] = float(threshold)
        notes["out_of_scope"] = {"largest": float(outside.max()), "above": float((outside > threshold).float().mean())}
        about = provenance_of(self.name, self, handle, edits, seed, **notes)
        return WisePatch(module, about, delta.cpu(), threshold.cpu())

    def _unrelated(self, handle: ModelHandle, seed: int) -> list[str]:
        plan = TextPlan(self.unrelated.texts, self.unrelated.length, seed)
        return sampled_texts(handle, plan) if plan.count else []

    def _learned(
        self,
        handle: ModelHandle,
        shards: Sequence[Sequence[Sequence[Row]]],
        texts: Sequence[tuple[int, ...]],
        seed: int,
        progress: Progress | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], dict[str, Any]]:
        """Δ; what the matrix reads in and out of scope, of all shards; and notes on each."""
        generator = torch.Generator().manual_seed(seed)
        shape = handle.matrix(handle.weight_name("mlp_out", self.layer)).shape
        deltas, states, notes = [], [], []
        for number, rows in enumerate(shards):

            def tell(step: int, before: int = number * self.steps) -> None:
                if progress:
                    progress("training", before + step, len(shards) * self.steps)

            mask = torch.rand(shape, generator=generator) < self.mask
            shard = _Shard.of(handle, self, rows, texts)
            delta, note = _Descent(self, shard, mask.to(handle.device)).run(tell)
            deltas.append(delta)
            states.append((shard.inside, shard.outside))
            notes.append(note)
        whole = deltas[0] if len(deltas) == 1 else merged(deltas, self.density)
        inside, outside = (torch.cat(part) for part in zip(*states, strict=True))
        return whole, (inside, outside), {"shards": notes}


def _dealt(rows: Sequence[Sequence[Row]], shards: int) -> list[list[Sequence[Row]]]:
    """The edits in shards of like size, in their order."""
    each = math.ceil(len(rows) / min(shards, len(rows)))
    return [list(rows[begin : begin + each]) for begin in range(0, len(rows), each)]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Some of the rows, read once up to the layer, and which suffix tokens are in scope."""

    upper: Upper
    reads: Reads
    scope: Bool[Tensor, "rows length"]


@dataclass(frozen=True, slots=True, eq=False)
class _Shard:
    """The rows of a shard's edits; what the matrix reads at tokens in scope and, each once, out of scope."""

    parts: Sequence[_Part]
    edits: int
    rows: int
    inside: Float[Tensor, "n d_in"]
    outside: Float[Tensor, "m d_in"]

    @classmethod
    def of(
        cls, handle: ModelHandle, operator: WISE, own: Sequence[Sequence[Row]], texts: Sequence[tuple[int, ...]]
    ) -> _Shard:
        """`own` are the rows of each edit."""
        rows = [row for rows in own for row in rows]
        parts = [_part(handle, operator, rows[i : i + ROWS]) for i in range(0, len(rows), ROWS)]
        inside = torch.cat([part.upper.keys[part.scope] for part in parts]).float()
        within = {path for row in rows for path in _paths_in_scope(operator, row)}
        whole = [*((*row.prefix, *row.suffix) for row in rows), *texts]
        return cls(parts, len(own), len(rows), inside, _states(handle, operator.layer, whole, within))


def _part(handle: ModelHandle, operator: WISE, rows: Sequence[Row]) -> _Part:
    upper = prepare(handle, operator.layer, rows)
    width = upper.ids.shape[1]
    scope = [[place < _reach(operator, row) for place in range(width)] for row in rows]
    return _Part(upper, reads_of(rows, handle.device), torch.tensor(scope, device=handle.device))


def _reach(operator: WISE, row: Row) -> int:
    """How many of a row's suffix tokens, which begin with the subject's last, are in scope."""
    return 1 if operator.in_scope == SUBJECT else len(row.suffix)


def _paths_in_scope(operator: WISE, row: Row) -> Iterator[tuple[int, ...]]:
    """Each token in scope, with all before it."""
    for length in range(1, _reach(operator, row) + 1):
        yield (*row.prefix, *row.suffix[:length])


def _states(
    handle: ModelHandle, layer: int, texts: Sequence[tuple[int, ...]], without: set[tuple[int, ...]]
) -> Float[Tensor, "n d_in"]:
    """What the matrix reads at every token of the texts, those with one past read once, but for some."""
    seen, states = {*without}, []
    for begin in range(0, len(texts), ROWS):
        batch = texts[begin : begin + ROWS]
        keys = prepare(handle, layer, [Row((), text) for text in batch]).keys
        for text, own in zip(batch, keys, strict=True):
            fresh = [i for i in range(len(text)) if text[: i + 1] not in seen]
            seen.update(text[: i + 1] for i in fresh)
            states.append(own[fresh].float())
    return torch.cat(states)


class _Descent:
    """The training of one shard."""

    def __init__(self, operator: WISE, shard: _Shard, mask: Bool[Tensor, "d_out d_in"]) -> None:
        self.operator, self.shard, self.mask = operator, shard, mask
        self.delta = torch.zeros(mask.shape, device=mask.device)

    def run(self, tell: Callable[[int], None]) -> tuple[Tensor, dict[str, Any]]:
        steps = self.operator.steps
        for step in range(steps + 1):
            edit, margin, gradient = self.look()
            if not math.isfinite(edit + margin):
                raise TrainingError(f"the loss is {edit + margin} at step {step}; use a smaller learning rate")
            if step == 0 and not gradient.any():
                raise SolveError(
                    f"cannot edit at layer {self.operator.layer}: no change of this layer at tokens in scope can reach "
                    "the new objects; use a lower layer, or in_scope = 'onward'"
                )
            done = edit + margin < self.operator.stop_below or step == steps
            tell(steps if done else step)
            if done:
                break
            rate = self.operator.learning_rate * self.shard.edits  # each edit moves the memory as if it were alone
            self.delta -= rate * gradient * self.mask
            self.delta.clamp_(-self.operator.bound, self.operator.bound)
        return self.delta, {"steps": step, "loss": edit, "margin_loss": margin}

    def look(self) -> tuple[float, float, Tensor]:
        """The edits' loss, that of the margins, and the gradient of their sum."""
        delta = self.delta.detach().requires_grad_()
        gradient, edit = torch.zeros_like(delta), 0.0
        for part in self.shard.parts:
            change = (part.upper.keys.float() * part.scope[..., None]) @ delta.T
            loss = part.reads.nll(part.upper.handle, part.upper.run(change)).sum() / self.shard.rows
            gradient += torch.autograd.grad(loss, delta)[0]
            edit += float(loss.detach())
        margin = self.margin_loss(delta)
        gradient += torch.autograd.grad(margin, delta)[0]
        return edit, float(margin.detach()), gradient

    def margin_loss(self, delta: Tensor) -> Tensor:
        """What the margins lack, each the mean over where it lacks anything, times its weight."""
        margins = self.operator.margins
        inside = torch.linalg.vector_norm(self.shard.inside @ delta.T, dim=1)
        outside = torch.linalg.vector_norm(self.shard.outside @ delta.T, dim=1)
        apart = margins.gamma - inside[:, None] + outside
        return margins.weight * (_lack(outside - margins.alpha) + _lack(margins.beta - inside) + _lack(apart))


def _lack(by: Tensor) -> Tensor:
    """Mean of what is above 0; 0 where nothing is."""
    above = by.clamp(min=0)
    return above.sum() / (by > 0).sum().clamp(min=1)
