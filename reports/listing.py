"""`editkit list`: what there is, read from the registries and cards."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from editkit.arch import ARCHITECTURES
from editkit.data import datasets
from editkit.errors import InputError
from editkit.locate import LOCATORS
from editkit.models import EMBEDDED
from editkit.operators import EDITS, UNLEARNERS
from probes.kinds import PROBES
from probes.metrics import METRICS
from reports.console import table

Rows = tuple[Sequence[str], list[Sequence[str]]]


def first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def source_of(thing: Any) -> str:
    """The first address in the documentation of a thing or of its module."""
    text = f"{inspect.getdoc(thing) or ''}\n{inspect.getdoc(inspect.getmodule(thing)) or ''}"
    found = re.search(r"arXiv:\d{4}\.\d{4,5}|https?://[^\s),;]+", text)
    return found.group(0) if found else ""


def operators() -> Rows:
    rows = [
        (name, task, _title(operator), source_of(operator))
        for task, registry in (("edit", EDITS), ("unlearn", UNLEARNERS))
        for name, operator in registry.items()
    ]
    return ("name", "task", "what it does", "source"), rows


def _title(operator: Any) -> str:
    """How the method's module opens, without the reference; the class is only its settings."""
    return first_line(inspect.getmodule(operator)).partition(" (")[0] or first_line(operator)


def locators() -> Rows:
    return ("name", "what it does", "source"), [
        (name, _title(locator), source_of(locator)) for name, locator in LOCATORS.items()
    ]


def probes() -> Rows:
    return ("name", "the question it asks"), [
        (name, first_line(inspect.getmodule(probe))) for name, probe in PROBES.items()
    ]


def metrics() -> Rows:
    rows = [(name, m.task, ", ".join(m.probes) or "all", m.unit, m.better, m.question) for name, m in METRICS.items()]
    return ("name", "task", "reads", "unit", "better", "question"), rows


def data_sets() -> Rows:
    rows = [
        (
            name,
            str(sum(card.records.values())),
            card.task,
            card.license,
            ", ".join(f"{s['package']} {s['version']}" for s in card.sources),
        )
        for name, card in datasets().items()
    ]
    return ("name", "records", "task", "licence", "source"), rows


def models() -> Rows:
    rows = [(name, f"{w.package}=={w.version}", w.licence) for name, w in EMBEDDED.items()]
    rows += [("a folder, a .gguf file or a hub id", "yours", "see its card")]
    return ("name", "weights from", "licence"), rows


def layouts() -> Rows:
    rows = [(name, ", ".join(a.model_types), a.mlp_out) for name, a in ARCHITECTURES.items()]
    return ("name", "model types", "edited matrix"), rows


LISTS: dict[str, Callable[[], Rows]] = {
    "operators": operators,
    "locators": locators,
    "probes": probes,
    "metrics": metrics,
    "datasets": data_sets,
    "models": models,
    "layouts": layouts,
}


def show(what: str) -> None:
    """Print one list. Raises InputError with the near names for an unknown one."""
    if what not in LISTS:
        near = difflib.get_close_matches(what, LISTS) or list(LISTS)
        raise InputError(f"nothing to list under {what!r}; there is {', '.join(near)}")
    columns, rows = LISTS[what]()
    short = [[cell.replace("https://arxiv.org/abs/", "arXiv:") for cell in row] for row in rows]  # a whole line else
    table(what, columns, short)
