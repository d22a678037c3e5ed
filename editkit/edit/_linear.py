"""Which of a model's linear layers can be trained beside: those of blocks that no patch has wrapped."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from editkit.errors import PatchError
from editkit.handle import ModelHandle

LINEAR = (nn.Linear, Conv1D)


def linear_layers(handle: ModelHandle) -> dict[str, str]:
    """The path of each linear layer in a block by its weight's name; without those that a patch wraps or replaces."""
    here = [(f"{path}.weight", path, module) for path, module in handle.model.named_modules()]
    inside = [each for each in here if each[0].startswith(f"{handle.arch.blocks}.") and type(each[2]) in LINEAR]
    return {name: path for name, path, module in inside if _is_base(handle, name, module.weight)}


def _is_base(handle: ModelHandle, name: str, weight: nn.Parameter) -> bool:
    try:
        return handle.parameter(name) is weight
    except PatchError:
        return False
