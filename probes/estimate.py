"""One number and its interval are one value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval at `level`; `low` and `high` are None when they cannot be had.

    `n` counts the cases, `groups` the facts they belong to (the clusters); `method` names the interval.
    """

    value: float | None
    low: float | None
    high: float | None
    level: float
    n: int
    groups: int
    method: str
