"""What breaks: verdicts that are not as demanded, the ways they form, and the case that shows a way best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probes.estimate import Estimate, proportion
from probes.verdict import Class, Expect, Verdict
from reports.document import Exchange
from reports.present import present
from reports.record import Audit, FactRow
from reports.wording import CLASSES, arm_title, plural, probe_title, told, variant_title

_SAY = {
    "rewrite": "asked with its own prompt",
    "rephrase": "asked in other words",
    "keyword_emphasis": "asked with key words stressed",
    "multi_hop": "asked through a related question",
    "neighborhood": "asked for a neighbour",
    "popularity": "asked for another fact of the relation",
}
_SHORT = 80  # characters of a name in a sentence


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

    What must stay counts only if it was right before; a stressed question breaks the change if the old answer comes.
    Controls do not count: they are there to be compared with.
    """
    if not verdict.applies or verdict.case.variant.startswith("control:"):
        return None
    if verdict.case.expect is Expect.UNCHANGED:
        return None if verdict.before.generation is not True else verdict.after.generation is False
    if verdict.case.expect is Expect.MOVES:
        return verdict.class_after is Class.OLD
    return None if verdict.after.generation is None else not verdict.after.generation


def ways(audit: Audit) -> list[Way]:
    """All ways in which something breaks, worst first: by the lower end of the share of cases, then by the share."""
    cells: dict[tuple[str, str, str, str], list[Verdict]] = {}
    for item in audit.judged:
        key = (item.operator, item.task, item.arm, item.verdict.case.probe)
        cells.setdefault(key, []).append(item.verdict)
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
    """The clearest first: a real wrong answer before babble, then the largest lead of the wrong answer."""
    return sorted(verdicts, key=_clarity)


def _clarity(verdict: Verdict) -> tuple[bool, bool, float, str]:
    margin = verdict.margin_after
    expected = Class.OLD if verdict.case.expect is not Expect.UNCHANGED else Class.HALLUCINATION
    unclear = verdict.class_after in (Class.DEGENERATE, Class.OTHER)
    return (unclear, verdict.class_after is not expected, margin if margin is not None else 0.0, verdict.case.prompt)


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


def shown(way: Way, facts: dict[str, FactRow]) -> Exchange:
    """A way, told by its clearest case."""
    verdict = telling(way.broken)[0]
    kinds = Counter(CLASSES[v.class_after] for v in way.broken)
    answers = ", ".join(f"{kind} {n}" for kind, n in kinds.most_common())
    text = (
        f"{len(way.broken)} of {plural(way.share.n, 'case')} break: {told(way.share)}. Answers: {answers}. "
        f"{changed_fact(verdict, way.task, facts)} Wording: {variant_title(verdict.case.variant)}."
    )
    return exchange(verdict, way.title, text)


def changed_fact(verdict: Verdict, task: str, facts: dict[str, FactRow]) -> str:
    """ "Changed: France, capital: Paris → Rome."; nothing for a fact that the record does not hold."""
    fact = facts.get(verdict.case.group)
    if fact is None:
        return ""
    names = (fact.subject, fact.relation.replace("_", " "), fact.object)
    subject, relation, old = (present(name, _SHORT) for name in names)
    if task == "unlearn" or fact.target_new is None:
        return f"To be forgotten: {subject}, {relation}: {old}."
    return f"Changed: {subject}, {relation}: {old} → {present(fact.target_new, _SHORT)}."


def facts_by_id(audit: Audit) -> dict[str, FactRow]:
    return {fact.id: fact for fact in audit.facts}
