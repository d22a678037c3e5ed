"""LoRA, fine-tuning by low-rank factors beside many matrices (Hu et al. 2022, https://arxiv.org/abs/2106.09685; as a
baseline of editing in Wang et al. 2023, EasyEdit, https://arxiv.org/abs/2308.07269).

    min −(1/T) Σ log p(t_i | prompt, t_<i)   over A, B of each matrix:  W + (α/r) B A      A: (r, d_in), B: (d_out, r)

A begins at random, uniform within ±1/√d_in, and B at zero: training begins from the model as it is. All T tokens of the
object count, the prompt is masked; Adam. The layers are peft's own (https://github.com/huggingface/peft), put into the
model for the training and taken out again; what they learned becomes a patch of low-rank factors.

Differs from the authors' code:
- plain LoRA, as in the paper; EasyEdit's settings say "adalora", which spreads the rank over the matrices by itself;
- no dropout, so that a run can be repeated (EasyEdit: 0.1), and A is drawn from `seed` alone;
- the object's tokens count and nothing after them (EasyEdit teaches an end of text, written as GPT-2's, to any model);
- all edits of one call are one batch, and training stops when their mean loss is small (EasyEdit: a fixed number of
  steps for each);
- a scope says which matrices: all of attention by default (EasyEdit: query and value only, which fused matrices do not
  part).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from editkit.blocks import frozen
from editkit.completions import Encoded, collate, encode_examples, gradient_attention, parts, read
from editkit.deltas import LowRankDelta
from editkit.edit._adam import Adam
from editkit.edit._linear import linear_layers
from editkit.errors import InputError, UnableError
from editkit.facts import Edit, Example, check_edits
from editkit.handle import ModelHandle
from editkit.operators import EDITS, provenance_of
from editkit.patch import WeightPatch
from editkit.scope import OUTSIDE, Scope
from editkit.training import TrainingError
from editkit.undo import Block, Undo
from editkit.wide import computed_in_float32

Progress = Callable[[str, int, int], None]  # what is done, how much, of how much
ADAPTER = "editkit"
ATTENTION = Scope(modules=("attention",))


@EDITS.register("lora")
@dataclass(frozen=True, slots=True)
class LoRA:
    """`rank`: r, the rank of each matrix's change; `alpha`: α, the change is scaled by α/r, so that a step goes the
    further the larger it is; `scope`: which matrices (of linear layers in blocks) are trained. `learning_rate`: of
    Adam, about what a step moves each entry of A and B; `steps`: of them, at the most; `stop_below`: the mean loss over
    all edits, in nats a token, at which it ends before. A higher rate, more steps or a lower loss make edits surer and
    cost more of what else the model knew."""

    name: ClassVar[str] = "lora"

    rank: int = 8
    alpha: float = 32.0
    learning_rate: float = 5e-3
    steps: int = 30
    stop_below: float = 0.01
    scope: Scope = ATTENTION

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or self.learning_rate <= 0 or self.steps < 0:
            raise InputError(f"{self} needs rank >= 1, alpha > 0, learning_rate > 0 and steps >= 0")
        outside = [module for module in self.scope.modules if module in OUTSIDE]
        if outside:  # a tied unembedding would be changed as embedding too, which peft's layers do not
            raise InputError(f"lora trains matrices of blocks, and {outside[0]!r} is none; leave it out of `scope`")

    @computed_in_float32
    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> WeightPatch:
        """A patch of low-rank factors; `notes` tell steps and loss. The seed draws A.

        Raises UnableError where peft is not installed, InputError where there is no edit, nothing to train in `scope`
        or no token in a prompt or object, PromptTooLong where an edit does not fit the model's context, and
        TrainingError where the loss is not finite."""
        check_edits(edits)
        rows = encode_examples(handle, [Example(edit.fact.text, edit.target_new) for edit in edits])
        adapted = Block(functools.partial(_inject, handle, self, self.touches(handle)))
        with (
            gradient_attention(handle),
            frozen(handle.model),
            torch.inference_mode(False),
            torch.enable_grad(),
            adapted as pairs,
        ):
            _start(pairs, seed)
            notes = self._descend(handle, rows, pairs, progress)
            deltas = {name: pair.delta() for name, pair in pairs.items()}
        notes["peft"] = _peft().__version__
        return WeightPatch(deltas, provenance_of(self.name, self, handle, edits, seed, **notes))

    def touches(self, handle: ModelHandle) -> tuple[str, ...]:
        """Names of the matrices that it changes: those of linear layers in blocks, within the scope, that no patch on
        the model has wrapped."""
        linear = linear_layers(handle)
        names = tuple(name for name in self.scope.parameters(handle) if name in linear)
        if not names:
            raise InputError(f"{self.scope} holds no linear layer of {handle.name!r} to train; widen it")
        return names

    def _descend(
        self, handle: ModelHandle, rows: Sequence[Encoded], pairs: Mapping[str, _Pair], progress: Progress | None
    ) -> dict[str, Any]:
        factors = [factor for pair in pairs.values() for factor in (pair.a, pair.b)]
        adams = [Adam(factor, self.learning_rate) for factor in factors]
        for step in range(self.steps + 1):
            loss = _loss_and_gradients(handle, rows)
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} at step {step}; use a smaller learning rate")
            done = loss < self.stop_below or step == self.steps
            if progress:
                progress("training", self.steps if done else step, self.steps)
            if done:
                break
            for factor, adam in zip(factors, adams, strict=True):
                adam.step(factor.grad)
                factor.grad = None
        return {"steps": step, "loss": loss, "parameters": sum(factor.numel() for factor in factors)}


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """The factors of one matrix, as peft's layer holds them."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float

    @classmethod
    def of(cls, layer: Any) -> _Pair:
        a, b = layer.lora_A[ADAPTER].float(), layer.lora_B[ADAPTER].float()  # small steps are lost in a narrower dtype
        return cls(a.weight, b.weight, layer.scaling[ADAPTER])

    def delta(self) -> LowRankDelta:
        return LowRankDelta(self.b.detach() * self.scaling, self.a.detach().clone())


