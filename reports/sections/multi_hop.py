"""Does the change carry to what follows from it, and which questions could not be counted."""

from __future__ import annotations

from collections import Counter

from probes.verdict import Verdict
from reports.document import Block, Exchange, Exchanges, Heading, Section, Table, Text
from reports.record import Audit, Figure, questions_of
from reports.sections import SECTIONS
from reports.sections._charts import intervals, points_of
from reports.sections._figures import HEADLINE, arms, figure_table, folded, overall, questions, reads_only
from reports.sections._verdicts import changed_fact, exchange, facts_by_id, telling, unknown_before, weighed
from reports.wording import arm_title, metric_title, plural, variant_title

PROBE = "multi_hop"
_REASONS = 20


@SECTIONS.register("multi_hop")
def section(audit: Audit) -> Section | None:
    asked = _asked(audit)
    if not asked:
        return None
    whole = overall(audit, reads_only(PROBE))
    blocks: list[Block] = [Text(_INTRODUCTION), *_charts(whole), *_premises(audit)]
    blocks += [*_reasons(asked), *_examples(audit)]
    return Section("multi_hop", "Related questions", 40, tuple(blocks))


def _asked(audit: Audit) -> list[Verdict]:
    return [item.verdict for item in audit.judged if item.verdict.case.probe == PROBE]


def _charts(whole: list[Figure]) -> list[Block]:
    """Edits should carry, the forgotten should not leak: a chart each."""
    blocks: list[Block] = []
    for task, title in (("edit", "What follows from the edits"), ("unlearn", "Leaks of what should be forgotten")):
        own = [f for f in whole if f.task == task]
        drawn = [f for f in own if f.row.metric == HEADLINE[task, PROBE]]
        if own:
            table = figure_table(title, own)
            points = points_of(drawn, [metric_title(f.row.metric) for f in drawn])
            blocks.append(intervals(title, points, "share", questions([HEADLINE[task, PROBE]]), table) or table)
    return blocks


def _premises(audit: Audit) -> list[Block]:
    """How many questions of each kind were asked, stood on a failed premise, and counted."""
    rows = []
    for operator, _, arm in arms(audit):
        cell = [i.verdict for i in audit.judged if (i.operator, i.arm) == (operator, arm)]
        own = [verdict for verdict in cell if verdict.case.probe == PROBE]
        for kind in dict.fromkeys(verdict.case.variant for verdict in own):
            rows.append((arm_title(operator, arm), variant_title(kind), *_of_kind(own, kind)))
    columns = ("Change", "Kind of question", "Asked", "A premise failed", "Counted", "Did not count")
    note = (
        "A premise is a single step of the question, put to the unchanged model first. After an edit a question counts "
        "if the unchanged model got every premise right; after forgetting, if it reached the answer, by whatever way."
    )
    table = Table("Questions and their premises", columns, tuple(rows), numeric=(2, 3, 4, 5), note=note)
    return [*_steps(audit), table]


def _of_kind(verdicts: list[Verdict], kind: str) -> tuple[str, ...]:
    own = [verdict for verdict in verdicts if verdict.case.variant == kind]
    failed = sum(_stands_on_failed(verdict) for verdict in own)
    counted = sum(verdict.applies for verdict in own)
    return tuple(map(str, (len(own), failed, counted, len(own) - counted)))


def _stands_on_failed(verdict: Verdict) -> bool:
    """A record from before premises were kept tells of failed ones in the note alone."""
    return any(not premise.passed for premise in verdict.premises) or verdict.note.startswith("premise ")


def _steps(audit: Audit) -> list[Block]:
    """How many premises were put to the unchanged model, which is the same for all changes."""
    asked = {(premise.case.group, premise.case.prompt): premise.passed for _, premise in audit.premises()}
    if not asked:
        return []
    put = plural(len(asked), "premise was", "premises were")
    return [Text(f"{put} put to the unchanged model; it got {sum(asked.values()):,} right.")]


def _reasons(asked: list[Verdict]) -> list[Block]:
    """Why questions did not apply, the commonest reasons first."""
    reasons = Counter(verdict.note or "no reason given" for verdict in asked if not verdict.applies)
    if not reasons:
        return []
    rows = tuple((reason, str(n)) for reason, n in reasons.most_common(_REASONS))
    left = len(reasons) - len(rows)
    note = f"{plural(left, 'further reason is', 'further reasons are')} in cases.parquet." if left else ""
    table = Table("Why questions did not apply", ("Reason", "Cases"), rows, numeric=(1,), quoted=(0,), note=note)
    return [folded(f"Why {plural(reasons.total(), 'question')} did not apply", table)]


def _examples(audit: Audit) -> list[Block]:
    facts = facts_by_id(audit)
    shown: list[Exchange] = []
    for operator, task, arm in arms(audit):
        broken = [
            item.verdict
            for item, bad in weighed(audit)
            if bad and (item.operator, item.arm, item.verdict.case.probe) == (operator, arm, PROBE)
        ]
        prompts = {item.prompt for item in shown}
        for verdict in [v for v in telling(broken) if v.case.prompt not in prompts][:1]:
            kind = f"Kind of question: {variant_title(verdict.case.variant)}."
            text = " ".join(filter(None, (changed_fact(verdict, task, facts), unknown_before(verdict), kind)))
            shown.append(exchange(verdict, arm_title(operator, arm), text))
    if shown:
        return [Heading("What did not follow, for example"), Exchanges(tuple(shown))]
    asked = questions_of(item for item in audit.judged if item.verdict.case.probe == PROBE)
    return [Text(f"None of {plural(asked, 'question')} broke it.")]


_INTRODUCTION = (
    "Questions whose answer needs the changed fact: what follows from an edit must change with it, and what was "
    "forgotten must not be reached by a way around."
)
