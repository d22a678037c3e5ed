"""The report as one HTML file: opens offline, fetches nothing, reads without scripts.

Every text is escaped by the template engine and made visible by `clean` or `present` before; a policy in the page lets
the browser run and apply only the one script and the one style sheet of this package, by their hash.
"""

from __future__ import annotations

import base64
import hashlib
from itertools import count
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports.document import Block, Document, Table
from reports.present import clean, present
from reports.record import Audit
from reports.render import RENDERERS
from reports.render._svg import drawn

TEMPLATES = Path(__file__).parent / "templates"
CELL = 160  # characters of a model's text in a cell of a table; 400 elsewhere


@RENDERERS.register("html")
def render(document: Document, audit: Audit) -> str:
    numbers = count(1)
    style, script = _text("style.css"), _text("page.js")
    return _environment().get_template("report.html").render(
        document=document,
        audit=audit,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        chart=lambda block: Markup("").join(drawn(block, numbers)),
        number=lambda: next(numbers),
        model_text=present,
        cell_text=lambda text: present(text, CELL),
        newline=Markup("\n"),
    )  # fmt: skip


def _policy(style: str, script: str) -> str:
    """Content-Security-Policy: nothing may be fetched; only this style and this script, by their hash."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = _kind
    environment.filters["spanned"] = _spanned
    environment.filters["split_number"] = _split_number
    environment.filters["split_verdict"] = _split_verdict
    return environment


def _shown(value: Any) -> Any:
    """What stands in the page for a value: no text gets there with something invisible in it."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _kind(block: Block) -> str:
    """The name by which the template knows the block."""
    if not isinstance(block, get_args(Block)):
        raise TypeError(f"a report cannot hold a {type(block).__name__}; blocks are those of reports/document.py")
    return type(block).__name__.lower()


def _spanned(table: Table) -> list[tuple[tuple[str, ...], str, int]]:
    """Rows with their tone and how many rows the first cell stands for: 0 where the one above it does already."""
    firsts = [row[0] for row in table.rows]
    merged = not table.filterable and 0 not in (*table.quoted, *table.numeric, table.verdict)
    spans = [1] * len(firsts)
    for place in reversed(range(1, len(firsts))):
        if merged and firsts[place] == firsts[place - 1]:
            spans[place - 1], spans[place] = spans[place - 1] + spans[place], 0
    return list(zip(table.rows, table.tones or ["plain"] * len(firsts), spans, strict=True))


def _split_verdict(text: str) -> tuple[str, str]:
    """ "not enough evidence (needs 35 facts)" as the verdict and what goes with it."""
    cut = text.find(" (")
    return (text[:cut], text[cut:]) if cut > 0 else (text, "")


def _split_number(text: str) -> tuple[str, str]:
    """ "0.94 [0.79, 0.98], 16 facts" as the value and what goes with it."""
    places = [place for mark in (" [", " no interval") if (place := text.find(mark)) > 0]
    cut = min(places, default=len(text))
    return text[:cut], text[cut:]
