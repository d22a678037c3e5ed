"""What this does not show, and what was not tested. Says "no extraction found by …", never more than that."""

from __future__ import annotations

from probes.estimate import Ruling
from probes.judge import KNIFE_EDGE
from probes.verdict import Class
from reports.document import Block, Bullets, Heading, Section, Table, Text
from reports.record import Audit, Claim, Figure
from reports.sections import SECTIONS
from reports.sections._figures import arms, overall
from reports.wording import (
    arm_title,
    demand,
    level_text,
    metric_title,
    number,
    plural,
    probe_title,
    told,
    was_asked,
    within_demand,
)

FEW = 30  # facts, below which an interval is wide whatever it says
_LEAKS = ("forget_accuracy", "forget_rephrased", "leakage")
_UNTESTED = {  # what an attacker or a year in use could do, by the probe that would try it
    "relearn": "fine-tuning the changed model a little, on related or on unrelated text",
    "quantise": "quantising the changed model",
    "sampling": "sampling many answers at a temperature; only the likeliest text was read",
    "cross_examination": "a conversation of several turns, and chat templates or system prompts",
    "hidden_states": "reading the fact from hidden states or weights instead of asking for it",
    "adversarial_suffix": "prompts found by optimisation against the changed model",
    "translation": "other languages than those of the prompts",
    "world_facts": "general abilities beyond the neighbours that were asked",
}


@SECTIONS.register("limits")
def section(audit: Audit) -> Section:
    blocks: list[Block] = [
        *(Text(text) for text in _not_shown(audit)),
        *_untested(audit),
        *_passed_over(audit),
        *_thin(audit),
    ]
    return Section("limits", "What this does not show", 90, tuple(blocks), {"passed_over": dict(audit.passed_over)})


def _not_shown(audit: Audit) -> list[str]:
    texts = [
        "This audit looks at what the model says. It cannot show that a fact is gone from the weights: what is not "
        "said may be held back and come out under a prompt that nobody tried. Copies, adapters, fine-tuned descendants "
        "and backups of the model are other models.",
        *_bounds(audit),
        *_newly_said(audit),
        *_knife_edge(audit),
        *_many(audit),
        *_judged_twice(audit),
        *audit.notes,
    ]
    return texts


def _bounds(audit: Audit) -> list[str]:
    """For each arm that forgets: what the questions found, and how much they would still allow."""
    texts = []
    for operator, task, arm in arms(audit):
        leaks = [f for f in overall(audit, _LEAKS.__contains__) if (f.operator, f.arm) == (operator, arm)]
        if task != "unlearn" or not leaks:
            continue
        parts = "; ".join(f"{metric_title(f.row.metric).lower()} {told(f.row.after)}" for f in leaks)
        asked = {item.verdict.case.probe for item in audit.judged if (item.operator, item.arm) == (operator, arm)}
        by = ", ".join(probe_title(probe) for probe in sorted(asked)) or "no questions"
        texts.append(f"{arm_title(operator, arm)}: {_found(leaks)} by {by} ({parts}).")
    return texts


def _found(leaks: list[Figure]) -> str:
    if any(f.row.after.value for f in leaks):
        return "the forgotten answer, or what follows from it, was still given"
    known = [f.row.after for f in leaks if f.row.after.high is not None]
    if not known:
        return "no extraction found, with no bound on what was missed,"
    bound = max(estimate.high or 0.0 for estimate in known)
    return f"no extraction found; up to {number(bound)} of such questions might still ({level_text(known[0].level)})"


def _newly_said(audit: Audit) -> list[str]:
    """Forgotten answers that only the changed model gives: in no share, since nothing was there to be forgotten."""
    texts = []
    for operator, task, arm in arms(audit):
        own = [item.verdict for item in audit.judged if (item.operator, item.arm) == (operator, arm)]
        new = {
            (v.case.group, v.case.prompt)
            for v in own
            if v.class_before is not Class.OLD and v.class_after is Class.OLD and not v.applies
        }
        if task == "unlearn" and new:
            drew = plural(len(new), "question draws", "questions draw")
            texts.append(
                f"{arm_title(operator, arm)}: {drew} the answer from the changed model though not from the unchanged "
                "one. No share counts them; they are in cases.parquet."
            )
    return texts


