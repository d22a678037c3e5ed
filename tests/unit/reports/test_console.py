"""The terminal: what it is never sent, and how it tells of progress."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import audits
import pytest
from rich.console import Console
from rich.text import Text

from editkit.errors import InputError
from reports import console, listing, verdicts
from reports.console import Bars, leave, table

OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def screen(width: int = 80, *, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, force_terminal=terminal, color_system=None)


def written(on: Console) -> str:
    return on.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(params=[60, 100, 400])
def out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Console:
    """The console that tables are printed on, too narrow for a table and wide enough."""
    made = screen(request.param)
    for module in (console, verdicts):
        monkeypatch.setattr(module, "out", made)
    return made


@pytest.fixture
def err(monkeypatch: pytest.MonkeyPatch) -> Console:
    made = screen()
    monkeypatch.setattr(console, "err", made)
    return made


def test_hostile_cells_are_shown_and_not_obeyed(out: Console) -> None:
    rows = [(text, Text(text), text) for text in audits.HOSTILE]
    table(audits.HOSTILE[4], ("a", "b", "c"), rows)
    assert not OBEYED.search(written(out))
    joined = "".join(written(out).split())
    assert r"\x1b[31mred" in joined and r"\u202eevil" in joined


def test_the_verdicts_of_a_hostile_audit_are_shown_and_not_obeyed(out: Console) -> None:
    verdicts.show_verdicts(audits.hostile(), Path("\x1b[2Jruns"))
    assert not OBEYED.search(written(out))
    assert "Verdicts" in written(out) and r"\x1b[2Jruns" in written(out)


def test_errors_are_one_line_and_not_obeyed(err: Console) -> None:
    with pytest.raises(SystemExit):
        leave(InputError("line 1: no fact named \x1b]0;title\x07 \u202e\n" + "long " * 60))
    assert not OBEYED.search(written(err))
    assert written(err).count("\n") == 1
    with pytest.raises(SystemExit):
        leave(RuntimeError("\x1b[31m"))
    assert not OBEYED.search(written(err))


@pytest.mark.parametrize("terminal", [False, True])
def test_steps_and_phases_are_not_obeyed(terminal: bool) -> None:
    on = screen(terminal=terminal)
    with Bars(on) as bars:
        for text in audits.HOSTILE:
            bars.phase(text[:200], 2)
            bars.step(note=text)
            bars.say(text[:200])
    sent = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written(on)) if terminal else written(on)  # rich moves the cursor
    assert not OBEYED.search(sent.replace("\r", ""))
    assert r"\x1b[31mred" in sent


def test_without_a_terminal_each_phase_is_a_line_as_it_begins() -> None:
    on = screen()
    with Bars(on) as bars:
        bars.phase("Loading a model with quite a long name that would not fit on one line of eighty columns at all")
        assert written(on).count("\n") == 1
        bars.phase("Asking", 3)
        bars.step(3, "a note")
    assert written(on).splitlines()[1:] == ["Asking"]


def test_a_phase_of_unknown_length_shows_no_count_and_another_does() -> None:
    on = screen(terminal=True)
    with Bars(on) as bars:
        bars.phase("Loading")
        bars.step(0, "halfway")
        bars.phase("Asking")
        bars.at(8, 3)
        bars.phase("Writing", 5)
    assert not re.search(r"0/0|1/1|/\?", written(on))
    assert "8/8" in written(on) and "0/5" in written(on)


@pytest.mark.parametrize("what", sorted(listing.LISTS))
def test_names_are_whole_at_any_width(what: str, out: Console) -> None:
    _, rows = listing.LISTS[what]()
    listing.show(what)
    lines = {line.strip() for line in written(out).splitlines()}
    for row in rows:
        assert any(line == row[0] or line.startswith(f"{row[0]} ") for line in lines), row[0]


def test_a_row_that_is_too_wide_is_a_block_with_the_names_of_its_columns(monkeypatch: Any) -> None:
    on = screen(40)
    monkeypatch.setattr(console, "out", on)
    table("t", ("name", "unit", "question"), [("efficacy_generation", "share", "how often does it say it? " * 3)])
    assert written(on).startswith("t\nefficacy_generation\n  unit: share")
    assert "  question: how often" in written(on)
