"""One number and its interval are one value; what an interval lets one claim.

Cases about one fact are not independent, so every interval here treats the fact (the group) as the unit that was
sampled. An interval that cannot be had is None and never a point.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

Array = NDArray[np.float64]
Values = Sequence[float]
Groups = Sequence[str]
Bounds = tuple[float, float]

LEVEL = 0.95
EXACT_GROUPS = 12  # up to here all 2^groups sign flips are tried
FLIPS = 9_999  # above, as many are drawn
PSEUDO = 0.5  # half a passing and half a failing group, see `_effective`


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval at `level`; `low` and `high` are None when they cannot be had.

    `n` counts the cases, `groups` the facts they belong to (the clusters); `method` names the interval.
    """

    value: float | None
    low: float | None
    high: float | None
    level: float
    n: int
    groups: int
    method: str


@dataclass(frozen=True, slots=True)
class _Clusters:
    """Per group, in the order of the names: the sum of its values and how many there are."""

    sums: Array
    sizes: Array

    @property
    def n(self) -> int:
        return int(self.sizes.sum())

    @property
    def count(self) -> int:
        return len(self.sizes)

    @property
    def value(self) -> float:
        return float(self.sums.sum() / self.n)

    @property
    def even(self) -> float:
        """How many groups of one size would weigh as much (Kish 1965); their number where all are of one size."""
        return float(self.n**2 / (self.sizes**2).sum())

    @property
    def spread(self) -> float:
        """Sum over groups of the squared sum of residuals; n² times the variance of the mean, but for small samples."""
        spread = float(((self.sums - self.sizes * self.value) ** 2).sum())
        return 0.0 if spread <= 1e-18 * max(1.0, float((self.sums**2).sum())) else spread


def _clusters(values: Values, groups: Groups) -> _Clusters:
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values and {len(groups)} groups; give each value its group")
    for value, group in zip(values, groups, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"a value of group {group!r} is {value}; leave such cases out or look where it came from")
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return _Clusters(np.bincount(index, np.asarray(values, dtype=float)), np.bincount(index).astype(float))


def _two_sided(level: float) -> float:
    """The share below the upper end of a two-sided interval."""
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1; 0.95 is usual")
    return (1 + level) / 2


def _none(value: float | None, level: float, n: int, groups: int, why: str) -> Estimate:
    return Estimate(value, None, None, level, n, groups, why)


def _too_few(clusters: _Clusters, level: float) -> Estimate:
    _two_sided(level)
    if not clusters.count:
        return _none(None, level, 0, 0, "no cases")
    return _none(clusters.value, level, clusters.n, clusters.count, "no interval: fewer than two groups")


def _perfect(groups: float, level: float) -> float:
    """Wilson's lower bound of a run in which all of `groups` pass."""
    z = float(ndtri(_two_sided(level)))
    return groups / (groups + z * z)


def _wilson(share: float, n: float, level: float) -> tuple[float, float]:
    if share in (0, 1):  # exactly, not but for rounding
        return (_perfect(n, level), 1.0) if share else (0.0, 1 - _perfect(n, level))
    z = float(ndtri(_two_sided(level)))
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def _bounded(
    ends: tuple[float, float], value: float, bounds: Bounds, groups: float, level: float
) -> tuple[float, float]:
    """The interval kept inside its bounds, around its value, and never more certain than `groups` can make it.

    A run with one failure would otherwise get a better lower bound than a perfect one, whose spread is zero.
    """
    reach = (bounds[1] - bounds[0]) * _perfect(groups, level)
    low = min(ends[0], value, bounds[0] + reach)
    high = max(ends[1], value, bounds[1] - reach)
    return max(low, bounds[0]), min(high, bounds[1])


def _of_equals(value: float, bounds: Bounds | None, level: float, counts: tuple[int, int], what: str) -> Estimate:
    """The interval where nothing varies: Wilson bounds the share of groups that could be anything within `bounds`."""
    if bounds is None:
        return _none(value, level, *counts, f"no interval: {what}")
    share = _perfect(counts[1], level)
    low, high = (share * value + (1 - share) * bound for bound in bounds)
    return Estimate(value, low, high, level, *counts, f"Wilson on groups, as {what}")


