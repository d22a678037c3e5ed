"""The values of parameters under a stack of changes, of which any earlier one can be had back to the bit.

Kept are the values before the first change and before the newest few. What lies between is made again from the changes
themselves: of a thousand low-rank ones on a matrix there are never more than `NEWEST` + 1 copies of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

NEWEST = 4  # copies of a parameter kept beside the first: so many changes come off without being made again

Change = Callable[[Tensor], Tensor]  # the value before -> the value after; it must give the same bits each time


@dataclass(slots=True, eq=False)
class _Column:
    """One parameter: its changes, each with its number in the whole stack, and the values kept before some of them."""

    parameter: nn.Parameter
    changes: list[tuple[int, Change]] = field(default_factory=list)
    kept: dict[int, Tensor] = field(default_factory=dict)

    def keep(self, place: int, value: Tensor) -> None:
        """Keep the value before change `place`; of the others the first and the newest."""
        self.kept[place] = value
        for old in [each for each in self.kept if 0 < each <= place - NEWEST]:
            del self.kept[old]

    def before(self, place: int) -> Tensor:
        """The value before change `place`, made again where it was not kept."""
        start = max(each for each in self.kept if each <= place)
        value = self.kept[start]
        for again in range(start, place):
            value = self.changes[again][1](value)
            self.keep(again + 1, value)
        return value


class Stacked:
    """Changes on parameters, each on top of those before it. `mark` names a height; `back_to` a mark undoes the rest.

    Whatever strikes within `put` or `back_to`, calling `back_to` again leads to the same values. `own_dtypes` are those
    of parameters, by id, that are held in a wider one for a while (editkit/wide.py): they change as in their own.
    """

    __slots__ = ("_columns", "_height", "own_dtypes")

    def __init__(self) -> None:
        self.own_dtypes: dict[int, torch.dtype] = {}
        self._columns: dict[str, _Column] = {}
        self._height = 0

    @property
    def mark(self) -> int:
        """How many changes there are."""
        return self._height

    def first(self, name: str, parameter: nn.Parameter) -> Tensor:
        """A parameter's value without any of the changes."""
        column = self._columns.get(name)
        return parameter.detach() if column is None else column.kept[0]

    def put(self, name: str, parameter: nn.Parameter, change: Change) -> None:
        """Change a parameter in place. What `change` raises leaves it as it was."""
        now = parameter.detach().to(self.own_dtypes.get(id(parameter), parameter.dtype))
        value = change(now)
        column = self._columns.setdefault(name, _Column(parameter))
        column.keep(len(column.changes), now.clone())
        self._height += 1
        column.changes.append((self._height, change))
        _overwrite(parameter, value)

    def back_to(self, mark: int) -> None:
        """Undo all changes above a mark; those below stay."""
        for name, column in [*self._columns.items()]:
            left = sum(number <= mark for number, _ in column.changes)
            if left == len(column.changes):
                continue
            _overwrite(column.parameter, column.before(left))
            column.kept = {place: value for place, value in column.kept.items() if place < max(left, 1)}
            del column.changes[left:]
            if not left:
                del self._columns[name]
        self._height = min(self._height, mark)


@torch.no_grad()
def _overwrite(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.copy_(value)
