"""Run part of a model: its lower blocks only, or its upper blocks only from given hidden states.

A view is a shallow copy of the backbone with another list of blocks. It shares every weight and leaves the model
itself untouched; masks, positions and rotary tables are the backbone's own, so a view is right for every layout.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from editkit.handle import ModelHandle
from editkit.undo import Block, Undo


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


def upper(handle: ModelHandle, layer: int, hidden: Tensor, last: int | None = None) -> nn.Module:
    """The backbone above block `layer`, which gives `hidden` instead of its own output; up to and with block `last`,
    or to the end. Numbers of blocks stay."""
    blocks = _blocks(handle)
    end = len(blocks) if last is None else last + 1
    return _view(handle, [*(Give() for _ in range(layer)), Give(hidden), *blocks[layer + 1 : end]])


def after_change(handle: ModelHandle, layer: int, hidden: Tensor, values: Tensor, change: Tensor) -> Tensor:
    """What block `layer` gives instead of `hidden` when its `mlp_out` gives `values + change` instead of `values`."""
    if handle.arch.mlp_norm:
        norm = handle.module("mlp_norm", layer)
        change = norm((values + change).to(values.dtype)) - norm(values)
    return hidden + change.to(hidden.dtype)


def frozen(model: nn.Module) -> Block[None]:
    """No parameter wants a gradient within the block; each flag is put back after it, also after an error."""

    def open(undo: Undo) -> None:
        for parameter in model.parameters():
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)

    return Block(open)


def without_patches(handle: ModelHandle) -> Block[None]:
    """The handle's patches are off within the block and back on after it."""

    def open(undo: Undo) -> None:
        undo.callback(handle.restack, 0, handle.patches)
        handle.rollback()

    return Block(open)


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
