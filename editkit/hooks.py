"""Trace and rewrite what modules give, inside a `with`: the one primitive that locating and editing hang on.

    with traced(model, ["model.layers.3"]) as seen: ...          # seen["model.layers.3"].output
    with rewritten(model, {"model.layers.3": f}): ...            # f(output) -> output, first tensor of a tuple

Hooks are set on entry and taken off on exit, also after an error; names are dotted module paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

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


@contextmanager
def traced(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Seen]]:
    """Keep the last input and output of the named modules."""
    seen = {name: Seen() for name in names}

    def keeper(record: Seen) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            record.input = inputs[0] if inputs else None
            record.output = first_tensor(output)

        return keep

    with ExitStack() as stack:
        for name, record in seen.items():
            stack.callback(model.get_submodule(name).register_forward_hook(keeper(record)).remove)
        yield seen


@contextmanager
def rewritten(model: nn.Module, rewrites: Mapping[str, Rewrite]) -> Iterator[None]:
    """Put each named module's output through a function while the block runs."""
    with ExitStack() as stack:
        for name, rewrite in rewrites.items():
            stack.callback(rewrite_output(model.get_submodule(name), rewrite))
        yield


def rewrite_output(module: nn.Module, rewrite: Rewrite) -> Callable[[], None]:
    """Put the module's output through a function from now on; gives back what takes it off."""

    def change(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return with_first_tensor(output, rewrite(first_tensor(output)))

    return module.register_forward_hook(change).remove
