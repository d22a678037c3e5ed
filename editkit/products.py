"""The matrix products of a model on a CPU: weights laid out beforehand, and bfloat16 where a search may be rough.

`exact` serves whatever is reported: the dtype stays the model's, only the weights are laid out (see `matrices`).
In bfloat16 only what goes into a block's linear layers is rounded, and what comes out is float32 again; weights, hidden
states, norms, attention and the unembedding stay float32. What is found this way is scored again in float32. On a CPU
without such instructions bfloat16 is slower than float32, so "auto" asks the CPU. Other devices are left as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from editkit.errors import InputError
from editkit.handle import ModelHandle
from editkit.matrices import Matrix, can_lay_out, content
from editkit.undo import Block, Undo

AUTO, FLOAT32, BFLOAT16 = "auto", "float32", "bfloat16"
CHOICES = (AUTO, FLOAT32, BFLOAT16)
LAID_BYTES = 2 << 30  # a model with more weights than that is not held a second time to be faster


def check_products(choice: str) -> None:
    """Raises InputError, with the choices there are, for anything else."""
    if choice not in CHOICES:
        raise InputError(f"products is {choice!r}; there is {', '.join(CHOICES)}")


def resolved(handle: ModelHandle, choice: str) -> str:
    """ "float32" (meaning: as the model is) or "bfloat16"."""
    if choice != AUTO:
        return choice
    on_cpu = handle.device.type == "cpu" and handle.dtype == torch.float32
    return BFLOAT16 if on_cpu and cpu_is_fast_at_bfloat16() else FLOAT32


def told(handle: ModelHandle, choice: str) -> str:
    """For a record, the precision of the products; "float32" leaves those of narrower or wider weights as they are."""
    return str(handle.dtype).removeprefix("torch.") if resolved(handle, choice) == FLOAT32 else BFLOAT16


@functools.cache
def cpu_is_fast_at_bfloat16() -> bool:
    """Whether this CPU has AMX or AVX-512 instructions for bfloat16 products; False where torch cannot tell."""
    try:
        able = torch.cpu.get_capabilities()
    except AttributeError:  # torch before 2.10
        return False
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


class Products:
    """What some linear layers do instead of their own product."""

    def __init__(self, instead: Iterable[tuple[nn.Module, Callable[[Tensor], Tensor]]]) -> None:
        self._instead = [*instead]

    def on(self) -> Block[None]:
        """Within the block the layers do this; nested, the innermost counts."""

        def open(undo: Undo) -> None:
            for layer, product in self._instead:
                undo.callback(_put_back, layer, vars(layer).get("forward"))
                layer.forward = product

        return Block(open)


def _put_back(layer: nn.Module, forward: Any) -> None:
    if forward is None:
        vars(layer).pop("forward", None)
    else:
        layer.forward = forward


def exact(handle: ModelHandle) -> Products | None:
    """The products of the whole model as it is now, laid out; None where that cannot be or would take much memory.

    A layout is kept for as long as its layer lives and holds the same weight. Not differentiable in the weights.
    """
    if handle.device.type != "cpu" or not can_lay_out(handle.dtype) or not small_enough_to_lay_out(handle):
        return None
    return Products((layer, _LaidOut(_kept(layer), layer.bias)) for layer in _linear([handle.model]))


def small_enough_to_lay_out(handle: ModelHandle) -> bool:
    """Whether the model may be held a second time."""
    return sum(parameter.nbytes for parameter in handle.model.parameters()) <= LAID_BYTES


def give_up_layouts(handle: ModelHandle) -> None:
    """Free what `exact` keeps of a model, before something that needs the memory more."""
    for layer in _linear([handle.model]):
        _KEPT.pop(layer, None)


def rounded(modules: Iterable[nn.Module]) -> Products:
    """The linear layers of some modules in bfloat16. A weight that wants a gradient is rounded at each product."""
    return Products((layer, _instead(layer)) for layer in _linear(modules))


def products_of(handle: ModelHandle, choice: str, layers: Iterable[int] | None = None) -> Products | None:
    """The products of some blocks (all by default) as `choice` wants them; None where they stay as they are."""
    if resolved(handle, choice) == FLOAT32:
        return None
    return rounded(handle.module("block", layer) for layer in (range(handle.layers) if layers is None else layers))


def using(products: Products | None) -> AbstractContextManager[None]:
    """Within the block the products are as wanted."""
    return nullcontext() if products is None else products.on()


def _linear(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    return (each for module in modules for each in module.modules() if type(each) in (nn.Linear, Conv1D))


def _weight(layer: nn.Module) -> Tensor:
    """(out, in), whatever way the layer stores it."""
    return layer.weight.T if type(layer) is Conv1D else layer.weight


_KEPT: WeakKeyDictionary[nn.Module, tuple[int, Matrix]] = WeakKeyDictionary()  # with the content it was laid out from


def _kept(layer: nn.Module) -> Matrix:
    weight = _weight(layer)
    now = content(weight)
    before, matrix = _KEPT.get(layer, (None, None))
    if matrix is None or before != now:
        matrix = Matrix(weight, weight.dtype)
        _KEPT[layer] = now, matrix
    return matrix


def _instead(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    if layer.weight.requires_grad:
        return _Trained(layer)
    return _LaidOut(Matrix(_weight(layer), torch.bfloat16), layer.bias)


class _LaidOut:
    """A linear layer with a laid out weight."""

    def __init__(self, matrix: Matrix, bias: Tensor | None) -> None:
        self._matrix, self._bias = matrix, bias

    def __call__(self, x: Tensor) -> Tensor:
        product = self._matrix(x)
        return product if self._bias is None else product + self._bias


class _Trained:
    """A linear layer whose weight changes, its product in bfloat16."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        product = linear(x.bfloat16(), _weight(self._layer).bfloat16()).to(x.dtype)
        return product if self._layer.bias is None else product + self._layer.bias
