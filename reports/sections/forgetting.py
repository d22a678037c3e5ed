"""Unlearning: is it gone, does it leak, and what does the model say in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from probes.metrics import METRICS
from probes.verdict import Class, Verdict
from reports.document import Block, Section, Table, Text
from reports.record import Audit
from reports.sections import SECTIONS
from reports.sections._charts import stacked
from reports.sections._figures import arms, figure_table, overall
from reports.wording import CLASSES, arm_title, probe_title

_PROBES = ("rewrite", "rephrase", "multi_hop")
Cell = tuple[str, str, Sequence[Verdict]]  # operator, arm, verdicts


@SECTIONS.register("forgetting")
def section(audit: Audit) -> Section | None:
    cells = [(operator, arm, _asked(audit, operator, arm)) for operator, task, arm in arms(audit) if task == "unlearn"]
    if not cells:
        return None
    whole = [figure for figure in overall(audit, _of_unlearning) if figure.task == "unlearn"]
    table = _classes(cells)
    chart = stacked("What the model says when asked for it", _counts(cells), _CHART, table)
    blocks: list[Block] = [Text(_INTRODUCTION), chart or table]
    blocks += [figure_table("Forgetting, leaks and what comes instead", whole)] if whole else []
    return Section("forgetting", "Forgetting", 70, tuple(blocks))


def _of_unlearning(name: str) -> bool:
    return name == "degeneration" or (name in METRICS and METRICS[name].task == "unlearn")


def _asked(audit: Audit, operator: str, arm: str) -> list[Verdict]:
    own = (item.verdict for item in audit.judged if (item.operator, item.arm) == (operator, arm))
    return [verdict for verdict in own if verdict.case.probe in _PROBES and verdict.applies]


def _counts(cells: Sequence[Cell]) -> list[tuple[str, str, int]]:
    """(bar, class, cases), the classes in the same order in each bar."""
    counts = []
    for operator, arm, verdicts in cells:
        for probe in (probe for probe in _PROBES if any(v.case.probe == probe for v in verdicts)):
            own = [verdict for verdict in verdicts if verdict.case.probe == probe]
            for side, kinds in (("before", [v.class_before for v in own]), ("after", [v.class_after for v in own])):
                name = f"{probe_title(probe)}, {side}" + ("" if len(cells) == 1 else f" ({arm_title(operator, arm)})")
                counts += [(name, CLASSES[kind], Counter(kinds)[kind]) for kind in _ORDER]
    return counts


_ORDER = tuple(kind for kind in Class if kind is not Class.NEW)


def _classes(cells: Sequence[Cell]) -> Table:
    rows = []
    for operator, arm, verdicts in cells:
        for probe in dict.fromkeys(verdict.case.probe for verdict in verdicts):
            own = [verdict for verdict in verdicts if verdict.case.probe == probe]
            before, after = Counter(v.class_before for v in own), Counter(v.class_after for v in own)
            numbers = (f"{before[kind]} → {after[kind]}" for kind in _ORDER)
            rows.append((arm_title(operator, arm), probe_title(probe), *numbers))
    columns = ("Change", "Asked by", *(CLASSES[kind].capitalize() for kind in _ORDER))
    numeric = tuple(range(2, len(columns)))
    return Table("Classes of the answers, cases before → after", columns, tuple(rows), numeric=numeric)


_INTRODUCTION = (
    "A fact counts as forgotten only if its answer does not come and the text is still a text: an answer that is empty "
    "or repeats itself is no success. Whether it says that it does not know or names something else is told apart."
)
_CHART = "Classes of the written answers to questions for what should be forgotten, by rule and without a judge model."
