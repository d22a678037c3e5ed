"""The cases themselves, those that break first, and the premises that they build on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from probes.verdict import Premise
from reports.document import Section, Table, Text
from reports.record import Audit, Judged
from reports.sections import SECTIONS
from reports.sections._verdicts import broke, weighed
from reports.wording import CLASSES, arm_title, change_of_class, number, plural, probe_title, variant_title

LIMIT = 2500  # rows; with them the page stays below two megabytes, and filtering takes some hundredths of a second
COLUMNS = ("Change", "Probe", "Wording", "Prompt", "Before", "After", "Answer", "Margin, nats", "Verdict")
BREAKS, NEVER, PLAIN = "bad", "open", "plain"


class _Line(NamedTuple):
    cells: tuple[str, ...]
    tone: str


@SECTIONS.register("examples")
def section(audit: Audit) -> Section | None:
    if not audit.judged:
        return None
    order = {BREAKS: 0, NEVER: 1}
    lines = sorted(_lines(audit), key=lambda line: order.get(line.tone, 2))  # stable: the order asked
    shown, left = lines[:LIMIT], max(0, len(lines) - LIMIT)
    table = Table(
        "Cases, those that break first",
        COLUMNS,
        tuple(line.cells for line in shown),
        filterable=True,
        tones=tuple(line.tone for line in shown),
        numeric=(7,),
        quoted=(3, 4, 5),
        choices=(0, 1, 2, 6, 8),
        verdict=8,
        note=_NOTE,
    )
    where = f"{plural(left, 'further row is', 'further rows are')} left out here; all" if left else "All"
    text = f"{_counted(audit)}. {where} are in cases.parquet beside this report."
    broken = sum(line.tone == BREAKS for line in lines)
    data = {"cases": len(audit.judged), "questions": audit.questions(), "premises": len(audit.premises()),
            "shown": len(shown), "broken": broken, "file": "cases.parquet"}  # fmt: skip
    return Section("examples", "Cases", 80, (Text(text), table), data)


_NOTE = (
    "Margin: how far the demanded answer is ahead of the other in log-probability per token, before → after.\n"
    "Never took: it breaks, but so does the fact at its own prompt, where the change never took.\n"
    "Premise: a step that a question builds on, put to the unchanged model alone."
)


def _counted(audit: Audit) -> str:
    asked = f"{plural(len(audit.judged), 'case')} of {plural(audit.questions(), 'question')}"
    premises = len(audit.premises())
    return f"{asked}, and {plural(premises, 'premise')} of theirs" if premises else asked


def _lines(audit: Audit) -> Iterator[_Line]:
    for item, bad in weighed(audit):
        verdict, tone = _verdict(item, bad)
        yield _Line(_row(item, verdict), tone)
    for item, premise in audit.premises():
        yield _Line(_premise(item, premise), PLAIN)


def _row(item: Judged, ruled: str) -> tuple[str, ...]:
    verdict = item.verdict
    return (
        arm_title(item.operator, item.arm),
        probe_title(verdict.case.probe),
        variant_title(verdict.case.variant),
        verdict.case.prompt,
        verdict.answer.before.text,
        verdict.answer.after.text,
        change_of_class(verdict),
        _margins(verdict.margin_before, verdict.margin_after),
        ruled,
    )


def _premise(item: Judged, premise: Premise) -> tuple[str, ...]:
    """A premise has no answer after the change, for it is not asked again."""
    case = premise.case
    return (
        arm_title(item.operator, item.arm),
        probe_title(case.probe),
        variant_title(case.variant),
        case.prompt,
        premise.reply.text,
        "–",
        CLASSES[premise.said],
        "–",
        "premise passed" if premise.passed else "premise failed",
    )


def _margins(before: float | None, after: float | None) -> str:
    if before is None and after is None:
        return "–"
    return f"{number(before, signed=True)} → {number(after, signed=True)}"


def _verdict(item: Judged, bad: bool | None) -> tuple[str, str]:
    """The verdict in words and its tone."""
    if bad is not None:
        return ("breaks", BREAKS) if bad else ("as demanded", "good")
    if item.verdict.case.variant.startswith("control:"):
        return "control", PLAIN
    return ("never took", NEVER) if broke(item.verdict) else ("not counted", PLAIN)
