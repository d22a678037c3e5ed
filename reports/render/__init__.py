"""One file a format: `render(document, audit) -> str`, registered under the file's stem.

Renderers own escaping: every text of a Document is hostile to them. The files of this folder are read on the first
look-up in `RENDERERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from editkit.files import write_text
from editkit.registry import Registry
from reports.cases import CASES, write_cases
from reports.document import Document
from reports.record import Audit
from reports.sections import build

RENDERERS: Registry[Callable[[Document, Audit], str]] = Registry("renderer", "reports.render")
EXTENSIONS = {"markdown": "md"}  # where it is not the name


def write_reports(audit: Audit, folder: Path) -> list[Path]:
    """Write report.html, report.json, report.md and cases.parquet into `folder`; each appears whole or not at all.

    Returns their paths. All formats are rendered before the first file is written.
    """
    document = build(audit)
    texts = {name: render(document, audit) for name, render in RENDERERS.items()}
    paths = []
    for name, text in texts.items():
        path = Path(folder) / f"report.{EXTENSIONS.get(name, name)}"
        write_text(path, text)
        paths.append(path)
    write_cases(audit, Path(folder) / CASES)
    return [*paths, Path(folder) / CASES]
