"""One file a section: `section(audit) -> Section | None`, registered under the file's stem; None where it says nothing.

Sections give plain texts and numbers; what they look like is the renderers' business. The files of this folder are read
on the first look-up in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

from editkit.registry import Registry
from reports.document import Document, Section
from reports.record import Audit

SECTIONS: Registry[Callable[[Audit], Section | None]] = Registry("section", "reports.sections")

DEFAULT_TITLE = "Audit"  # of a spec that gives none


def build(audit: Audit) -> Document:
    """All sections that have something to say of `audit`, in the order they ask for."""
    made = [section for section in (make(audit) for _, make in SECTIONS.items()) if section is not None]
    return Document(_title(audit), tuple(sorted(made, key=lambda section: (section.order, section.id))))


def _title(audit: Audit) -> str:
    """ "Audit of rome (edit) and npo (unlearn) on smollm2-135m"; a spec's own title comes first."""
    tried = [(c.operator, c.task) for c in audit.changes] + [(operator, task) for operator, task, _ in audit.arms()]
    names = [f"{operator} ({task})" for operator, task in dict.fromkeys(tried)]
    what = f"{' and '.join(names) or 'nothing'} on {audit.model.get('name') or 'an unnamed model'}"
    title = audit.spec.get("title")
    return f"{title}: {what}" if isinstance(title, str) and title not in ("", DEFAULT_TITLE) else f"Audit of {what}"
