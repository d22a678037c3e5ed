"""Training MEND's networks: an edit is made, other texts are read under it, and what they say trains the networks."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.blocks import frozen, without_patches
from editkit.completions import Encoded, encode_examples, gradient_attention
from editkit.edit._adam import Adam
from editkit.edit._mend_network import TINY, Network, untrained
from editkit.edit._mend_texts import Change, Factors, Texts, nll, per_text
from editkit.errors import InputError
from editkit.facts import EditRecord, Example, fill
from editkit.handle import ModelHandle
from editkit.products import FLOAT32, check_products, exact, products_of, using
from editkit.training import TrainingError

VERSION = 1  # raise when another network comes out for the same key
TOGETHER = 16  # texts whose gradients are taken at once
Progress = Callable[[str, int, int], None]  # what is done, how much, of how much


@dataclass(frozen=True, slots=True)
class Fitting:
    """How the networks are trained.

    `rank`: the networks' inner width. `step`: the step length they begin with. `normalise`: whether what they get is
    brought to mean 0 and spread 1. `steps` of Adam, each over `batch` edits, at `learning_rate`; the step lengths at
    `step_rate`, in parts of `step`. The loss is `edit_weight` times the mean NLL (nats a token) of the new object, in
    the wording that is edited and in another one, plus `locality_weight` times KL(before ‖ after) on `neighbors` other
    facts. `clip` bounds the gradient's norm. A share `watch` of the subjects is not trained on: every `check_every`
    steps their loss is taken, the best networks are kept, and after `patience` checks without a better one it ends.
    `products` are the matrix products of the training (see editkit/products.py): those
    of an edit are float32. Where no records are given, `facts` of
    the built-in ones are drawn by `seed`.
    """

    rank: int = 1920
    step: float = 1e-4
    normalise: bool = True
    steps: int = 300
    batch: int = 8
    learning_rate: float = 1e-6
    step_rate: float = 1.0
    edit_weight: float = 0.1
    locality_weight: float = 1.0
    neighbors: int = 2
    clip: float = 100.0
    watch: float = 0.1
    check_every: int = 25
    patience: int = 4
    products: str = FLOAT32
    facts: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        check_products(self.products)
        counts = {"rank": self.rank, "batch": self.batch, "check_every": self.check_every, "patience": self.patience}
        low = [name for name, value in counts.items() if value < 1]
        if low:
            raise InputError(f"fitting.{low[0]} is {counts[low[0]]}; it is at least 1")
        if self.learning_rate <= 0 or self.step_rate < 0 or self.clip <= 0 or self.steps < 0 or self.neighbors < 0:
            raise InputError(f"{self} needs learning_rate, clip > 0 and step_rate, steps, neighbors >= 0")
        if self.edit_weight < 0 or self.locality_weight < 0 or self.facts < 2 or not 0 < self.watch < 1:
            raise InputError(f"{self} needs weights >= 0, facts >= 2 and watch between 0 and 1")


@dataclass(frozen=True, slots=True)
class Lesson:
    """An edit as tokens: the text that is edited, its new object in other wordings, and other facts that stay."""

    subject: str
    edit: Encoded
    rewordings: tuple[Encoded, ...]
    neighbors: tuple[Encoded, ...]


def lessons_of(handle: ModelHandle, records: Sequence[EditRecord]) -> list[Lesson]:
    """What is trained on, as the model without its patches reads it. Raises PromptTooLong."""
    with without_patches(handle):
        return [_lesson(handle, record) for record in records]


def _lesson(handle: ModelHandle, record: EditRecord) -> Lesson:
    subject, new, told = record.fact.subject, record.edit.target_new, record.held_out
    reworded = [Example(fill(each, subject), new) for each in told.paraphrases]
    near = [Example(question.prompt, question.answer) for question in told.neighborhood]
    edit, *others = encode_examples(handle, [Example(record.fact.text, new), *reworded, *near])
    return Lesson(subject, edit, tuple(others[: len(reworded)]), tuple(others[len(reworded) :]))


def key_of(handle: ModelHandle, names: Sequence[str], lessons: Sequence[Lesson], fitting: Fitting, seed: int) -> str:
    """sha256 of all that the networks depend on."""
    parts = {
        "version": VERSION,
        "base": handle.base_digest,
        "setup": handle.setup_digest,
        "names": names,
        "lessons": [asdict(lesson) for lesson in lessons],
        "computed": str(handle.dtype),
        "device": handle.device.type,
        "seed": seed,
        **{f"fitting.{name}": value for name, value in asdict(fitting).items() if name not in ("facts", "seed")},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fit_network(
    handle: ModelHandle,
    names: Sequence[str],
    first: int,
    lessons: Sequence[Lesson],
    fitting: Fitting,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Network:
    """Networks for the named matrices, the lowest in block `first`, trained on the model without its patches.

    Raises InputError where the lessons are of fewer than two subjects, TrainingError where the loss is not finite.
    """
    train, watch = _parted(lessons, fitting.watch, seed)
    with (
        without_patches(handle),
        gradient_attention(handle),
        frozen(handle.model),
        using(products_of(handle, fitting.products) or exact(handle)),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        texts = Texts(handle, names, first)
        network = untrained(handle, names, fitting.rank, fitting.step, seed)
        if fitting.normalise:
            network = normalised(network, texts, [lesson.edit for lesson in train])
        return _Training(texts, network, train, watch, fitting, seed).run(progress)


def _parted(lessons: Sequence[Lesson], share: float, seed: int) -> tuple[list[Lesson], list[Lesson]]:
    """Lessons to train on and lessons to watch, of different subjects."""
    subjects = sorted({lesson.subject for lesson in lessons})
    if len(subjects) < 2:
        raise InputError(f"mend cannot be fitted on {len(subjects)} subjects; give records of two at least")
    kept = set(random.Random(f"{seed} watch").sample(subjects, max(1, round(share * len(subjects)))))
    kept = set(sorted(kept)[: len(subjects) - 1])
    return [x for x in lessons if x.subject not in kept], [x for x in lessons if x.subject in kept]


def normalised(network: Network, texts: Texts, edits: Sequence[Encoded]) -> Network:
    """The network with means and spreads of what it gets, over all tokens of these edits."""
    seen: dict[str, list[Tensor]] = {name: [] for name in network.shapes}
    for begin in range(0, len(edits), TOGETHER):
        for name, factors in texts.gradients(edits[begin : begin + TOGETHER]).items():
            both = torch.cat([factors.u, factors.delta], -1)[factors.used].double()
            seen[name].append(torch.stack([both.sum(0), both.square().sum(0), torch.ones_like(both).sum(0)]))
    tensors: dict[str, Tensor] = {}
    for name, sums in seen.items():
        total, squares, count = torch.stack(sums).sum(0)
        mean = total / count
        spread = ((squares - count * mean.square()).clamp(min=0) / (count - 1).clamp(min=1)).sqrt() + TINY
        tensors |= {f"{name}:mean": mean.float(), f"{name}:spread": spread.float()}
    return network.with_tensors(tensors)


def changes_of(network: Network, factors: Mapping[str, Factors]) -> dict[str, Change]:
    """What the networks make of gradients: a step down each."""
    changes = {}
    for name, own in factors.items():
        right, left = network(name, own.u, own.delta)
        changes[name] = Change(right, -network.step(name) * left * own.used[..., None])
    return changes


@dataclass(frozen=True, slots=True, eq=False)
class _Draw:
    """What one lesson is to show in a step."""

    lesson: Lesson
    asked: tuple[Encoded, ...]  # the new object is wanted here
    kept: tuple[Encoded, ...]  # nothing shall change here


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """Of some edits: mean NLL of the new object, mean KL(before ‖ after), and the shares of edited wordings and of
    other wordings where each token of the new object is the most likely one."""

    nll: Tensor
    drift: Tensor
    efficacy: float
    generalization: float

    def loss(self, fitting: Fitting) -> Tensor:
        return fitting.edit_weight * self.nll + fitting.locality_weight * self.drift


class _Training:
    """The state of one run."""

    def __init__(
        self,
        texts: Texts,
        network: Network,
        train: Sequence[Lesson],
        watch: Sequence[Lesson],
        fitting: Fitting,
        seed: int,
    ) -> None:
        self.texts, self.train, self.fitting, self.seed = texts, train, fitting, seed
        self.values = {name: network.tensors[name].clone().requires_grad_() for name in network.trained}
        self.network = network.with_tensors(self.values)
        self.adams = {name: Adam(value.detach(), _rate(name, fitting)) for name, value in self.values.items()}
        rng = random.Random(f"{seed} watched")
        self.watched = [_drawn(lesson, fitting.neighbors, rng) for lesson in watch]

    def run(self, progress: Progress | None) -> Network:
        """Train until nothing gets better; gives the best networks there were."""
        history, best = [], self.snapshot()
        draws, loss, steps = self.draws(), math.nan, self.fitting.steps
        for step in range(steps + 1):
            if step % self.fitting.check_every == 0 or step == steps:
                history.append({"step": step, **self.look()})
                if history[-1]["loss"] <= min(each["loss"] for each in history):
                    best = self.snapshot()
            done = step == steps or self.stalls(history)
            if progress:
                progress("training the editor, step", steps if done else step, steps)
            if done:
                break
            loss = self.move(next(draws), step)
        return best.with_record(self.record(history, step, loss))

    def stalls(self, history: Sequence[Mapping[str, float]]) -> bool:
        losses = [each["loss"] for each in history]
        return len(losses) - 1 - losses.index(min(losses)) >= self.fitting.patience

    def move(self, draws: Sequence[_Draw], step: int) -> float:
        """One step of Adam; gives the loss before it."""
        loss = outcome(self.texts, self.network, draws).loss(self.fitting)
        before = float(loss.detach())
        if not math.isfinite(before):
            raise TrainingError(f"mend's loss is {before} at step {step + 1}; use a smaller fitting.learning_rate")
        grads = torch.autograd.grad(loss, list(self.values.values()), allow_unused=True)
        norm = math.sqrt(sum(float(grad.square().sum()) for grad in grads if grad is not None))
        for adam, grad in zip(self.adams.values(), grads, strict=True):
            if grad is not None:
                adam.step(grad * min(1.0, self.fitting.clip / max(norm, TINY)))
        return before

    def draws(self) -> Iterator[list[_Draw]]:
        """Lessons for each step, shuffled afresh for every pass."""
        rng = random.Random(f"{self.seed} train")
        while True:
            order = rng.sample(self.train, len(self.train))
            for begin in range(0, len(order), self.fitting.batch):
                part = order[begin : begin + self.fitting.batch]
                yield [_drawn(lesson, self.fitting.neighbors, rng) for lesson in part]

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """How the watched lessons fare."""
        sums = dict.fromkeys(("loss", "nll", "drift", "efficacy", "generalization"), 0.0)
        for begin in range(0, len(self.watched), self.fitting.batch):
            part = self.watched[begin : begin + self.fitting.batch]
            found = outcome(self.texts, self.network, part)
            values = {"loss": found.loss(self.fitting), "nll": found.nll, "drift": found.drift}
            values |= {"efficacy": found.efficacy, "generalization": found.generalization}
            for name, value in values.items():
                sums[name] += float(value) * len(part) / len(self.watched)
        return sums

    def snapshot(self) -> Network:
        return self.network.with_tensors({name: value.detach().clone() for name, value in self.values.items()})

    def record(self, history: Sequence[Mapping[str, float]], steps: int, loss: float) -> dict[str, Any]:
        best = min(history, key=lambda each: each["loss"])
        return {
            "trained": len(self.train),
            "watched": len(self.watched),
            "steps": steps,
            "best_step": best["step"],
            "loss": None if math.isnan(loss) else loss,
            "watched_before": dict(history[0]),
            "watched_after": dict(best),
            "settings": asdict(self.fitting),
            "seed": self.seed,
        }


def _rate(name: str, fitting: Fitting) -> float:
    return fitting.step_rate * fitting.step if name.endswith(":step") else fitting.learning_rate


def _drawn(lesson: Lesson, neighbors: int, rng: random.Random) -> _Draw:
    asked = (lesson.edit, *rng.sample(lesson.rewordings, min(1, len(lesson.rewordings))))
    return _Draw(lesson, asked, tuple(rng.sample(lesson.neighbors, min(neighbors, len(lesson.neighbors)))))


def outcome(texts: Texts, network: Network, draws: Sequence[_Draw]) -> Outcome:
    """Make each lesson's edit, alone, and read what the others say under it; differentiable in the networks."""
    with torch.enable_grad():
        factors = texts.gradients([draw.lesson.edit for draw in draws])
    changes = changes_of(network, factors)
    asked = [(number, text) for number, draw in enumerate(draws) for text in draw.asked]
    kept = [(number, text) for number, draw in enumerate(draws) for text in draw.kept]
    device = texts.handle.device
    owner = torch.tensor([number for number, _ in (*asked, *kept)], device=device)
    batch, logits = texts.changed([text for _, text in (*asked, *kept)], changes, owner)
    losses, of_asked = nll(batch, logits), batch.owner < len(asked)
    right = per_text(batch, (logits.argmax(-1) == batch.targets).float())[: len(asked)] == 1
    own = torch.tensor([text is draws[number].lesson.edit for number, text in asked], device=device)
    return Outcome(
        _by_edit(losses[: len(asked)], owner[: len(asked)], len(draws)),
        _drift(texts, [text for _, text in kept], logits[~of_asked], owner[len(asked) :], len(draws)),
        float(right[own].float().mean()),
        float(right[~own].float().mean()) if len(right) > len(draws) else 0.0,
    )


def _by_edit(values: Float[Tensor, " texts"], owner: Tensor, edits: int) -> Tensor:
    """Mean over edits of their texts' mean; an edit without texts counts as 0."""
    zeros = values.new_zeros(edits)
    counts = zeros.index_add(0, owner, torch.ones_like(values)).clamp(min=1)
    return (zeros.index_add(0, owner, values) / counts).mean()


def _drift(texts: Texts, kept: Sequence[Encoded], after: Tensor, owner: Tensor, edits: int) -> Tensor:
    """KL(before ‖ after) at the places that predict what is kept, nats: mean over each text, then over edits."""
    if not kept:
        return after.new_zeros(())
    with torch.no_grad():
        batch, before = texts.logits(kept)
    told, tells = before.log_softmax(-1), after.log_softmax(-1)
    return _by_edit(per_text(batch, (told.exp() * (told - tells)).sum(-1)), owner, edits)
