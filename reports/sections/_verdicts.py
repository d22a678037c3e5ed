"""What breaks: verdicts that are not as demanded, the ways they form, and the case that shows a way best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from probes.estimate import Estimate, proportion
from probes.verdict import Class, Expect, Verdict
from reports.document import Exchange
from reports.present import present
from reports.record import Audit, FactRow
from reports.wording import CLASSES, arm_title, probe_title, told, variant_title

_SAY = {
    "rewrite": "asked with its own prompt",
    "rephrase": "asked in other words",
    "keyword_emphasis": "asked with key words stressed",
    "multi_hop": "asked through a related question",
    "neighborhood": "asked for a neighbour",
    "popularity": "asked for another fact of the relation",
}
_SHORT = 80  # characters of a name in a sentence
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Way:
    """One way in which a change breaks: an arm and a probe, how often, and the cases."""

    operator: str
    task: str
    arm: str
    probe: str
    share: Estimate
    broken: tuple[Verdict, ...]

    @property
    def title(self) -> str:
        return f"{arm_title(self.operator, self.arm)}: {_SAY.get(self.probe, probe_title(self.probe))}"


def broke(verdict: Verdict) -> bool | None:
    """Whether the written answer is not what the case demands; None where the case does not count.

    What must stay counts only if it was right before; a stressed question breaks the change if the old answer comes, or
    babble. Controls do not count: they are there to be compared with.
    """
    if not verdict.applies or verdict.case.variant.startswith("control:"):
        return None
    if verdict.case.expect is Expect.UNCHANGED:
        return None if verdict.before.generation is not True else verdict.after.generation is False
    if verdict.case.expect is Expect.MOVES:
        return verdict.class_after in (Class.OLD, Class.DEGENERATE)
    return None if verdict.after.generation is None else not verdict.after.generation


def ways(audit: Audit) -> list[Way]:
    """All ways in which something breaks, worst first: by the lower end of the share of cases, then by the share."""
    cells: dict[tuple[str, str, str, str], list[Verdict]] = {}
    seen: set[tuple[str, str, str, str]] = set()
    sizes = Counter(item.verdict.case.probe for item in audit.judged)
    for item in sorted(audit.judged, key=lambda item: -sizes[item.verdict.case.probe]):
        case = item.verdict.case
        asked = (item.operator, item.arm, case.group, case.prompt)
        if asked not in seen:  # a question that two probes ask breaks once, by the probe that asks more
            seen.add(asked)
            cells.setdefault((item.operator, item.task, item.arm, case.probe), []).append(item.verdict)
    found = [_way(key, verdicts) for key, verdicts in cells.items()]
    return sorted((way for way in found if way.broken), key=_severity)


def _way(key: tuple[str, str, str, str], verdicts: Sequence[Verdict]) -> Way:
    counted = [(verdict, bool(broke(verdict))) for verdict in verdicts if broke(verdict) is not None]
    share = proportion([float(bad) for _, bad in counted], [verdict.case.group for verdict, _ in counted])
    return Way(*key, share, tuple(verdict for verdict, bad in counted if bad))


def _severity(way: Way) -> tuple[float, float, str]:
    return (-(way.share.low or 0.0), -(way.share.value or 0.0), way.title)


def worst(audit: Audit, n: int = 3) -> list[Way]:
    """The worst ways, each by a probe of its own and an operator of its own where there are enough of them."""
    ranked, chosen = ways(audit), []
    seen = (
        lambda way: any(way.probe == other.probe or way.operator == other.operator for other in chosen),
        lambda way: any(way.probe == other.probe for other in chosen),
        lambda way: any((way.operator, way.probe) == (other.operator, other.probe) for other in chosen),
        lambda way: way in chosen,
    )
    for known in seen:
        for way in ranked:
            if len(chosen) < n and not known(way):
                chosen.append(way)
    return sorted(chosen, key=_severity)


def telling(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The clearest first: what the unchanged model answered rightly, then a real wrong answer before babble, then the
    largest lead of the wrong answer. No prompt comes twice."""
    return firsts(sorted(verdicts, key=_clarity), lambda verdict: verdict.case.prompt)


