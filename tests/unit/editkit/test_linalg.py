"""The solves against numpy, and against what they are meant to minimise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit.linalg import SolveError, cholesky, rank_one, whitened

SIZES = st.tuples(st.integers(2, 12), st.integers(1, 7), st.integers(0, 10_000))


def system(d_in, d_out, seed, samples=40):
    random = np.random.default_rng(seed)
    spread = np.exp(random.normal(size=d_in))
    keys = random.normal(size=(samples, d_in)) * spread
    key, residual = random.normal(size=(d_in, 1)) * spread[:, None], random.normal(size=(d_out, 1))
    return keys.T @ keys / samples, key, residual


def solve(moment, key, residual):
    factor, _ = cholesky(torch.from_numpy(moment))
    left, right = rank_one(torch.from_numpy(key), torch.from_numpy(residual), factor)
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


@pytest.mark.parametrize("key", [torch.zeros(4, 1), torch.full((4, 1), 1e-4), torch.full((4, 1), torch.nan)])
def test_a_divisor_that_would_disable_the_model_is_refused(key):
    factor, _ = cholesky(torch.eye(4))
    with pytest.raises(SolveError, match="disable the model. Edit at another layer"):
        rank_one(key, torch.ones(2, 1), factor)
