"""What was changed in which model, does it hold, and the worst ways in which it breaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from probes.estimate import Ruling
from reports.document import Banner, Block, Cards, Details, Exchanges, Heading, Section, Table, Text
from reports.record import Audit, Claim
from reports.sections import SECTIONS
from reports.sections._figures import arms, interval_note, level_of
from reports.sections._verdicts import Way, examples, facts_by_id, named_fact, took, worst
from reports.wording import (
    ARMS_EXPLAINED,
    TONES,
    arm_title,
    asked_text,
    demand,
    level_text,
    metric_question,
    metric_title,
    number,
    plural,
    probe_title,
    ruling_text,
    stratum_title,
    told,
)

_VERDICTS = {
    Ruling.HOLDS: "It holds",
    Ruling.FAILS: "It does not hold",
    Ruling.UNDECIDED: "Not enough evidence",
}


@SECTIONS.register("summary")
def section(audit: Audit) -> Section:
    ways = worst(audit)
    blocks: list[Block] = [
        Banner(_VERDICTS[audit.ruling()], _sentence(audit), TONES[audit.ruling()], tuple(_changed(audit))),
        *_cards(audit),
        *_worst(audit, ways),
        *_claims(audit),
        *_facts(audit),
    ]
    return Section("summary", "Does it hold?", 0, tuple(blocks), _data(audit, ways))


def _sentence(audit: Audit) -> str:
    if not audit.changes and not audit.judged:
        return "Nothing was changed and nothing was asked, so there is nothing to say."
    model = audit.model.get("name") or "an unnamed model"
    return f"{_tally(audit)} The model is {model}, with {asked_text(audit)}."


def _tally(audit: Audit) -> str:
    """How many claims hold, do not, and lack evidence."""
    rulings = Counter(claim.ruling for claim in audit.claims)
    if not rulings:
        return "No claim was made."
    hold = plural(rulings[Ruling.HOLDS], "holds", "hold")
    fail = plural(rulings[Ruling.FAILS], "does not hold", "do not hold")
    lack = plural(rulings[Ruling.UNDECIDED], "lacks the evidence", "lack the evidence")
    return f"Of {plural(len(audit.claims), 'claim')}, {hold}, {fail} and {lack}."


def _changed(audit: Audit) -> Iterator[str]:
    """What was changed, a line an operator: "Edited by rome: France, capital: Paris → Rome; …, and 5 more facts"."""
    facts, named = facts_by_id(audit), set[frozenset[str]]()
    for operator, task in dict.fromkeys((change.operator, change.task) for change in audit.changes):
        own = [c.facts for c in audit.changes if (c.operator, c.task) == (operator, task)]
        ids = list(dict.fromkeys(fact for group in own for fact in group))
        done = f"{_DONE.get(task, task)} by {operator}"
        if frozenset(ids) in named:
            yield f"{done}: the same {plural(len(ids), 'fact')}."
            continue
        named.add(frozenset(ids))
        told_of = [named_fact(facts[name], task) for name in ids[:_NAMED] if name in facts]
        left = len(ids) - len(told_of)
        more = [f"and {plural(left, 'more fact')}" if told_of else plural(left, "fact")] if left else []
        yield f"{done}: {'; '.join(told_of + more)}."


_DONE = {"edit": "Edited", "unlearn": "Made to be forgotten"}
_NAMED = 3  # facts


def _cards(audit: Audit) -> list[Block]:
    tried = arms(audit)
    if not tried:
        return []
    items = tuple(_card(audit, operator, arm) for operator, _, arm in tried)
    return [Cards(items, tuple(ARMS_EXPLAINED.get(arm, "") for _, _, arm in tried))]


def _card(audit: Audit, operator: str, arm: str) -> tuple[str, str, str]:
    claims = [claim for claim in audit.claims if (claim.operator, claim.arm) == (operator, arm)]
    rulings = Counter(claim.ruling for claim in claims)
    if not claims:
        return (arm_title(operator, arm), "no claim made", "plain")
    worst_ruling = next(r for r in (Ruling.FAILS, Ruling.UNDECIDED, Ruling.HOLDS) if rulings[r])
    return (arm_title(operator, arm), _counts(rulings), TONES[worst_ruling])


def _counts(rulings: Counter[Ruling]) -> str:
    """ "1 of 4 claims holds, 1 fails, 2 undecided"."""
    held, failed, undecided = (rulings[ruling] for ruling in (Ruling.HOLDS, Ruling.FAILS, Ruling.UNDECIDED))
    said = [f"{held} of {plural(rulings.total(), 'claim')} {'holds' if held == 1 else 'hold'}"]
    said += [f"{plural(failed, 'fails', 'fail')}"] if failed else []
    return ", ".join(said + ([f"{undecided} undecided"] if undecided else []))


def _claims(audit: Audit) -> list[Block]:
    if not audit.claims:
        return [Text("No claim was made, so there is no verdict.", "open")]
    order = arms(audit)
    claims = sorted(audit.claims, key=lambda claim: order.index((claim.operator, claim.task, claim.arm)))
    rows = tuple(
        (
            arm_title(claim.operator, claim.arm),
            metric_title(claim.metric),
            ruling_text(claim, audit),
            demand(claim.at_least, claim.at_most),
            told(claim.estimate),
        )
        for claim in claims
    )
    hints = tuple(metric_question(claim.metric) for claim in claims)
    tones = tuple(TONES[claim.ruling] for claim in claims)
    columns = ("Change", "Claim", "Verdict", "Demand", "Measured")
    note = (
        "Measured: after the change. As written: judged by the text that the model writes. "
        f"{interval_note(audit)} A claim holds if its whole interval meets the demand, and does not if its whole "
        "interval misses it; in between there is not enough evidence."
    )
    caption = "The claims and what the evidence says"
    return [Table(caption, columns, rows, tones=tones, numeric=(4,), verdict=2, hints=hints, note=note)]


def _worst(audit: Audit, ways: list[Way]) -> list[Block]:
    if ways:
        shown = Exchanges(tuple(examples(ways, facts_by_id(audit))))
        return [Heading(_worst_title(ways), 3), Text(_worst_note(audit), "note"), shown]
    if not audit.judged:
        return []
    return [Text("No way to break it was found by the questions that were asked.", "good")]


def _worst_title(ways: list[Way]) -> str:
    if len(ways) == 1:
        return "The worst way in which it breaks"
    apart = len({way.probe for way in ways}) == len(ways)
    return f"The {_WORDS[len(ways)]} worst ways it breaks{', each by another kind of question' if apart else ''}"


def _worst_note(audit: Audit) -> str:
    never = (
        "A fact whose change never took at its own prompt counts as broken there, and in no other way of asking for it."
        if took(audit)
        else "Whether a change took at the fact's own prompt was not asked, so all facts count."
    )
    return (
        "For each kind of question, the change that it breaks most. Ranked by the share of cases that break, at the "
        f"low end of its interval: a share of few cases may be high by chance. {never}"
    )


_WORDS = ("", "", "two", "three")


def _facts(audit: Audit) -> list[Block]:
    if not audit.facts:
        return []
    rows = tuple(
        (
            fact.subject,
            fact.relation.replace("_", " "),
            fact.object,
            fact.target_new if fact.target_new is not None else "(to be forgotten)",
            fact.prompt,
            number(fact.popularity) if fact.popularity is not None and fact.popularity < 10 else _big(fact.popularity),
            stratum_title(fact.stratum),
        )
        for fact in audit.facts
    )
    columns = ("Subject", "Relation", "Object", "Edited to", "Prompt", "Popularity", "Stratum")
    unit = str(audit.environment.get("popularity") or "")
    table = Table("Facts that were changed", columns, rows, numeric=(5,), quoted=(0, 2, 3, 4), note=unit)
    return [Details(f"The {plural(len(audit.facts), 'fact')} that were changed", (table,))]


def _big(popularity: float | None) -> str:
    return "not known" if popularity is None else f"{popularity:,.0f}"


def _data(audit: Audit, ways: list[Way]) -> dict[str, object]:
    return {
        "ruling": audit.ruling().value,
        "level": level_text(level_of(audit)),
        "asked": asked_text(audit),
        "claims": [_claim_data(claim, audit) for claim in audit.claims],
        "worst": [
            {
                "operator": way.operator,
                "arm": way.arm,
                "probe": way.probe,
                "asked": probe_title(way.probe),
                "broken": told(way.share),
                "facts_not_known_to_have_taken": way.unknown,
                "with_random_words": told(way.control) if way.control else None,
                "prompt": example.prompt,
                "before": example.before,
                "after": example.after,
                "class_before": example.class_before,
                "class_after": example.class_after,
            }
            for way, example in zip(ways, examples(ways, facts_by_id(audit)), strict=True)
        ],
    }


def _claim_data(claim: Claim, audit: Audit) -> dict[str, str]:
    return {
        "operator": claim.operator,
        "arm": claim.arm,
        "metric": claim.metric,
        "demand": demand(claim.at_least, claim.at_most),
        "measured": told(claim.estimate),
        "verdict": ruling_text(claim, audit),
    }
