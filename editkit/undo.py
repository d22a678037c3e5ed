"""What was changed is put back, to the bit, whatever strikes: an error or Ctrl-C, at any moment.

    def halved(module):                                     # `with halved(module): ...`
        def open(undo):
            undo.callback(put_back, module, module.scale)   # first how it is taken back, then the change
            module.scale /= 2
        return Block(open)

The one moment that Python leaves open is the first line of `Block.__exit__` itself, as of any `with` block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

Opened = TypeVar("Opened")


class Undo:
    """Steps that lead back, each registered before the change that it takes back.

    A step is crossed out only after it returned. What struck in between leaves it registered, and it is called again:
    so a step must do no harm when it is called twice, or for a change that was never made.
    """

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def callback(self, step: Callable[..., object], *arguments: Any) -> None:
        """Register a step and what it is called with."""
        self._steps.append(partial(step, *arguments))

    def close(self) -> None:
        """Take everything back, newest first. When something strikes, the rest stays registered: close again."""
        while self._steps:
            self._steps[-1]()
            self._steps.pop()


class Block(Generic[Opened]):
    """A `with` block at whose end everything is taken back that `open` registered; also where `open` itself fails.

    No generator: the traceback of an error keeps one alive, and its end would run later, under other changes.
    """

    __slots__ = ("_open", "_undo")

    def __init__(self, open: Callable[[Undo], Opened]) -> None:
        self._open, self._undo = open, Undo()

    def __enter__(self) -> Opened:
        try:
            return self._open(self._undo)
        except BaseException:
            self._undo.close()
            raise

    def __exit__(self, *error: object) -> None:
        try:
            self._undo.close()
        except BaseException:  # Ctrl-C while taking back: once more, then on with it
            self._undo.close()
            raise
