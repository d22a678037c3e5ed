"""The main job: change a model, try to break the change, keep a record of it.

`run(spec, folder)` may be killed at any moment; called again it goes on from the record.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from editkit.data import FactBase, load
from editkit.facts import EditRecord, ForgetRecord, ForgetRequest, Record
from editkit.files import write_text
from editkit.handle import ModelHandle
from editkit.operators import configured, each
from editkit.patch import WeightPatch
from editkit.training import TrainStep
from probes.ask import Job, run_jobs
from probes.estimate import Ruling, decide, groups_needed
from probes.metrics import METRICS, Row, summarise
from probes.verdict import Verdict
from reports.changes import compute
from reports.choose import Chosen, select
from reports.environment import code_digest, described, environment
from reports.record import JOURNAL, Audit, Change, Claim, FactRow, Figure, Journal, Judged, RecordError, read_audit
from reports.render import write_reports
from reports.spec import AuditSpec, OperatorPart, to_toml
from reports.watch import Silent, Watch


@dataclass(slots=True)
class Session:
    """One run while it goes on."""

    spec: AuditSpec
    folder: Path
    handle: ModelHandle
    base: FactBase
    journal: Journal
    watch: Watch
    chosen: Chosen
    changes: list[Change] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(spec: AuditSpec, folder: Path, *, watch: Watch | None = None, command: str = "", fresh: bool = False) -> Audit:
    """Run the audit, or go on with it, and write the reports into `folder`.

    Facts are read and checked before the model is loaded. A finished run is only rendered again; `fresh` begins anew.
    Raises DataError, SpecError (bad input), ModelError, OSError (model or machine).
    """
    watch = watch or Silent()
    base = load(spec.facts.source)
    journal = open_journal(spec, folder, fresh=fresh)
    if journal.finished:
        audit = read_audit(folder)
        write_reports(audit, folder)
        return audit
    began, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    watch.phase(f"Loading {spec.model.name}")
    handle = ModelHandle.load(spec.model.name, spec.model.options())
    _begin(journal, spec, folder, handle)
    session = _prepared(spec, folder, handle, base, journal, watch)
    for trial in [_trial(session, part) for part in spec.operators]:  # all configured before the first is tried
        trial.run()
    audit = _audit(session, command, started, time.perf_counter() - began)
    journal.finish(audit)
    watch.phase("Writing the reports")
    write_reports(audit, folder)
    return audit


# The run folder --


def open_journal(spec: AuditSpec, folder: Path, *, fresh: bool = False) -> Journal:
    """The journal of a new run, or of one to go on with. A folder with another spec is refused; a record made by other
    code is set aside, for its answers may not be those that this code would get."""
    path = folder / JOURNAL
    if fresh and path.exists():
        _set_aside(folder, "replaced")
    journal = Journal(path)
    header = next(iter(journal.entries("header")), None)
    if header is None:
        return journal if not path.exists() else _anew(folder, "headless")
    if header["spec"] != spec.key():
        raise RecordError(f"{folder} holds a run of another spec; choose another --out, or pass --fresh to replace it")
    return journal if header["code"] == code_digest() else _anew(folder, "other-code")


def _anew(folder: Path, why: str) -> Journal:
    _set_aside(folder, why)
    return Journal(folder / JOURNAL)


def _set_aside(folder: Path, why: str) -> None:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    (folder / JOURNAL).rename(folder / f"audit-{why}-{stamp}.jsonl")
    shutil.rmtree(folder / "patches", ignore_errors=True)


def _begin(journal: Journal, spec: AuditSpec, folder: Path, handle: ModelHandle) -> None:
    """Write the header of a new run, or check that a resumed one has the same model."""
    header = next(iter(journal.entries("header")), None)
    if header is None:
        write_text(folder / "spec.toml", to_toml(spec))
        journal.append("header", spec=spec.key(), code=code_digest(), weights=handle.base_digest)
    elif header["weights"] != handle.base_digest:
        raise RecordError(f"{folder} was begun with other weights of {handle.name!r}; pass --fresh to begin anew")
    journal.append("session", started=datetime.now(UTC).isoformat(timespec="seconds"))


def _prepared(
    spec: AuditSpec, folder: Path, handle: ModelHandle, base: FactBase, journal: Journal, watch: Watch
) -> Session:
    most = max(part.n or spec.facts.n for part in spec.operators)
    chosen = select(handle, base, spec.facts, most, spec.seed, journal, watch)
    return Session(spec, folder, handle, base, journal, watch, chosen)


# One operator --


def _trial(session: Session, part: OperatorPart) -> Trial:
    operator, source = configured(part.name, session.handle, part.settings)
    return Trial(session, part, operator, source)


@dataclass(frozen=True, slots=True)
class Trial:
    """One operator on its records."""

    session: Session
    part: OperatorPart
    operator: Any
    source: str
    alone: dict[tuple[str, str], WeightPatch] = field(default_factory=dict)  # by model state and fact

    def run(self) -> None:
        """Every arm of the operator."""
        session = self.session
        entries = session.chosen.entries[: self.part.n or session.spec.facts.n]
        how = {"seed": session.spec.seed, "known": session.chosen.known}
        if self.part.task == "edit":
            edits = [session.base.edit_record(entry, **how) for entry in entries]
            for arm in self.part.arms:
                (self.single if arm == "single" else self.stacked)(edits)
        else:
            self.joint([session.base.forget_record(entry, **how) for entry in entries])

    def single(self, records: Sequence[EditRecord]) -> None:
        """Each edit by itself: made, asked about, rolled back."""
        self.session.watch.phase(f"{self.part.name}, one at a time", len(records))
        by_id = {self._id("single", record.id): record for record in records}

        def call(missing: list[str]) -> list[WeightPatch]:
            edits = [by_id[each].edit for each in missing]
            return each(self.operator, self.session.handle, edits, seed=self.session.spec.seed, progress=self._told(""))

        patches = self._kept({change_id: [record.id] for change_id, record in by_id.items()}, call)
        self.session.watch.step(len(records))
        self.alone.update({(self.session.handle.state, r.id): p for r, p in zip(records, patches, strict=True)})
        self._ask("single", [((patch,), [record]) for patch, record in zip(patches, records, strict=True)])

    def stacked(self, records: Sequence[EditRecord]) -> None:
        """All edits, each made on top of those before; then everything is asked."""
        handle, seed = self.session.handle, self.session.spec.seed
        self.session.watch.phase(f"{self.part.name}, stacked", len(records))
        patches: list[WeightPatch] = []
        for record in records:

            def call(_: list[str], record: EditRecord = record) -> list[WeightPatch]:
                there = self.alone.get((handle.state, record.id))  # the first one of the stack was made alone
                made = there or self.operator(handle, [record.edit], seed=seed, progress=self._told(f"{record.id}: "))
                return [made]

            with handle.patched(*patches):
                patches += self._kept({self._id("stacked", record.id): [record.id]}, call)
            self.session.watch.step(note=record.id)
        self._ask("stacked", [(tuple(patches), records)])

    def joint(self, records: Sequence[ForgetRecord]) -> None:
        """One request for all facts."""
        spec, base, ids = self.session.spec, self.session.base, [record.id for record in records]
        watch = self.session.watch
        retain = base.retain_examples(ids, spec.facts.retain, spec.seed, self.session.chosen.known)
        request = ForgetRequest(tuple(e for r in records for e in r.examples), retain)
        watch.phase(f"{self.part.name}, forgetting {len(records)} facts")

        def told(step: TrainStep) -> None:
            watch.at(step.steps, step.step)
            watch.step(0, note=f"forget {step.forget:.2f}, retain {step.retain:.2f}")

        def call(_: list[str]) -> list[WeightPatch]:
            return [self.operator(self.session.handle, request, seed=spec.seed, progress=told)]

        self._ask("joint", [(tuple(self._kept({self._id("joint", "all"): ids}, call)), records)])

    def _told(self, whose: str) -> Callable[[str, int, int], None]:
        return lambda what, done, total: self.session.watch.step(0, note=f"{whose}{what} {done}/{total}")

    def _id(self, arm: str, name: str) -> str:
        return f"{self.part.name}/{arm}/{name}"

    def _kept(
        self, wanted: Mapping[str, Sequence[str]], call: Callable[[list[str]], Sequence[WeightPatch]]
    ) -> list[WeightPatch]:
        """The patches of these changes, by id with the facts of each."""
        session = self.session
        found = compute(
            session.handle,
            session.folder,
            session.journal,
            wanted=wanted,
            task=self.part.task,
            operator=self.operator,
            source=self.source,
            seed=session.spec.seed,
            call=call,
        )
        session.changes += [change for _, change in found]
        return [patch for patch, _ in found]

    def _ask(self, arm: str, changed: Sequence[tuple[tuple[WeightPatch, ...], Sequence[Record]]]) -> None:
        """Put every probe's questions about the records to the model with and without the patches on."""
        session, watch = self.session, self.session.watch
        jobs = [
            Job(probe, record, patches)
            for patches, records in changed
            for record in records
            for probe in session.spec.probes
        ]
        watch.phase(f"{self.part.name}, {arm}: asking")
        verdicts = run_jobs(
            session.handle,
            jobs,
            seed=session.spec.seed,
            store=session.journal,
            max_new_tokens=session.spec.max_new_tokens,
            progress=watch.at,
        )
        session.judged += [Judged(self.part.name, self.part.task, arm, v) for of_job in verdicts for v in of_job]


