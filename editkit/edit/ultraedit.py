"""UltraEdit, lifelong editing without training, subject or memory (Gu et al. 2025, https://arxiv.org/abs/2505.14679).

    V = −η (ĥ·ĥ) ĝ        [ĥ, ĝ] = ([h, g] − mean) / deviation
    Δ = Vᵀ H (Hᵀ H + λ I)⁻¹

One pass forward and back over prompt and new object gives, at each token, what a matrix reads (h, the rows of H: (n,
d_in)) and the gradient of the loss in what it gives (g, (n, d_out)). Both are normalised by mean and deviation over all
edits so far, and a ridge regression finds the change that lets every token take its step against the gradient. A patch
carries its statistics: those of the UltraEdit patches that are on the model, and of earlier batches, go on in the next,
so that edits made one after another need no state of their own. Matrices of one shape share their statistics, and h
enters H as it is: only the step is normalised.

Differs from the authors' code (as EasyEdit has it):
- statistics of parts are joined exactly, and a feature that does not vary is left out (theirs counts the squares of
  each part n/(n−1) times, and adds 1e-7 to every deviation);
- the loss is each edit's own mean over its tokens (theirs: over those of ten edits, so that a gradient depends on the
  edits beside it);
- the regression is solved in float64 with as many rows as there are tokens, and gives thin factors (theirs: a dense
  float32 solve with d_in rows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editkit.blocks import frozen
from editkit.completions import Encoded, collate, encode_examples, gradient_attention, parts, read
from editkit.edit._running import Running, joined
from editkit.errors import InputError
from editkit.facts import Edit, Example, check_edits
from editkit.handle import ModelHandle
from editkit.hooks import Rewrite, rewritten, traced
from editkit.linalg import ridge_regression
from editkit.operators import EDITS, provenance_of
from editkit.patch import Delta, DenseDelta, LowRankDelta, WeightPatch
from editkit.products import exact, using
from editkit.wide import computed_in_float32

Progress = Callable[[str, int, int], None]  # what is done, how much, of how much
FEATURES = "features"  # beside a parameter's name, in what a patch keeps
ALL, ANSWER = "all", "answer"


@EDITS.register("ultraedit")
@dataclass(frozen=True, slots=True)
class UltraEdit:
    """`layers`: numbers of the blocks whose `mlp_out` is edited; `matrices`: further linear layers, by their paths in
    the model. `learning_rate`: η, the length of the step that each token is to take, in proportion to which the change
    grows: larger makes edits surer and costs more neighbours. `ridge`: λ, on the scale of the squared norm of what a
    matrix reads: larger keeps the change smaller. `tokens`: "all" of prompt and new object, or only those that predict
    the "answer". `batch`: how many edits of one call share an update, the next batch on the model with those before;
    0: all."""

    name: ClassVar[str] = "ultraedit"

    layers: tuple[int, ...] = ()
    matrices: tuple[str, ...] = ()
    learning_rate: float = 1e-6
    ridge: float = 1.0
    tokens: str = ALL
    batch: int = 100

    def __post_init__(self) -> None:
        if not self.layers and not self.matrices:
            raise InputError("ultraedit edits nothing; give `layers`, `matrices` or both")
        if self.learning_rate < 0 or self.ridge <= 0 or self.batch < 0:
            raise InputError(f"{self} needs learning_rate >= 0, ridge > 0 and batch >= 0")
        if self.tokens not in (ALL, ANSWER):
            raise InputError(f"tokens is {self.tokens!r}; there is {ALL}, {ANSWER}")

    @computed_in_float32
    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> WeightPatch:
        """A low-rank patch of each matrix, one rank a token (dense where that is no less). Nothing is random: the seed
        is only recorded.

        Raises MethodError where a single token is all that was ever read, InputError where there is no edit, no such
        layer or matrix or no token in a prompt or object, and PromptTooLong where an edit does not fit the model's
        context."""
        check_edits(edits)
        rows = encode_examples(handle, [Example(edit.fact.text, edit.target_new) for edit in edits])
        made = [*self._batches(handle, rows, progress)]
        names = self.touches(handle)
        deltas = {name: _sum([batch.deltas[name] for batch in made]) for name in names}
        kept = {f"{name}:{FEATURES}": joined(batch.own[name] for batch in made).tensor() for name in names}
        notes: dict[str, Any] = {
            "loss": sum(batch.loss for batch in made) / len(edits),
            "tokens": [int(batch.own[names[0]].count) for batch in made],
        }
        return WeightPatch(deltas, provenance_of(self.name, self, handle, edits, seed, **notes), kept)

    def touches(self, handle: ModelHandle) -> tuple[str, ...]:
        """The names of the matrices that it changes."""
        paths = [handle.weight_name("mlp_out", layer).removesuffix(".weight") for layer in self.layers]
        for path in self.matrices:
            if type(dict(handle.model.named_modules()).get(path)) not in (nn.Linear, Conv1D):
                raise InputError(f"no linear layer {path!r} in {handle.name!r}; name one by its path in the model")
        return tuple(dict.fromkeys(f"{path}.weight" for path in (*paths, *self.matrices)))

    def _batches(self, handle: ModelHandle, rows: Sequence[Encoded], progress: Progress | None) -> Iterator[_Batch]:
        """The change of each batch of edits, on the model with those before it."""
        names, step = self.touches(handle), self.batch or len(rows)
        past = {name: _of_patches(handle, name) for name in names}
        with ExitStack() as stack:
            for begin in range(0, len(rows), step):
                if progress:
                    progress("editing", begin, len(rows))
                batch = self._batch(handle, rows[begin : begin + step], past)
                yield batch
                past = {name: [*past[name], own] for name, own in batch.own.items()}
                if begin + step < len(rows):
                    stack.enter_context(handle.patched(WeightPatch(batch.deltas)))
        if progress:
            progress("editing", len(rows), len(rows))

    def _batch(self, handle: ModelHandle, rows: Sequence[Encoded], past: Mapping[str, Sequence[Running]]) -> _Batch:
        seen, loss = _read(handle, [*past], rows, self.tokens)
        own = {name: Running.of(each.features) for name, each in seen.items()}
        alike: dict[tuple[int, int], list[Running]] = {}
        for name, each in seen.items():
            alike.setdefault(each.shape, []).extend([*past[name], own[name]])
        deltas = {name: self.change(each, joined(alike[each.shape])) for name, each in seen.items()}
        return _Batch(deltas, own, loss)

    def change(self, seen: Seen, statistics: Running) -> LowRankDelta:
        """The change of one matrix."""
        hidden, gradients = statistics.normalised(seen.features).split(seen.shape, 1)
        steps = -self.learning_rate * hidden.square().sum(1, keepdim=True) * gradients
        left, right = ridge_regression(seen.hidden.T, steps.T, weight=self.ridge)
        return LowRankDelta(left.float(), right.float())


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a matrix reads at some tokens, and the gradient of the loss in what it gives there."""

    hidden: Float[Tensor, "n d_in"]
    gradients: Float[Tensor, "n d_out"]

    @property
    def features(self) -> Float[Tensor, "n both"]:
        return torch.cat([self.hidden, self.gradients], 1)

    @property
    def shape(self) -> tuple[int, int]:
        return self.hidden.shape[1], self.gradients.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """The change of each matrix, the statistics of what it was made from, and the sum of the edits' losses before."""

    deltas: Mapping[str, LowRankDelta]
    own: Mapping[str, Running]
    loss: float


