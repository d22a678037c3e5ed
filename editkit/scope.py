"""Which parameters a gradient method may move, by the canonical names of `editkit.arch`.

    Scope()                                              everything, embeddings and norms too
    Scope(layers=(5, 6, 7))                              all of these blocks
    Scope(modules=("mlp_out",), layers=tuple(range(5, 16)))

A locator gives a scope, so "method X, localised by Y" needs no file of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from editkit.errors import InputError
from editkit.handle import ModelHandle

IN_BLOCKS = ("block", "attention", "mlp", "mlp_out")
OUTSIDE = ("embedding", "final_norm", "unembedding")


@dataclass(frozen=True, slots=True)
class Scope:
    """`layers` None means every layer, `modules` empty means whole blocks and, without `layers`, all the rest.

    Widening (a further layer or module, or dropping either limit) never takes a parameter away. A tied embedding is
    one parameter: it is in scope as embedding and as unembedding. Raises InputError for unknown modules, and for
    modules that stand in no layer together with `layers`.
    """

    layers: tuple[int, ...] | None = None
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_types()
        for module in self.modules:
            if module not in IN_BLOCKS + OUTSIDE:
                raise InputError(f"no module {module!r} for a scope; there is {', '.join(IN_BLOCKS + OUTSIDE)}")
        homeless = [module for module in self.modules if module in OUTSIDE]
        if self.layers is not None and homeless:
            raise InputError(f"{homeless[0]!r} stands in no layer; leave out `layers` or the module")

    def _check_types(self) -> None:
        if self.layers is not None:
            _check_tuple("layers", self.layers, int, "(5, 6)")
            below = [layer for layer in self.layers if layer < 0]
            if below:
                raise InputError(f"layers of a scope: no layer {below[0]}; they are counted from 0")
        _check_tuple("modules", self.modules, str, "('mlp_out',)")

    def parameters(self, handle: ModelHandle) -> list[str]:
        """Names of the parameters in scope, in the model's order, tied ones once; InputError for no such layer."""
        every = {name: parameter for name, parameter in handle.model.named_parameters()}
        if self.layers is None and not self.modules:
            return [name for name, parameter in every.items() if parameter.is_floating_point()]
        wanted = {id(parameter) for part, layer in self._parts(handle) for parameter in _own(handle, part, layer)}
        return [name for name, parameter in every.items() if id(parameter) in wanted and parameter.is_floating_point()]

    def _parts(self, handle: ModelHandle) -> Iterator[tuple[str, int | None]]:
        layers = range(handle.layers) if self.layers is None else self.layers
        for layer in layers:
            if not 0 <= layer < handle.layers:
                raise InputError(f"no layer {layer} in {handle.name!r}; it has layers 0 to {handle.layers - 1}")
        for module in self.modules or ("block",):
            for layer in layers if module in IN_BLOCKS else (None,):
                yield module, layer


def _check_tuple(field: str, given: object, kind: type, like: str) -> None:
    """Refuse what is no tuple of a kind: a number or a text would be found out only when the scope is used."""
    if isinstance(given, tuple) and all(isinstance(each, kind) and not isinstance(each, bool) for each in given):
        return
    raise InputError(f"{field} of a scope is {given!r}; give a tuple like {like}")


def _own(handle: ModelHandle, part: str, layer: int | None) -> Iterator[object]:
    module = handle.model.get_output_embeddings() if part == "unembedding" else handle.module(part, layer)
    return module.parameters()


EVERYTHING = Scope()
