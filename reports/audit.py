"""The main job: change a model, try to break the change, keep a record of it.

`run(spec, folder)` may be killed at any moment; called again it goes on from the record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from editkit.data import FactBase, load
from editkit.handle import ModelHandle
from editkit.settings import settings_of
from probes.estimate import Ruling, decide, groups_needed
from probes.metrics import METRICS, Row, summarise
from probes.verdict import Verdict
from reports.choose import select
from reports.environment import described, environment
from reports.outlook import check_own, look_ahead
from reports.record import Audit, Claim, FactRow, Figure, Journal, read_audit
from reports.render import write_reports
from reports.run_folder import begin, open_journal, settle, taken
from reports.spec import AuditSpec, resolved, settled
from reports.trial import Session, ask_unchanged, trial_of
from reports.watch import Silent, Watch


def run(spec: AuditSpec, folder: Path, *, watch: Watch | None = None, command: str = "", fresh: bool = False) -> Audit:
    """Run the audit, or go on with it, and write the reports into `folder`.

    Facts are read and checked before the model is loaded. A finished run is only rendered again; `fresh` begins anew.
    Raises DataError, SpecError (bad input), ModelError, OSError (model or machine).
    """
    seen, watch, spec = watch is not None, watch or Silent(), resolved(spec)
    base = load(spec.facts.source)
    with taken(folder):
        journal = open_journal(spec, folder, fresh=fresh)
        if journal.finished:
            audit = read_audit(folder)
        else:
            audit = _made(spec, folder, base, journal, watch, command, seen=seen)
            journal.finish(audit)
        watch.phase("Writing the reports")
        write_reports(audit, folder)
    return audit


def _made(
    spec: AuditSpec, folder: Path, base: FactBase, journal: Journal, watch: Watch, command: str, *, seen: bool
) -> Audit:
    """The run itself; the model is given up at its end, before the reports want memory. Its plan is made where it is
    `seen`."""
    watch.phase(f"Loading {spec.model.name}")
    handle = ModelHandle.load(spec.model.name, spec.model.options())
    begin(journal, spec, folder, handle)
    if arms := {arm for part in spec.operators if part.task == "edit" for arm in part.arms}:
        check_own(handle, base, spec, watch, one_by_one="joint" not in arms)
    chosen = select(handle, base, spec, journal, watch)
    session = Session(spec, folder, handle, base, journal, watch, chosen)
    trials = [trial_of(session, part) for part in spec.operators]  # all configured before the first is tried
    whole = settled(spec, {trial.part.name: settings_of(trial.operator) for trial in trials})
    settle(journal, whole, folder)
    if seen:
        look_ahead(session, trials)
    ask_unchanged(session, trials)
    for trial in trials:
        trial.run()
    return _audit(session, whole, command)


# Results --


def _audit(session: Session, spec: AuditSpec, command: str) -> Audit:
    figures = tuple(_figures(session))
    read = {"popularity": _popularity_unit(session.base), "facts": f"{spec.facts.source}, sha256 {spec.facts.sha256}"}
    return Audit(
        spec=spec.model_dump(mode="json"),
        environment=environment(session.handle) | read,
        model=described(session.handle),
        facts=tuple(_fact_rows(session)),
        passed_over=session.chosen.passed_over,
        changes=tuple(session.changes),
        judged=tuple(session.judged),
        figures=figures,
        claims=tuple(_claims(spec, figures)),
        command=command,
        started=session.journal.started,
        seconds=round(session.journal.seconds, 1),
        notes=(*session.notes, *spec.unclaimed()),
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
