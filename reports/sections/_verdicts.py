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
from reports.record import Audit, FactRow, Judged
from reports.sections._figures import level_of
from reports.wording import CLASSES, arm_title, counted, probe_title, told, variant_title

_SAY = {
    "rewrite": "never took at the fact's own prompt",
    "rephrase": "asked in other words",
    "keyword_emphasis": "asked with key words stressed",
    "multi_hop": "asked through a related question",
    "neighborhood": "asked for a neighbour",
    "popularity": "asked for another fact of the relation",
}
OWN = "rewrite"  # the probe that asks for a fact at its own prompt
_STRESSED, _RANDOM = "keyword_emphasis", "control:random_words:"
_SHORT = 80  # characters of a name in a sentence
Whose = tuple[str, str, str]  # operator, arm, fact
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Way:
    """One way in which a change breaks: an arm and a probe, how often, and the cases.

    `unknown` facts among those counted have no verdict at their own prompt: whether the change took there is not known.
    `control` is the share for random words in the place of key words.
    """

    operator: str
    task: str
    arm: str
    probe: str
    share: Estimate
    broken: tuple[Verdict, ...]
    unknown: int = 0
    control: Estimate | None = None

    @property
    def title(self) -> str:
        return f"{arm_title(self.operator, self.arm)}: {_SAY.get(self.probe, probe_title(self.probe))}"


def broke(verdict: Verdict) -> bool | None:
    """Whether the written answer is not what the case demands; None where the case does not count.

    What must stay counts only if it was right before; a stressed question breaks the change if the old answer comes, or
    babble. Controls and the plain prompt beside stressed ones do not count: they are there to be compared with.
    """
    if not verdict.applies or verdict.case.variant.startswith("control:"):
        return None
    if verdict.case.expect is Expect.UNCHANGED:
        return None if verdict.before.generation is not True else verdict.after.generation is False
    if verdict.case.expect is Expect.MOVES:
        return None if verdict.case.variant == "plain" else _moved_back(verdict)
    return None if verdict.after.generation is None else not verdict.after.generation


def _moved_back(verdict: Verdict) -> bool:
    return verdict.class_after in (Class.OLD, Class.DEGENERATE)


def took(audit: Audit) -> dict[Whose, bool]:
    """Whether the change shows at the fact's own prompt; no entry where that was not asked or does not count."""
    found: dict[Whose, bool] = {}
    for item in audit.judged:
        if item.verdict.case.probe == OWN and (bad := broke(item.verdict)) is not None:
            found[_whose(item)] = found.get(_whose(item), True) and not bad
    return found


def _whose(item: Judged) -> Whose:
    return item.operator, item.arm, item.verdict.case.group


def asks_again(verdict: Verdict) -> bool:
    """Whether the case asks for the changed fact, or what follows from it, in another way than its own prompt."""
    return verdict.case.expect is not Expect.UNCHANGED and verdict.case.probe != OWN


def weighed(audit: Audit) -> list[tuple[Judged, bool | None]]:
    """Every case with whether it breaks the change, None where it does not count.

    As `broke`, but what never took at the fact's own prompt breaks there and in no other way of asking for it.
    """
    known = took(audit)
    gone = {whose for whose, shows in known.items() if not shows}
    return [
        (item, None if asks_again(item.verdict) and _whose(item) in gone else broke(item.verdict))
        for item in audit.judged
    ]


def ways(audit: Audit) -> list[Way]:
    """All ways in which something breaks, worst first: by the lower end of the share of cases, then by the share."""
    cells: dict[tuple[str, str, str, str], list[tuple[Verdict, bool]]] = {}
    seen: set[tuple[str, str, str, str]] = set()
    sizes = Counter(item.verdict.case.probe for item in audit.judged)
    for item, bad in sorted(weighed(audit), key=lambda pair: -sizes[pair[0].verdict.case.probe]):
        case = item.verdict.case
        asked = (item.operator, item.arm, case.group, case.prompt)
        if bad is not None and asked not in seen:  # what two probes ask breaks once, by the probe that asks more
            seen.add(asked)
            cells.setdefault((item.operator, item.task, item.arm, case.probe), []).append((item.verdict, bad))
    known = took(audit)
    found = [_way(audit, key, cases, known) for key, cases in cells.items()]
    return sorted((way for way in found if way.broken), key=_severity)


def _way(
    audit: Audit, key: tuple[str, str, str, str], cases: Sequence[tuple[Verdict, bool]], known: dict[Whose, bool]
) -> Way:
    operator, _, arm, probe = key
    groups = [verdict.case.group for verdict, _ in cases]
    again = {verdict.case.group for verdict, _ in cases if asks_again(verdict)}
    return Way(
        *key,
        proportion([float(bad) for _, bad in cases], groups, level_of(audit)),
        tuple(verdict for verdict, bad in cases if bad),
        sum((operator, arm, group) not in known for group in again),
        _with_random_words(audit, operator, arm, set(groups)) if probe == _STRESSED else None,
    )


def _with_random_words(audit: Audit, operator: str, arm: str, facts: set[str]) -> Estimate | None:
    """The share that the same facts break by, asked with random words stressed instead of key words."""
    cell = (item.verdict for item in audit.judged if (item.operator, item.arm) == (operator, arm))
    asked = [v for v in cell if v.case.group in facts and v.case.variant.startswith(_RANDOM) and v.applies]
    if not asked:
        return None
    return proportion([float(_moved_back(v)) for v in asked], [v.case.group for v in asked], level_of(audit))


def _severity(way: Way) -> tuple[float, float, str]:
    return (-(way.share.low or 0.0), -(way.share.value or 0.0), way.title)


def worst(audit: Audit, n: int = 3) -> list[Way]:
    """The worst way of each probe, and of these the worst; filled up with the next worst where fewer probes break."""
    ranked = ways(audit)
    best = firsts(ranked, lambda way: way.probe)
    return sorted((best + [way for way in ranked if way not in best])[:n], key=_severity)


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
        f"Kind of question: {variant_title(verdict.case.variant)}." if way.probe != OWN else "",
        _share(way, verdict),
        _beside(way),
        f"Answers that do: {answers}.",
    )
    return exchange(verdict, way.title, " ".join(sentence for sentence in sentences if sentence))


def _share(way: Way, verdict: Verdict) -> str:
    """How often, and of which facts: what never took is not asked again."""
    if not asks_again(verdict):
        return f"Share that breaks: {told(way.share)}."
    if not way.unknown:
        return f"Share that breaks, where the change took at the fact's own prompt: {told(way.share)}."
    all_of_them = way.unknown == way.share.groups
    whose = "it" if all_of_them else f"for {way.unknown} of them it"
    return f"Share that breaks: {told(way.share)}; {whose} is not known whether the change took at their own prompt."


def _beside(way: Way) -> str:
    """What the controls of stressed key words do. The number of cases is said where it is another one."""
    if way.control is None:
        return ""
    same = (way.control.n, way.control.groups) == (way.share.n, way.share.groups)
    share = told(way.control).removesuffix(f", {counted(way.share.n, way.share.groups)}") if same else told(way.control)
    as_much = (way.control.value or 0.0) >= (way.share.value or 0.0)
    return f"With random words instead: {share}{', which is no less' if as_much else ''}."


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
