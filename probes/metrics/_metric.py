"""What a metric is, and how one decorated function becomes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from editkit.registry import Registry
from probes.estimate import Array, Bounds
from probes.verdict import Verdict

Side = Literal["before", "after"]
Task = Literal["edit", "unlearn", "both"]

UNITS: Mapping[str, Bounds | None] = MappingProxyType(
    {"share": (0.0, 1.0), "difference of shares": (-1.0, 1.0), "nats": None, "bits": None}
)

METRICS: Registry[Metric] = Registry("metric", "probes.metrics")


@dataclass(frozen=True, slots=True)
class Metric:
    """One question about a change, and the function that reads its answer off the verdicts.

    `compute` is, by kind: "case" `(verdict, side) -> float | None`; "group" `(verdicts of one fact, side) ->
    float | None`; "combined" `(*shares) -> share` of arrays that broadcast, one for each metric in `of`, or, with
    `across_strata`, one for each popularity stratum of the single metric in `of`. None or NaN: does not count.
    `probes` are the probes it reads (empty: every one); `baseline` is False where the unchanged model's value is given
    by definition, so that only the changed model's is told. `whatever_applies` metrics read cases too whose premise
    fails, since their question does not rest on it.
    """

    name: str
    task: Task
    probes: tuple[str, ...]
    better: Literal["higher", "lower"]
    unit: str
    question: str
    compute: Callable[..., Any]
    kind: Literal["case", "group", "combined"] = "case"
    of: tuple[Metric, ...] = ()
    across_strata: bool = False
    baseline: bool = True
    whatever_applies: bool = False

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"metric {self.name!r} has unit {self.unit!r}; there is {', '.join(UNITS)}")
        if self.better not in ("higher", "lower"):
            raise ValueError(f"metric {self.name!r} is better {self.better!r}; say higher or lower")
        if not self.question.endswith("?"):
            raise ValueError(f"metric {self.name!r} asks nothing; make the first line of its docstring a question")

    @property
    def bounds(self) -> Bounds | None:
        """The range of the unit, None where it has no end."""
        return UNITS[self.unit]

    def reads(self, verdict: Verdict) -> bool:
        return not self.probes or verdict.case.probe in self.probes


@dataclass(frozen=True, slots=True)
class Reading:
    """What one case or one fact adds to a metric; `cases` are the positions of the verdicts it was read off."""

    group: str
    before: float | None
    after: float | None
    cases: tuple[int, ...]

    def on(self, side: Side) -> float | None:
        return self.before if side == "before" else self.after


def questions(metric: Metric, verdicts: Sequence[Verdict]) -> list[tuple[int, Verdict]]:
    """The verdicts that a metric reads, each with its position.

    Probes may ask the same prompt (the plain wording of the emphasis is the rewrite's): a metric that reads them all
    gets each prompt about a fact once, from a case that applies if there is one.
    """
    numbered = [(i, v) for i, v in enumerate(verdicts) if metric.reads(v)]
    if metric.probes:
        return numbered
    once: dict[tuple[str, str, int], tuple[int, Verdict]] = {}
    for i, v in sorted(numbered, key=lambda each: (not each[1].applies, each[1].case.probe, each[1].case.variant)):
        once.setdefault((v.case.group, v.case.prompt, v.case.free), (i, v))
    return sorted(once.values(), key=lambda each: each[0])


def readings(metric: Metric, verdicts: Sequence[Verdict]) -> list[Reading]:
    """The readings of a "case" or "group" metric; verdicts that do not apply are not read, unless it says so."""
    numbered = [(i, v) for i, v in questions(metric, verdicts) if v.applies or metric.whatever_applies]
    if metric.kind == "case":
        return [
            Reading(v.case.group, metric.compute(v, "before"), metric.compute(v, "after"), (i,)) for i, v in numbered
        ]
    by_group: dict[str, list[tuple[int, Verdict]]] = {}
    for i, verdict in numbered:
        by_group.setdefault(verdict.case.group, []).append((i, verdict))
    return [_of_group(metric, group, members) for group, members in sorted(by_group.items())]


def _of_group(metric: Metric, group: str, members: list[tuple[int, Verdict]]) -> Reading:
    verdicts = [verdict for _, verdict in members]
    cases = tuple(i for i, _ in members)
    return Reading(group, metric.compute(verdicts, "before"), metric.compute(verdicts, "after"), cases)


def _file(function: Callable[..., Any], **fields: Any) -> Metric:
    question = (inspect.getdoc(function) or "").partition("\n")[0]
    made = Metric(name=function.__name__, question=question, compute=function, **fields)
    return METRICS.register(made.name)(made)


def per_case(
    task: Task,
    probes: Iterable[str],
    *,
    better: str,
    unit: str = "share",
    baseline: bool = True,
    whatever_applies: bool = False,
) -> Callable[[Callable[[Verdict, Side], float | None]], Metric]:
    """File a function of one verdict as a metric: the mean over cases, clustered by fact."""
    fields = dict(task=task, probes=tuple(probes), better=better, unit=unit, baseline=baseline)
    return lambda function: _file(function, kind="case", whatever_applies=whatever_applies, **fields)


def per_group(
    task: Task, probes: Iterable[str], *, better: str, unit: str = "share", baseline: bool = True
) -> Callable[[Callable[[Sequence[Verdict], Side], float | None]], Metric]:
    """File a function of all verdicts about one fact as a metric: the mean over facts."""
    fields = dict(task=task, probes=tuple(probes), better=better, unit=unit, baseline=baseline)
    return lambda function: _file(function, kind="group", **fields)


def combined(
    task: Task,
    of: Iterable[Metric],
    *,
    better: str,
    unit: str = "share",
    baseline: bool = True,
    across_strata: bool = False,
) -> Callable[[Callable[..., Array]], Metric]:
    """File a function of the values of other metrics as a metric, with a bootstrap over facts for its interval.

    With `across_strata=True` the function gets the one metric of `of`, once for each popularity stratum.
    """
    parts = tuple(of)
    probes = tuple(dict.fromkeys(probe for part in parts for probe in part.probes))
    fields = dict(task=task, of=parts, probes=probes, better=better, unit=unit, baseline=baseline)
    return lambda function: _file(function, kind="combined", across_strata=across_strata, **fields)
