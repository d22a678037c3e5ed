"""The terminal: progress, tables, one-line errors. Text of models and facts is never read as markup, and nothing of it
that a terminal would obey, or that turns the text around it, gets there: `clean` shows it instead.

Exit codes of errors: 2 bad input, 4 model, environment, or a method that finds no change (see editkit/errors.py), 70 a
bug. None is 1, which says that a claim does not hold.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import typer
import typer.core
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from editkit import __version__
from editkit.errors import EditkitError, InputError, UnableError
from editkit.files import as_named
from probes.estimate import Ruling
from reports.present import clean, present

BAD_INPUT, MODEL_OR_ENVIRONMENT, BUG = 2, 4, 70  # 70: EX_SOFTWARE of sysexits.h
EXIT = {Ruling.HOLDS: 0, Ruling.FAILS: 1, Ruling.UNDECIDED: 3}
STYLES = {Ruling.HOLDS: "green", Ruling.FAILS: "red", Ruling.UNDECIDED: "yellow"}

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class _Count(ProgressColumn):
    """ "3/8"; nothing for a phase whose number of steps nobody knows."""

    def render(self, task: Task) -> Text:
        counted = task.fields["counted"] and task.total
        return Text(f"{int(task.completed)}/{int(task.total or 0)}" if counted else "", style="progress.download")


class Bars:
    """Progress on the terminal: one bar a phase; where there is no terminal, one line when a phase begins."""

    def __init__(self, console: Console = err) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16),
            _Count(table_column=Column(no_wrap=True, min_width=9, justify="right")),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def phase(self, title: str, total: int | None = None) -> None:
        self._close()
        if not self._console.is_terminal:
            self.say(title)
        self._task = self._progress.add_task(clean(title), total=total, note="", counted=total is not None)

    def step(self, n: int = 1, note: str = "") -> None:
        if self._task is not None:
            self._progress.update(self._task, advance=n, note=present(note, _NOTE) if note else "")

    def at(self, total: int, done: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, total=total, completed=done, counted=True)

    def say(self, text: str) -> None:
        self._console.print(Text(clean(text)), soft_wrap=not self._console.is_terminal)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table(title, columns, rows, to=self._console)

    def _close(self) -> None:
        """Leave the bar of a phase that is over full, and its clock standing."""
        if self._task is not None:
            task = self._progress.tasks[-1]
            end = task.total or task.completed or 1
            self._progress.update(self._task, total=end, completed=end)
            self._progress.stop_task(self._task)


_NOTE = 80  # characters of what a step says of itself


UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # of the click that this typer has: its own, or the package


class OneLine(typer.core.TyperGroup):
    """Commands whose wrong use is told in one line, as every other error."""

    def main(self, args: Sequence[str] | None = None, *more: Any, standalone_mode: bool = True, **other: Any) -> Any:
        args = [*(sys.argv[1:] if args is None else args)] or ["--help"]
        try:
            code = super().main(args, *more, standalone_mode=False, **other)
        except UsageError as error:
            if not standalone_mode:
                raise
            leave(InputError(f"{_said(error)}; see `{_command_of(error)} --help`"))
        except typer.Abort:
            code = 130
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def _said(error: Any) -> str:
    return " ".join(str(error.format_message()).split()).rstrip(".")


def _command_of(error: Any) -> str:
    return str(error.ctx.command_path) if error.ctx else "editkit"


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """End the command with one line and the right exit code for what a user can mend; `debug` shows the traceback too.
    What nobody foresaw is a bug: it is said to be one, with its traceback, and has an exit code of its own."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        err.print(Text("stopped; the same command goes on from where it was"))
        sys.exit(130)
    except Exception as error:
        leave(error, debug)


