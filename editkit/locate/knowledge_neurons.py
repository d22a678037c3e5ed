"""Knowledge neurons (Dai et al. 2022, https://arxiv.org/abs/2104.08696, sections 3.1 and 3.2): which entries of the
MLPs' hidden activations an answer hangs on.

    Attr(w) = w ∫₀¹ ∂p(y | x, a·w) / ∂w da        w: what `mlp_out` reads in one layer (d_in)

All activations of a layer grow together from nothing to what they are, at the prompt's last token: the place where the
answer is predicted, as the [MASK] is in the paper. The attributions of a layer sum to p as it is less p with the
layer's activations put to zero there.

Differs from the authors' code:
- a causal model and whole answers: p is that of all the answer's tokens, of which each follows those before it (theirs:
  BERT, one token);
- the integral is taken at the midpoints of its steps, whose error falls with the square of their number (theirs: at
  their ends);
- of one fact, too few or too many neurons are mended for that fact: the share of prompts is lowered as far as it must
  be, and the strongest are kept (theirs: one share for a relation, moved until a fact has 2 to 5 on average);
- each layer is run alone, from its own block upwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.blocks import after_change, frozen, upper
from editkit.errors import InputError
from editkit.facts import Fact
from editkit.forward import attention, copied, run
from editkit.handle import ModelHandle
from editkit.hooks import traced
from editkit.locate import LOCATORS, LayerScore, Progress
from editkit.locate._asked import Asked, Question, asked
from editkit.products import FLOAT32, check_products, exact, products_of, using
from editkit.tokens import encode_pair

ROWS = 256  # sequences run at once
SHARE_STEP = 0.05  # by which the share of prompts sinks, as in the paper


@dataclass(frozen=True, slots=True, order=True)
class Neuron:
    """One entry of what `mlp_out` of a layer reads: a column of that matrix in (out, in) orientation."""

    layer: int
    index: int


@dataclass(frozen=True, slots=True, eq=False)
class Attributed:
    """What each neuron adds to p(answer | prompt) at the prompt's last token, and how active it is there."""

    scores: Float[Tensor, "prompts layers d_in"]
    activations: Float[Tensor, "prompts layers d_in"]


