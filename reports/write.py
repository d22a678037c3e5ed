"""The files of a report, from an audit and nothing else: `editkit report` writes them again without a model."""

from __future__ import annotations

from pathlib import Path

from editkit.files import write_text
from reports.cases import CASES, write_cases
from reports.record import Audit
from reports.render import EXTENSIONS, RENDERERS
from reports.sections import build


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