def _effective(clusters: _Clusters, level: float) -> tuple[float, str]:
    """How many independent cases the clustered ones are worth, and the name of the interval that uses it.

    The design effect is the cluster-robust variance over that of independent cases, never below 1. Few groups estimate
    it badly, so half a passing and half a failing group of mean size are added to its (not the share's) computation,
    and what it leaves is multiplied by (t of the cases / t of the groups)² (Korn & Graubard 1998), though not below the
    number of even groups, since one value a group asked again and again is worth one case. In simulations of 8
    to 40 groups (tests/bench/bench_coverage.py) the worst coverage of 95 % intervals is .945 for groups of one size,
    .935 for groups of 2 to 20 cases and .91 where a few groups hold most of the cases; without the last factor it was
    .92, .87 and .88. One case a group is plain Wilson, with .93.
    """
    if clusters.n == clusters.count:
        return clusters.n, "Wilson"
    if clusters.spread == 0:
        return clusters.even, "Wilson on groups (conservative: no spread between groups)"
    size = clusters.n / clusters.count
    n = clusters.n + 2 * PSEUDO * size
    share = (clusters.sums.sum() + PSEUDO * size) / n
    spread = ((clusters.sums - clusters.sizes * share) ** 2).sum() + PSEUDO * size**2 * (share**2 + (1 - share) ** 2)
    effect = max(1.0, float(spread / (n * share * (1 - share))))
    few = stdtrit(np.array([clusters.n - 1, clusters.count - 1]), _two_sided(level))
    worth = clusters.n / effect
    worth = max(min(worth, clusters.even), worth * float(few[0] / few[1]) ** 2)
    return worth, "Wilson on the effective number of cases, clustered by group (Korn-Graubard)"


def proportion(successes_by_case: Values, groups: Groups, level: float = LEVEL) -> Estimate:
    """The share of successes, each in [0, 1], and its Wilson interval on the effective number of cases; in [0, 1].

    One case a group is plain Wilson; asking every case of a group m times over changes nothing. Where the groups show
    no spread (all pass, say) the groups are counted instead of the cases, which is conservative.
    """
    clusters = _clusters(successes_by_case, groups)
    for value, group in zip(successes_by_case, groups, strict=True):
        if not 0 <= value <= 1:
            raise ValueError(f"success {value} of group {group!r} is not in [0, 1]; use mean() for other numbers")
    if clusters.count < 2:
        return _too_few(clusters, level)
    share = min(1.0, clusters.value)
    effective, method = _effective(clusters, level)
    low, high = _bounded(_wilson(share, effective, level), share, (0.0, 1.0), clusters.even, level)
    return Estimate(share, low, high, level, clusters.n, clusters.count, method)


def mean(values: Values, groups: Groups, level: float = LEVEL, *, bounds: Bounds | None = None) -> Estimate:
    """The mean over cases and its cluster-robust t interval with groups - 1 degrees of freedom, within `bounds`.

    Where every group is equal the t interval is a false point: with bounds, Wilson on the groups says how many others
    there may be; without, there is no interval.
    """
    clusters = _clusters(values, groups)
    if clusters.count < 2:
        return _too_few(clusters, level)
    value, counts, count = clusters.value, (clusters.n, clusters.count), clusters.count
    if clusters.spread == 0:
        return _of_equals(value, bounds, level, counts, "every group is equal")
    error = math.sqrt(clusters.spread * count / (count - 1)) / clusters.n
    half = float(stdtrit(count - 1, _two_sided(level))) * error
    ends = (value - half, value + half)
    low, high = ends if bounds is None else _bounded(ends, value, bounds, clusters.even, level)
    return Estimate(value, low, high, level, *counts, "t, clustered by group")


