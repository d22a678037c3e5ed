"""One operator on trial: its arms, each made, asked about and rolled back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editkit.data import FactBase
from editkit.errors import MethodError
from editkit.facts import EditRecord, ForgetRecord, ForgetRequest, Record
from editkit.handle import ModelHandle
from editkit.memory import give_back
from editkit.operators import each_that_can
from editkit.patch import Patch
from editkit.training import TrainStep
from probes.ask import Job, run_jobs
from probes.verdict import Verdict
from reports.changes import Computed, compute
from reports.choose import Chosen
from reports.operators import operator_of
from reports.record import Change, Journal, Judged
from reports.spec import AuditSpec, OperatorPart
from reports.watch import Watch
from reports.wording import arm_title


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


def trial_of(session: Session, part: OperatorPart) -> Trial:
    make = session.base.edit_record if part.task == "edit" else session.base.forget_record
    entries = session.chosen.entries[: session.spec.number(part)]
    records = [make(entry, seed=session.spec.seed, known=session.chosen.known) for entry in entries]
    subjects = {record.fact.subject for record in records}
    operator, source = operator_of(part, session.handle, subjects, session.spec.seed, session.watch)
    return Trial(session, part, operator, source, records)


def ask_unchanged(session: Session, trials: Sequence[Trial]) -> None:
    """Put all questions of all arms to the unchanged model, so that each is read once with all that is to be scored."""
    session.watch.phase("Asking the unchanged model")
    jobs = [Job(probe, record) for trial in trials for record in trial.records for probe in session.spec.probes]
    _asked(session, jobs)


def _asked(session: Session, jobs: Sequence[Job]) -> list[list[Verdict]]:
    give_back()
    return run_jobs(
        session.handle,
        jobs,
        seed=session.spec.seed,
        store=session.journal,
        max_new_tokens=session.spec.max_new_tokens,
        progress=session.watch.at,
    )


@dataclass(frozen=True, slots=True)
class Trial:
    """One operator on its records."""

    session: Session
    part: OperatorPart
    operator: Any
    source: str
    records: Sequence[Any]  # EditRecord or ForgetRecord, as the task has it
    alone: dict[tuple[str, str], Patch] = field(default_factory=dict)  # by model state and fact

    def run(self) -> None:
        """Every arm of the operator."""
        arms: dict[str, Callable[[Sequence[Any]], None]]
        arms = {"single": self.single, "stacked": self.stacked, "joint": self.joint}
        for arm in self.part.arms:
            arms[arm](self.records)

    def single(self, records: Sequence[EditRecord]) -> None:
        """Each edit by itself: made, asked about, rolled back."""
        handle = self.session.handle
        self.session.watch.phase(f"{self.part.name}, one at a time", len(records))
        found = self._each(records)
        self.session.changes += [change for _, change in found.made.values()]
        self.session.watch.step(len(records))
        self._pass_over("single", self._by_fact("single", found.failed), len(records))
        by_id = {self._id("single", record.id): record for record in records}
        made = [((patch,), [by_id[change_id]]) for change_id, (patch, _) in found.made.items()]
        self.alone.update({(handle.state, record.id): patch for (patch,), [record] in made})
        self._ask("single", made)

    def _each(self, records: Sequence[EditRecord]) -> Computed:
        """Each edit by itself in the unchanged model, as the single arm makes it."""
        by_id = {self._id("single", record.id): record for record in records}

        def call(missing: list[str]) -> list[Patch | MethodError]:
            edits, seed = [by_id[each].edit for each in missing], self.session.spec.seed
            return each_that_can(self.operator, self.session.handle, edits, seed=seed, progress=self._told(""))

        return self._computed({change_id: [record.id] for change_id, record in by_id.items()}, call)

    def stacked(self, records: Sequence[EditRecord]) -> None:
        """All edits, each made on top of those before; then everything is asked."""
        handle, seed = self.session.handle, self.session.spec.seed
        self.session.watch.phase(f"{self.part.name}, stacked", len(records))
        made: list[tuple[Patch, EditRecord]] = []
        failed: dict[str, str] = {}
        for record in records:

            def call(_: list[str], record: EditRecord = record) -> list[Patch | MethodError]:
                if there := self.alone.get((handle.state, record.id)):  # the first one of the stack was made alone
                    return [there]
                told = self._told(f"{record.id}: ")
                return each_that_can(self.operator, handle, [record.edit], seed=seed, progress=told)

            with handle.patched(*(patch for patch, _ in made)):
                found = self._kept({self._id("stacked", record.id): [record.id]}, call)
            made += [(patch, record) for patch, _ in found.made.values()]
            failed |= self._by_fact("stacked", found.failed)
            self.session.watch.step(note=record.id)
        self._pass_over("stacked", failed, len(records))
        self._ask("stacked", [(tuple(patch for patch, _ in made), [record for _, record in made])])

    def _fails(self, arm: str, found: Computed) -> MethodError:
        return MethodError(f"{arm_title(self.part.name, arm)}: {'; '.join(found.failed.values())}")

    def _by_fact(self, arm: str, failed: Mapping[str, str]) -> dict[str, str]:
        return {change_id.removeprefix(self._id(arm, "")): text for change_id, text in failed.items()}

    def _pass_over(self, arm: str, failed: Mapping[str, str], of: int) -> None:
        """Note the facts, by id, that the operator found no edit for. Raises MethodError where none is left."""
        title = arm_title(self.part.name, arm)
        if len(failed) == of:
            raise MethodError(f"{title}: no fact could be edited; the first of {of}: {next(iter(failed.values()))}")
        for fact, text in failed.items():
            note = f"{title}: could not edit {fact!r}, which is passed over there: {text}"
            self.session.notes.append(note)
            self.session.watch.say(note)

    def joint(self, records: Sequence[Any]) -> None:
        """One change for all facts; of edits that fail together, for those that can be made by themselves."""
        found = self._together("all", records)
        if found.failed:
            records = self._that_can(records, found)
            found = self._together("rest", records)
        if found.failed:
            raise self._fails("joint", found)
        self._ask("joint", [(tuple(patch for patch, _ in found.made.values()), records)])

    def _together(self, name: str, records: Sequence[Any]) -> Computed:
        """The one change for these facts, or what the operator says of edits that it cannot make together."""
        edit, seed = self.part.task == "edit", self.session.spec.seed
        doing = f"editing {len(records)} facts at once" if edit else f"forgetting {len(records)} facts"
        self.session.watch.phase(f"{self.part.name}, {doing}")
        request = [record.edit for record in records] if edit else self._request(records)
        progress = self._told("") if edit else self._trained

        def call(_: list[str]) -> list[Patch | MethodError]:
            try:
                return [self.operator(self.session.handle, request, seed=seed, progress=progress)]
            except MethodError as error:
                if edit:
                    return [error]
                raise

        return self._kept({self._id("joint", name): [record.id for record in records]}, call)

    def _that_can(self, records: Sequence[EditRecord], whole: Computed) -> list[EditRecord]:
        """The facts that can be edited by themselves; the others are passed over. Raises MethodError where each can, or
        none. Those that the single arm has not tried are tried now: it takes long, so not before all together failed.
        """
        self.session.watch.phase(f"{self.part.name}, looking for facts that it cannot edit")
        failed = self._by_fact("single", self._each(records).failed)
        if not failed:
            raise self._fails("joint", whole)
        self._pass_over("joint", failed, len(records))
        return [record for record in records if record.id not in failed]

    def _request(self, records: Sequence[ForgetRecord]) -> ForgetRequest:
        spec, ids = self.session.spec, [record.id for record in records]
        retain = self.session.base.retain_examples(ids, spec.facts.retain, spec.seed, self.session.chosen.known)
        return ForgetRequest(tuple(example for record in records for example in record.examples), retain)

    def _trained(self, step: TrainStep) -> None:
        self.session.watch.at(step.steps, step.step)
        self.session.watch.step(0, note=f"forget {step.forget:.2f}, retain {step.retain:.2f}")

    def _told(self, whose: str) -> Callable[[str, int, int], None]:
        return lambda what, done, total: self.session.watch.step(0, note=f"{whose}{what} {done}/{total}")

    def _id(self, arm: str, name: str) -> str:
        return f"{self.part.name}/{arm}/{name}"

    def _kept(
        self, wanted: Mapping[str, Sequence[str]], call: Callable[[list[str]], Sequence[Patch | MethodError]]
    ) -> Computed:
        """The patches of these changes, by id with the facts of each; they go into the record."""
        found = self._computed(wanted, call)
        self.session.changes += [change for _, change in found.made.values()]
        return found

    def _computed(
        self, wanted: Mapping[str, Sequence[str]], call: Callable[[list[str]], Sequence[Patch | MethodError]]
    ) -> Computed:
        session = self.session
        give_back()
        return compute(
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

    def _ask(self, arm: str, changed: Sequence[tuple[tuple[Patch, ...], Sequence[Record]]]) -> None:
        """Put every probe's questions about the records to the model with and without the patches on."""
        session, watch = self.session, self.session.watch
        jobs = [
            Job(probe, record, patches)
            for patches, records in changed
            for record in records
            for probe in session.spec.probes
        ]
        watch.phase(f"{self.part.name}, {arm}: asking")
        verdicts = _asked(session, jobs)
        session.judged += [Judged(self.part.name, self.part.task, arm, v) for of_job in verdicts for v in of_job]
