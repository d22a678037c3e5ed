"""What `editkit edit`, `unlearn` and `probe` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from editkit.data import FactBase, load
from editkit.entries import Entry
from editkit.facts import ForgetRequest, Record
from editkit.files import atomic_folder
from editkit.handle import ModelHandle
from editkit.models import LoadOptions
from editkit.operators import configured, operator_class
from editkit.patch import WeightPatch
from probes.ask import Job, run_probes
from probes.kinds import PROBES
from probes.metrics import summarise
from reports.choose import spread
from reports.console import out, table
from reports.watch import Watch
from reports.wording import told

PATCH_FILE = "editkit_patch.safetensors"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user of the command line asked for."""

    task: str
    facts: str
    operator: str
    model: str
    n: int | None
    seed: int
    device: str
    dtype: str
    allow_pickle: bool
    trust_remote_code: bool

    def entries(self, base: FactBase) -> list[Entry]:
        """The facts in the order of a user's file; of a shipped data set, `n` spread by seed."""
        entries = list(base.editable) if base.own else spread(base.editable, self.seed)
        if self.n and self.n > len(entries):
            raise ValueError(f"asked for {self.n} facts, {self.facts} has {len(entries)}; use --n {len(entries)}")
        if not base.own and not self.n:
            raise ValueError(f"{self.facts!r} has {len(entries)} facts; say how many with --n")
        return entries[: self.n]

    def handle(self) -> ModelHandle:
        options = LoadOptions(self.device, self.dtype, None, self.allow_pickle, self.trust_remote_code)
        return ModelHandle.load(self.model, options)

    def records(self, base: FactBase) -> list[Record]:
        make = base.edit_record if self.task == "edit" else base.forget_record
        return [make(entry, seed=self.seed) for entry in self.entries(base)]


def change(wish: Wish, save: Path, watch: Watch) -> None:
    """Compute one patch for all facts, put it on, and save checkpoint and patch in one folder."""
    task, _ = operator_class(wish.operator)
    if task != wish.task:
        raise ValueError(f"{wish.operator!r} is an operator for `editkit {task}`; `editkit list operators` shows all")
    base = load(wish.facts)
    records = wish.records(base)
    watch.phase(f"Loading {wish.model}")
    handle = wish.handle()
    operator, source = configured(wish.operator, handle)
    watch.phase(f"{wish.operator} on {len(records)} facts")
    patch = operator(handle, _request(wish, base, records), seed=wish.seed)
    watch.phase("Saving")
    with handle.patched(patch), atomic_folder(save) as folder:
        handle.save(folder / "model")
        for file in (folder / "model").iterdir():
            file.rename(folder / file.name)
        (folder / "model").rmdir()
        patch.save(folder / PATCH_FILE)
    out.print(Text(f"{wish.operator} ({source}) on {len(records)} facts: {save}"), soft_wrap=True)


def _request(wish: Wish, base: FactBase, records: Sequence[Record]) -> object:
    if wish.task == "edit":
        return [record.edit for record in records]  # type: ignore[union-attr]
    retain = base.retain_examples([record.id for record in records], 2 * len(records) + 16, wish.seed)
    return ForgetRequest(tuple(e for r in records for e in r.examples), retain)  # type: ignore[union-attr]


def probe(wish: Wish, patch: Path | None, names: Sequence[str], watch: Watch) -> None:
    """Ask the questions before and after a patch; without one, only list them."""
    for name in names:
        PROBES[name]
    base = load(wish.facts)
    records = wish.records(base)
    handle = wish.handle()
    patches = [WeightPatch.load(patch)] if patch else []
    jobs = [Job(name, record) for record in records for name in (names or PROBES.names())]
    watch.phase("Asking")
    verdicts = run_probes(handle, patches, jobs, seed=wish.seed, progress=watch.at)
    rows = [
        (v.case.probe, v.case.variant, v.case.prompt, v.answer.before.text, v.answer.after.text, v.class_after.value)
        for v in verdicts
    ]
    table("Questions", ("probe", "variant", "prompt", "before", "after", "class"), rows)
    figures = summarise(verdicts, task=wish.task, seed=wish.seed)  # type: ignore[arg-type]
    whole = [f for f in figures if f.stratum is None and f.variant is None and f.after.value is not None]
    before = [(f.metric, told(f.before) if f.before else "", told(f.after)) for f in whole]
    table("Figures", ("metric", "before", "after"), before)