# Results --


def _audit(session: Session, command: str, started: str, seconds: float) -> Audit:
    figures = tuple(_figures(session))
    return Audit(
        spec=session.spec.model_dump(mode="json"),
        environment=environment(session.handle) | {"popularity": _popularity_unit(session.base)},
        model=described(session.handle),
        facts=tuple(_fact_rows(session)),
        passed_over=session.chosen.passed_over,
        changes=tuple(session.changes),
        judged=tuple(session.judged),
        figures=figures,
        claims=tuple(_claims(session.spec, figures)),
        command=command,
        started=started,
        seconds=round(seconds, 1),
        notes=tuple(session.notes),
    )


def _figures(session: Session) -> Iterator[Figure]:
    strata = {entry.id: entry.stratum for entry in session.chosen.entries if entry.stratum}
    for operator, task, arm in dict.fromkeys((j.operator, j.task, j.arm) for j in session.judged):
        verdicts: list[Verdict] = [j.verdict for j in session.judged if (j.operator, j.arm) == (operator, arm)]
        rows: list[Row] = summarise(
            verdicts,
            task=task,
            level=session.spec.level,
            seed=session.spec.seed,
            strata=strata,  # type: ignore[arg-type]
        )
        yield from (Figure(operator, task, arm, row) for row in rows)


