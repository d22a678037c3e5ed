"""The search for values: what a subject's last token must bring forth for the model to say the new object.

Edits are searched together, as many as give full matrices, and each as if it were alone: it has its own contexts, its
own draws of them, its own end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad as zero_pad

from editkit.blocks import frozen
from editkit.edit._adam import Adam
from editkit.edit._places import AtMLP, Place, Prepare
from editkit.edit._upper import Reads, Row, after_change, mlp_gives, reads_of
from editkit.errors import InputError
from editkit.facts import SLOT, Edit
from editkit.forward import attention, unembed
from editkit.fused import Fused
from editkit.handle import ModelHandle
from editkit.linalg import SolveError
from editkit.memory import give_back
from editkit.products import FLOAT32, Products, check_products, exact, products_of, told, using
from editkit.tokens import encode, encode_pair, subject_span

ESSENCE = f"{SLOT} is a"  # what the subject is must stay: the KL term is taken on this prompt
Progress = Callable[[str, int, int], None]  # what is done, how much, of how much
TOKENS = {"cpu": 192}  # run at once, by device: of each the gradient keeps 1 MB on SmolLM2. More are no faster on a CPU
MANY_TOKENS = 8192  # elsewhere
WIDER = 1.5  # rows are padded to the longest: edits are searched together whose lengths differ by no more


@dataclass(frozen=True, slots=True)
class TargetSearch:
    """How a value is searched: `steps` evaluations of the loss with an Adam step of `learning_rate` between them.

    The residual's norm stays within `clamp` times the norm of the unchanged value. The loss is the mean NLL of the new
    object (nats a token) + `kl_weight` KL(after ‖ before) on "{} is a" + `weight_decay` ‖residual‖ / ‖value‖²; of
    several residuals each is clamped and weighed by its own value. The search ends when it falls below `stop_below`.
    With `tokens_per_step` > 0 each step draws as many contexts as have that many tokens from the subject's last one on,
    the prompt alone always among them; the search still ends only when the loss over all contexts is below. Where all
    fit, nothing is drawn. `products` are the matrix products of the steps (see editkit/products.py): "float32",
    "bfloat16" or "auto"; a loss that ends the search before its last step is taken with the model's own.
    """

    steps: int = 20
    learning_rate: float = 0.5
    clamp: float = 4.0
    kl_weight: float = 0.0625
    weight_decay: float = 0.5
    stop_below: float = 0.05
    tokens_per_step: int = 0
    products: str = FLOAT32

    def __post_init__(self) -> None:
        check_products(self.products)
        least = min(self.tokens_per_step, self.kl_weight, self.weight_decay)
        if self.steps < 1 or self.learning_rate <= 0 or self.clamp <= 0 or least < 0:
            needs = "steps >= 1, learning_rate > 0, clamp > 0, and tokens_per_step, kl_weight and weight_decay >= 0"
            raise InputError(f"{self} needs {needs}")


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What was found for one edit: its key (the mean over all contexts, and that of the prompt alone), the residual to
    be added to the value, what the block gives with it after the prompt alone (with `of_block`; else what its MLP adds
    to the hidden states), and how the search went."""

    key: Float[Tensor, " d_in"]
    own_key: Float[Tensor, " d_in"]
    residual: Float[Tensor, " d_out"]
    state: Float[Tensor, " d_out"]
    notes: dict[str, Any] = field(default_factory=dict)


def rows_of_edit(handle: ModelHandle, edit: Edit, before: Sequence[str]) -> list[Row]:
    """The edit's prompt after each context, and last "{} is a"; each cut before the subject's last token."""
    rows = []
    for context in before:
        ids, target = encode_pair(handle.tokenizer, context + edit.fact.text, edit.target_new)
        at = subject_span(handle.tokenizer, context + edit.fact.prompt, edit.fact.subject).last
        rows.append(Row(tuple(ids[:at]), (*ids[at:], *target[:-1]), tuple(target)))
    ids = encode(handle.tokenizer, ESSENCE.replace(SLOT, edit.fact.subject))
    at = subject_span(handle.tokenizer, ESSENCE, edit.fact.subject).last
    return [*rows, Row(tuple(ids[:at]), tuple(ids[at:]))]


