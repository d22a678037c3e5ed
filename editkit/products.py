"""Matrix products in bfloat16 for searches and training on a CPU that is fast at them.

Weights, hidden states, norms, attention and the unembedding stay float32; only what goes into a block's linear layers
is rounded, and what comes out is float32 again. What is found this way is scored again in float32. On a CPU without
such instructions bfloat16 is slower than float32, so "auto" asks the CPU, and other devices are left as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from editkit.handle import ModelHandle

AUTO, FLOAT32, BFLOAT16 = "auto", "float32", "bfloat16"
CHOICES = (AUTO, FLOAT32, BFLOAT16)


def check_products(choice: str) -> None:
    """Raises ValueError, with the choices there are, for anything else."""
    if choice not in CHOICES:
        raise ValueError(f"products is {choice!r}; there is {', '.join(CHOICES)}")


def resolved(handle: ModelHandle, choice: str) -> str:
    """ "float32" (meaning: as the model is) or "bfloat16"."""
    if choice != AUTO:
        return choice
    on_cpu = handle.device.type == "cpu" and handle.dtype == torch.float32
    return BFLOAT16 if on_cpu and cpu_is_fast_at_bfloat16() else FLOAT32


@functools.cache
def cpu_is_fast_at_bfloat16() -> bool:
    """Whether this CPU has AMX or AVX-512 instructions for bfloat16 products; False where torch cannot tell."""
    try:
        able = torch.cpu.get_capabilities()
    except AttributeError:  # torch before 2.10
        return False
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


class Products:
    """The linear layers of some modules, with rounded copies of those weights that are not trained."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        layers = [each for module in modules for each in module.modules() if type(each) in (nn.Linear, Conv1D)]
        self._inputs = _Inputs()
        self._layers = [(layer, _Rounded(layer, self._inputs)) for layer in layers]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the block the layers multiply in bfloat16."""
        changed = [(layer, rounded) for layer, rounded in self._layers if "forward" not in vars(layer)]
        try:
            for layer, rounded in changed:
                layer.forward = rounded
            yield
        finally:
            for layer, _ in changed:
                vars(layer).pop("forward", None)
            self._inputs.last = None


class _Inputs:
    """Rounds what layers read: several read the same (queries, keys and values)."""

    def __init__(self) -> None:
        self.last: tuple[Tensor, int, Tensor] | None = None

    def rounded(self, x: Tensor) -> Tensor:
        if x.is_inference():  # such tensors do not say whether they were written to
            return x.bfloat16()
        if self.last is None or self.last[0] is not x or self.last[1] != x._version:
            self.last = x, x._version, x.bfloat16()
        return self.last[2]


class _Rounded:
    """What a linear layer does, its product in bfloat16."""

    def __init__(self, layer: nn.Module, inputs: _Inputs) -> None:
        self.inputs = inputs
        self.weight, self.bias, self.transposed = layer.weight, layer.bias, type(layer) is Conv1D
        self.kept = None if layer.weight.requires_grad else self.rounded()

    def rounded(self) -> Tensor:
        weight = self.weight.bfloat16()
        return weight.T if self.transposed else weight

    def __call__(self, x: Tensor) -> Tensor:
        weight = self.rounded() if self.kept is None else self.kept
        product = linear(self.inputs.rounded(x), weight).to(x.dtype)
        return product if self.bias is None else product + self.bias


def products_of(handle: ModelHandle, choice: str, layers: Iterable[int] | None = None) -> Products | None:
    """The products of some blocks (all by default) as `choice` wants them; None where they stay as they are."""
    if resolved(handle, choice) == FLOAT32:
        return None
    return Products(handle.module("block", layer) for layer in (range(handle.layers) if layers is None else layers))


def using(products: Products | None) -> AbstractContextManager[None]:
    """Within the block the products are as wanted."""
    return nullcontext() if products is None else products.on()
