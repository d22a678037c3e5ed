"""What readers say when data is bad."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from editkit.errors import InputError

MOST_SHOWN = 10


class DataError(InputError):
    """Data that cannot be taken: names file, line and field, and the way out; one problem a line."""


class Problems:
    """Collects what is wrong with one file, so that a user sees the first ten problems and not only the first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[str] = []

    def add(self, line: int | None, what: str) -> None:
        place = self.path.name if line is None else f"{self.path.name}, line {line}"
        self.found.append(f"{place}: {what}")

    def stop_if_any(self) -> None:
        """Raise one DataError for all that was found."""
        if self.found:
            raise DataError(as_message(self.found))


def as_message(found: Sequence[str]) -> str:
    shown = "\n".join(found[:MOST_SHOWN])
    more = len(found) - MOST_SHOWN
    return shown if more <= 0 else f"{shown}\n… and {more} more problems"