def find_targets(
    handle: ModelHandle,
    edits: Sequence[Edit],
    layer: int,
    before: Sequence[str],
    search: TargetSearch,
    *,
    seed: int,
    of_block: bool = False,
    place: Prepare = AtMLP.prepare,
    progress: Progress | None = None,
) -> list[Target]:
    """Keys and residuals of all edits, each searched for itself, as many together as `TOKENS` and `WIDER` allow.

    With `of_block` the residual is measured (clamp and weight decay) by what the block gives instead of by what its
    `mlp_out` gives; where a norm stands between the two it is measured by the latter all the same. `place` says to what
    residuals are added in the search; a target has that of `mlp_out`. Raises SolveError, which names the subject, where
    an edit cannot be brought about.
    """
    rows = [rows_of_edit(handle, edit, before) for edit in edits]
    found: dict[int, Target] = {}
    above = range(layer + 1, handle.layers)
    fused = Fused.of(handle, above, search.products)
    with (
        attention(handle, "eager"),
        frozen(handle.model),
        using(exact(handle)),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        most = TOKENS.get(handle.device.type, MANY_TOKENS)
        # Once for all batches, and frozen already: weights that may still change are not laid out.
        products = products_of(handle, search.products, above)
        for part in _together([_width(own) for own in rows], len(before), search.tokens_per_step, most):
            give_back()
            own = ([edits[edit] for edit in part], [rows[edit] for edit in part])
            targets = _Search(handle, layer, *own, search, seed, of_block, place, products, fused).run(progress)
            found.update(zip(part, targets, strict=True))
    return [found[edit] for edit in range(len(edits))]


def _width(own: Sequence[Row]) -> int:
    """The most tokens that a context of an edit has from the subject's last one on."""
    return max(len(row.suffix) for row in own[:-1])


def _together(widths: Sequence[int], contexts: int, drawn: int, most: int) -> Iterator[list[int]]:
    """Edits in groups of like width that run at most `most` tokens in a step, `drawn` or all contexts' of each; or of
    one edit."""
    group: list[int] = []
    for edit in sorted(range(len(widths)), key=lambda edit: widths[edit]):
        each = min(drawn or widths[edit] * contexts, widths[edit] * contexts)
        if group and ((len(group) + 1) * each > most or widths[edit] > WIDER * widths[group[0]]):
            yield group
            group = []
        group.append(edit)
    if group:
        yield group


class _Search:
    """The values of several edits, searched in one batch. Each edit owns `per_edit` rows, the last is "{} is a"."""

    def __init__(
        self,
        handle: ModelHandle,
        layer: int,
        edits: Sequence[Edit],
        rows: Sequence[Sequence[Row]],
        settings: TargetSearch,
        seed: int,
        of_block: bool,
        place: Prepare,
        products: Products | None,
        fused: Fused | None,
    ) -> None:
        self.handle, self.settings, self.layer, self.of_block = handle, settings, layer, of_block
        self.products, self.fused = products, fused
        self.subjects, self.edits, self.per_edit = [e.fact.subject for e in edits], len(rows), len(rows[0])
        self.flat = [row for own in rows for row in own]
        self.all = _Batch(range(len(self.flat)), place(handle, layer, self.flat), reads_of(self.flat, handle.device))
        self.batch = self.all
        self.ends = torch.tensor([len(row.suffix) - 1 for row in self.flat], device=handle.device)
        self.upper, outputs = self.all.place.upper, self.all.place.outputs
        self.keys = self.upper.keys[:, 0].float().unflatten(0, (self.edits, self.per_edit))[:, :-1].mean(1)
        measures = [*outputs[:-1], self.upper.hidden if of_block and not handle.arch.mlp_norm else outputs[-1]]
        self.norms = torch.stack([each[:: self.per_edit, 0].float().norm(dim=1) for each in measures], 1)
        shape = *self.norms.shape, self.upper.values.shape[-1]
        self.residual = torch.zeros(shape, device=handle.device, requires_grad=True)
        self.essence = self.unchanged()
        self.widths = [_width(own) for own in rows]
        self.generators = [torch.Generator().manual_seed(seed) for _ in rows]

    def run(self, progress: Progress | None = None) -> list[Target]:
        """Search until every edit is done or the steps are used up."""
        adam = Adam(self.residual, self.settings.learning_rate)
        found: dict[int, Target] = {}
        for step in range(1, self.settings.steps + 1):
            if progress:
                progress("value search, step", step, self.settings.steps)
            live = [edit for edit in range(self.edits) if edit not in found]
            last = step == self.settings.steps
            contexts = [self.drawn(edit, everything=last) for edit in live]
            with torch.set_grad_enabled(not last), using(self.products):
                loss = self.loss(live, contexts, self.fused)
            for edit, value in zip(live, self.verified(live, loss.detach()), strict=True):
                if value < self.settings.stop_below or last:
                    found[edit] = self.target(edit, step, value)
            if len(found) == self.edits:
                break
            [grad] = torch.autograd.grad(loss.sum(), self.residual)
            if step == 1:
                self.check_reached(grad)
            adam.step(grad)
            self.clamp()
        return [found[edit] for edit in range(self.edits)]

    def check_reached(self, grad: Tensor) -> None:
        """Raises SolveError for an edit that the residual cannot bring about."""
        for edit, own in enumerate(grad):
            if not own[-1].any():
                raise SolveError(
                    f"cannot edit {self.subjects[edit]!r} at layer {self.layer}: no change of this layer's value can "
                    "reach the new object; edit a lower layer"
                )

    def drawn(self, edit: int, *, everything: bool) -> list[int]:
        """Numbers of an edit's contexts for a step."""
        contexts = self.per_edit - 1
        wanted = max(1, self.settings.tokens_per_step // self.widths[edit])
        if everything or not self.settings.tokens_per_step or wanted >= contexts:
            return [*range(contexts)]
        others = torch.randperm(contexts - 1, generator=self.generators[edit])[: wanted - 1] + 1
        return [0, *sorted(others.tolist())]

    def loss(
        self, live: Sequence[int], contexts: Sequence[Sequence[int]], fused: Fused | None = None
    ) -> Float[Tensor, " live"]:
        """What each live edit is searched by, over its contexts."""
        self.select(live, contexts)
        counts = torch.tensor([len(own) for own in contexts], device=self.handle.device)
        owner = torch.arange(len(live), device=counts.device).repeat_interleave(counts + 1)
        hidden = self.batch.place.run(self.changes(live, owner), fused)
        ends = self.ends[[self.essence_row(edit) for edit in live]]
        nll, logits = self.batch.reads.nll_and_logits(self.handle, hidden, (counts + 1).cumsum(0) - 1, ends)
        mean = torch.zeros_like(nll[: len(live)]).index_add(0, owner, nll) / counts
        decay = (self.residual[live].norm(dim=-1) / self.norms[live].square()).sum(1)
        return mean + self.settings.kl_weight * self.drift(live, logits) + self.settings.weight_decay * decay

    def essence_row(self, edit: int) -> int:
        return edit * self.per_edit + self.per_edit - 1

    def select(self, live: Sequence[int], contexts: Sequence[Sequence[int]]) -> None:
        """Have exactly the rows of these edits and contexts in `batch`, each edit's "{} is a" after its contexts."""
        wanted: list[int] = []
        for edit, own in zip(live, contexts, strict=True):
            wanted += [*(edit * self.per_edit + place for place in own), self.essence_row(edit)]
        if wanted == [*self.batch.rows]:
            return
        if len(wanted) == len(self.flat):
            self.batch = self.all
            return
        rows = [self.flat[row] for row in wanted]
        place = self.all.place.rows(torch.tensor(wanted, device=self.handle.device), max(len(r.suffix) for r in rows))
        self.batch = _Batch(wanted, place, reads_of(rows, self.handle.device))

    def changes(self, live: Sequence[int], owner: Tensor) -> Float[Tensor, "rows places length d_out"]:
        """The residuals at the subject's last token, where every suffix begins."""
        first = self.residual[live][owner][:, :, None]
        return zero_pad(first, (0, 0, 0, self.batch.place.upper.ids.shape[1] - 1))

    @torch.no_grad()
    def unchanged(self) -> Float[Tensor, "edits vocabulary"]:
        """Log-probabilities after "{} is a" in the unchanged model."""
        rows = torch.tensor([self.essence_row(edit) for edit in range(self.edits)], device=self.handle.device)
        upper = self.upper.rows(rows, self.upper.ids.shape[1])
        hidden = upper.run(torch.zeros_like(upper.values))
        places = torch.arange(len(rows), device=rows.device), self.ends[rows]
        return unembed(self.handle, hidden[places]).log_softmax(-1)

    def drift(self, live: Sequence[int], logits: Float[Tensor, "live vocabulary"]) -> Float[Tensor, " live"]:
        """KL(after ‖ before) of the next token after "{} is a", nats (Meng et al. 2022, equation 4, and their code)."""
        before, after = self.essence[live], logits.log_softmax(-1)
        return (after.exp() * (after - before)).sum(-1)

    @torch.no_grad()
    def verified(self, live: Sequence[int], loss: Tensor) -> list[float]:
        """The losses, those of edits that seem done taken over all contexts and with the model's own products."""
        if not torch.isfinite(loss).all():
            raise SolveError("the loss of the value search is not finite; load the model in float32")
        done = [edit for edit, value in zip(live, loss.tolist(), strict=True) if value < self.settings.stop_below]
        checked: dict[int, float] = {}
        if done and (self.products or len(self.batch.rows) < len(live) * self.per_edit):
            whole = self.loss(done, [self.drawn(edit, everything=True) for edit in done])
            checked = dict(zip(done, whole.tolist(), strict=True))
        return [checked.get(edit, value) for edit, value in zip(live, loss.tolist(), strict=True)]

    @torch.no_grad()
    def clamp(self) -> None:
        norms = self.residual.norm(dim=-1)
        self.residual.mul_((self.settings.clamp * self.norms / norms).clamp(max=1)[..., None])

    def target(self, edit: int, steps: int, loss: float) -> Target:
        residual, first = self.residual[edit, -1].detach().clone(), edit * self.per_edit
        notes = {
            "steps": steps,
            "loss": loss,
            "relative_norm": float(residual.norm() / self.norms[edit, -1]),
            "products": told(self.handle, self.settings.products),
        }
        own = self.upper.keys[first, 0].float()
        return Target(self.keys[edit], own, residual, self.state(first, residual).detach().float(), notes)

    def state(self, row: int, residual: Float[Tensor, " d_out"]) -> Float[Tensor, " d_out"]:
        """What a row's block, or its MLP alone, gives with the residual."""
        hidden, values = self.upper.hidden[row, 0], self.upper.values[row, 0]
        if self.of_block:
            return after_change(self.handle, self.layer, hidden, values, residual)
        return mlp_gives(self.handle, self.layer, values + residual)


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Some of a search's rows, by number, and what running them needs."""

    rows: Sequence[int]
    place: Place
    reads: Reads
