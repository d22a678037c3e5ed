"""Run part of a model: its lower blocks only, or its upper blocks only from given hidden states.

A view is a shallow copy of the backbone with another list of blocks. It shares every weight and leaves the model
itself untouched; masks, positions and rotary tables are the backbone's own, so a view is right for every layout.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from editkit.handle import ModelHandle


class Give(nn.Module):
    """A block that gives the hidden states it was made with, or else those it gets."""

    def __init__(self, hidden: Tensor | None = None) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden if self.hidden is None else self.hidden


def lower(handle: ModelHandle, layer: int) -> nn.Module:
    """The backbone up to and with block `layer`; what it returns has passed the final norm and is of no use."""
    blocks = _blocks(handle)
    return _view(handle, [*blocks[: layer + 1]])


def upper(handle: ModelHandle, layer: int, hidden: Tensor) -> nn.Module:
    """The backbone above block `layer`, which gives `hidden` instead of its own output. Numbers of blocks stay."""
    blocks = _blocks(handle)
    return _view(handle, [*(Give() for _ in range(layer)), Give(hidden), *blocks[layer + 1 :]])


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient within the block; each flag is put back after it, also after an error."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def without_patches(handle: ModelHandle) -> Iterator[None]:
    """The handle's patches are off within the block and back on after it."""
    patches = handle.patches
    handle.rollback()
    try:
        yield
    finally:
        handle.rollback()
        for patch in patches:
            handle.apply(patch)


def _blocks(handle: ModelHandle) -> Sequence[nn.Module]:
    blocks = handle.model.get_submodule(handle.arch.blocks)
    assert isinstance(blocks, nn.ModuleList)
    return list(blocks)


def _view(handle: ModelHandle, blocks: list[nn.Module]) -> nn.Module:
    backbone = handle.backbone
    place = handle.arch.blocks.rpartition(".")[2]
    view = copy.copy(backbone)
    view.__dict__["_modules"] = {**backbone._modules, place: nn.ModuleList(blocks)}
    return view
