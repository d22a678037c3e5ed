"""A watch for tests."""

from __future__ import annotations

from reports.watch import Silent


class Telling(Silent):
    """Keeps what it is told, in its order."""

    def __init__(self):
        self.phases, self.tables, self.said = [], {}, []

    def phase(self, title, total=None):
        self.phases.append(title)

    def say(self, text):
        self.said.append(text)

    def table(self, title, columns, rows):
        self.phases.append(title)
        self.tables[title] = {name: text for name, text in rows}