def _many(audit: Audit) -> list[str]:
    """Several claims and tests stand side by side, each with its own chance of error."""
    tests = sum(figure.row.p is not None for figure in audit.figures)
    if len(audit.claims) < 2 and tests < 2:
        return []
    return [
        f"{plural(len(audit.claims), 'claim')} and {plural(tests, 'paired test')} stand side by side, each at a level "
        "of its own: where there are many, some lie beyond their bar by chance. The p values are adjusted for the "
        "number of metrics tested on the same cases (Holm), the claims are not adjusted."
    ]


def _judged_twice(audit: Audit) -> list[str]:
    """One answer may be judged by two probes, and count in the numbers of both."""
    again = len(audit.judged) - audit.questions()
    if not again:
        return []
    repeat = "repeats" if again == 1 else "repeat"
    return [
        f"{again:,} of {plural(len(audit.judged), 'judged case')} {repeat} the prompt of another case of the same fact "
        "and change: there one answer is judged by two probes and counts in the numbers of both. Questions are told as "
        "what was asked, cases as what was judged."
    ]


def _knife_edge(audit: Audit) -> list[str]:
    margins = [item.verdict.margin_after for item in audit.judged if item.verdict.margin_after is not None]
    close = sum(abs(margin) < KNIFE_EDGE for margin in margins)
    if not close:
        return []
    cases = plural(close, "case stands", "cases stand")
    return [f"{cases} on a knife's edge (margin below {KNIFE_EDGE:g} nats a token): another device may rule otherwise."]


def _untested(audit: Audit) -> list[Block]:
    asked = {item.verdict.case.probe for item in audit.judged}
    texts = tuple(text for probe, text in _UNTESTED.items() if probe not in asked)
    return [Heading("Not tested, though it might bring a fact back or do harm"), Bullets(texts)] if texts else []


def _passed_over(audit: Audit) -> list[Block]:
    if not audit.passed_over:
        return []
    rows = tuple((reason.replace("_", " "), f"{n:,}") for reason, n in audit.passed_over.items())
    total = plural(sum(audit.passed_over.values()), "fact was", "facts were")
    text = f"{total} passed over, so nothing is shown about them."
    return [Heading("Passed over", 3), Text(text), Table("Facts passed over", ("Reason", "Facts"), rows, numeric=(1,))]


def _thin(audit: Audit) -> list[Block]:
    """Where the numbers are few: undecided claims with what would decide them, and figures on few facts."""
    open_claims = [claim for claim in audit.claims if claim.ruling is Ruling.UNDECIDED]
    rows = tuple(
        (
            arm_title(claim.operator, claim.arm),
            metric_title(claim.metric),
            told(claim.estimate),
            demand(claim.at_least, claim.at_most),
            _enough(claim, audit),
        )
        for claim in open_claims
    )
    columns = ("Change", "Claim", "Measured", "Demand", "What it would take")
    few = [f for f in overall(audit) if f.row.after.value is not None and f.row.after.groups < FEW]
    whole = plural(len(overall(audit)), "number")
    text = f"{len(few)} of {whole} rest on fewer than {FEW} facts: their intervals are wide."
    blocks: list[Block] = [Heading("Few facts", 3), Text(text)] if few else []
    return [*blocks, Table("Claims without enough evidence", columns, rows, numeric=(2, 3))] if rows else blocks


def _enough(claim: Claim, audit: Audit) -> str:
    """What would decide an open claim: more facts, as long as what was measured is on the right side of the bar."""
    if not claim.estimate.n:
        return "a question that counts" if was_asked(claim, audit) else "to be asked at all"
    if not within_demand(claim):
        return "more facts, and a better share than was measured"
    if claim.needed is not None and claim.needed > claim.estimate.groups:
        return f"{plural(claim.needed, 'fact')}, if all pass"
    return f"more than {plural(claim.estimate.groups, 'fact')}"
