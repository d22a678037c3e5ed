"""What is told before a run begins: what is wrong with the facts, what will be changed, and what that will take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from editkit.data import FactBase, is_file
from editkit.errors import InputError, MethodError
from editkit.facts import Edit, EditRecord
from editkit.handle import ModelHandle
from editkit.operators import Preparing
from editkit.preflight import Plan, plan
from editkit.problems import Problem, problems
from editkit.wide import working_dtype
from reports.choose import in_order
from reports.present import clean
from reports.record import part
from reports.spec import AuditSpec
from reports.trial import Session, Trial
from reports.watch import Watch
from reports.wording import NAMED, arms_told, named, plural

GIB = 2**30
LONG = 20  # facts: of so many the first two are tried beforehand, to tell what all will take


def check(handle: ModelHandle, records: Sequence[EditRecord], watch: Watch, *, one_by_one: bool = False) -> None:
    """Say what is odd about the facts. Raises InputError that tells of every fact that cannot be edited. `one_by_one`:
    each is edited by a call of its own."""
    found = problems(handle, [record.edit for record in records], one_by_one=one_by_one)
    for problem in found:
        if not problem.fatal:
            watch.say(with_ids(problem, records))
    if fatal := [with_ids(problem, records) for problem in found if problem.fatal]:
        raise InputError(f"{plural(len(fatal), 'fact')} cannot be edited: {'; '.join(fatal)}")


def check_own(handle: ModelHandle, base: FactBase, spec: AuditSpec, watch: Watch, *, one_by_one: bool) -> None:
    """`check` of a user's own facts: those that are shipped are known to be good."""
    if is_file(spec.facts.source):
        entries = in_order(base, spec)
        if drawn := [entry for entry in entries if entry.target_new is None]:
            watch.say(
                f"No target_new for {named(drawn)}: by the seed another object of the relation is drawn for each; name "
                "one in the file to have it your way"
            )
        records = [EditRecord(entry.id, base.edit(entry, seed=spec.seed)) for entry in entries]
        check(handle, records, watch, one_by_one=one_by_one)


def look_ahead(session: Session, trials: Sequence[Trial]) -> None:
    """Show what each operator of an audit will change, and what its changes take. What is odd about the facts alone is
    not told again."""
    journal = session.journal
    begun = {part("change", entry, journal.path).operator for entry in journal.entries("patch")}
    for trial in trials:
        _show(session, trial, tried=len(trial.records) >= LONG and trial.part.name not in begun)


def _show(session: Session, trial: Trial, *, tried: bool) -> None:
    handle, name, arms, watch = session.handle, trial.part.name, trial.part.arms, session.watch
    edits = [record.edit for record in trial.records] if trial.part.task == "edit" else []
    if tried and edits:
        watch.phase(f"Trying {name} on the first facts")
    together = [*arms] != ["single"]
    found = planned(handle, trial.operator, edits, session.spec.seed, watch, trial=tried, together=together)
    own = is_file(session.spec.facts.source)  # then what is odd about the facts was said before they were asked
    said = {problem.text for problem in problems(handle, edits)} if own else set()
    new = replace(found, problems=tuple(problem for problem in found.problems if problem.text not in said))
    facts = f"{len(trial.records)}: {arms_told(arms)}"
    watch.table(f"Plan of {name}", ("", ""), plan_rows(handle, trial.source, facts, new, trial.records))


def planned(
    handle: ModelHandle,
    operator: Any,
    edits: Sequence[Edit],
    seed: int,
    watch: Watch,
    *,
    trial: bool,
    together: bool = True,
    strict: bool = False,
) -> Plan:
    """The plan of `editkit.preflight`, with its progress told. Where the operator refuses every fact that it is tried
    on, the plan says so and lacks what a trial tells; if `strict`, MethodError is raised."""

    def tell(what: str, done: int, total: int) -> None:
        watch.step(0, note=f"{what} {done}/{total}")

    if isinstance(operator, Preparing) and (lacking := operator.lacks(handle, edits)):
        watch.say(lacking)
    try:
        return plan(handle, operator, edits, seed=seed, trial=trial, together=together, progress=tell)
    except MethodError as error:
        if strict:
            raise
        found = plan(handle, operator, edits, seed=seed, trial=False, together=together)
        refused = Problem(None, f"the first facts that it was tried on were all refused; the last: {error}", False)
        return replace(found, problems=(*found.problems, refused))


def plan_rows(
    handle: ModelHandle,
    source: str,
    facts: str,
    found: Plan,
    records: Sequence[EditRecord],
    *,
    targets: bool = False,
) -> list[tuple[str, str]]:
    """All that a plan says, and what speaks against it; with `targets` also what the first facts are changed to."""
    first = _first(records) if targets else ()
    rows = [("settings from", source), ("facts", facts), *first, *_rows(handle, found)]
    rows += [("mind", with_ids(problem, records)) for problem in found.problems]
    return [(name, text) for name, text in rows if text]


def _first(records: Sequence[EditRecord]) -> Iterator[tuple[str, str]]:
    for record in records[:NAMED]:
        yield "edit", clean(f"{record.fact.text} {record.fact.object} → {record.edit.target_new}")
    if len(records) > NAMED:
        yield "", f"and {len(records) - NAMED:,} more"


def with_ids(problem: Problem, records: Sequence[EditRecord]) -> str:
    """A problem, with the ids of the facts that have it."""
    if problem.place is None:
        return problem.text
    places = [place for place in (problem.other, problem.place) if place is not None]
    return f"{' and '.join(records[place].id for place in places)}: {problem.text}"


def _rows(handle: ModelHandle, found: Plan) -> Iterator[tuple[str, str]]:
    size = sum(parameter.numel() * parameter.element_size() for parameter in handle.model.parameters())
    yield "model", f"{handle.name}, {_precision(handle)} on {handle.device}, {size / GIB:.2f} GiB of weights"
    yield "changes", _changes(found)
    yield "moments", _moments(found)
    yield "time", _time(found)
    yield "memory", "" if found.memory is None else f"about {found.memory / GIB:.2f} GiB, with the changes of all facts"
    yield "weights move", _moved(found)


def _precision(handle: ModelHandle) -> str:
    own, working = (str(dtype).removeprefix("torch.") for dtype in (handle.dtype, working_dtype(handle)))
    return own if own == working else f"{own} (a change is computed in {working})"


def _changes(found: Plan) -> str:
    if not found.touches:
        return found.adds or "not said before it is done"
    return f"{_few(found.touches)}: {found.changed:,} of {found.parameters:,} numbers"


def _few(names: Sequence[str]) -> str:
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:2])} … {names[-1]} ({len(names)} in all)"


def _moments(found: Plan) -> str:
    missing = [layer for layer, there in found.moments.items() if not there]
    if not found.moments:
        return ""
    return "measured before, kept" if not missing else f"to be measured: layers {', '.join(map(str, missing))}"


def _moved(found: Plan) -> str:
    if found.moved is None:
        return ""
    least, most = found.moved
    if least == most:  # one change for all of them, or what bounds it
        return f"by about {most:.1%} of their norm"
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
