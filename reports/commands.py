"""What `editkit edit`, `unlearn` and `probe` do."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from rich.text import Text

from editkit.data import FactBase, is_file, load
from editkit.drift import drift
from editkit.entries import Entry
from editkit.errors import InputError, MethodError
from editkit.facts import ForgetRequest, Record
from editkit.handle import ModelHandle
from editkit.operators import each_that_can
from editkit.patch import Patch, WeightPatch, load_patch
from editkit.preflight import LARGE_CHANGE, searched
from probes.ask import Job, MemoryStore, run_probes
from probes.kinds import PROBES, Context
from probes.metrics import summarise
from probes.verdict import Class, Verdict
from reports.choose import Chosen, in_order, select
from reports.console import out, table
from reports.operators import operator_of
from reports.outlook import LONG, check_own
from reports.planning import show_plan
from reports.present import clean
from reports.saving import PATCH_FILE, check_save, save_change
from reports.spec import AuditSpec, OperatorPart
from reports.watch import Watch
from reports.wording import CLASSES, metric_title, named, plural, probe_title, told, variant_title


def plan(spec: AuditSpec, watch: Watch, *, on: Sequence[Path] = (), without: Sequence[str] = ()) -> None:
    """Say what editing all facts would take, and what stands against it; nothing is saved."""
    _check_task(spec, "edit")
    case = _Opened.of("edit", spec, watch, on=on, without=without)
    operator, source = case.operator()
    show_plan(case.handle, operator, source, case.records, spec.seed, watch)
    _print(case.which())


def change(
    task: str,
    spec: AuditSpec,
    save: Path,
    watch: Watch,
    *,
    on: Sequence[Path] = (),
    without: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Compute one patch for all facts, put it on, ask for the facts, and save checkpoint and patch in one folder.

    `on` are patches that come first, oldest first; `without` digests of such as may be lacking below them. Facts that
    the operator finds no edit for are passed over, and the patch says so in its notes. What cannot be saved is refused
    before a model is loaded. Exit code 0 says that it was saved, not that it took.
    """
    part = _check_task(spec, task)
    check_save(save, spec, overwrite=overwrite)
    case = _Opened.of(task, spec, watch, on=on, without=without)
    operator, source = case.operator()
    if task == "edit":
        long = len(case.records) >= LONG  # of facts that are refused the run itself tells
        show_plan(case.handle, operator, source, case.records, spec.seed, watch, trial=long, strict=False)
    watch.phase(f"{part.name} on {plural(len(case.records), 'fact')}")
    if task == "edit":
        patch, failed = _edited(operator, case)
    else:
        patch, failed = operator(case.handle, _to_forget(case), seed=spec.seed, progress=_training(watch)), {}
    case = case.but(failed)
    watch.phase("Asking the changed model")
    verdicts = case.verdicts(patch, ["rewrite"])
    watch.phase("Saving")
    save_change(case.handle, patch, save)
    _print(
        (
            f"{part.name} ({source}) on {plural(len(case.records), 'fact')}: {save}",
            *_moved(case.handle, patch),
            *_patch_alone(patch, case.handle),
            *case.which(),
            took(task, verdicts),
            *(case.hint() if 2 * _taken(task, verdicts) < len(verdicts) else ()),
        )
    )


