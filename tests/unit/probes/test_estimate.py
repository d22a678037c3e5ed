import math

import numpy as np
import pytest
from scipy import stats

from probes.estimate import (
    Estimate,
    Ruling,
    bootstrap,
    decide,
    groups_needed,
    holm,
    mean,
    paired_difference,
    paired_p,
    proportion,
)

NAMES = [f"fact{i:02}" for i in range(40)]


def test_one_case_a_group_is_plain_wilson():
    estimate = proportion([1, 1, 1, 0, 0], NAMES[:5])
    expected = stats.binomtest(3, 5).proportion_ci(0.95, "wilson")
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert (estimate.value, estimate.n, estimate.groups, estimate.method) == (0.6, 5, 5, "Wilson")


def test_perfect_clustered_run_counts_groups_and_says_so():
    estimate = proportion([1] * 50, NAMES[:10] * 5)
    assert estimate.low == pytest.approx(stats.binomtest(10, 10).proportion_ci(0.95, "wilson").low)
    assert (estimate.high, estimate.n, estimate.groups) == (1.0, 50, 10)
    assert "conservative" in estimate.method


def test_groups_that_are_all_alike_are_counted_not_their_cases():
    estimate = proportion([1, 0] * 10, [name for name in NAMES[:10] for _ in "ab"])
    expected = stats.binomtest(5, 10).proportion_ci(0.95, "wilson")
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


def test_uneven_groups_weigh_by_their_cases_and_widen_the_interval():
    clustered = proportion([1] * 9 + [0], ["a"] * 9 + ["b"])
    assert clustered.value == 0.9
    assert clustered.low < proportion([1] * 9 + [0], NAMES[:10]).low


def test_a_share_wants_successes_between_0_and_1():
    with pytest.raises(ValueError, match=r"success 2 of group 'b' is not in \[0, 1\]; use mean"):
        proportion([1, 2], ["a", "b"])


def test_values_that_are_no_numbers_are_named():
    with pytest.raises(ValueError, match="a value of group 'b' is nan"):
        mean([1.0, math.nan], ["a", "b"])


def test_values_and_groups_must_match():
    with pytest.raises(ValueError, match="2 values and 1 groups"):
        mean([1.0, 2.0], ["a"])


@pytest.mark.parametrize("level", [0, 1, 95])
def test_level_is_a_share(level):
    with pytest.raises(ValueError, match="not between 0 and 1"):
        proportion([1, 0], ["a", "b"], level)


def test_one_case_a_group_is_the_t_interval():
    values = [0.3, -1.2, 2.5, 0.9]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    estimate = mean(values, NAMES[:4], 0.9)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


def test_clustered_t_by_hand():
    """Two groups with sums of residuals -1 and 1 over 3 cases: variance 2/1 · (1 + 1) / 9, 1 degree of freedom."""
    estimate = mean([0.0, 1.0, 2.0], ["a", "a", "b"])
    half = stats.t.ppf(0.975, 1) * math.sqrt(2 * 2) / 3
    assert (estimate.low, estimate.high) == pytest.approx((1 - half, 1 + half))


def test_equal_groups_give_no_false_point():
    assert mean([2.0] * 6, NAMES[:6]).low is None
    bounded = mean([1.0] * 6, NAMES[:6], bounds=(0.0, 1.0))
    assert bounded.low == pytest.approx(stats.binomtest(6, 6).proportion_ci(0.95, "wilson").low)
    assert bounded.high == 1.0 and "Wilson" in bounded.method


@pytest.mark.parametrize("estimate", [proportion([], []), mean([], []), paired_difference([], [], [])])
def test_nothing_has_no_value(estimate):
    assert (estimate.value, estimate.low, estimate.high, estimate.n, estimate.groups) == (None, None, None, 0, 0)


@pytest.mark.parametrize("estimator", [proportion, mean])
def test_one_group_has_a_value_and_no_interval(estimator):
    estimate = estimator([1, 0, 1], ["a", "a", "a"])
    assert estimate.value == pytest.approx(2 / 3)
    assert estimate.low is None and estimate.high is None and "fewer than two groups" in estimate.method


def ratio(totals):
    with np.errstate(invalid="ignore"):
        return totals[..., 0] / totals[..., 1]


def table_of(values):
    return np.stack([values, np.ones(len(values))], axis=1)


