"""The terminal: progress, tables, one-line errors. Text of models is never read as markup."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from jinja2 import TemplateError
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from editkit.data import DataError
from editkit.models import ModelError
from editkit.patch import PatchError
from probes.estimate import Ruling
from reports.record import RecordError

BAD_INPUT, MODEL_OR_ENVIRONMENT = 2, 4
EXIT = {Ruling.HOLDS: 0, Ruling.FAILS: 1, Ruling.UNDECIDED: 3}
STYLES = {Ruling.HOLDS: "green", Ruling.FAILS: "red", Ruling.UNDECIDED: "yellow"}

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class Bars:
    """Progress on the terminal: one bar a phase; where there is no terminal, one line when a phase begins."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=9)),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=err,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def phase(self, title: str, total: int | None = None) -> None:
        self._close()
        self._task = self._progress.add_task(title, total=total, note="")

    def step(self, n: int = 1, note: str = "") -> None:
        if self._task is not None:
            self._progress.update(self._task, advance=n, note=note)

    def at(self, total: int, done: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, total=total, completed=done)

    def say(self, text: str) -> None:
        self._progress.console.print(Text(text))

    def _close(self) -> None:
        if self._task is not None:
            task = self._progress.tasks[-1]
            self._progress.update(
                self._task, total=task.total or task.completed, completed=task.total or task.completed
            )
            self._progress.stop_task(self._task)


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """End the command with one line and the right exit code for what a user can mend; `debug` shows the traceback."""
    try:
        yield
    except (DataError, PatchError, RecordError, ModelError, ValueError, KeyError, OSError, TemplateError) as error:
        if debug:
            raise
        leave(error)
    except KeyboardInterrupt:
        err.print(Text("stopped; the same command goes on from where it was"))
        sys.exit(130)


def leave(error: Exception) -> None:
    """Say what is wrong and exit."""
    environment = isinstance(error, ModelError | OSError)
    text = str(error) if not isinstance(error, OSError) else f"{error.filename or 'output'}: {error.strerror or error}"
    if isinstance(error, OSError) and error.filename is None and error.errno is not None:
        text = f"cannot write: {error.strerror}; free some space, then the same command goes on from where it was"
    err.print(Text.assemble(("error: ", "bold red"), text))
    sys.exit(MODEL_OR_ENVIRONMENT if environment else BAD_INPUT)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table; every cell is plain text."""
    drawn = Table(title=Text(title), title_justify="left", title_style="bold", header_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        drawn.add_column(Text(column), overflow="fold")
    for row in rows:
        drawn.add_row(*[cell if isinstance(cell, Text) else Text(cell) for cell in row])
    out.print(drawn)


def ruling_text(ruling: Ruling) -> Text:
    return Text(ruling.value, style=STYLES[ruling])


Shown = Callable[[str], None]