def firsts(items: Iterable[Item], key: Callable[[Item], object]) -> list[Item]:
    """The first item of each key, in their order."""
    found: dict[object, Item] = {}
    for item in items:
        found.setdefault(key(item), item)
    return list(found.values())


def _clarity(verdict: Verdict) -> tuple[bool, bool, bool, float, str]:
    margin = verdict.margin_after
    expected = Class.OLD if verdict.case.expect is not Expect.UNCHANGED else Class.HALLUCINATION
    unclear = verdict.class_after in (Class.DEGENERATE, Class.OTHER)
    lead = margin if margin is not None else 0.0
    return (not _knew(verdict), unclear, verdict.class_after is not expected, lead, verdict.case.prompt)


def _knew(verdict: Verdict) -> bool:
    return verdict.class_before is Class.OLD


def exchange(verdict: Verdict, title: str, text: str) -> Exchange:
    return Exchange(
        title=title,
        text=text,
        prompt=verdict.case.prompt,
        before=verdict.answer.before.text,
        after=verdict.answer.after.text,
        class_before=CLASSES[verdict.class_before],
        class_after=CLASSES[verdict.class_after],
        tone="bad" if broke(verdict) else "plain",
    )


def examples(chosen: Sequence[Way], facts: dict[str, FactRow]) -> list[Exchange]:
    """Each way told by its clearest case whose prompt was not shown for a way before it, if it has one."""
    told_of: list[Exchange] = []
    for way in chosen:
        ranked = telling(way.broken)
        prompts = {item.prompt for item in told_of}
        verdict = next((v for v in ranked if v.case.prompt not in prompts), ranked[0])
        told_of.append(_example(way, verdict, facts))
    return told_of


def _example(way: Way, verdict: Verdict, facts: dict[str, FactRow]) -> Exchange:
    kinds = Counter(CLASSES[v.class_after] for v in way.broken)
    answers = ", ".join(f"{kind} {n}" for kind, n in kinds.most_common())
    sentences = (
        changed_fact(verdict, way.task, facts),
        unknown_before(verdict),
        f"Kind of question: {variant_title(verdict.case.variant)}.",
        f"Share that breaks: {told(way.share)}. Answers that do: {answers}.",
    )
    return exchange(verdict, way.title, " ".join(sentence for sentence in sentences if sentence))


def unknown_before(verdict: Verdict) -> str:
    """A word of caution where the unchanged model did not answer this rightly: less may be lost than it seems."""
    if _knew(verdict):
        return ""
    steps = "; it knew the single steps" if verdict.case.probe == "multi_hop" and verdict.applies else ""
    return f"The unchanged model did not answer this right either{steps}."


def changed_fact(verdict: Verdict, task: str, facts: dict[str, FactRow]) -> str:
    """ "Changed: France, capital: Paris → Rome."; nothing for a fact that the record does not hold."""
    fact = facts.get(verdict.case.group)
    if fact is None:
        return ""
    forgotten = task == "unlearn" or fact.target_new is None
    return f"{'To be forgotten' if forgotten else 'Changed'}: {named_fact(fact, task)}."


def named_fact(fact: FactRow, task: str) -> str:
    """ "France, capital: Paris → Rome", or without the last where it is to be forgotten."""
    names = (fact.subject, fact.relation.replace("_", " "), fact.object)
    subject, relation, old = (present(name, _SHORT) for name in names)
    new = "" if task == "unlearn" or fact.target_new is None else f" → {present(fact.target_new, _SHORT)}"
    return f"{subject}, {relation}: {old}{new}"


def facts_by_id(audit: Audit) -> dict[str, FactRow]:
    return {fact.id: fact for fact in audit.facts}
