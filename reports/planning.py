"""What `editkit edit` says before it begins: what is wrong with the facts, and what the run will take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from editkit.errors import InputError
from editkit.facts import EditRecord
from editkit.handle import ModelHandle
from editkit.preflight import Plan, plan
from editkit.problems import Problem, problems
from editkit.wide import working_dtype
from reports.console import table
from reports.watch import Watch
from reports.wording import plural

GIB = 2**30


def check(handle: ModelHandle, records: Sequence[EditRecord], watch: Watch) -> None:
    """Say what is odd about the facts. Raises InputError that tells of every fact that cannot be edited."""
    found = problems(handle, [record.edit for record in records])
    _say(found, records, watch)
    if fatal := [_told(problem, records) for problem in found if problem.fatal]:
        raise InputError(f"{plural(len(fatal), 'fact')} cannot be edited: {'; '.join(fatal)}")


def show_plan(
    handle: ModelHandle,
    operator: Any,
    source: str,
    records: Sequence[EditRecord],
    seed: int,
    watch: Watch,
    *,
    trial: bool = True,
) -> None:
    """Try the operator on the first facts, and print what all of them will take and what stands against it; without a
    `trial`, what can be said beforehand."""
    if trial:
        watch.phase("Trying the first facts")

    def tell(what: str, done: int, total: int) -> None:
        watch.step(0, note=f"{what} {done}/{total}")

    found = plan(handle, operator, [record.edit for record in records], seed=seed, trial=trial, progress=tell)
    mind = [("mind", _told(problem, records)) for problem in found.problems]
    table("Plan", ("", ""), [("settings from", source), *_rows(handle, found), *mind])


def _rows(handle: ModelHandle, found: Plan) -> list[tuple[str, str | Text]]:
    size = sum(parameter.numel() * parameter.element_size() for parameter in handle.model.parameters())
    rows = [
        ("model", f"{handle.name}, {_precision(handle)} on {handle.device}, {size / GIB:.2f} GiB of weights"),
        ("facts", str(found.edits)),
        ("changes", _changes(found)),
        ("moments", _moments(found)),
        ("time", _time(found)),
        (
            "memory",
            "" if found.memory is None else f"about {found.memory / GIB:.2f} GiB, with the changes of all facts",
        ),
        ("weights move", _moved(found)),
    ]
    return [(name, text) for name, text in rows if text]


def _precision(handle: ModelHandle) -> str:
    own, working = (str(dtype).removeprefix("torch.") for dtype in (handle.dtype, working_dtype(handle)))
    return own if own == working else f"{own} (a change is computed in {working})"


def _changes(found: Plan) -> str:
    if not found.touches:
        return "not said before it is done"
    return f"{', '.join(found.touches)}: {found.changed:,} of {found.parameters:,} numbers"


def _moments(found: Plan) -> str:
    missing = [layer for layer, there in found.moments.items() if not there]
    if not found.moments:
        return ""
    return "measured before, kept" if not missing else f"to be measured: layers {', '.join(map(str, missing))}"


def _moved(found: Plan) -> str:
    if found.moved is None:
        return ""
    least, most = found.moved
    return f"by {least:.1%} of their norm, if each fact goes its own way, to {most:.1%}, if all go one"


def _time(found: Plan) -> str:
    if found.seconds is None or found.each is None or found.once is None:
        return ""
    return (
        f"{found.once:.0f} s once and {found.each:.1f} s a fact, {_spoken(found.seconds)} for all; less in one change"
    )


def _spoken(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _say(found: Sequence[Problem], records: Sequence[EditRecord], watch: Watch) -> None:
    for problem in found:
        if not problem.fatal:
            watch.say(_told(problem, records))


def _told(problem: Problem, records: Sequence[EditRecord]) -> str:
    if problem.place is None:
        return problem.text
    places = [place for place in (problem.other, problem.place) if place is not None]
    return f"{' and '.join(records[place].id for place in places)}: {problem.text}"
