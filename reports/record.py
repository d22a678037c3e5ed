"""What an audit found, and the file that it is kept in while it is found.

`audit.jsonl` is a journal: one JSON object a line, only ever appended. Replies go in as they come, so a killed run
never asks an answered question again; cases, figures and claims go in at the end, behind a "results" line. Reading
takes what stands behind the last such line. A torn last line (a kill in mid-write) is cut off.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pydantic import TypeAdapter, ValidationError

from probes.ask import Key
from probes.estimate import Estimate, Ruling
from probes.metrics import Row
from probes.verdict import Premise, Reply, Verdict
from reports.lines import RecordError, cut_torn_tail, damaged, finite, line_of, read_lines

FORMAT = "editkit-audit/1"
JOURNAL = "audit.jsonl"


@dataclass(frozen=True, slots=True)
class FactRow:
    """A fact that was changed. `popularity` has the unit that the data set's card states."""

    id: str
    subject: str
    relation: str
    object: str
    prompt: str
    target_new: str | None = None  # None: to be forgotten
    popularity: float | None = None
    stratum: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One patch that was computed. `arm` is "single" (one fact, rolled back after), "stacked" or "joint"."""

    id: str
    operator: str
    task: str  # "edit" | "unlearn"
    arm: str
    facts: tuple[str, ...]
    settings: Mapping[str, Any]
    settings_source: str
    seed: int
    digest: str
    file: str  # within the run folder, "" where it was not kept
    seconds: float
    parameters: tuple[str, ...]  # names of the parameters or modules that it changes
    relative_norm: float | None  # norm of the change over that of the unpatched weights it is added to, if any
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", finite(self.notes))  # as they will be read again


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict and the arm it belongs to."""

    operator: str
    task: str
    arm: str
    verdict: Verdict


def questions_of(judged: Iterable[Judged]) -> int:
    """How many questions these are: a prompt, asked about a fact in an arm, is one, however many probes judge it."""
    return len({(j.operator, j.arm, j.verdict.case.group, j.verdict.case.prompt, j.verdict.case.free) for j in judged})


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric's row and the arm it belongs to."""

    operator: str
    task: str
    arm: str
    row: Row


