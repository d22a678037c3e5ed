"""Mean and spread of features over rows that come bit by bit: what is known of two parts gives that of the whole.

The parts' counts, means and summed squares of deviations are joined exactly (Chan, Golub and LeVeque 1983), in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.errors import MethodError

LEAST_SPREAD = 1e-5  # of the mean: what varies less is constant but for rounding, and says nothing


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """Number of rows, and of each feature its mean and summed squared deviations from it."""

    count: float
    mean: Float[Tensor, " d"]
    squares: Float[Tensor, " d"]

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"]) -> Running:
        """Those of at least one row."""
        wide = rows.double()
        mean = wide.mean(0)
        return cls(float(len(wide)), mean, (wide - mean).square().sum(0))

    def joined(self, other: Running) -> Running:
        """Those of the rows of both."""
        count, apart = self.count + other.count, other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        squares = self.squares + other.squares + apart.square() * (self.count * other.count / count)
        return Running(count, mean, squares)

    def normalised(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Each feature less its mean, over its standard deviation; 0 where it does not vary. Raises MethodError for the
        statistics of a single row, which have no deviation."""
        if self.count < 2:
            raise MethodError("the features of a single token have no spread; edit more at once, or read more tokens")
        deviation = (self.squares / (self.count - 1)).sqrt()
        varies = deviation > LEAST_SPREAD * self.mean.abs()
        return (rows.double() - self.mean) / torch.where(varies, deviation, torch.inf)

    def tensor(self) -> Float[Tensor, "3 d"]:
        """As one tensor: rows counted, mean, summed squares."""
        return torch.stack([torch.full_like(self.mean, self.count), self.mean, self.squares])

    @classmethod
    def read(cls, tensor: Float[Tensor, "3 d"]) -> Running:
        """From what `tensor` gave."""
        count, mean, squares = tensor.double().cpu()
        return cls(float(count[0]), mean, squares)


def joined(parts: Iterable[Running]) -> Running:
    """The statistics of all rows of some parts, at least one."""
    return reduce(Running.joined, parts)