def _claims(spec: AuditSpec, figures: Sequence[Figure]) -> Iterator[Claim]:
    """Each declared demand on each arm that the metric is about."""
    for demand in spec.claims:
        metric = METRICS[demand.metric]
        for f in figures:
            whole = f.row.metric == demand.metric and f.row.stratum is None and f.row.variant is None
            if whole and metric.task in (f.task, "both") and (not demand.operators or f.operator in demand.operators):
                yield _claim(f, demand.at_least, demand.at_most, spec.level)


def _claim(figure: Figure, at_least: float | None, at_most: float | None, level: float) -> Claim:
    estimate = figure.row.after
    ruling = decide(estimate, at_least, at_most)
    bar = at_least if at_least is not None else 1 - (at_most or 0.0)
    needed = groups_needed(bar, level) if ruling is Ruling.UNDECIDED and 0 <= bar < 1 else None
    return Claim(
        figure.operator, figure.task, figure.arm, figure.row.metric, estimate, ruling, at_least, at_most, needed
    )


def _fact_rows(session: Session) -> Iterator[FactRow]:
    targets = {}
    if any(part.task == "edit" for part in session.spec.operators):
        for entry in session.chosen.entries:
            record = session.base.edit_record(entry, seed=session.spec.seed, known=session.chosen.known)
            targets[entry.id] = record.edit.target_new
    for entry in session.chosen.entries:
        fact = entry.fact
        yield FactRow(
            entry.id,
            fact.subject,
            fact.relation,
            fact.object,
            fact.prompt,
            targets.get(entry.id),
            entry.popularity,
            entry.stratum,
        )


def _popularity_unit(base: FactBase) -> str:
    units = dict.fromkeys(base.relations[e.relation].popularity for e in base.editable)
    return "; ".join(unit for unit in units if unit) or "none given"
