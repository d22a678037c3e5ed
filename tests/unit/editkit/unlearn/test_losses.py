"""The losses against plain versions and their limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editkit.unlearn._losses import ga, nll, npo, npo_at_reference

logps = st.lists(st.tuples(st.floats(-40, -1e-3), st.floats(-40, -1e-3)), min_size=1, max_size=6)
betas = st.floats(0.01, 5)


def grads(loss, logp):
    x = logp.clone().requires_grad_()
    return torch.autograd.grad(loss(x).sum(), x)[0]


@given(pairs=logps, beta=betas)
def test_npo_is_its_formula(pairs, beta):
    now, reference = torch.tensor(pairs, dtype=torch.float64).T
    plain = 2 / beta * torch.log1p((now.exp() / reference.exp()) ** beta)
    assert torch.allclose(npo(now, reference, beta), plain, rtol=1e-9, atol=1e-12)
    assert (npo(now, reference, beta) >= 0).all()


@given(pairs=logps, beta=betas)
def test_npo_gradient_is_that_of_ascent_times_its_factor(pairs, beta):
    now, reference = torch.tensor(pairs, dtype=torch.float64).T
    ratio = (beta * (now - reference)).exp()
    assert torch.allclose(grads(lambda x: npo(x, reference, beta), now), grads(ga, now) * 2 * ratio / (1 + ratio))


@given(pairs=logps, beta=betas)
def test_npo_at_the_reference_is_two_over_beta_log_two(pairs, beta):
    reference = torch.tensor(pairs, dtype=torch.float64)[:, 1]
    assert torch.allclose(npo(reference, reference, beta), torch.full_like(reference, 2 / beta * math.log(2)))
    assert npo_at_reference(beta) == pytest.approx(2 / beta * math.log(2))


@pytest.mark.parametrize(("beta", "factor"), [(1.0, 0.85), (0.1, 0.985), (0.001, 0.9998)])
def test_npo_becomes_ascent_as_beta_goes_to_zero(beta, factor):
    """An example that has lost 0.3 nats."""
    now, reference = torch.tensor([-1.3], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    seen = float(grads(lambda x: npo(x, reference, beta), now) / grads(ga, now))
    assert seen == pytest.approx(factor, abs=6e-4 if beta < 1 else 2e-3)


def test_npo_fades_and_does_not_overflow():
    far = torch.tensor([-3000.0, 3000.0])
    assert torch.isfinite(npo(far, torch.zeros(2), 1.0)).all()
    assert float(grads(lambda x: npo(x, torch.zeros(2), 1.0), far)[0]) == 0


@given(pairs=logps)
def test_ascent_is_the_negative_of_likelihood(pairs):
    logp = torch.tensor(pairs)[:, 0]
    assert torch.equal(ga(logp), -nll(logp)) and torch.equal(nll(logp), -logp)
