"""Who is told how far a run is."""

from __future__ import annotations

from typing import Protocol


class Watch(Protocol):
    """Told of each phase with the number of its steps (None: unknown), of each step, and of news worth a line."""

    def phase(self, title: str, total: int | None = None) -> None: ...
    def step(self, n: int = 1, note: str = "") -> None: ...
    def say(self, text: str) -> None: ...


class Silent:
    """Tells nobody."""

    def phase(self, title: str, total: int | None = None) -> None: ...
    def step(self, n: int = 1, note: str = "") -> None: ...
    def say(self, text: str) -> None: ...
