"""What an audit found, and the file that it is kept in while it is found.

`audit.jsonl` is a journal: one JSON object a line, only ever appended. Replies go in as they come, so a killed run
never asks an answered question again; cases, figures and claims go in at the end, behind a "results" line. Reading
takes what stands behind the last such line. A torn last line (a kill in mid-write) is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pydantic import TypeAdapter

from probes.ask import Key
from probes.estimate import Estimate, Ruling
from probes.metrics import Row
from probes.verdict import Reply, Verdict

FORMAT = "editkit-audit/1"
JOURNAL = "audit.jsonl"


class RecordError(ValueError):
    """A run folder whose record cannot be read; says which file and line."""


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
    parameters: tuple[str, ...]  # names of what moved
    relative_norm: float  # Frobenius norm of the change over that of the weights it is added to
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict and the arm it belongs to."""

    operator: str
    task: str
    arm: str
    verdict: Verdict


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

    def ruling(self) -> Ruling:
        """Of the audit as a whole: one failed claim fails it, one undecided leaves it undecided."""
        rulings = {claim.ruling for claim in self.claims}
        if Ruling.FAILS in rulings:
            return Ruling.FAILS
        return Ruling.UNDECIDED if Ruling.UNDECIDED in rulings or not rulings else Ruling.HOLDS


_PARTS = {"fact": FactRow, "change": Change, "judged": Judged, "figure": Figure, "claim": Claim}
_ADAPTERS: dict[str, TypeAdapter[Any]] = {kind: TypeAdapter(part) for kind, part in _PARTS.items()}
_REPLY = TypeAdapter(Reply)


class Journal:
    """The open `audit.jsonl` of a run; also the store of replies (probes.ask.ReplyStore)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = list(_read(path)) if path.exists() else []
        replies = (entry for entry in self._entries if entry["kind"] == "reply")
        self._replies = {Key(*entry["key"]): _REPLY.validate_python(entry["reply"]) for entry in replies}
        self._stream: TextIO | None = None

    def entries(self, kind: str) -> list[dict[str, Any]]:
        return [entry for entry in self._entries if entry["kind"] == kind]

    def append(self, kind: str, **body: Any) -> None:
        """Add a line; it is on its way to the disk when this returns."""
        entry = {"kind": kind, **body}
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_tail(self.path)
            self._stream = self.path.open("a", encoding="utf-8", newline="\n")
        self._stream.write(json.dumps(entry, allow_nan=False) + "\n")  # ASCII, so that lone surrogates can be kept
        self._stream.flush()
        self._entries.append(entry)

    def get(self, key: Key) -> Reply | None:
        return self._replies.get(key)

    def put(self, replies: Sequence[tuple[Key, Reply]]) -> None:
        for key, reply in replies:
            self._replies[key] = reply
            self.append("reply", key=list(key), reply=_REPLY.dump_python(reply, mode="json"))

    def finish(self, audit: Audit) -> None:
        """Write the results; the run is complete when this returns."""
        self.append("results", **_head(audit))
        for kind, item in _items(audit):
            self.append(kind, body=_ADAPTERS[kind].dump_python(item, mode="json"))
        self.append("end")
        assert self._stream is not None
        os.fsync(self._stream.fileno())
        self.close()

    @property
    def finished(self) -> bool:
        return bool(self._entries) and self._entries[-1]["kind"] == "end"

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


_HEAD = ("spec", "environment", "model", "passed_over", "command", "started", "seconds", "notes")


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
    entries = list(_read(path))
    starts = [place for place, entry in enumerate(entries) if entry["kind"] == "results"]
    if not starts or entries[-1]["kind"] != "end":
        raise RecordError(f"{path} is of a run that did not finish; run the same `editkit audit` command to resume it")
    head, rest = entries[starts[-1]], entries[starts[-1] + 1 : -1]
    if head.get("format") != FORMAT:
        raise RecordError(f"{path} has format {head.get('format')!r}, this version reads {FORMAT!r}")
    parts = {kind: [_ADAPTERS[kind].validate_python(e["body"]) for e in rest if e["kind"] == kind] for kind in _PARTS}
    return Audit(
        **{name: head[name] for name in _HEAD if name != "notes"},
        notes=tuple(head["notes"]),
        facts=tuple(parts["fact"]),
        changes=tuple(parts["change"]),
        judged=tuple(parts["judged"]),
        figures=tuple(parts["figure"]),
        claims=tuple(parts["claim"]),
    )


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Entries of the journal; a torn last line is passed over, any other broken line is an error."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            try:
                entry = json.loads(line)
            except ValueError as error:  # no JSON, or no UTF-8
                raise RecordError(f"{path}, line {number} is no JSON ({error}); the record is damaged") from None
            if not isinstance(entry, dict) or "kind" not in entry:
                raise RecordError(f"{path}, line {number} is no entry of a record; the record is damaged")
            yield entry


def _cut_torn_tail(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as stream:
        data = stream.read()
        if data and not data.endswith(b"\n"):
            stream.truncate(data.rfind(b"\n") + 1)
