"""The cases themselves, those that break first."""

from __future__ import annotations

from reports.document import Section, Table, Text
from reports.record import Audit, Judged
from reports.sections import SECTIONS
from reports.sections._verdicts import broke
from reports.wording import arm_title, change_of_class, number, plural, probe_title, variant_title

LIMIT = 1000  # rows; with them the page stays below a megabyte
COLUMNS = ("Change", "Probe", "Wording", "Prompt", "Before", "After", "Answer", "Margin, nats", "Verdict")


@SECTIONS.register("examples")
def section(audit: Audit) -> Section | None:
    if not audit.judged:
        return None
    ranked = sorted(audit.judged, key=lambda item: broke(item.verdict) is not True)  # stable: the order asked
    shown, left = ranked[:LIMIT], max(0, len(ranked) - LIMIT)
    rows, tones = tuple(_row(item) for item in shown), tuple(_tone(item) for item in shown)
    table = Table(
        "Cases, those that break first",
        COLUMNS,
        rows,
        filterable=True,
        tones=tones,
        numeric=(7,),
        quoted=(3, 4, 5),
        choices=(0, 1, 2, 6, 8),
        verdict=8,
        note="Margin: how far the demanded answer is ahead of the other in log-probability per token, before → after.",
    )
    where = f"{plural(left, 'further case is', 'further cases are')} left out here; all" if left else "All"
    text = f"{plural(len(audit.judged), 'case')}. {where} are in cases.parquet beside this report."
    data = {"cases": len(audit.judged), "shown": len(shown), "broken": tones.count("bad"), "file": "cases.parquet"}
    return Section("examples", "Cases", 80, (Text(text), table), data)


def _row(item: Judged) -> tuple[str, ...]:
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
        _verdict(item),
    )


def _margins(before: float | None, after: float | None) -> str:
    if before is None and after is None:
        return "–"
    return f"{number(before, signed=True)} → {number(after, signed=True)}"


def _verdict(item: Judged) -> str:
    broken = broke(item.verdict)
    if broken is not None:
        return "breaks" if broken else "as demanded"
    return "control" if item.verdict.case.variant.startswith("control:") else "not counted"


def _tone(item: Judged) -> str:
    return {True: "bad", False: "good", None: "plain"}[broke(item.verdict)]