def _check_task(spec: AuditSpec, task: str) -> OperatorPart:
    """The spec's one operator. Raises InputError for one of the other command."""
    [part] = spec.operators
    if part.task != task:
        raise InputError(f"{part.name!r} is an operator for `editkit {part.task}`; `editkit list operators` shows all")
    return part


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        out.print(Text(clean(line)), soft_wrap=True)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A model, and the facts of a spec that are chosen for it."""

    spec: AuditSpec
    watch: Watch
    handle: ModelHandle
    base: FactBase
    chosen: Chosen
    records: Sequence[Any]  # EditRecord or ForgetRecord, as the task has it
    store: MemoryStore
    failed: Mapping[str, str] = field(default_factory=dict)  # what the operator says of facts it cannot edit, by id

    @classmethod
    def of(
        cls,
        task: str,
        spec: AuditSpec,
        watch: Watch,
        patch: Patch | None = None,
        *,
        on: Sequence[Path] = (),
        without: Sequence[str] = (),
    ) -> _Opened:
        """Load the model, put `on` on it, which may lack the patches `without`, and choose the facts. A patch that does
        not fit there is refused before anything is asked."""
        patches = [load_patch(file) for file in on]
        base = load(spec.facts.source)
        watch.phase(f"Loading {spec.model.name}")
        handle = ModelHandle.load(spec.model.name, spec.model.options())
        handle.waive(*without)
        for below in patches:
            handle.apply(below)
        if patch is not None:
            with handle.patched(patch):
                pass
        if task == "edit":
            check_own(handle, base, spec, watch, one_by_one=False)
        store = MemoryStore()
        chosen = select(handle, base, spec, store, watch)
        return cls(spec, watch, handle, base, chosen, _records(task, base, spec, chosen.entries, chosen.known), store)

    def operator(self) -> tuple[Any, str]:
        """The spec's one operator, and where its settings come from."""
        subjects = {record.fact.subject for record in self.records}
        return operator_of(self.spec.operators[0], self.handle, subjects, self.spec.seed, self.watch)

    def verdicts(self, patch: Patch, probes: Sequence[str]) -> list[Verdict]:
        """What the probes find of the patch."""
        return run_probes(
            self.handle,
            [patch],
            [Job(name, record) for record in self.records for name in probes],
            seed=self.spec.seed,
            store=self.store,
            progress=self.watch.at,
            max_new_tokens=self.spec.max_new_tokens,
        )

    def but(self, failed: Mapping[str, str]) -> _Opened:
        """Without the facts that the operator cannot edit."""
        return replace(self, records=[each for each in self.records if each.id not in failed], failed=failed)

    def which(self) -> Iterator[str]:
        """Which facts were taken, and which of those that might have been were not, and why."""
        name = self.spec.operators[0].name
        yield f"Facts: {named(self.records)}."
        for fact_id, text in self.failed.items():
            yield f"Passed over, for {name} finds no edit: {named([self.base[fact_id]])}: {text}."
        order = in_order(self.base, self.spec)
        unknown = [entry for entry in order if entry.id not in self.chosen.known]
        passed = unknown[: sum(self.chosen.passed_over.values())]  # those asked are the first of the order
        if passed:
            why = f"{'; '.join(self.chosen.passed_over)} (with --all-facts they may be changed too)"
            yield f"{plural(len(passed), 'fact')} passed over: {why}: {named(passed)}."
        there = {entry.id for entry in (*self.chosen.entries, *passed)}
        spare = [entry for entry in order if entry.id not in there]
        if spare and is_file(self.spec.facts.source):
            yield f"{plural(len(spare), 'fact')} left out by --n: {named(spare)}."

    def hint(self) -> Iterator[str]:
        """What may help where the operator's settings do not suit the model."""
        [part] = self.spec.operators
        if part.task == "edit" and part.preset == "published" and searched(self.handle, self.operator()[0]):
            yield f"The settings may not suit this model: --preset auto searches some for {part.name} on it."


def _edited(operator: Any, case: _Opened) -> tuple[Patch, dict[str, str]]:
    """One patch for all facts but those that the operator cannot edit even by themselves, and what it says of these, by
    id. Raises MethodError where none is left, or none fails by itself.

    Each is tried by itself only where they fail together: that takes as long again.
    """
    by_id = {record.id: record.edit for record in case.records}
    options: dict[str, Any] = {"seed": case.spec.seed, "progress": _steps(case.watch)}
    try:
        return operator(case.handle, [*by_id.values()], **options), {}
    except MethodError as error:
        whole = error
    name, found = case.spec.operators[0].name, list[Patch | MethodError]([whole])
    if len(by_id) > 1:
        case.watch.phase(f"Looking for facts that {name} cannot edit")
        found = each_that_can(operator, case.handle, [*by_id.values()], **options)
    failed = {each: str(made) for each, made in zip(by_id, found, strict=True) if isinstance(made, MethodError)}
    if not failed:
        raise whole
    if len(failed) == len(by_id):
        text = f"{name}: no fact could be edited; the first of {len(by_id)}: {next(iter(failed.values()))}"
        raise MethodError(". ".join((text, *case.hint())).rstrip(".")) from whole
    left = [edit for fact_id, edit in by_id.items() if fact_id not in failed]
    case.watch.phase(f"{name} on the other {plural(len(left), 'fact')}")
    return _noted(operator(case.handle, left, **options), failed), failed


def _noted(patch: Patch, failed: Mapping[str, str]) -> Patch:
    """The patch with what was passed over in its notes; one of another make than a dataclass stays as it is."""
    if not is_dataclass(patch):
        return patch
    notes = {**patch.provenance.notes, "passed_over": dict(failed)}
    noted: Patch = replace(patch, provenance=replace(patch.provenance, notes=notes))
    return noted


