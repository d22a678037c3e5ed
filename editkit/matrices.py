"""A weight that is laid out for the CPU's products once, instead of at every product.

`torch.nn.functional.linear` hands its kernel a plain weight, which the kernel rearranges at every call: with few rows
that is most of its work. torch's compiler lays weights out beforehand, by operators that are no part of torch's public
interface; so they are tried first, and where they are missing or say something else, products stay plain.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

USUAL_ROWS = 64  # what a layout is chosen for; it serves any number of rows
ROWS_STEP = 16  # rows are filled up to a multiple: the kernel for each new number of them takes 1 to 4 ms and 1 MB
LAYABLE = (torch.float32, torch.bfloat16)


class Matrix:
    """x -> x @ weight.T with the product in `dtype`; what comes out has the dtype of x. Differentiable in x, not in the
    weight. In float32 it differs from the plain product by the order of its sums only. With `lay_out=False` it is the
    plain product, for a weight that is soon done with."""

    def __init__(self, weight: Float[Tensor, "out in"], dtype: torch.dtype, *, lay_out: bool = True) -> None:
        self._weight: Tensor | None = weight.detach()
        self._dtype, self._lay_out = dtype, lay_out
        self._forth: Callable[[Tensor], Tensor] | None = None
        self._back: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        if torch.is_grad_enabled() and x.requires_grad:
            product: Tensor = _Product.apply(x, self)
            return product
        return self.forth(x)

    def forth(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        if self._forth is None:
            self._forth = _product(self._needed(), self._dtype, self._lay_out)
            self._give_up()
        return self._forth(x)

    def back(self, grad: Float[Tensor, "*rows out"]) -> Float[Tensor, "*rows in"]:
        if self._back is None:
            self._back = _product(self._needed().T, self._dtype, self._lay_out)
            self._give_up()
        return self._back(grad)

    def _needed(self) -> Tensor:
        assert self._weight is not None
        return self._weight

    def _give_up(self) -> None:
        """Both ways are laid out: the weight itself, perhaps a copy, is not needed any more."""
        if self._forth is not None and self._back is not None:
            self._weight = None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Matrix) -> Tensor:
        ctx.matrix = matrix
        return matrix.forth(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.matrix.back(grads[0]), None


@torch.inference_mode(False)
@torch.no_grad()
def _product(weight: Tensor, dtype: torch.dtype, lay_out: bool) -> Callable[[Tensor], Tensor]:
    weight = weight.to(dtype)
    if not lay_out or weight.device.type != "cpu" or not can_lay_out(dtype):
        return lambda x: linear(x.to(dtype), weight).to(x.dtype)
    laid = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), USUAL_ROWS)
    return lambda x: _filled_up(x, laid, dtype).to(x.dtype)


def _filled_up(x: Tensor, laid: Tensor, dtype: torch.dtype) -> Tensor:
    rows = x.numel() // x.shape[-1]
    lacking = -rows % ROWS_STEP if rows > ROWS_STEP else 0
    if not lacking:
        return _times(x.to(dtype), laid)
    full = torch.empty(rows + lacking, x.shape[-1], dtype=dtype)
    full[:rows] = x.reshape(rows, -1)
    full[rows:] = 0
    return _times(full, laid)[:rows].unflatten(0, x.shape[:-1])


def _times(x: Tensor, laid: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, laid, None, "none", [], "")
    return product


@functools.cache
def can_lay_out(dtype: torch.dtype) -> bool:
    """Whether torch has these operators here and they say what the plain product says, to the precision of `dtype`."""
    if dtype not in LAYABLE or not torch.backends.mkldnn.is_available():
        return False
    weight = torch.arange(96.0).reshape(12, 8).sin().to(dtype)
    x = torch.arange(24.0).reshape(3, 8).cos().to(dtype)
    try:
        got = _times(x, torch.ops.mkldnn._reorder_linear_weight(weight, USUAL_ROWS))
    except (AttributeError, RuntimeError):  # RuntimeError: also what torch says of an operator without a kernel
        return False
    near = 4 * torch.finfo(dtype).eps
    return got.shape == (3, 12) and torch.allclose(got, linear(x, weight), rtol=near, atol=near)


def content(weight: Tensor) -> int:
    """A number that another content does not have, save by an unlikely chance: the sum of its words of 8 bytes. It
    tells a change however it was written, which torch's counter of versions does not."""
    whole = (weight if weight.is_contiguous() else weight.T).detach().reshape(-1)
    by_eights = not (whole.nbytes | whole.storage_offset() * whole.itemsize) % 8
    return int(whole.view(torch.int64 if by_eights else torch.int16).sum())
