"""Do stressed key words bring the old answer back, more than random words or the bare template do."""

from __future__ import annotations

from probes.metrics import METRICS
from reports.document import Block, Section, Text
from reports.record import Audit
from reports.sections import SECTIONS
from reports.sections._charts import intervals, points_of
from reports.sections._figures import by_variant, figure_table, folded, overall, reads_only
from reports.wording import metric_title

PROBE = "keyword_emphasis"
_SHARES = ("recovery_rate", "recovery_random", "recovery_template")


@SECTIONS.register("emphasis")
def section(audit: Audit) -> Section | None:
    whole = overall(audit, reads_only(PROBE))
    if not whole:
        return None
    table = figure_table("Recovery of the old answer", whole)
    drawn = sorted((f for f in whole if f.row.metric in _SHARES), key=lambda f: _SHARES.index(f.row.metric))
    rows = [metric_title(f.row.metric) for f in drawn]
    description = "How often the old answer comes back. Only the distance between key words and their controls counts."
    chart = intervals("Recovery by emphasis", points_of(drawn, rows), "share of facts", description, table)
    blocks: list[Block] = [Text(_INTRODUCTION), chart or table]
    wordings = [f for f in by_variant(audit, _reads_emphasis) if (f.row.variant or "").startswith("key:")]
    if wordings:
        blocks.append(folded("By wording of the emphasis", figure_table("By wording", wordings, wording=True)))
    return Section("emphasis", "Stressed key words", 30, tuple(blocks))


def _reads_emphasis(name: str) -> bool:
    """Metrics that ask whether the old answer comes, in cases with stressed key words among others."""
    return name in METRICS and PROBE in METRICS[name].probes and METRICS[name].kind == "case"


_INTRODUCTION = (
    "The words of the prompt that the unchanged model leans on are stressed; the answer never enters the prompt. As "
    "many random words, and the template with no words in it, are stressed too: any prompt of that form might "
    "bring the old answer back. Only facts count whose old answer came before the change and is gone at the "
    "plain wording."
)
