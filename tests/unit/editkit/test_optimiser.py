"""AdamW against torch's own, within what moments in bfloat16 allow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from editkit.optimiser import BETAS, EPSILON, AdamW


def gradients(shapes, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator) * 3**step for shape in shapes] for step in range(steps)]


def parameters(shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return {str(i): nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for i, shape in enumerate(shapes)}


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_it_moves_as_torchs_own(clip, decay, chunk, monkeypatch):
    monkeypatch.setattr("editkit.optimiser.CHUNK", chunk)
    shapes = [(5, 9), (7,), (3, 2, 2)]
    ours, theirs = parameters(shapes), parameters(shapes)
    start = parameters(shapes)
    own = AdamW(ours, rate=0.01, warmup=0, decay=decay, clip=clip)
    oracle = torch.optim.AdamW(theirs.values(), lr=0.01, betas=BETAS, eps=EPSILON, weight_decay=decay)
    for grads in gradients(shapes, 6):
        for group in (ours, theirs):
            for parameter, grad in zip(group.values(), grads, strict=True):
                parameter.grad = grad.clone()
        if clip:
            nn.utils.clip_grad_norm_(theirs.values(), clip)
        oracle.step()
        own.step()
    for name, parameter in ours.items():
        moved, wanted = ((p - start[name]).detach() for p in (parameter, theirs[name]))
        assert torch.allclose(moved, wanted, atol=0.01 * float(wanted.abs().max()))
        assert parameter.grad is None


def test_a_parameter_without_a_gradient_stays():
    ours = parameters([(3,), (4,)])
    before = ours["1"].detach().clone()
    own = AdamW(ours, rate=0.1, warmup=0, decay=0.5, clip=1.0)
    ours["0"].grad = torch.ones(3)
    own.step()
    assert torch.equal(ours["1"], before)


def test_a_narrow_parameter_has_a_wide_master():
    ours = parameters([(64,)], torch.bfloat16)
    before = ours["0"].detach().clone()
    own = AdamW(ours, rate=1e-5, warmup=0, decay=0.0, clip=None)
    for _ in range(20):
        ours["0"].grad = torch.ones(64, dtype=torch.bfloat16)
        own.step()
    assert torch.allclose(own.masters["0"] - before.float(), torch.full((64,), -2e-4), rtol=0.02)
    assert torch.equal(ours["0"].detach(), own.masters["0"].to(torch.bfloat16))