@dataclass(frozen=True, slots=True)
class Claim:
    """A declared demand and what the evidence says to it. `needed` is the number of facts that would be enough."""

    operator: str
    task: str
    arm: str
    metric: str
    estimate: Estimate
    ruling: Ruling
    at_least: float | None = None
    at_most: float | None = None
    needed: int | None = None


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything a report may tell. `passed_over` counts facts left out, by reason."""

    spec: Mapping[str, Any]
    environment: Mapping[str, Any]
    model: Mapping[str, Any]
    facts: tuple[FactRow, ...]
    passed_over: Mapping[str, int]
    changes: tuple[Change, ...]
    judged: tuple[Judged, ...]
    figures: tuple[Figure, ...]
    claims: tuple[Claim, ...]
    command: str = ""
    started: str = ""  # ISO 8601, UTC
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def arms(self) -> list[tuple[str, str, str]]:
        """(operator, task, arm) of all that was tried, in the order it was."""
        return list(dict.fromkeys((j.operator, j.task, j.arm) for j in self.judged))

    def questions(self) -> int:
        """How many questions were put to it before and after a change; two probes may judge the answer to one."""
        return questions_of(self.judged)

    def premises(self) -> list[tuple[Judged, Premise]]:
        """The premises of the questions, each once a fact and arm, with the first verdict that builds on it."""
        found: dict[tuple[str, str, str, str], tuple[Judged, Premise]] = {}
        for item in self.judged:
            for premise in item.verdict.premises:
                key = (item.operator, item.arm, premise.case.group, premise.case.prompt)
                found.setdefault(key, (item, premise))
        return list(found.values())

    def ruling(self) -> Ruling:
        """Of the audit as a whole: one failed claim fails it, one undecided leaves it undecided."""
        rulings = {claim.ruling for claim in self.claims}
        if Ruling.FAILS in rulings:
            return Ruling.FAILS
        return Ruling.UNDECIDED if Ruling.UNDECIDED in rulings or not rulings else Ruling.HOLDS


@dataclass(frozen=True, slots=True)
class _Head:
    """The fields of an audit that stand in the "results" line itself."""

    spec: Mapping[str, Any]
    environment: Mapping[str, Any]
    model: Mapping[str, Any]
    passed_over: Mapping[str, int]
    command: str
    started: str
    seconds: float
    notes: tuple[str, ...]


_PARTS = {"fact": FactRow, "change": Change, "judged": Judged, "figure": Figure, "claim": Claim}
_ADAPTERS: dict[str, TypeAdapter[Any]] = {kind: TypeAdapter(part) for kind, part in _PARTS.items()}
_REPLY = TypeAdapter(tuple[Key, Reply])
_RESULTS = TypeAdapter(_Head)


def part(kind: str, entry: Mapping[str, Any], path: Path) -> Any:
    """What an entry of the journal holds. Raises RecordError where it does not."""
    return _valid(_ADAPTERS[kind], entry.get("body"), entry, path)


def _reply(entry: Mapping[str, Any], path: Path) -> tuple[Key, Reply]:
    found: tuple[Key, Reply] = _valid(_REPLY, (entry.get("key"), entry.get("reply")), entry, path)
    return found


def _valid(adapter: TypeAdapter[Any], given: Any, entry: Mapping[str, Any], path: Path) -> Any:
    try:
        return adapter.validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecordError(damaged(path, entry, f"{place}: {first['msg']}" if place else first["msg"])) from None


class Journal:
    """The open `audit.jsonl` of a run; also the store of replies (probes.ask.ReplyStore)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = list(read_lines(path)) if path.exists() else []
        self._replies = dict(_reply(entry, path) for entry in self._entries if entry["kind"] == "reply")
        self._stream: TextIO | None = None
        self._opened, self._before = time.perf_counter(), _spent(self._entries)

    def entries(self, kind: str) -> list[dict[str, Any]]:
        return [entry for entry in self._entries if entry["kind"] == kind]

    def append(self, kind: str, **body: Any) -> None:
        """Add a line; it is on its way to the disk when this returns. `at`: seconds since the journal was opened."""
        entry = {"kind": kind, "at": round(time.perf_counter() - self._opened, 3), **body}
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cut_torn_tail(self.path)
            self._stream = self.path.open("a", encoding="utf-8", newline="\n")
        self._stream.write(line_of(entry))
        self._stream.flush()
        self._entries.append(entry)

    @property
    def started(self) -> str:
        """When the first session began, ISO 8601 in UTC; "" where none did."""
        return next((str(entry.get("started", "")) for entry in self.entries("session")), "")

    @property
    def seconds(self) -> float:
        """What all sessions of the run took together; of one that was killed, up to its last line."""
        return self._before + time.perf_counter() - self._opened

    def get(self, key: Key) -> Reply | None:
        return self._replies.get(key)

    def put(self, replies: Sequence[tuple[Key, Reply]]) -> None:
        for key, reply in replies:
            self._replies[key] = reply
            kept_key, kept = _REPLY.dump_python((key, reply), mode="json")
            self.append("reply", key=kept_key, reply=kept)
        self._sync()

    def _sync(self) -> None:
        """Have what was written on the disk."""
        if self._stream is not None:
            os.fsync(self._stream.fileno())

    def finish(self, audit: Audit) -> None:
        """Write the results; the run is complete when this returns."""
        self.append("results", **_head(audit))
        for kind, item in _items(audit):
            self.append(kind, body=_ADAPTERS[kind].dump_python(item, mode="json"))
        self.append("end")
        self._sync()
        self.close()

    @property
    def finished(self) -> bool:
        return bool(self._entries) and self._entries[-1]["kind"] == "end"

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


_HEAD = tuple(_Head.__slots__)


def _head(audit: Audit) -> dict[str, Any]:
    return {name: getattr(audit, name) for name in _HEAD} | {"format": FORMAT, "notes": list(audit.notes)}


def _items(audit: Audit) -> Iterator[tuple[str, Any]]:
    yield from (("fact", item) for item in audit.facts)
    yield from (("change", item) for item in audit.changes)
    yield from (("judged", item) for item in audit.judged)
    yield from (("figure", item) for item in audit.figures)
    yield from (("claim", item) for item in audit.claims)


def read_audit(folder: Path) -> Audit:
    """The audit of a finished run folder. Raises RecordError where there is none or it is damaged."""
    path = Path(folder) / JOURNAL
    if not path.is_file():
        raise RecordError(f"{folder} holds no {JOURNAL}; give the folder of an audit run")
    entries = list(read_lines(path))
    starts = [place for place, entry in enumerate(entries) if entry["kind"] == "results"]
    if not starts or entries[-1]["kind"] != "end":
        raise RecordError(f"{path} is of a run that did not finish; run the same `editkit audit` command to resume it")
    head, rest = entries[starts[-1]], entries[starts[-1] + 1 : -1]
    if head.get("format") != FORMAT:
        raise RecordError(f"{path} has format {head.get('format')!r}, this version reads {FORMAT!r}")
    results = _valid(_RESULTS, head, head, path)
    parts = {kind: [part(kind, entry, path) for entry in rest if entry["kind"] == kind] for kind in _PARTS}
    return Audit(
        **{name: getattr(results, name) for name in _HEAD},
        facts=tuple(parts["fact"]),
        changes=tuple(parts["change"]),
        judged=tuple(parts["judged"]),
        figures=tuple(parts["figure"]),
        claims=tuple(parts["claim"]),
    )


def _spent(entries: Iterable[Mapping[str, Any]]) -> float:
    """Seconds of all sessions; each begins with an entry of that kind."""
    total = last = 0.0
    for entry in entries:
        if entry["kind"] == "session":
            total, last = total + last, 0.0
        last = float(entry.get("at", last))
    return total + last
