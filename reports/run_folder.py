"""The folder of a run: whose it is, and whether a run may go on in it."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from editkit.errors import InputError
from editkit.files import stamp_of, write_text
from editkit.handle import ModelHandle
from reports.environment import CODE
from reports.record import JOURNAL, Journal, RecordError
from reports.spec import AuditSpec, to_toml

LOCK = ".lock"


def default_folder(spec: AuditSpec) -> Path:
    """runs/<slug>-<key>: the same command on the same facts and model finds the same folder again, so it resumes.

    The spec is a resolved one.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", "-".join([Path(spec.model.name).name, *(o.name for o in spec.operators)]).lower())
    key = hashlib.sha256(f"{spec.key()} {_stamp(spec)}".encode()).hexdigest()
    return Path("runs") / f"{slug.strip('-')[:60]}-{key[:8]}"


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """The folder is there and this process's alone within the block, however it ends. Raises InputError where it is a
    file or another's, OSError where it cannot be written to."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder to --out")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)  # the system frees it when the process dies
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another editkit is at work in {folder}; wait for it, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()


def open_journal(spec: AuditSpec, folder: Path, *, fresh: bool = False) -> Journal:
    """The journal of a new run, or of one to go on with. A folder of another spec, other facts or another model is
    refused; a record made by other code is set aside, for its answers may not be those that this code would get."""
    path = folder / JOURNAL
    if fresh and path.exists():
        _set_aside(folder, "replaced")
    journal = Journal(path)
    header = next(iter(journal.entries("header")), None)
    if header is None:
        return journal if not path.exists() else _anew(folder, "headless")
    _check(header, journal, spec, folder)
    return journal if header["code"] == CODE else _anew(folder, "other-code")


def _check(header: dict[str, Any], journal: Journal, spec: AuditSpec, folder: Path) -> None:
    way_out = "choose another --out, or pass --fresh to replace it"
    facts = {"source": spec.facts.source, "sha256": spec.facts.sha256}
    began = header.get("facts", facts)
    if began != facts and began["source"] == spec.facts.source:
        raise RecordError(f"{folder} holds a run on {spec.facts.source} as it was before it was changed; {way_out}")
    if spec.key() not in {header["spec"], *(entry["spec"] for entry in journal.entries("settled"))}:
        raise RecordError(f"{folder} holds a run of another spec; {way_out}")
    if header.get("model", _stamp(spec)) != _stamp(spec):
        raise RecordError(f"{folder} holds a run on {spec.model.name} as it was before it was changed; {way_out}")


def _stamp(spec: AuditSpec) -> str:
    """Of a model's folder or file, "" for one that lies elsewhere: its weights are compared when it is loaded."""
    path = Path(spec.model.name)
    return stamp_of(path) if path.is_absolute() and path.exists() else ""


def _anew(folder: Path, why: str) -> Journal:
    _set_aside(folder, why)
    return Journal(folder / JOURNAL)


def _set_aside(folder: Path, why: str) -> None:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    (folder / JOURNAL).rename(folder / f"audit-{why}-{stamp}.jsonl")
    shutil.rmtree(folder / "patches", ignore_errors=True)


def begin(journal: Journal, spec: AuditSpec, folder: Path, handle: ModelHandle) -> None:
    """Write the header of a new run, or check that a resumed one has the same weights, config and tokenizer."""
    header = next(iter(journal.entries("header")), None)
    model = {"weights": handle.base_digest, "setup": handle.setup_digest}
    for part, other in (("weights", "set of weights"), ("setup", "config or tokenizer")):
        if header is not None and header[part] != model[part]:
            raise RecordError(f"{folder} was begun with another {other} of {handle.name!r}; pass --fresh to begin anew")
    journal.append("session", started=datetime.now(UTC).isoformat(timespec="seconds"))
    if header is None:
        facts = {"source": spec.facts.source, "sha256": spec.facts.sha256}
        journal.append("header", spec=spec.key(), code=CODE, **model, model=_stamp(spec), facts=facts)


def settle(journal: Journal, spec: AuditSpec, folder: Path) -> None:
    """Write the spec with all settings that are used: it goes on with this run as well."""
    write_text(folder / "spec.toml", to_toml(spec))
    if spec.key() not in {entry["spec"] for entry in journal.entries("settled")}:
        journal.append("settled", spec=spec.key())
