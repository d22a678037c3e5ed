"""The one gradient loop: terms of a loss, examples, a scope -> dense deltas; the model is left as it was, to the bit.

The model is trained in place, on copies of the tensors in scope: its own storage is set aside and put back, never
written. It stays in eval mode: no dropout, so that a run can be repeated.

A step's loss is the sum over terms of weight * (sum of the term's per-example losses) / (examples or tokens of the
step), so it does not depend on how the step is cut into parts that fit in memory.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from editkit.completions import Batch, Encoded, collate, gradient_attention, parts, read_all, share
from editkit.errors import InputError, MethodError
from editkit.handle import ModelHandle
from editkit.optimiser import AdamW
from editkit.patch import DenseDelta
from editkit.products import FLOAT32, check_products, give_up_layouts, products_of, resolved, using
from editkit.scope import Scope
from editkit.undo import Block, Undo


class TrainingError(MethodError, RuntimeError):
    """A training run that cannot go on."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how hard: `steps` of AdamW with learning rate `learning_rate` after `warmup` linear steps, each on
    `batch` examples of every term (0: all of them), with AdamW's `weight_decay` (0: none). `clip` bounds the gradient's
    norm. What is watched is read again every `check_every` steps. `products` are the matrix products of the steps (see
    editkit/products.py): "float32", "bfloat16" or "auto"; the weights that are trained, and what ends the run, are
    float32 all the same."""

    learning_rate: float = 1e-5
    steps: int = 30
    batch: int = 0
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float | None = None
    check_every: int = 1
    products: str = FLOAT32

    def __post_init__(self) -> None:
        check_products(self.products)
        if self.learning_rate <= 0 or self.steps < 0 or self.batch < 0 or self.check_every < 1:
            raise InputError(f"{self} needs learning_rate > 0, steps >= 0, batch >= 0 and check_every >= 1")


@dataclass(frozen=True, slots=True)
class Stopping:
    """When to stop before the steps are used up.

    `forget`: at most this share of forget examples is still answered (0 to 1; None: never): forgotten. `floor`: less
    than this share of the watched examples that were answered at the start still is: collapsed. Watched are a share
    `watch` of the retain examples (whole answers, all their wordings), which are kept out of training for it.
    """

    forget: float | None = 0.0
    floor: float = 0.5
    watch: float = 0.25

    def __post_init__(self) -> None:
        if not (0 <= (self.forget or 0) <= 1 and 0 <= self.floor <= 1 and 0 <= self.watch < 1):
            raise InputError(f"{self} holds a share that is not between 0 and 1")


@dataclass(frozen=True, slots=True)
class TrainStep:
    """How far a run is: shares of forget and of watched retain examples that are answered (NaN where there are none),
    and the loss before the last step (NaN at the start)."""

    step: int
    steps: int
    forget: float
    retain: float
    loss: float = math.nan
    exact: bool = True  # whether it was read in float32


Progress = Callable[[TrainStep], None]
Loss = Callable[[Batch], Float[Tensor, " batch"]]


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One part of the loss: `loss` gives one number per example of a batch, averaged per example or per token.

    A term of weight 0 or without examples is not computed at all.
    """

    name: str
    examples: Sequence[Encoded]
    loss: Loss
    weight: float = 1.0
    per: Literal["example", "token"] = "example"


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """What is descended, what is watched, and what is done to gradients and weights on the way.

    `regrad(parameters)` may change the gradients before each step; `project(name, value, original)` may change a
    parameter in place after it (both in the storage order of the model).
    """

    terms: tuple[Term, ...]
    forget: Sequence[Encoded] = ()
    watch: Sequence[Encoded] = ()
    stopping: Stopping = field(default_factory=Stopping)
    regrad: Callable[[Mapping[str, nn.Parameter]], None] | None = None
    project: Callable[[str, Tensor, Tensor], None] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Descent:
    """What came of it: deltas in (out, in) orientation of the parameters that moved, and notes for the provenance."""

    deltas: dict[str, DenseDelta]
    notes: dict[str, Any]