def leave(error: Exception, debug: bool = False) -> None:
    """Say what is wrong and exit."""
    code = code_of(error)
    if debug or code == BUG:
        lines = "".join(traceback.format_exception(error)).split("\n")
        err.print(Text("\n".join(map(clean, lines))), soft_wrap=True)
    what = "bug: " if code == BUG else "error: "
    err.print(
        Text.assemble((what, "bold red"), clean(_told(error, code))), soft_wrap=not err.is_terminal
    )  # a log: one line
    sys.exit(code)


def code_of(error: Exception) -> int:
    """The exit code of an error."""
    if isinstance(error, UnableError | OSError) or _out_of_memory(error):
        return MODEL_OR_ENVIRONMENT
    return BAD_INPUT if isinstance(error, EditkitError) else BUG


def _out_of_memory(error: Exception) -> bool:
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch has no class for it
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _told(error: Exception, code: int) -> str:
    if code == BUG:
        return (
            f"{type(error).__name__} in editkit {__version__} or in an extension of it, not in what you gave; please "
            "report it, with the lines above, in editkit's issue tracker"
        )
    if _out_of_memory(error):
        ways = "a smaller model, fewer facts, a narrower --dtype, or --compute native with one"
        return f"out of memory; use {ways}, or free some"
    if not isinstance(error, OSError):
        return str(error)
    place = f"{as_named(str(error.filename))}: " if error.filename else "cannot write: " if error.errno else ""
    return f"{place}{error.strerror or error}{_WAYS_OUT.get(error.errno or 0, '')}"


_ELSEWHERE = "; choose another place to write to (--out, --save, EDITKIT_CACHE), or mend its rights"
_WAYS_OUT = {
    errno.ENOSPC: "; free some space, then the same command goes on from where it was",
    errno.EDQUOT: "; free some space, then the same command goes on from where it was",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
}


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], *, to: Console | None = None
) -> None:
    """Print a table; every cell is plain text. Where its longest words do not fit side by side, each row is a block."""
    console = to or out
    cells = [[_plain(cell) for cell in row] for row in rows]
    least = [max((_longest_word(row[i]) for row in cells), default=0) for i in range(len(columns))]
    if cells and columns:
        least[0] = max(row[0].cell_len for row in cells)  # a name that is cut in two cannot be used
    least = [max(width, len(column)) for width, column in zip(least, columns, strict=True)]
    if sum(least) + 3 * len(least) > console.width:
        _blocks(title, columns, cells, console)
        return
    drawn = Table(
        title=_plain(title),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=any(columns),
    )
    for i, (column, width) in enumerate(zip(columns, least, strict=True)):
        drawn.add_column(Text(column), overflow="fold", min_width=width, no_wrap=i == 0)
    for row in cells:
        drawn.add_row(*row)
    console.print(drawn)


_WORD = 24  # characters; a longer word may be folded
_ROOM = 30  # characters of a value that shares its line with others


def _plain(cell: str | Text) -> Text:
    return Text(clean(cell.plain), style=cell.style) if isinstance(cell, Text) else Text(clean(cell))


def _longest_word(cell: Text) -> int:
    return min(_WORD, max(map(cell_len, cell.plain.split()), default=0))


def _blocks(title: str, columns: Sequence[str], rows: Sequence[Sequence[Text]], console: Console) -> None:
    """A table for a narrow terminal: the first cell of a row, and under it the others with their columns' names."""
    console.print(Text(clean(title), style="bold"))
    for row in rows:
        console.print(Text(row[0].plain, style="bold"))
        named = [(column, cell) for column, cell in zip(columns[1:], row[1:], strict=True) if cell.plain]
        short = [Text.assemble((f"{column}: ", "dim"), cell) for column, cell in named if cell.cell_len <= _ROOM]
        long = [Text.assemble((f"{column}: ", "dim"), cell) for column, cell in named if cell.cell_len > _ROOM]
        for text in [Text(", ").join(short)] * bool(short) + long:
            console.print(Padding(text, (0, 0, 0, 2)))
    console.print()


def ruling_text(ruling: Ruling) -> Text:
    return Text(ruling.value, style=STYLES[ruling])


Shown = Callable[[str], None]