def test_bootstrap_agrees_with_scipy_at_the_expanded_level():
    values = np.random.default_rng(3).normal(size=30)
    estimate = bootstrap(table_of(values), ratio, seed=1, n=20_000)
    tail = stats.norm.cdf(-stats.t.ppf(0.975, 29) * math.sqrt(30 / 29))
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=1 - 2 * tail, method="percentile", n_resamples=20_000, rng=2
    ).confidence_interval
    assert (estimate.low, estimate.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert estimate.value == pytest.approx(values.mean())


def test_bootstrap_repeats_with_its_seed_only():
    table = table_of(np.random.default_rng(3).normal(size=9))
    assert bootstrap(table, ratio, seed=1) == bootstrap(table, ratio, seed=1)
    assert bootstrap(table, ratio, seed=1) != bootstrap(table, ratio, seed=2)


def test_bootstrap_without_variation_falls_back_to_wilson_on_groups():
    estimate = bootstrap(table_of(np.ones(8)), ratio, seed=0, bounds=(0.0, 1.0))
    assert (estimate.low, estimate.high) == pytest.approx(stats.binomtest(8, 8).proportion_ci(0.95, "wilson"))
    assert "Wilson on groups" in estimate.method
    assert bootstrap(table_of(np.ones(8)), ratio, seed=0).low is None


def test_bootstrap_is_as_sure_as_its_thinnest_part():
    table = table_of(np.array([1.0, 0, 1, 1, 0, 1, 1, 1, 0, 1]))
    whole = bootstrap(table, ratio, seed=0, bounds=(0.0, 1.0))
    thin = bootstrap(table, ratio, seed=0, bounds=(0.0, 1.0), counts=(10, 3))
    assert thin.low < whole.low and thin.groups == 3
    assert bootstrap(table, ratio, seed=0, counts=(10, 1)).low is None


def test_bootstrap_leaves_out_undefined_draws_and_gives_up_if_they_are_most():
    rare = np.zeros((6, 2))
    rare[0] = (1, 1)
    assert bootstrap(rare, ratio, seed=0, counts=(6, 6), bounds=(0.0, 1.0)).value == 1.0  # 33 % of draws undefined
    half = lambda totals: np.where(totals[..., 1] == 1, ratio(totals), np.nan)  # noqa: E731
    assert "undefined in" in bootstrap(rare, half, seed=0).method
    assert bootstrap(np.zeros((6, 2)), ratio, seed=0).value is None
    assert bootstrap(np.zeros((0, 2)), ratio, seed=0).method == "no cases"


def test_paired_difference_is_the_mean_of_differences():
    before, after = [0, 0, 1, 0], [1, 1, 1, 0]
    assert paired_difference(before, after, NAMES[:4]) == mean([1, 1, 0, 0], NAMES[:4])
    assert paired_difference([0] * 8, [1] * 8, NAMES[:8], bounds=(-1.0, 1.0)).high == 1.0
    with pytest.raises(ValueError, match="1 values before and 2 after"):
        paired_difference([0], [1, 1], NAMES[:2])


def test_paired_p_is_exact_mcnemar_for_single_binary_cases():
    before, after = [0] * 7 + [1] * 2 + [1] * 20, [1] * 7 + [0] * 2 + [1] * 20
    assert paired_p(before, after, NAMES[:29]) == pytest.approx(stats.binomtest(7, 9).pvalue)


def test_paired_p_agrees_with_scipy_on_clusters():
    rng = np.random.default_rng(5)
    before, after = rng.normal(size=20), rng.normal(0.4, size=20)
    sums = (after - before).reshape(10, 2).sum(axis=1)
    theirs = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert paired_p(list(before), list(after), [n for n in NAMES[:10] for _ in "ab"]) == pytest.approx(theirs.pvalue)


def test_paired_p_by_monte_carlo_comes_near_the_exact_one():
    before, after = [0] * 18, [1] * 13 + [-1] * 5
    drawn = paired_p(before, after, NAMES[:18], seed=4)
    assert drawn == pytest.approx(stats.binomtest(13, 18).pvalue, abs=0.01)
    assert drawn == paired_p(before, after, NAMES[:18], seed=4)


def test_paired_p_by_monte_carlo_is_never_zero():
    assert 0 < paired_p([0] * 40, [1] * 40, NAMES) <= 0.001


def test_paired_p_without_movement_or_groups():
    assert paired_p([1, 0], [1, 0], ["a", "b"]) == 1.0
    assert paired_p([0, 0], [1, 1], ["a", "a"]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.9]) == [1.0, 1.0]


def of(low, high):
    return Estimate(0.5, low, high, 0.95, 9, 9, "test")


