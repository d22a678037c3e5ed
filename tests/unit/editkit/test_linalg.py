"""The solves against numpy, and against what they are meant to minimise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit.linalg import (
    NullSpace,
    SolveError,
    cholesky,
    equality_constrained,
    least_change,
    null_space,
    rank_one,
    whitened,
)

SIZES = st.tuples(st.integers(2, 12), st.integers(1, 7), st.integers(0, 10_000))


def system(d_in, d_out, seed, samples=40):
    random = np.random.default_rng(seed)
    spread = np.exp(random.normal(size=d_in))
    keys = random.normal(size=(samples, d_in)) * spread
    key, residual = random.normal(size=(d_in, 1)) * spread[:, None], random.normal(size=(d_out, 1))
    return keys.T @ keys / samples, key, residual


def within(basis, keys, residual, past, *, weight):
    return NullSpace(basis, weight).update(keys, residual, [past])


def solve(moment, key, residual):
    factor, _ = cholesky(torch.from_numpy(moment))
    left, right = rank_one(torch.from_numpy(key[:, 0]), torch.from_numpy(residual[:, 0]), factor)
    return (left @ right).numpy()


@settings(deadline=None, max_examples=40)
@given(SIZES)
def test_the_key_is_mapped_to_the_residual(sizes):
    moment, key, residual = system(*sizes)
    np.testing.assert_allclose(solve(moment, key, residual) @ key, residual, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(SIZES)
def test_no_other_update_that_maps_the_key_is_smaller_in_the_metric_of_the_moment(sizes):
    """Least squares in whitened coordinates, solved by numpy: Δ L (L⁻¹ k) = r with the least ‖Δ L‖."""
    moment, key, residual = system(*sizes)
    factor = np.linalg.cholesky(moment)
    white = np.linalg.lstsq(np.linalg.solve(factor, key).T, residual.T, rcond=None)[0].T
    np.testing.assert_allclose(solve(moment, key, residual), white @ np.linalg.inv(factor), rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(SIZES, st.floats(1e-3, 1e3))
def test_the_scale_of_the_moment_does_not_matter(sizes, scale):
    moment, key, residual = system(*sizes)
    np.testing.assert_allclose(
        solve(moment * scale, key, residual), solve(moment, key, residual), rtol=1e-6, atol=1e-12
    )


def test_keys_that_are_orthogonal_under_the_moment_stay_where_they_were():
    moment, key, residual = system(6, 3, 1)
    other = np.linalg.svd(np.linalg.solve(moment, key).T)[2][1:].T  # (C⁻¹k)ᵀ other = 0
    assert np.abs(solve(moment, key, residual) @ other).max() < 1e-12


def test_whitened_is_the_inverse_times_the_keys():
    moment, key, _ = system(5, 1, 3)
    factor, jitter = cholesky(torch.from_numpy(moment))
    solved, gram = whitened(torch.from_numpy(key), factor)
    np.testing.assert_allclose(solved, np.linalg.inv(moment) @ key, rtol=1e-8)
    np.testing.assert_allclose(gram, key.T @ np.linalg.inv(moment) @ key, rtol=1e-8)
    assert jitter == 0


def test_a_moment_of_too_few_tokens_gets_the_least_jitter_that_serves():
    moment, key, residual = system(12, 2, 0, samples=4)
    factor, jitter = cholesky(torch.from_numpy(moment))
    assert 0 < jitter <= 1e-7
    lifted = moment + jitter * moment.diagonal().mean() * np.eye(12)
    np.testing.assert_allclose(factor @ factor.T, lifted, atol=1e-12)
    np.testing.assert_allclose(solve(moment, key, residual) @ key, residual, rtol=1e-4)


@pytest.mark.parametrize("moment", [torch.zeros(3, 3), torch.full((3, 3), torch.nan), -torch.eye(3)])
def test_a_moment_that_is_none_is_refused(moment):
    with pytest.raises(SolveError, match="moment"):
        cholesky(moment)


def test_a_moment_that_is_far_from_positive_is_refused():
    with pytest.raises(SolveError, match="more tokens"):
        cholesky(torch.diag(torch.tensor([2.0, 2.0, -1.0])))


@pytest.mark.parametrize("key", [torch.zeros(4), torch.full((4,), 1e-4), torch.full((4,), torch.nan)])
def test_a_divisor_that_would_disable_the_model_is_refused(key):
    factor, _ = cholesky(torch.eye(4))
    with pytest.raises(SolveError, match="disable the model. Edit at another layer"):
        rank_one(key, torch.ones(2), factor)


# -- many keys at once --

MANY = st.tuples(st.integers(3, 12), st.integers(1, 6), st.integers(1, 3), st.integers(0, 10_000))


def many(d_in, d_out, n, seed):
    """A moment, keys, residuals and earlier keys; as numpy arrays and as tensors."""
    random = np.random.default_rng(seed)
    samples = random.normal(size=(4 * d_in, d_in)) * np.exp(random.normal(size=d_in))
    parts = (samples.T @ samples / len(samples), *(random.normal(size=(d, n)) for d in (d_in, d_out, d_in)))
    return parts, tuple(map(torch.from_numpy, parts))


def dense(factors):
    left, right = factors
    return (left @ right).numpy()


@settings(deadline=None, max_examples=40)
@given(MANY, st.floats(1e-2, 1e3))
def test_memits_update_is_the_dense_solve(sizes, weight):
    """Woodbury's thin factors against the formula of the paper by numpy's general inverse."""
    (moment, keys, residual, _), (c, k, r, _) = many(*sizes)
    expected = residual @ keys.T @ np.linalg.inv(weight * moment + keys @ keys.T)
    np.testing.assert_allclose(dense(least_change(k, r, cholesky(c)[0], weight=weight)), expected, rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(MANY)
def test_emmets_update_maps_every_key_to_its_residual(sizes):
    (_, keys, residual, _), (c, k, r, _) = many(*sizes)
    found = dense(equality_constrained(k, r, cholesky(c)[0], ridge=0.0))
    np.testing.assert_allclose(found @ keys, residual, rtol=1e-6, atol=1e-8)


@settings(deadline=None, max_examples=20)
@given(MANY)
def test_memits_comes_to_emmets_as_the_moments_weight_goes_to_zero(sizes):
    _, (c, k, r, _) = many(*sizes)
    factor = cholesky(c)[0]
    exact = dense(equality_constrained(k, r, factor, ridge=0.0))
    least = float(torch.linalg.eigvalsh(whitened(k, factor)[1])[0])  # the weight counts beside this
    far, near = (np.abs(dense(least_change(k, r, factor, weight=w * least)) - exact).max() for w in (1, 1e-5))
    assert near <= 1e-4 * far + 1e-9 * np.abs(exact).max()


@settings(deadline=None, max_examples=20)
@given(SIZES)
def test_emmets_of_one_edit_is_r_romes(sizes):
    moment, key, residual = system(*sizes)
    factor, _ = cholesky(torch.from_numpy(moment))
    one = dense(equality_constrained(torch.from_numpy(key), torch.from_numpy(residual), factor, ridge=0.0))
    np.testing.assert_allclose(one, solve(moment, key, residual), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(MANY, st.floats(1e-2, 1e2), st.booleans())
def test_alphaedits_update_is_the_dense_solve(sizes, weight, with_past):
    """Against the authors' system, solved by numpy: (P (K Kᵀ + K_p K_pᵀ) + L₂ I) Δᵀ = P K Rᵀ."""
    (moment, keys, residual, before), (_, k, r, p) = many(*sizes)
    values, vectors = np.linalg.eigh(moment)
    basis = null_space(
        torch.from_numpy(values), torch.from_numpy(vectors), threshold=float(values[len(values) // 2]) + 1e-9
    )
    projection = (basis @ basis.T).numpy()
    before, p = (before, p) if with_past else (before[:, :0], p[:, :0])
    system = projection @ (keys @ keys.T + before @ before.T) + weight * np.eye(len(keys))
    expected = np.linalg.solve(system, projection @ keys @ residual.T).T
    np.testing.assert_allclose(dense(within(basis, k, r, p, weight=weight)), expected, rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(MANY)
def test_alphaedit_in_the_whole_space_is_memit_with_the_identity_for_a_moment(sizes):
    _, (_, k, r, _) = many(*sizes)
    whole, none = torch.eye(len(k), dtype=torch.float64), torch.zeros(len(k), 0, dtype=torch.float64)
    one, other = within(whole, k, r, none, weight=0.7), least_change(k, r, whole, weight=0.7)
    np.testing.assert_allclose(dense(one), dense(other), rtol=1e-9, atol=1e-12)


def test_what_lies_outside_the_null_space_stays_and_earlier_keys_nearly_do():
    _, (c, k, r, p) = many(10, 4, 2, 5)
    values, vectors = torch.linalg.eigh(c)
    basis = null_space(values, vectors, threshold=float(values[7]))
    outside = vectors[:, 7:]
    found = dense(within(basis, k, r, p, weight=1e-6))
    assert np.abs(found @ outside.numpy()).max() < 1e-9
    assert (
        np.abs(found @ p.numpy()).max()
        < 1e-3 * np.abs(dense(within(basis, k, r, p[:, :0], weight=1e-6)) @ p.numpy()).max()
    )
    np.testing.assert_allclose(found @ k.numpy(), r.numpy(), atol=1e-3)


@pytest.mark.parametrize("method", ["memit", "emmet", "alphaedit"])
def test_the_order_within_a_batch_does_not_matter(method):
    _, (c, k, r, p) = many(9, 4, 3, 1)
    solves = {
        "memit": lambda k, r: least_change(k, r, cholesky(c)[0], weight=2.0),
        "emmet": lambda k, r: equality_constrained(k, r, cholesky(c)[0], ridge=0.1),
        "alphaedit": lambda k, r: within(torch.linalg.eigh(c)[1][:, :6], k, r, p, weight=0.5),
    }
    turned = [2, 0, 1]
    np.testing.assert_allclose(
        dense(solves[method](k, r)), dense(solves[method](k[:, turned], r[:, turned])), atol=1e-12
    )


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.booleans())
def test_earlier_keys_that_come_bit_by_bit_count_as_if_they_came_at_once(sizes, other_between):
    _, (c, k, r, _) = many(9, 4, 2, 5)
    p = many(9, 4, 24, 6)[1][1]
    values, vectors = torch.linalg.eigh(c)
    basis = null_space(values, vectors, threshold=float(values[7]))
    space, parts = NullSpace(basis, 0.5), p.split([*sizes, 24 - sum(sizes)], 1)
    for number in range(len(sizes)):
        before = parts[: number + 1]
        grown = space.update(k, r, before)
        if other_between:  # another stack of edits
            space.update(k, r, parts[number + 1 :])
        whole = within(basis, k, r, torch.cat([*before], 1), weight=0.5)
        np.testing.assert_allclose(dense(grown), dense(whole), atol=1e-9)


def test_an_empty_null_space_is_an_error_and_no_silent_nothing():
    with pytest.raises(
        SolveError, match=r"below 0.5 \(the least is 1\), so the edit would change nothing; raise the thr"
    ):
        null_space(torch.ones(3), torch.eye(3), threshold=0.5)


def test_a_key_outside_the_null_space_is_an_error():
    none = torch.zeros(3, 0, dtype=torch.float64)
    with pytest.raises(SolveError, match="outside the null space"):
        within(
            torch.eye(3, dtype=torch.float64)[:, :1],
            torch.tensor([[0.0], [1], [1]]),
            torch.ones(2, 1),
            none,
            weight=1.0,
        )


def test_two_facts_of_one_key_cannot_be_solved_for_without_a_ridge():
    _, (c, k, r, _) = many(6, 2, 1, 0)
    with pytest.raises(SolveError, match="coincide"):
        equality_constrained(torch.cat([k, k], 1), torch.cat([r, -r], 1), cholesky(c)[0], ridge=0.0)
