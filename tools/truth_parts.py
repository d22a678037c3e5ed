"""Where an operator gives way: shares of some of the cases that a metric counts, by form of wording or kind of fact.

And how much could be had: at how many of the same prompts the unchanged model writes the old object. Where it does not
understand a wording, no edit can be expected to show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from probes.estimate import Estimate, proportion
from probes.metrics import METRICS, readings
from probes.verdict import Class, Expect, Verdict

SHORT = 2  # words of a drawn text that ends at once
Prompts = Mapping[str, str]
"""The edit's own prompt by fact."""


@dataclass(frozen=True, slots=True)
class Part:
    """Those cases of a metric that `of` is true of, given the fact's own prompt."""

    metric: str
    of: Callable[[Verdict, str], bool]


def _small(verdict: Verdict, own: str) -> bool:
    return verdict.case.variant == "casing" and not _first(verdict, own) and verdict.case.prompt[0].islower()


def _large(verdict: Verdict, own: str) -> bool:
    return verdict.case.variant == "casing" and not _first(verdict, own) and verdict.case.prompt[0].isupper()


def _first(verdict: Verdict, own: str) -> bool:
    return verdict.case.variant == "casing" and verdict.case.prompt[1:] == own[1:]


def of_variant(name: str | None) -> Callable[[Verdict, str], bool]:
    """Cases of one variant; of any for None."""
    return lambda verdict, own: name is None or verdict.case.variant == name


def _language(verdict: Verdict, own: str) -> bool:
    return verdict.case.group.startswith("language/")


PARTS: Mapping[str, Part] = {
    "first letter small": Part("generalization_generation", _first),
    "all letters small": Part("generalization_generation", _small),
    "each word a capital": Part("generalization_generation", _large),
    "neighbours, same relation": Part("specificity_generation", of_variant("same relation")),
    "neighbours, others": Part("specificity_generation", of_variant("other relation")),
    "consequences, languages": Part("portability_generation", _language),
    "consequences, others": Part("portability_generation", lambda verdict, own: not _language(verdict, own)),
}


def _taken_over(verdicts: Sequence[Verdict]) -> list[tuple[float, str]]:
    """Of the neighbours that were right before: does the model write the edit's new object there?"""
    new = {each.case.group: each.case.new[0] for each in verdicts if each.case.probe == "rewrite"}
    right = [v for v in verdicts if v.case.probe == "neighborhood" and v.applies and v.class_before is Class.OLD]
    return [(float(new[v.case.group].lower() in v.answer.after.text.lower()), v.case.group) for v in right]


def _short(verdicts: Sequence[Verdict]) -> list[tuple[float, str]]:
    """Of the drawn texts: do they end after two words or fewer?"""
    free = [verdict for verdict in verdicts if verdict.case.free]
    return [(float(len(verdict.answer.after.text.split()) <= SHORT), verdict.case.group) for verdict in free]


COUNTS: Mapping[str, Callable[[Sequence[Verdict]], list[tuple[float, str]]]] = {
    "neighbours with the new object": _taken_over,
    "texts of two words or less": _short,
}
TITLES = (*PARTS, *COUNTS)


def counts(verdicts: Sequence[Verdict]) -> dict[str, Estimate]:
    """The shares that no metric tells."""
    return {name: _share(count(verdicts)) for name, count in COUNTS.items()}


def shares(chosen: Mapping[str, Part], verdicts: Sequence[Verdict], own: Prompts) -> dict[str, Estimate]:
    """What the metric of each part says of its cases."""
    return {name: _share([(after, of) for _, after, of in _read(each, verdicts, own)]) for name, each in chosen.items()}


def knew(chosen: Mapping[str, Part], verdicts: Sequence[Verdict], own: Prompts) -> dict[str, Estimate]:
    """At how many of the same prompts the unchanged model writes the old object; only of parts that ask for the new."""
    found = {}
    for name, each in chosen.items():
        read = [item for item in _read(each, verdicts, own) if not item[0].case.free]
        if read and all(verdict.case.expect is Expect.HOLDS for verdict, *_ in read):
            found[name] = _share([(float(verdict.class_before is Class.OLD), of) for verdict, _, of in read])
    return found


def _read(part: Part, verdicts: Sequence[Verdict], own: Prompts) -> list[tuple[Verdict, float, str]]:
    """The cases that count: the verdict, what the metric says of it, and the fact."""
    chosen = [verdict for verdict in verdicts if part.of(verdict, own[verdict.case.group])]
    read = readings(METRICS[part.metric], chosen)
    return [(chosen[each.cases[0]], each.after, each.group) for each in read if each.after is not None]


def _share(counted: Sequence[tuple[float, str]]) -> Estimate:
    return proportion([value for value, _ in counted], [fact for _, fact in counted])