@pytest.mark.parametrize(
    ("low", "high", "bars", "ruling"),
    [
        (0.8, 0.95, {"at_least": 0.8}, Ruling.HOLDS),
        (0.79, 0.95, {"at_least": 0.8}, Ruling.UNDECIDED),
        (0.1, 0.79, {"at_least": 0.8}, Ruling.FAILS),
        (0.1, 0.2, {"at_most": 0.2}, Ruling.HOLDS),
        (0.1, 0.3, {"at_most": 0.2}, Ruling.UNDECIDED),
        (0.21, 0.3, {"at_most": 0.2}, Ruling.FAILS),
        (0.3, 0.4, {"at_least": 0.2, "at_most": 0.5}, Ruling.HOLDS),
        (None, None, {"at_least": 0.0}, Ruling.UNDECIDED),
    ],
)
def test_decide_by_the_whole_interval(low, high, bars, ruling):
    assert decide(of(low, high), **bars) is ruling


def test_decide_needs_a_bar():
    with pytest.raises(ValueError, match="at_least or at_most"):
        decide(of(0.1, 0.2))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8, 0.9, 0.95])
def test_groups_needed_is_the_least_that_clears_the_bar(threshold):
    def rule(n):
        return decide(proportion([1] * n, NAMES[:n] if n <= 40 else [str(i) for i in range(n)]), at_least=threshold)

    needed = groups_needed(threshold)
    assert rule(needed) is Ruling.HOLDS
    assert rule(needed - 1) is Ruling.UNDECIDED


def test_no_number_of_groups_shows_certainty():
    with pytest.raises(ValueError, match="no number of groups"):
        groups_needed(1.0)


def clustered_marks(rng, groups, size, share, strength=1.0):
    """Beta-binomial marks: the cases of a group share a probability; the greater `strength`, the more alike."""
    chances = rng.beta(share / strength, (1 - share) / strength, groups)
    return (rng.random((groups, size)) < chances[:, None]).astype(float)


def covered(estimate, truth):
    return estimate.low <= truth <= estimate.high


@pytest.mark.parametrize(("groups", "share"), [(6, 0.5), (10, 0.8), (20, 0.9)])
def test_coverage_of_clustered_shares(groups, share):
    rng, repeats, size = np.random.default_rng(11), 600, 6
    names = [name for name in NAMES[:groups] for _ in range(size)]
    runs = [proportion(list(clustered_marks(rng, groups, size, share).ravel()), names) for _ in range(repeats)]
    rate = sum(covered(run, share) for run in runs) / repeats
    assert rate >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / repeats)
    if groups == 20:  # not by being wide
        assert rate <= 0.99


def test_coverage_of_clustered_means():
    rng, repeats, size = np.random.default_rng(12), 1500, 3
    names = [name for name in NAMES[:7] for _ in range(size)]
    values = rng.normal(size=(repeats, 7, 1)) + rng.normal(size=(repeats, 7, size))
    rate = sum(covered(mean(list(run.ravel()), names), 0.0) for run in values) / repeats
    assert rate == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / repeats))


def test_coverage_of_the_bootstrap():
    rng, repeats = np.random.default_rng(13), 500
    runs = [bootstrap(table_of(rng.normal(size=10)), ratio, seed=i, n=600) for i in range(repeats)]
    rate = sum(covered(run, 0.0) for run in runs) / repeats
    assert rate == pytest.approx(0.95, abs=3.5 * math.sqrt(0.95 * 0.05 / repeats))


def wilson_by_hand(share, n):
    z = 1.959963984540054
    centre, scale = share + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - half) / scale, (centre + half) / scale


def test_few_groups_make_many_cases_worth_less():
    """By hand: half a passing and half a failing group of ten are added, then t of 4 groups stands against 40 cases."""
    passed = (5, 6, 4, 5)
    values = [float(i < good) for good in passed for i in range(10)]
    found = proportion(values, [name for name in "abcd" for _ in range(10)])
    effect = (sum((good - 5) ** 2 for good in passed) + 0.5 * 5**2 + 0.5 * 5**2) / (50 * 0.25)
    worth = 40 / effect * (stats.t.ppf(0.975, 39) / stats.t.ppf(0.975, 3)) ** 2
    assert 4 < worth < 40 / effect
    assert (found.low, found.high) == pytest.approx(wilson_by_hand(0.5, worth))


def test_a_group_with_most_of_the_cases_is_not_many():
    sizes = (12, 2, 1, 1)
    found = proportion([1.0] * 16, [name for name, n in zip("abcd", sizes, strict=True) for _ in range(n)])
    even = 16**2 / (12**2 + 2**2 + 1 + 1)
    assert found.low == pytest.approx(even / (even + 1.959963984540054**2))
