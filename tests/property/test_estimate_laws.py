"""Laws of intervals: whatever the marks, however they are clustered."""

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
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

marks = st.sampled_from([0.0, 1.0])
numbers = st.floats(-50, 50, allow_subnormal=False).map(lambda x: round(x, 3))
levels = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99])


def clusters(values=marks, least=2):
    return st.lists(st.lists(values, min_size=1, max_size=6), min_size=least, max_size=12)


def flat(data, tag=""):
    return [x for group in data for x in group], [f"{tag}{i:02}" for i, group in enumerate(data) for _ in group]


def width(estimate):
    return estimate.high - estimate.low


def ratio(totals):
    with np.errstate(invalid="ignore"):
        return totals[..., 0] / totals[..., 1]


def table_of(data):
    return np.array([[sum(group), len(group)] for group in data], dtype=float)


def same(one, other):
    pairs = [(one.value, other.value), (one.low, other.low), (one.high, other.high)]
    return all(a == b or a == pytest.approx(b, abs=1e-9) for a, b in pairs) and one.groups == other.groups


@given(clusters(), levels)
def test_a_share_lies_in_its_interval_and_both_in_0_to_1(data, level):
    estimate = proportion(*flat(data), level)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert width(estimate) > 0


@given(clusters(numbers), levels)
def test_a_mean_lies_in_its_interval(data, level):
    estimate = mean(*flat(data), level)
    assert estimate.low is None or estimate.low <= estimate.value <= estimate.high
    bounded = mean(*flat(data), level, bounds=(-50.0, 50.0))
    assert -50 <= bounded.low <= bounded.value + 1e-9 and bounded.value - 1e-9 <= bounded.high <= 50
    assert width(bounded) > 0


@given(clusters(), levels, st.integers(0, 9))
def test_a_bootstrapped_share_lies_in_its_interval(data, level, seed):
    estimate = bootstrap(table_of(data), ratio, level, seed=seed, n=200, bounds=(0.0, 1.0))
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert width(estimate) > 0


@given(clusters(), st.tuples(levels, levels).map(sorted))
def test_intervals_widen_with_the_level(data, pair):
    values, groups = flat(data)
    for estimator in (
        proportion,
        lambda v, g, level: mean(v, g, level, bounds=(0.0, 1.0)),
        lambda v, g, level: bootstrap(table_of(data), ratio, level, seed=0, n=200, bounds=(0.0, 1.0)),
    ):
        narrow, wide = (estimator(values, groups, level) for level in pair)
        assert wide.low <= narrow.low + 1e-12 and narrow.high <= wide.high + 1e-12


@given(clusters(), st.integers(2, 4))
def test_intervals_narrow_with_more_groups_of_the_same_kind(data, times):
    few, many = flat(data), flat(data * times)
    assert width(proportion(*many)) < width(proportion(*few))
    assert width(mean(*many, bounds=(0.0, 1.0))) < width(mean(*few, bounds=(0.0, 1.0))) + 1e-12


@given(st.lists(marks, min_size=2, max_size=40), levels)
def test_groups_of_one_are_no_groups(values, level):
    estimate = proportion(values, [f"{i:02}" for i in range(len(values))], level)
    expected = stats.binomtest(int(sum(values)), len(values)).proportion_ci(level, "wilson")
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.lists(marks, min_size=2, max_size=20), st.integers(2, 5))
@example([1.0, 1.0, 0.0], 4)
def test_asking_the_same_again_is_no_evidence(values, times):
    once, often = flat([[x] for x in values]), flat([[x] * times for x in values])
    assert same(proportion(*once), proportion(*often))
    assert same(mean(*once), mean(*often))
    assert paired_p([0] * len(once[0]), *once) == pytest.approx(paired_p([0] * len(often[0]), *often))


@given(clusters())
@example([[1.0] * 10] * 9 + [[1.0] * 9 + [0.0]])
def test_no_run_with_a_failure_is_surer_than_a_perfect_one(data):
    values, groups = flat(data)
    assert proportion(values, groups).low <= proportion([1.0] * len(values), groups).low
    assert proportion(values, groups).high >= proportion([0.0] * len(values), groups).high


@given(clusters(numbers), st.randoms(use_true_random=False))
def test_order_does_not_matter(data, random):
    pairs = list(zip(*flat(data), strict=True))
    shuffled = random.sample(pairs, len(pairs))
    (values, groups), (others, names) = zip(*pairs, strict=True), zip(*shuffled, strict=True)
    assert same(mean(values, groups), mean(others, names))
    zero = [0.0] * len(values)
    assert paired_p(zero, values, groups) == paired_p(zero, others, names)
    assert same(proportion([float(x > 0) for x in values], groups), proportion([float(x > 0) for x in others], names))


@given(clusters(numbers, least=0), st.integers(0, 1))
def test_fewer_than_two_groups_have_no_interval(data, keep):
    values, groups = flat(data[:keep])
    zero = [0.0] * len(values)
    for estimate in (
        mean(values, groups),
        proportion([float(x > 0) for x in values], groups),
        paired_difference(zero, values, groups),
        bootstrap(table_of(data[:keep]).reshape(-1, 2), ratio, seed=0),
    ):
        assert estimate.low is None and estimate.high is None
    assert paired_p(zero, values, groups) is None


@given(clusters(numbers))
def test_a_paired_test_does_not_know_which_side_came_first(data):
    values, groups = flat(data)
    zero = [0.0] * len(values)
    p = paired_p(zero, values, groups)
    assert 0 < p <= 1
    assert p == pytest.approx(paired_p(values, zero, groups), abs=0.02)
    one, other = paired_difference(zero, values, groups), paired_difference(values, zero, groups)
    assert one.value == pytest.approx(-other.value)
    assume(one.low is not None)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


RANK = {Ruling.FAILS: 0, Ruling.UNDECIDED: 1, Ruling.HOLDS: 2}
shares = st.floats(0, 1)


@given(st.tuples(shares, shares).map(sorted), st.tuples(shares, shares).map(sorted))
def test_a_higher_bar_never_makes_a_claim_hold(ends, bars):
    estimate = Estimate(sum(ends) / 2, *ends, 0.95, 9, 9, "test")
    low_bar, high_bar = bars
    assert RANK[decide(estimate, at_least=high_bar)] <= RANK[decide(estimate, at_least=low_bar)]
    assert RANK[decide(estimate, at_most=low_bar)] <= RANK[decide(estimate, at_most=high_bar)]
    both = decide(estimate, at_least=low_bar, at_most=high_bar)
    assert RANK[both] <= min(RANK[decide(estimate, at_least=low_bar)], RANK[decide(estimate, at_most=high_bar)])


@given(st.floats(0, 0.99), levels)
def test_the_groups_needed_are_enough_and_no_fewer_are(threshold, level):
    needed = groups_needed(threshold, level)
    names = [str(i) for i in range(needed)]
    assert proportion([1.0] * needed, names, level).low >= threshold - 1e-12
    if needed > 2:
        assert proportion([1.0] * (needed - 1), names[:-1], level).low < threshold


@given(st.lists(st.floats(0, 1), max_size=12), st.randoms(use_true_random=False))
def test_holm_raises_p_values_and_keeps_their_order(p_values, random):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    ranked = [q for _, q in sorted(zip(p_values, adjusted, strict=True))]
    assert ranked == sorted(ranked)
    if p_values:
        assert min(adjusted) == min(1.0, len(p_values) * min(p_values))
        turn = random.sample(range(len(p_values)), len(p_values))
        assert holm([p_values[i] for i in turn]) == [adjusted[i] for i in turn]
