"""Trace and rewrite what modules give, inside a `with`: the one primitive that locating and editing hang on.

    with traced(model, ["model.layers.3"]) as seen: ...          # seen["model.layers.3"].output
    with rewritten(model, {"model.layers.3": f}): ...            # f(output) -> output, first tensor of a tuple

Hooks are set on entry and taken off on exit, also after an error or Ctrl-C; names are dotted module paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from editkit.undo import Block, Undo

Rewrite = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class Seen:
    """The last input (first positional tensor) and output (first tensor) of a module."""

    input: Tensor | None = None
    output: Tensor | None = None


def first_tensor(output: Any) -> Tensor:
    """Modules give a tensor or a tuple that begins with one, depending on layout and transformers version."""
    return output[0] if isinstance(output, tuple) else output


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


def traced(model: nn.Module, names: Iterable[str]) -> Block[dict[str, Seen]]:
    """Keep the last input and output of the named modules while the block runs."""
    seen = {name: Seen() for name in names}

    def open(undo: Undo) -> dict[str, Seen]:
        for name, record in seen.items():
            _hook(model.get_submodule(name), _keeper(record), undo)
        return seen

    return Block(open)


def rewritten(model: nn.Module, rewrites: Mapping[str, Rewrite]) -> Block[None]:
    """Put each named module's output through a function while the block runs."""

    def open(undo: Undo) -> None:
        for name, rewrite in rewrites.items():
            rewrite_output(model.get_submodule(name), rewrite, undo)

    return Block(open)


def rewrite_output(module: nn.Module, rewrite: Rewrite, undo: Undo) -> None:
    """Put the module's output through a function from now on; `undo` takes it off."""

    def change(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return with_first_tensor(output, rewrite(first_tensor(output)))

    _hook(module, change, undo)


def rewrite_by_input(module: nn.Module, rewrite: Callable[[Tensor, Tensor], Tensor], undo: Undo) -> None:
    """The same for a function that sees the module's first positional input too: f(input, output) -> output."""

    def change(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return with_first_tensor(output, rewrite(inputs[0], first_tensor(output)))

    _hook(module, change, undo)


def _keeper(record: Seen) -> Callable[..., None]:
    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        record.input = inputs[0] if inputs else None
        record.output = first_tensor(output)

    return keep


def _hook(module: nn.Module, call: Callable[..., Any], undo: Undo) -> None:
    undo.callback(_unhook, module, call)
    module.register_forward_hook(call)


def _unhook(module: nn.Module, call: Callable[..., Any]) -> None:
    """Take a hook off by what it calls: its number is known only once it is on, and a strike may come between."""
    for number in [number for number, there in module._forward_hooks.items() if there is call]:
        del module._forward_hooks[number]
