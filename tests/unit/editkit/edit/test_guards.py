"""RECT, PRUNE and the norm bound: what each lets through, against numpy, and that what they guard is another's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edit_examples import EDITS
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit.edit._guard import Guarded
from editkit.edit.ft_m import FTM
from editkit.edit.norm_bound import NormBound
from editkit.edit.prune import PRUNE
from editkit.edit.rect import RECT
from editkit.errors import InputError
from editkit.patch import DenseDelta, LowRankDelta
from editkit.registry import UnknownName

INNER = {"layer": 1, "learning_rate": 0.002, "steps": 4}
OF = Guarded("ft_m", INNER)
SEEDS = st.integers(0, 10_000)


def matrices(seed, n=2, shape=(6, 9)):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw) for _ in range(n)]


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.floats(0.02, 1.0))
def test_rect_keeps_the_largest_relative_changes_and_no_others(seed, keep):
    weight, change = matrices(seed)
    left, _ = RECT(OF, keep).tamed(weight, DenseDelta(change), None)
    kept, relative = left.value != 0, (change / weight).abs()
    assert int(kept.sum()) == max(1, round(keep * change.numel()))
    assert torch.equal(left.value[kept], change[kept])
    assert bool(kept.all()) or float(relative[kept].min()) >= float(relative[~kept].max())


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.floats(0.1, 8.0))
def test_prune_brings_singular_values_near_the_matrixs_largest_and_leaves_the_others(seed, size):
    weight, change = matrices(seed)
    left, notes = PRUNE(OF).tamed(weight, DenseDelta(change * size), None)
    before, after = (np.linalg.svd(each, compute_uv=False) for each in ((change * size).numpy(), left.dense().numpy()))
    largest = np.linalg.norm(weight.numpy(), 2)
    over = before > largest
    assert notes["singular_values_over"] == over.sum()
    expected = np.where(over, np.minimum(np.log(before / largest) / np.log(1.2) + largest, before), before)
    np.testing.assert_allclose(np.sort(after), np.sort(expected), rtol=1e-3, atol=1e-4)


def test_prune_restrains_the_sum_with_what_is_there():
    weight, change, earlier = matrices(3, 3)
    left, _ = PRUNE(OF).tamed(weight, DenseDelta(change), earlier * 5)
    alone, _ = PRUNE(OF).tamed(weight, DenseDelta(change + earlier * 5), None)
    assert torch.allclose(left.dense() + earlier * 5, alone.dense(), atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.floats(0.01, 2.0), st.booleans())
def test_the_norm_of_all_changes_never_passes_the_bound_and_no_more_is_taken_than_needed(seed, most, stacked):
    weight, change, earlier = matrices(seed, 3)
    earlier = earlier * (0.9 * most * weight.norm() / earlier.norm()) if stacked else None
    left, notes = NormBound(OF, most).tamed(weight, DenseDelta(change), earlier)
    whole = left.dense() if earlier is None else left.dense() + earlier
    bound = float(most * weight.norm())
    assert float(whole.norm()) <= bound * (1 + 1e-5)
    assert notes["share"] == 1 or float(whole.norm()) >= bound * (1 - 1e-4)


def test_the_norm_bound_leaves_thin_factors_thin():
    weight, left = matrices(0, 2, (6, 6))
    found, _ = NormBound(OF, 0.01).tamed(weight, LowRankDelta(left[:, :2], left[:2]), None)
    assert isinstance(found, LowRankDelta)


@pytest.mark.parametrize("guard", [RECT(OF, 1.0), PRUNE(OF), NormBound(OF, 1e6)], ids=lambda g: g.name)
def test_a_guard_that_lets_all_through_is_the_operator_it_guards(handle, guard):
    name = handle.weight_name("mlp_out", 1)
    plain = FTM(**INNER)(handle, EDITS, seed=0).deltas[name].dense()
    assert torch.equal(guard(handle, EDITS, seed=0).deltas[name].dense(), plain)
    for each, edit in zip(guard.each(handle, EDITS[:2], seed=0), EDITS, strict=False):
        assert torch.equal(each.deltas[name].dense(), FTM(**INNER)(handle, [edit], seed=0).deltas[name].dense())


def test_guards_guard_guards(handle):
    inner = Guarded("norm_bound", {"of": {"name": "ft_m", "settings": INNER}, "most": 0.01})
    patch = RECT(inner, 0.2)(handle, EDITS, seed=0)
    [delta] = patch.deltas.values()
    weight = handle.matrix(handle.weight_name("mlp_out", 1))
    assert float(delta.dense().norm()) <= 0.01 * float(weight.norm()) * (1 + 1e-5)
    assert float((delta.dense() != 0).float().mean()) == pytest.approx(0.2, abs=0.01)


def test_what_is_already_on_counts_against_the_bound(handle):
    guard = NormBound(OF, 0.02)
    name = handle.weight_name("mlp_out", 1)
    first = guard(handle, EDITS[:1], seed=0)
    base = handle.matrix(name).clone()
    with handle.patched(first):
        second = guard(handle, EDITS[1:2], seed=0)
        with handle.patched(second):
            moved = float((handle.matrix(name) - base).norm() / base.norm())
    assert moved <= 0.02 * (1 + 1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RECT(OF, 0.0), "keep 0.0 is no share"),
        (lambda: PRUNE(OF, 1.0), "lies above 1"),
        (lambda: NormBound(OF, 0.0), "nothing could change"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_an_operator_that_is_not_there_is_refused_with_near_names():
    with pytest.raises(UnknownName, match="no edit named 'mmit'; there is memit"):
        Guarded("mmit")
