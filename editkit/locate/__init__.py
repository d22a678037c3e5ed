"""Locators: where in a model a fact sits. One file each.

A locator scores every layer; what it finds beside that (neurons, tokens) it gives by methods of its own. A score makes
a `Scope`, so that "method X, localised by Y" needs no file of its own. That a fact can be read off a layer does not
show that it is best edited there (Hase et al. 2023, https://arxiv.org/abs/2301.04213).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from editkit.errors import InputError, MethodError
from editkit.facts import Fact
from editkit.handle import ModelHandle
from editkit.registry import Registry
from editkit.scope import Scope

Progress = Callable[[str, int, int], None]  # what is done, how much, of how much


@dataclass(frozen=True, slots=True)
class LayerScore:
    """How much of the facts sits in a layer; higher is more. The unit is the locator's."""

    layer: int
    score: float


class Locator(Protocol):
    """Scores every layer for some facts, in the order of the layers; leaves the handle as it was."""

    def __call__(
        self, handle: ModelHandle, facts: Sequence[Fact], *, seed: int, progress: Progress | None = None
    ) -> tuple[LayerScore, ...]: ...


LOCATORS: Registry[type[Locator]] = Registry("locator", "editkit.locate")


def scope_of(scores: Sequence[LayerScore], layers: int, module: str = "mlp_out") -> Scope:
    """One module of the `layers` layers with the highest scores; of equals the lower layer."""
    if not 1 <= layers <= len(scores):
        raise InputError(f"{layers} layers are wanted and {len(scores)} were scored; ask for 1 to {len(scores)}")
    best = sorted(scores, key=lambda each: (-each.score, each.layer))[:layers]
    return Scope(tuple(sorted(each.layer for each in best)), (module,))


def median_layer(scores: Sequence[LayerScore]) -> int:
    """The layer up to and with which half of all that is above zero lies.

    Raises MethodError where no score is above zero: then nothing was found.
    """
    whole = sum(max(0.0, each.score) for each in scores)
    if not whole > 0:
        raise MethodError("no layer has a score above zero: nothing was located; give facts that the model knows")
    below = 0.0
    for each in sorted(scores, key=lambda each: each.layer):
        below += max(0.0, each.score)
        if below >= whole / 2:
            return each.layer
    raise AssertionError("the last layer has the whole below it")