def _peft() -> Any:
    """peft, which takes long to import and is no dependency; UnableError without it."""
    try:
        import peft
    except ImportError as error:
        raise UnableError(f'lora needs peft, which cannot be imported ({error}); pip install "peft>=0.15"') from None
    return peft


def _inject(handle: ModelHandle, operator: LoRA, names: Sequence[str], undo: Undo) -> dict[str, _Pair]:
    """Put peft's layers in the place of the named ones, in float32 and trainable; `undo` takes all of them out."""
    peft, model, linear = _peft(), handle.model, linear_layers(handle)
    paths = [linear[name] for name in names]
    config = peft.LoraConfig(
        r=operator.rank,
        lora_alpha=operator.alpha,
        lora_dropout=0.0,
        target_modules="|".join(map(re.escape, paths)),  # a pattern has to match whole paths; a list would match ends
        fan_in_fan_out=handle.is_transposed(names[0]),
    )
    for parent in [*model.modules()]:
        for leaf, child in parent._modules.items():
            undo.callback(setattr, parent, leaf, child)
    undo.callback(_put_back, model, "peft_config", vars(model).get("peft_config"))
    with torch.random.fork_rng(devices=[]):  # peft draws from the global state, on the CPU; `_start` draws anew
        peft.inject_adapter_in_model(config, model, ADAPTER)
    layers = {name: model.get_submodule(path) for name, path in zip(names, paths, strict=True)}
    return {name: _Pair.of(layer) for name, layer in layers.items()}


def _put_back(model: nn.Module, name: str, value: Any) -> None:
    if value is None:
        vars(model).pop(name, None)
    else:
        vars(model)[name] = value


@torch.no_grad()
def _start(pairs: Mapping[str, _Pair], seed: int) -> None:
    """A at random, by the seed and nothing else, on whatever device; B zero."""
    generator = torch.Generator().manual_seed(seed)
    for pair in pairs.values():
        bound = 1 / math.sqrt(pair.a.shape[1])
        pair.a.copy_(torch.empty(pair.a.shape).uniform_(-bound, bound, generator=generator))
        pair.b.zero_()


def _loss_and_gradients(handle: ModelHandle, rows: Sequence[Encoded]) -> float:
    """Mean over all rows of their mean NLL; its gradients are added to the factors' own."""
    total = 0.0
    for part in parts(rows, range(len(rows))):
        answers = read(handle, collate(handle, rows, part))
        loss = -(answers.total / answers.tokens).sum() / len(rows)
        loss.backward()
        total += float(loss.detach())
    return total