def _read(
    handle: ModelHandle, names: Sequence[str], rows: Sequence[Encoded], tokens: str
) -> tuple[dict[str, Seen], float]:
    """What each matrix sees, in float64 on the CPU, and the sum of the edits' mean NLL."""
    found: list[list[Seen]] = []
    total = 0.0
    with (
        gradient_attention(handle),
        frozen(handle.model),
        using(exact(handle)),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        for part in parts(rows, range(len(rows))):
            seen, loss = _read_part(handle, names, rows, part, tokens)
            found.append(seen)
            total += loss
    pairs = zip(names, zip(*found, strict=True), strict=True)
    return {
        name: Seen(torch.cat([each.hidden for each in own]), torch.cat([each.gradients for each in own]))
        for name, own in pairs
    }, total


def _read_part(
    handle: ModelHandle, names: Sequence[str], rows: Sequence[Encoded], part: Sequence[int], tokens: str
) -> tuple[list[Seen], float]:
    batch, probes = collate(handle, rows, part), {name: _Probe() for name in names}
    paths = {name: name.removesuffix(".weight") for name in names}
    at = batch.padded.mask if tokens == ALL else batch.predicts
    rewrites: dict[str, Rewrite] = {paths[name]: probe for name, probe in probes.items()}
    with traced(handle.model, paths.values()) as inputs, rewritten(handle.model, rewrites):
        answers = read(handle, batch)
    loss = -(answers.total / answers.tokens).sum()
    gradients = torch.autograd.grad(loss, [probe.added for probe in probes.values()])
    hidden = [inputs[path].input.detach() for path in paths.values()]
    seen = [Seen(h[at].cpu().double(), g[at].cpu().double()) for h, g in zip(hidden, gradients, strict=True)]
    return seen, float(loss.detach())


@dataclass(slots=True, eq=False)
class _Probe:
    """Adds nothing to what a module gives; the gradient in that nothing is the one in the output."""

    added: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __call__(self, output: Tensor) -> Tensor:
        self.added = torch.zeros_like(output, requires_grad=True)
        return output + self.added


def _of_patches(handle: ModelHandle, name: str) -> list[Running]:
    """The statistics of a matrix that the patches on the handle carry."""
    key = f"{name}:{FEATURES}"
    return [Running.read(p.kept[key]) for p in handle.patches if isinstance(p, WeightPatch) and key in p.kept]


def _sum(deltas: Sequence[LowRankDelta]) -> Delta:
    whole = LowRankDelta(torch.cat([each.left for each in deltas], 1), torch.cat([each.right for each in deltas], 0))
    smallest = min(whole.left.shape[0], whole.right.shape[1])
    return whole if whole.right.shape[0] < smallest else DenseDelta(whole.dense())
