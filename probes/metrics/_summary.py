"""From verdicts to rows of estimates: overall, by popularity stratum of the changed fact, by wording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from probes.estimate import LEVEL, Array, Estimate, bootstrap, holm, mean, paired_difference, paired_p, proportion
from probes.metrics._metric import METRICS, Metric, Reading, Side, Task, questions, readings
from probes.verdict import Verdict

OWN_SUBJECT = ("rewrite", "rephrase")  # probes whose cases are about the changed fact itself
Parts = list[list[Reading]]


@dataclass(frozen=True, slots=True)
class Row:
    """One metric on one cut of the cases; `stratum` and `variant` are None where the cut is not by them.

    `before` is None where the unchanged model has no value of its own; `difference` is after - before over the cases
    that have both, `p` its paired test (None for combined metrics), `p_holm` the same adjusted for the number of
    metrics tested on that cut (Holm 1979). `skipped` counts the cases of the metric's probes
    that did not count: a premise failed, or the protocol or the metric does not apply to them; not those that ask the
    question of another case again.
    """

    metric: str
    stratum: str | None
    variant: str | None
    before: Estimate | None
    after: Estimate
    difference: Estimate | None
    p: float | None
    skipped: int
    p_holm: float | None = None


@dataclass(frozen=True, slots=True)
class _Cut:
    verdicts: Sequence[Verdict]
    strata: Mapping[str, str]
    stratum: str | None = None
    variant: str | None = None


def summarise(
    verdicts: Sequence[Verdict],
    *,
    task: Task,
    level: float = LEVEL,
    seed: int = 0,
    strata: Mapping[str, str | None] | None = None,
) -> list[Row]:
    """Every metric of `task` ("edit", "unlearn"; "both" for all there are) on `verdicts`, sorted by name.

    Each metric has one row overall, one for each popularity stratum it has cases in, and, if it is counted by case,
    one for each wording (`case.variant`). `strata` maps facts (`case.group`) to strata; by default they are read off
    the cases about the changed fact itself. The order of the verdicts does not matter.
    """
    known = {group: name for group, name in (strata or _strata_of(verdicts)).items() if name is not None}
    rows = []
    for _, metric in METRICS.items():
        if "both" in (task, metric.task) or task == metric.task:
            overall, *others = (_row(metric, cut, level, seed) for cut in _cuts(metric, verdicts, known))
            rows += [overall, *(row for row in others if row.after.value is not None)]
    return _adjusted(rows)


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    """The rows in their order, each p adjusted for those tested on the same cut."""
    families: dict[tuple[str | None, str | None], dict[int, float]] = {}
    for place, row in enumerate(rows):
        if row.p is not None:
            families.setdefault((row.stratum, row.variant), {})[place] = row.p
    found = {place: p for tests in families.values() for place, p in zip(tests, holm([*tests.values()]), strict=True)}
    return [replace(row, p_holm=found.get(place)) for place, row in enumerate(rows)]


def value(metric: Metric, verdicts: Sequence[Verdict], side: Side = "after") -> float | None:
    """The bare number, without an interval; None where nothing counts."""
    row = _row(metric, _Cut(verdicts, _strata_of(verdicts)), LEVEL, 0, everywhere=True)
    estimate = row.before if side == "before" else row.after
    return None if estimate is None else estimate.value


def _strata_of(verdicts: Sequence[Verdict]) -> dict[str, str]:
    own = (v.case for v in verdicts if v.case.probe in OWN_SUBJECT)
    return {case.group: case.stratum for case in own if case.stratum is not None}


def _cuts(metric: Metric, verdicts: Sequence[Verdict], strata: Mapping[str, str]) -> Iterator[_Cut]:
    read = [verdict for verdict in verdicts if metric.reads(verdict)]
    yield _Cut(read, strata)
    for name in sorted({strata[v.case.group] for v in read if v.case.group in strata}):
        yield _Cut([v for v in read if strata.get(v.case.group) == name], strata, stratum=name)
    if metric.kind == "case":
        for name in sorted({v.case.variant for v in read}):
            yield _Cut([v for v in read if v.case.variant == name], strata, variant=name)


def _row(metric: Metric, cut: _Cut, level: float, seed: int, everywhere: bool = False) -> Row:
    parts = _parts(metric, cut)
    counted = {i for part in parts for reading in part if reading.after is not None for i in reading.cases}
    skipped = len({i for i, _ in questions(metric, cut.verdicts)} - counted)
    paired = metric.baseline or everywhere
    if metric.kind == "combined":
        numbers = _combined(metric, parts, level, seed, paired)
    else:
        numbers = _single(metric, parts[0], level, seed, paired)
    return Row(metric.name, cut.stratum, cut.variant, *numbers, skipped)


def _parts(metric: Metric, cut: _Cut) -> Parts:
    """The readings of each value that the metric is made of; one list for a metric that is not combined."""
    if metric.kind != "combined":
        return [readings(metric, cut.verdicts)]
    if not metric.across_strata:
        return [readings(part, cut.verdicts) for part in metric.of]
    whole = [reading for part in metric.of for reading in readings(part, cut.verdicts) if reading.after is not None]
    names = sorted({cut.strata[r.group] for r in whole if r.group in cut.strata})
    return [[r for r in whole if cut.strata.get(r.group) == name] for name in names]


Numbers = tuple[Estimate | None, Estimate, Estimate | None, float | None]


def _single(metric: Metric, found: Sequence[Reading], level: float, seed: int, paired: bool) -> Numbers:
    after = _estimate(metric, found, "after", level)
    if not paired:
        return None, after, None, None
    both = [r for r in found if r.before is not None and r.after is not None]
    olds, news, groups = [r.before for r in both], [r.after for r in both], [r.group for r in both]
    bounds = (-1.0, 1.0) if metric.unit == "share" else None
    difference = paired_difference(olds, news, groups, level, bounds=bounds)
    return _estimate(metric, found, "before", level), after, difference, paired_p(olds, news, groups, seed=seed)


def _estimate(metric: Metric, found: Sequence[Reading], side: Side, level: float) -> Estimate:
    counted = [(r.on(side), r.group) for r in found if r.on(side) is not None]
    values, groups = [x for x, _ in counted], [group for _, group in counted]
    if metric.unit == "share":
        return proportion(values, groups, level)
    return mean(values, groups, level, bounds=metric.bounds)


def _combined(metric: Metric, parts: Parts, level: float, seed: int, paired: bool) -> Numbers:
    def statistic(totals: Array) -> Array:
        """Totals (..., sums and sizes of the parts) to the metric's value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = totals[..., : len(parts)] / totals[..., len(parts) :]
        return metric.compute(*np.moveaxis(shares, -1, 0))

    def moved(totals: Array) -> Array:
        return statistic(totals[..., width:]) - statistic(totals[..., :width])

    width = 2 * len(parts)
    after = _table(parts, "after")
    last = bootstrap(after, statistic, level, seed=seed, bounds=metric.bounds, counts=_counts(parts, ["after"]))
    if not paired:
        return None, last, None, None
    before, counts = _table(parts, "before"), _counts(parts, ["before", "after"])
    first = bootstrap(before, statistic, level, seed=seed, bounds=metric.bounds, counts=_counts(parts, ["before"]))
    bounds = (-1.0, 1.0) if metric.unit == "share" else None
    both = np.concatenate([before, after], axis=1)
    return first, last, bootstrap(both, moved, level, seed=seed, bounds=bounds, counts=counts), None


def _table(parts: Parts, side: Side) -> Array:
    """(groups, 2 · parts): what each fact adds to the sums and then to the sizes of the parts."""
    names = {name: i for i, name in enumerate(sorted({r.group for part in parts for r in part}))}
    table = np.zeros((len(names), 2 * len(parts)))
    for column, part in enumerate(parts):
        for reading in part:
            number = reading.on(side)
            if number is not None:
                table[names[reading.group], [column, len(parts) + column]] += (number, 1)
    return table


def _counts(parts: Parts, sides: Sequence[Side]) -> tuple[int, int]:
    """All cases, and the facts under the part that has the fewest."""
    counted = [[r for r in part if all(r.on(side) is not None for side in sides)] for part in parts]
    cases = {i for part in counted for r in part for i in r.cases}
    return len(cases), min((len({r.group for r in part}) for part in counted), default=0)