@LOCATORS.register("knowledge_neurons")
@dataclass(frozen=True, slots=True)
class KnowledgeNeurons:
    """`steps`: points of the integral; `threshold`: the share of a prompt's highest attribution that counts; `shared`:
    the share of prompts in which a neuron has to count, lowered until `fewest` do; `most`: as many are kept;
    `products`: of the matrices, see editkit/products.py."""

    steps: int = 20
    threshold: float = 0.2
    shared: float = 0.7
    fewest: int = 2
    most: int = 5
    products: str = FLOAT32

    def __post_init__(self) -> None:
        check_products(self.products)
        if self.steps < 1 or not 1 <= self.fewest <= self.most:
            raise InputError(f"{self} needs steps >= 1 and 1 <= fewest <= most")
        if not 0 <= self.threshold < 1 or not 0 <= self.shared <= 1:
            raise InputError(f"{self} needs 0 <= threshold < 1 and 0 <= shared <= 1")

    def __call__(
        self, handle: ModelHandle, facts: Sequence[Fact], *, seed: int, progress: Progress | None = None
    ) -> tuple[LayerScore, ...]:
        """How many knowledge neurons a fact has in each layer, the mean over the facts. The seed is not used."""
        found: Counter[int] = Counter()
        for number, fact in enumerate(facts):
            if progress:
                progress("attributing", number, len(facts))
            found.update(neuron.layer for neuron in self.of(self.attributions(handle, [fact.text], fact.object)))
        if progress:
            progress("attributing", len(facts), len(facts))
        return tuple(LayerScore(layer, found[layer] / max(1, len(facts))) for layer in range(handle.layers))

    def attributions(
        self, handle: ModelHandle, prompts: Sequence[str], answer: str
    ) -> Float[Tensor, "prompts layers d_in"]:
        """What each neuron adds to p(answer | prompt) at the prompt's last token; higher is more, negative works
        against the answer."""
        pairs = [encode_pair(handle.tokenizer, prompt, answer) for prompt in prompts]
        return self.attributed(handle, pairs).scores

    def attributed(self, handle: ModelHandle, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Attributed:
        """For token ids of prompts and answers. Raises PromptTooLong."""
        if not pairs:
            raise InputError("no prompt to attribute an answer at; give at least one")
        with (
            attention(handle, "eager"),
            frozen(handle.model),
            using(exact(handle)),
            using(products_of(handle, self.products)),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            return _attributed(handle, pairs, self.steps)

    def of(self, scores: Float[Tensor, "prompts layers d_in"]) -> tuple[Neuron, ...]:
        """The neurons that most of the prompts share, the strongest first; none where nothing adds to the answer."""
        counted = Counter(neuron for each in scores for neuron in coarse(each, self.threshold))
        kept = refined(counted, len(scores), self.shared, self.fewest)
        mean = scores.mean(0)
        return tuple(sorted(kept, key=lambda n: (-float(mean[n.layer, n.index]), n))[: self.most])


def coarse(scores: Float[Tensor, "layers d_in"], threshold: float) -> list[Neuron]:
    """The neurons above `threshold` times the highest score; none where no score is above zero."""
    top = float(scores.max())
    if not top > 0:
        return []
    return [Neuron(layer, index) for layer, index in (scores > threshold * top).nonzero().tolist()]


def refined(counted: Counter[Neuron], prompts: int, shared: float, fewest: int) -> list[Neuron]:
    """The neurons that count in a share of the prompts, which begins with `shared` and sinks until `fewest` are left
    or all that count anywhere."""
    kept: list[Neuron] = []
    while len(kept) < min(fewest, len(counted)):
        kept = [neuron for neuron, count in counted.items() if count >= shared * prompts - 1e-9]
        shared -= SHARE_STEP
    return kept


def _attributed(handle: ModelHandle, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], steps: int) -> Attributed:
    batch = asked(handle, [Question(tuple(ids), tuple(target), len(ids) - 1) for ids, target in pairs])
    paths = [[handle.arch.path(part, layer) for part in ("mlp_out", "block")] for layer in range(handle.layers)]
    with torch.no_grad(), traced(handle.model, [name for both in paths for name in both]) as seen:
        run(handle.backbone, batch.ids, batch.mask, batch.positions, copied(batch.cache))
    scores, activations = [], []
    for layer, (matrix, block) in enumerate(paths):
        keys, values, hidden = seen[matrix].input, seen[matrix].output, seen[block].output
        assert keys is not None and values is not None and hidden is not None
        scores.append(_of_layer(handle, layer, batch, keys, values, hidden, steps))
        activations.append(keys[:, 0].float())
    return Attributed(torch.stack(scores, 1), torch.stack(activations, 1))


def _of_layer(
    handle: ModelHandle, layer: int, batch: Asked, keys: Tensor, values: Tensor, hidden: Tensor, steps: int
) -> Float[Tensor, "prompts d_in"]:
    """Attributions of one layer: the mean gradient over the path, times the activations."""
    points = (torch.arange(steps, device=handle.device) + 0.5) / steps
    owner = torch.arange(len(keys), device=handle.device).repeat_interleave(steps)
    grads = []
    for part, share in zip(owner.split(ROWS), points.repeat(len(keys)).split(ROWS), strict=True):
        scaled = (keys[part, 0] * share[:, None].to(keys.dtype)).requires_grad_()
        moved = hidden[part].clone()
        change = handle.module("mlp_out", layer)(scaled) - values[part, 0]
        moved[:, 0] = after_change(handle, layer, hidden[part, 0], values[part, 0], change)
        wanted = batch.rows(part).logprob(handle, upper(handle, layer, moved))
        [grad] = torch.autograd.grad(wanted.sum(), scaled)  # that of a tiny p is denormal: 17 times slower
        grads.append(grad * wanted.detach().exp()[:, None].to(grad.dtype))
    mean = torch.cat(grads).float().unflatten(0, (len(keys), steps)).mean(1)
    return keys[:, 0].float() * mean