def descend(
    handle: ModelHandle,
    objective: Objective,
    schedule: Schedule,
    scope: Scope,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Descent:
    """Descend the objective over the parameters in scope and give the difference, in float32 or wider.

    `progress` is told what is watched before each step and at the end. Raises TrainingError where the loss is no
    longer finite. Whatever happens, Ctrl-C included, weights, gradients and requires_grad are put back.
    """
    names = scope.parameters(handle)
    if not names:
        raise InputError(f"{scope} holds no parameter of {handle.name!r}; widen it")
    give_up_layouts(handle)
    trainable = Block(functools.partial(_open, handle, names))
    with gradient_attention(handle), torch.enable_grad(), trainable as originals:
        loop = _Loop(handle, objective, schedule, originals, seed)
        history = loop.run(progress)
        deltas = loop.deltas()
    notes = _notes(history, objective.stopping, sum(v.numel() for v in originals.values()))
    return Descent(deltas, notes | {"products": resolved(handle, schedule.products)})


def _open(handle: ModelHandle, names: Sequence[str], undo: Undo) -> dict[str, Tensor]:
    """Make the named parameters, and no others, trainable copies; gives their own tensors. `undo` puts all back."""
    originals: dict[str, Tensor] = {}
    for name, parameter in handle.model.named_parameters():
        undo.callback(_close, parameter, parameter.data, parameter.requires_grad, parameter.grad)
        parameter.grad = None
        parameter.requires_grad_(name in names)
        if name in names:
            originals[name] = parameter.data
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return originals


def _close(parameter: nn.Parameter, data: Tensor, requires_grad: bool, grad: Tensor | None) -> None:
    parameter.grad = None
    parameter.data = data
    parameter.requires_grad_(requires_grad)
    parameter.grad = grad


class _Loop:
    """The state of one run."""

    def __init__(
        self, handle: ModelHandle, objective: Objective, schedule: Schedule, originals: dict[str, Tensor], seed: int
    ) -> None:
        self.handle, self.objective, self.schedule, self.originals = handle, objective, schedule, originals
        self.parameters = {name: handle.parameter(name) for name in originals}
        self.terms = [term for term in objective.terms if term.weight and term.examples]
        self.products = products_of(handle, schedule.products)
        self.draws = [_draws(term, schedule.batch, seed) for term in self.terms]
        self.optimiser = AdamW(
            self.parameters,
            rate=schedule.learning_rate,
            warmup=schedule.warmup,
            decay=schedule.weight_decay,
            clip=schedule.clip,
        )

    def run(self, progress: Progress | None) -> list[TrainStep]:
        """Train until a rule stops it; gives what was watched."""
        history: list[TrainStep] = []
        loss, steps = math.nan, self.schedule.steps
        for step in range(steps + 1):
            if step % self.schedule.check_every == 0 or step == steps:
                history.append(self.look(step, loss, exact=step in (0, steps)))
                if not history[-1].exact and reason_to_stop(history, self.objective.stopping):
                    history[-1] = self.look(step, loss, exact=True)
                if progress:
                    progress(history[-1])
                if step == steps or reason_to_stop(history, self.objective.stopping):
                    break
            loss = self.move(step)
        return history

    def look(self, step: int, loss: float, *, exact: bool) -> TrainStep:
        """A forward pass over what is watched, in float32 where it is `exact`: what ends a run or is told of it is."""
        with using(None if exact else self.products):
            forget, watch = (read_all(self.handle, part) for part in (self.objective.forget, self.objective.watch))
        return TrainStep(step, self.schedule.steps, share(forget), share(watch), loss, exact or not self.products)

    def move(self, step: int) -> float:
        """One step down; gives the loss before it."""
        drawn = zip(self.terms, self.draws, strict=True)
        with using(self.products):
            loss = sum(_backward(self.handle, term, next(rows)) for term, rows in drawn)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} at step {step + 1}; use a smaller learning rate")
        if self.objective.regrad:
            self.objective.regrad(self.parameters)
        self.optimiser.step()
        if self.objective.project:
            for name, parameter in self.parameters.items():
                self.objective.project(name, self.optimiser.masters[name], self.originals[name])
                parameter.data.copy_(self.optimiser.masters[name])
        return loss

    def deltas(self) -> dict[str, DenseDelta]:
        """What was moved, as (out, in). Each trained copy is given up as soon as it is read: memory."""
        masters, self.optimiser = self.optimiser.masters, None
        deltas = {}
        for name, original in self.originals.items():
            delta = masters.pop(name) - original
            self.parameters[name].data = original
            if delta.any():
                deltas[name] = DenseDelta(delta.T.contiguous() if self.handle.is_transposed(name) else delta)
        return deltas


def _draws(term: Term, batch: int, seed: int) -> Iterator[list[int]]:
    """Rows for each step: shuffled afresh for every pass, each term by its own generator."""
    places = list(range(len(term.examples)))
    order = random.Random(f"{seed} {term.name}")
    while True:
        order.shuffle(places)
        for start in range(0, len(places), batch or len(places)):
            yield places[start : start + (batch or len(places))]


def _backward(handle: ModelHandle, term: Term, rows: Sequence[int]) -> float:
    """Add the gradient of a term over these rows; gives its value."""
    tokens = sum(term.examples[row].tokens for row in rows)
    scale = term.weight / (tokens if term.per == "token" else len(rows))
    value = 0.0
    for part in parts(term.examples, rows):
        loss = scale * term.loss(collate(handle, term.examples, part)).sum()
        loss.backward()
        value += float(loss.detach())
    return value


def reason_to_stop(history: Sequence[TrainStep], stopping: Stopping) -> str | None:
    """Why the run is over after what was watched so far; None while it goes on. Collapse counts before success."""
    first, last = history[0], history[-1]
    if last.retain < stopping.floor * first.retain:
        return "utility floor"
    if stopping.forget is not None and last.forget <= stopping.forget:
        return "threshold reached" if last.step else "nothing to forget"
    return None


def _notes(history: Sequence[TrainStep], stopping: Stopping, moved: int) -> dict[str, Any]:
    first, last = history[0], history[-1]
    numbers = {
        "forget_before": first.forget,
        "forget_after": last.forget,
        "watched_before": first.retain,
        "watched_after": last.retain,
        "loss": last.loss,
    }
    known = {name: None if math.isnan(value) else value for name, value in numbers.items()}  # JSON has no NaN
    stopped = reason_to_stop(history, stopping) or "steps exhausted"
    return {"stopped": stopped, "steps": last.step, **known, "parameters": moved}
