"""One file a format: `render(document, audit) -> str`, registered under the file's stem.

Renderers own escaping: every text of a Document is hostile to them. The files of this folder are read on the first
look-up in `RENDERERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from editkit.registry import Registry
from reports.document import Document
from reports.record import Audit

RENDERERS: Registry[Callable[[Document, Audit], str]] = Registry("renderer", "reports.render")
EXTENSIONS = {"markdown": "md"}  # where it is not the name