def bootstrap(
    table: Array,
    statistic: Callable[[Array], Array],
    level: float = LEVEL,
    *,
    seed: int,
    n: int = 2000,
    bounds: Bounds | None = None,
    counts: tuple[int, int] | None = None,
) -> Estimate:
    """A statistic of column totals and its cluster bootstrap interval: n times, groups are drawn with replacement.

    `table` (groups, columns) says what each group adds; `statistic` maps totals (..., columns) to values (...), NaN
    where it is undefined (such draws are left out; no interval if they are most). Percentiles are expanded for few
    groups as in Hesterberg (2015, arXiv:1411.5279): z becomes t · sqrt(g / (g - 1)). `counts` are (cases, groups) of
    the thinnest part that the statistic rests on, by default the rows. All draws equal: see `mean`.
    """
    counts, upper = counts or (len(table), len(table)), _two_sided(level)
    value = float(statistic(table.sum(axis=0))) if len(table) else math.nan
    if math.isnan(value):
        return _none(None, level, *counts, "undefined: a part has no cases" if len(table) else "no cases")
    if counts[1] < 2:
        return _none(value, level, *counts, "no interval: fewer than two groups")
    weights = np.random.default_rng(seed).multinomial(len(table), np.full(len(table), 1 / len(table)), size=n)
    draws = statistic(weights @ table)
    draws = draws[~np.isnan(draws)]
    if 2 * len(draws) < n:
        return _none(value, level, *counts, f"no interval: undefined in {n - len(draws)} of {n} draws")
    if np.ptp(draws) <= 1e-12 * max(1.0, abs(value)):  # a false point
        return _of_equals(value, bounds, level, counts, "every bootstrap draw is equal")
    tail = float(ndtr(-stdtrit(counts[1] - 1, upper) * math.sqrt(counts[1] / (counts[1] - 1))))
    low, high = (float(q) for q in np.quantile(draws, [tail, 1 - tail]))
    low, high = min(low, value), max(high, value)
    if bounds is not None:
        low, high = _bounded((low, high), value, bounds, counts[1], level)
    method = f"bootstrap over groups, expanded percentiles ({len(draws)} draws)"
    return Estimate(value, low, high, level, *counts, method)


def _differences(before: Values, after: Values) -> list[float]:
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values before and {len(after)} after; pairs need both")
    return [b - a for a, b in zip(before, after, strict=True)]


def paired_difference(
    before: Values, after: Values, groups: Groups, level: float = LEVEL, *, bounds: Bounds | None = None
) -> Estimate:
    """The mean of after - before over cases, as `mean` gives it; for marks the bounds of the difference are (-1, 1)."""
    return mean(_differences(before, after), groups, level, bounds=bounds)


@functools.cache
def _all_flips(groups: int) -> NDArray[np.int8]:
    bits = np.arange(2**groups)[:, None] >> np.arange(groups)
    return (1 - 2 * (bits & 1)).astype(np.int8)


def paired_p(before: Values, after: Values, groups: Groups, *, seed: int = 0) -> float | None:
    """Two-sided p of "the change moved nothing": the signs of the groups' differences are flipped.

    With one binary case a group this is McNemar's exact test. Exact for <= 12 groups that differ at all, seeded Monte
    Carlo above. None with fewer than two groups; the smallest p that g groups can give is 2 / 2^g.
    """
    clusters = _clusters(_differences(before, after), groups)
    if clusters.count < 2:
        return None
    moved = clusters.sums[clusters.sums != 0]
    seen = abs(moved.sum()) - 1e-9 * np.abs(moved).sum()  # ties count, whatever the rounding
    if len(moved) <= EXACT_GROUPS:
        return float((np.abs(_all_flips(len(moved)) @ moved) >= seen).mean())
    flips = 1 - 2 * np.random.default_rng(seed).integers(0, 2, (FLIPS, len(moved)), dtype=np.int8)
    return float((1 + (np.abs(flips @ moved) >= seen).sum()) / (1 + FLIPS))


def holm(p_values: Values) -> list[float]:
    """The p values adjusted for their number (Holm 1979), in the order they came in."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


class Ruling(StrEnum):
    """What the evidence lets one say of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "not enough evidence"


def decide(estimate: Estimate, at_least: float | None = None, at_most: float | None = None) -> Ruling:
    """Rule by the whole interval: it must clear the bar to hold and lie beyond it to fail; bars themselves count."""
    if at_least is None and at_most is None:
        raise ValueError("nothing to decide; give at_least or at_most")
    if estimate.low is None or estimate.high is None or math.isnan(estimate.low + estimate.high):
        return Ruling.UNDECIDED
    floor = -math.inf if at_least is None else at_least
    ceiling = math.inf if at_most is None else at_most
    if estimate.low >= floor and estimate.high <= ceiling:
        return Ruling.HOLDS
    return Ruling.FAILS if estimate.high < floor or estimate.low > ceiling else Ruling.UNDECIDED


def groups_needed(threshold: float, level: float = LEVEL) -> int:
    """The fewest groups (>= 2) whose perfect run clears "at least threshold"; for "at most t" ask for 1 - t."""
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold {threshold} is not in [0, 1); no number of groups can show more")
    z = float(ndtri(_two_sided(level)))
    needed = max(2, math.ceil(z * z * threshold / (1 - threshold)))
    return needed + (_perfect(needed, level) < threshold)  # rounding
