"""Readers: one file per raw format; each gives a table of facts. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from editkit.entries import FactTable
from editkit.registry import Registry


class Reader(Protocol):
    """Reads `path` (a data folder or a file) into a table.

    `base` is the table that may complete what a user left out (wordings, aliases, popularity); a reader of a whole
    data set has no use for it. Raises `DataError` naming file, line and field of what it cannot take.
    """

    def __call__(self, path: Path, *, base: FactTable | None = None) -> FactTable: ...


READERS: Registry[Reader] = Registry("reader", "editkit.readers")
