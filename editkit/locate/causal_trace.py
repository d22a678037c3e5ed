"""Causal tracing (Meng et al. 2022, https://arxiv.org/abs/2202.05262, section 2): which states, put back into a model
that was made blind for the subject, bring its answer back.

    IE = p*(y | x, one state as it was) − p*(y | x)      p*: noise ε ~ N(0, ν²) on the subject's embeddings, ν = 3σ

A state is what a block gives, or what the MLPs or the attentions of a window of layers give, at one token. The average
over noises and facts (AIE) is a probability; higher means that the answer passes there.

On SmolLM2-135M the MLPs' effect is almost all of layer 0 (0.66, every other layer below 0.04: 6 facts, 4 noises,
windows of one layer), so that each wider window that holds it has that effect, whatever else is in it.

Differs from the authors' code:
- the answer is the whole object of the fact, its tokens one after another (theirs: the one token that the model deems
  most likely);
- σ is over the embeddings of the subjects of the facts that are given (theirs: of all subjects of their known facts);
- every fact gets noises of the same seed, so that its effects do not hang on which facts stand beside it but for σ;
- tokens before the subject are not traced: nothing was done to them, so that their effect is 0;
- only what noise can change is run: tokens from the subject's first on, blocks from the window upwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from editkit.blocks import upper
from editkit.errors import InputError
from editkit.facts import Fact
from editkit.handle import ModelHandle
from editkit.hooks import Rewrite, rewritten, traced
from editkit.locate import LOCATORS, LayerScore, Progress
from editkit.locate._asked import Asked, Question, asked
from editkit.products import exact, using
from editkit.tokens import Span, encode_pair, subject_span
from editkit.undo import Block

KINDS = {"hidden": "block", "mlp": "mlp", "attention": "attention"}
TOKENS = 2048  # run at once
FACTS = 16  # whose states are held at once


@dataclass(frozen=True, slots=True)
class Trace:
    """What putting one state back does for one fact, by layer and token.

    `effects[layer][token]`: p with the state put back less p without, the mean over the noises; higher is more.
    `tokens` are those from the subject's first one to the prompt's end, `subject_last` is the place of its last one
    among them. `clean` and `corrupted` are p(object | prompt) without noise and with it.
    """

    kind: str
    tokens: tuple[str, ...]
    subject_last: int
    clean: float
    corrupted: float
    effects: tuple[tuple[float, ...], ...]


@LOCATORS.register("causal_trace")
@dataclass(frozen=True, slots=True)
class CausalTrace:
    """`kind`: "mlp", "attention" (in `window` layers around each) or "hidden" (what the layer's block gives); `noise`:
    its standard deviation in those of the embeddings; `samples`: noises a fact. Called, it scores each layer by the
    effect at the subject's last token, the mean over the facts."""

    kind: str = "mlp"
    window: int = 10
    noise: float = 3.0
    samples: int = 10

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"no kind {self.kind!r} of state; there is {', '.join(KINDS)}")
        if self.window < 1 or self.samples < 1 or not self.noise >= 0:
            raise InputError(f"{self} needs window >= 1, samples >= 1 and noise >= 0")

    def __call__(
        self, handle: ModelHandle, facts: Sequence[Fact], *, seed: int, progress: Progress | None = None
    ) -> tuple[LayerScore, ...]:
        """Average indirect effect (a probability) of each layer at the subject's last token."""
        effects: list[Tensor] = []
        with torch.inference_mode(), using(exact(handle)):
            for blind in self._groups(handle, facts, seed, progress):
                last = blind.only(blind.subject_last)
                effects.append(torch.stack([self._effect(blind, layer, last) for layer in range(handle.layers)]))
        mean = torch.cat(effects, 1).mean(1).tolist()
        return tuple(LayerScore(layer, effect) for layer, effect in enumerate(mean))

    def traces(
        self, handle: ModelHandle, facts: Sequence[Fact], *, seed: int, progress: Progress | None = None
    ) -> list[Trace]:
        """The effect of each layer at every token from the subject's first on, for each fact by itself."""
        found: list[Trace] = []
        with torch.inference_mode(), using(exact(handle)):
            for blind in self._groups(handle, facts, seed, progress):
                places = [blind.only(place) for place in range(max(map(len, blind.tokens)))]
                effects = [
                    torch.stack([self._effect(blind, layer, where) for where in places], 1)
                    for layer in range(handle.layers)
                ]
                found += [blind.trace(fact, self.kind, effects) for fact in range(len(blind.tokens))]
        return found

    def _groups(
        self, handle: ModelHandle, facts: Sequence[Fact], seed: int, progress: Progress | None
    ) -> Iterator[Blind]:
        if not facts:
            raise InputError("no facts to trace; give at least one")
        scale = self.noise * _deviation(handle, facts)
        for begin in range(0, len(facts), FACTS):
            if progress:
                progress("tracing facts", begin, len(facts))
            yield Blind.of(handle, facts[begin : begin + FACTS], self, scale, seed)
        if progress:
            progress("tracing facts", len(facts), len(facts))

    def _effect(self, blind: Blind, layer: int, where: Bool[Tensor, "rows length"]) -> Float[Tensor, " facts"]:
        return blind.by_fact(self.restored(blind, layer, where) - blind.corrupted)

    def restored(self, blind: Blind, layer: int, where: Bool[Tensor, "rows length"]) -> Float[Tensor, " rows"]:
        """p(object | prompt) of each noisy row with the states of a layer, or of the window around it, put back
        `where` that is true."""
        if self.kind == "hidden":
            return blind.run(layer + 1, [], where)
        first, end = max(0, layer - self.window // 2), layer - (-self.window // 2)
        return blind.run(first, range(first, min(end, blind.handle.layers)), where)


@dataclass(frozen=True, slots=True, eq=False)
class Blind:
    """Facts with noise on their subjects, one row a noise: what the model says, and the states of both runs.

    `clean` and `noisy` hold states by module path: `clean` of each fact, `noisy` (of blocks only) of each row.
    """

    handle: ModelHandle
    part: str
    batch: Asked
    owner: Int[Tensor, " rows"]
    noise: Float[Tensor, "rows length d"]
    clean: Mapping[str, Float[Tensor, "facts length d"]]
    noisy: Mapping[str, Float[Tensor, "rows length d"]]
    clean_probability: Float[Tensor, " facts"]
    corrupted: Float[Tensor, " rows"]
    subject_last: Int[Tensor, " facts"]
    tokens: Sequence[Sequence[str]]

    @classmethod
    def of(cls, handle: ModelHandle, facts: Sequence[Fact], settings: CausalTrace, scale: float, seed: int) -> Blind:
        """Both runs of all facts, with noise of the standard deviation `scale`. Raises PromptTooLong."""
        questions, spans = zip(*(_question(handle, fact) for fact in facts), strict=True)
        base, part = asked(handle, questions), KINDS[settings.kind]
        owner = torch.arange(len(facts), device=handle.device).repeat_interleave(settings.samples)
        batch = base.rows(owner)
        noise = _noise(handle, base, spans, settings.samples, scale, seed)
        blocks = [handle.arch.path("block", layer) for layer in range(handle.layers)]
        parts = [handle.arch.path(part, layer) for layer in range(handle.layers)]
        with traced(handle.model, {*blocks, *parts}) as seen:
            clean_probability = base.probability(handle, handle.backbone)
            clean = {name: seen[name].output for name in {*blocks, *parts}}
        with traced(handle.model, blocks) as seen, _blinded(handle, noise):
            corrupted = batch.probability(handle, handle.backbone)
            noisy = {name: seen[name].output for name in blocks}
        last = torch.tensor([span.last for span in spans], device=handle.device)
        tokens = [handle.tokenizer.batch_decode([[t] for t in each.prompt[each.begin :]]) for each in questions]
        return cls(handle, part, batch, owner, noise, clean, noisy, clean_probability, corrupted, last, tokens)

    def only(self, places: Int[Tensor, " facts"] | int) -> Bool[Tensor, "rows length"]:
        """One token of each fact."""
        wanted = torch.as_tensor(places, device=self.owner.device).expand(len(self.tokens))
        return torch.arange(self.batch.ids.shape[1], device=wanted.device) == wanted[self.owner, None]

    def by_fact(self, rows: Float[Tensor, " rows"]) -> Float[Tensor, " facts"]:
        """Means over the noises of each fact."""
        return rows.unflatten(0, (len(self.tokens), -1)).mean(1)

    def trace(self, fact: int, kind: str, effects: Sequence[Float[Tensor, "facts tokens"]]) -> Trace:
        tokens = tuple(self.tokens[fact])
        own = tuple(tuple(each[fact, : len(tokens)].tolist()) for each in effects)
        clean, corrupted = float(self.clean_probability[fact]), float(self.by_fact(self.corrupted)[fact])
        return Trace(kind, tokens, int(self.subject_last[fact]), clean, corrupted, own)

    def run(self, first: int, layers: Sequence[int], where: Bool[Tensor, "rows length"]) -> Float[Tensor, " rows"]:
        """p of each row when it is run from block `first` on, with the parts of `layers` as in the clean run `where`;
        what stands before `first` is put back itself where no layers are named."""
        found = [self._run(rows, first, layers, where[rows]) for rows in self._parts()]
        return torch.cat(found)

    def _run(self, rows: Tensor, first: int, layers: Sequence[int], where: Tensor) -> Tensor:
        names = [self.handle.arch.path(self.part, layer) for layer in layers]
        put_back = {name: _putting(self.clean[name][self.owner[rows]], where) for name in names}
        with _blinded(self.handle, self.noise[rows]), rewritten(self.handle.model, put_back):
            return self.batch.rows(rows).probability(self.handle, self._start(rows, first, where & (not layers)))

    def _start(self, rows: Tensor, first: int, where: Tensor) -> nn.Module:
        """A view of the backbone that begins with block `first` on the noisy states, clean ones `where`."""
        if first == 0:
            return self.handle.backbone
        name = self.handle.arch.path("block", first - 1)
        hidden = torch.where(where[..., None], self.clean[name][self.owner[rows]], self.noisy[name][rows])
        return upper(self.handle, first - 1, hidden)

    def _parts(self) -> Iterator[Tensor]:
        each = max(1, TOKENS // self.batch.mask.shape[1])
        yield from torch.arange(len(self.owner), device=self.owner.device).split(each)


def _question(handle: ModelHandle, fact: Fact) -> tuple[Question, Span]:
    """The fact from its subject's first token on, and where the subject is then."""
    ids, target = encode_pair(handle.tokenizer, fact.text, fact.object)
    span = subject_span(handle.tokenizer, fact.prompt, fact.subject)
    return Question(tuple(ids), tuple(target), span.start), Span(0, span.stop - span.start)


def _embedded(handle: ModelHandle, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
    embedded: Tensor = handle.module("embedding")(ids)
    return embedded


def _deviation(handle: ModelHandle, facts: Sequence[Fact]) -> float:
    """Standard deviation of the embeddings of all tokens of the facts' subjects."""
    ids = []
    for fact in facts:
        question, span = _question(handle, fact)
        ids += question.prompt[question.begin :][: span.stop]
    return float(_embedded(handle, torch.tensor(ids, device=handle.device)).float().std())


def _noise(
    handle: ModelHandle, base: Asked, spans: Sequence[Span], samples: int, scale: float, seed: int
) -> Float[Tensor, "rows length d"]:
    """The noise of each row: of one seed for each fact, nothing beside its subject."""
    like = _embedded(handle, base.ids)
    noise = torch.zeros(len(spans), samples, *like.shape[1:])
    for own, span in zip(noise, spans, strict=True):
        drawn = torch.Generator().manual_seed(seed)
        for sample in own:
            sample[: span.stop] = scale * torch.randn(span.stop, sample.shape[-1], generator=drawn)
    return noise.flatten(0, 1).to(like)


def _blinded(handle: ModelHandle, noise: Float[Tensor, "rows length d"]) -> Block[None]:
    return rewritten(handle.model, {handle.arch.path("embedding"): lambda output: output + noise})


def _putting(clean: Float[Tensor, "rows length d"], where: Bool[Tensor, "rows length"]) -> Rewrite:
    return lambda output: torch.where(where[..., None], clean, output)