def _moved(handle: ModelHandle, patch: Patch) -> Iterator[str]:
    found = drift(handle, patch)
    if found is not None:
        below = f", with the patches below it by {found.together:.1%}" if found.below else ""
        yield f"The changed weights moved by {found.own:.1%} of their norm{below}."
        if found.together > LARGE_CHANGE:
            yield "That is so far that the model forgets what it knew besides; see norm_bound and prune."


def _patch_alone(patch: Patch, handle: ModelHandle) -> Iterator[str]:
    own = isinstance(patch, WeightPatch)
    if not own or not handle.only_weights:
        why = "A patch below this one is no change of weights" if own else "The weights stay as they are"
        yield f"{why}, so the folder holds the patch alone ({PATCH_FILE}) and no checkpoint."


def _records(
    task: str, base: FactBase, spec: AuditSpec, entries: Iterable[Entry], known: Container[str] | None = None
) -> list[Record]:
    make = base.edit_record if task == "edit" else base.forget_record
    return [make(entry, seed=spec.seed, known=known) for entry in entries]


def _to_forget(case: _Opened) -> ForgetRequest:
    ids, spec = [record.id for record in case.records], case.spec
    retain = case.base.retain_examples(ids, spec.facts.retain, spec.seed, case.chosen.known)
    return ForgetRequest(tuple(example for record in case.records for example in record.examples), retain)


def _steps(watch: Watch) -> Any:
    return lambda what, done, total: watch.step(0, note=f"{what} {done}/{total}")


def _training(watch: Watch) -> Any:
    return lambda step: watch.at(step.steps, step.step)


def took(task: str, verdicts: Sequence[Verdict]) -> str:
    """What the changed model answers at the facts' own prompts, in a sentence or more."""
    count = _taken(task, verdicts)
    babble = sum(v.class_after is Class.DEGENERATE for v in verdicts)
    give = "gives" if count == 1 else "give"
    does = f"{give} the new answer" if task == "edit" else f"no longer {give} the old answer"
    sentences = [f"{count} of {plural(len(verdicts), 'fact')} {does}, asked by the fact's own prompt."]
    if babble:
        sentences.append(f"Degenerate text comes for {babble} of them.")
    if not count:
        sentences.append("The change did not take: what was saved does not do what was asked.")
    return " ".join(sentences)


def _taken(task: str, verdicts: Sequence[Verdict]) -> int:
    gone = (Class.OLD, Class.DEGENERATE)
    return sum(v.class_after is Class.NEW if task == "edit" else v.class_after not in gone for v in verdicts)


# Probing --


def probe(
    task: str, spec: AuditSpec, patch: Path, watch: Watch, *, on: Sequence[Path] = (), without: Sequence[str] = ()
) -> None:
    """Ask the questions before and after a patch, on top of the patches `on`; those named `without` may be lacking."""
    read = load_patch(patch)
    case = _Opened.of(task, spec, watch, read, on=on, without=without)
    watch.phase("Asking")
    verdicts = case.verdicts(read, spec.probes)
    rows = [
        (*_named(v.case.probe, v.case.variant), v.case.prompt, v.answer.before.text, v.answer.after.text,
         CLASSES[v.class_after])
        for v in verdicts
    ]  # fmt: skip
    table("Questions", ("probe", "variant", "prompt", "before", "after", "it is"), rows)
    figures = summarise(verdicts, task=task, level=spec.level, seed=spec.seed)  # type: ignore[arg-type]
    whole = [f for f in figures if f.stratum is None and f.variant is None and f.after.value is not None]
    shown = [(metric_title(f.metric), told(f.before) if f.before else "", told(f.after)) for f in whole]
    table("Figures", ("metric", "before", "after"), shown)


def listed(task: str, spec: AuditSpec, watch: Watch) -> None:
    """List the questions that can be had without a model: the first round of each probe, whether or not it knows the
    facts."""
    base = load(spec.facts.source)
    entries = in_order(base, spec)[: spec.number(spec.operators[0])]
    context = Context(spec.seed)
    cases = [
        case
        for record in _records(task, base, spec, entries)
        for name in spec.probes
        for case in next(PROBES[name](record, context), [])
    ]
    rows = [(*_named(case.probe, case.variant), case.prompt) for case in cases]
    distinct = len({(case.group, case.prompt) for case in cases})
    again = f", in {plural(len(cases), 'case')}" if distinct < len(cases) else ""
    table("Questions", ("probe", "variant", "prompt"), rows)
    note = "No model was asked: it may not know some of these facts, and which words are key words only it can tell."
    out.print(Text(f"{plural(distinct, 'question')}{again}. {note} With --patch all are asked."), soft_wrap=True)


def _named(probe: str, variant: str) -> tuple[str, str]:
    return probe_title(probe), variant_title(variant)
