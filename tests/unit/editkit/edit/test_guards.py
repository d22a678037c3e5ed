"""RECT, PRUNE and the norm bound: what each lets through, against numpy, alone and in a stack, and that what they guard
is another's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from edit_examples import EDITS, private_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import QUICK

from editkit.edit._guard import Guard, Guarded
from editkit.edit.ft_m import FTM
from editkit.edit.norm_bound import NormBound
from editkit.edit.prune import PRUNE
from editkit.edit.rect import RECT
from editkit.errors import InputError
from editkit.operators import EDITS as OPERATORS
from editkit.operators import configured, preset_for, provenance_of
from editkit.patch import DenseDelta, LowRankDelta, PromptPatch, WeightPatch
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
@given(SEEDS, st.integers(0, 20), st.integers(0, 20), st.floats(0.05, 1.0))
def test_rect_holds_a_change_of_nothing_for_the_largest_and_no_change_of_nothing_for_none(seed, zeros, still, keep):
    """Where W is 0 the relative change has no bound; where both are, nothing has moved."""
    weight, change = matrices(seed)
    places = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(seed))
    weight.flatten()[places[:zeros]] = 0
    change.flatten()[places[zeros // 2 : zeros // 2 + still]] = 0  # some where W is 0, some where it is not
    left, _ = RECT(OF, keep).tamed(weight, DenseDelta(change), None)
    kept = (left.value != 0).numpy()
    moved, nothing = (change != 0).numpy(), (weight == 0).numpy()
    assert torch.equal(left.value[left.value != 0], change[left.value != 0])
    number, endless = max(1, round(keep * change.numel())), int((moved & nothing).sum())
    assert kept[moved & nothing].all()
    assert kept.sum() == min(moved.sum(), max(number, endless))


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


# In a stack --


@dataclass(frozen=True, slots=True)
class Drawn:
    """An operator that adds a random matrix of `size` times the weights' norm, drawn from the seed, and keeps keys."""

    name: ClassVar[str] = "drawn"
    size: float = 1.0

    def touches(self, handle):
        return [handle.weight_name("mlp_out", 1)]

    def __call__(self, handle, edits, *, seed, progress=None):
        [name] = self.touches(handle)
        draw = torch.Generator().manual_seed(seed)
        change = torch.randn(handle.matrix(name).shape, generator=draw)
        keys = torch.randn(change.shape[1], 2, generator=draw).double()
        change *= self.size * BASE[name].norm() / change.norm()
        about = provenance_of(self.name, self, handle, edits, seed)
        return WeightPatch({name: DenseDelta(change)}, about, {name: keys, f"{name}:more": keys[:1]})


BASE: dict[str, torch.Tensor] = {}


@pytest.fixture
def drawn(handle, monkeypatch):
    """`Drawn` is registered; gives the name of its matrix, whose unchanged value is in `BASE`."""
    OPERATORS.names()
    monkeypatch.setitem(OPERATORS._items, "drawn", Drawn)
    [name] = Drawn().touches(handle)
    monkeypatch.setitem(BASE, name, handle.matrix(name).clone())
    yield name
    handle.rollback()


@dataclass(frozen=True, slots=True)
class Spy(Guard):
    """Lets all through, and notes what a guard is given."""

    name: ClassVar[str] = "spy"

    def tamed(self, weight, delta, earlier):
        GIVEN.append((weight.clone(), earlier))
        return delta, {}


GIVEN = []


def below(handle, name, place):
    """One of the patches that lie below, of every kind that there is: on the matrix, on others, on none."""
    first, second = (torch.randn(handle.matrix(name).shape, generator=torch.Generator().manual_seed(i)) for i in (7, 8))
    other = handle.weight_name("mlp_out", 0)
    return [
        WeightPatch({name: DenseDelta(first)}),
        WeightPatch({other: DenseDelta(first)}),
        WeightPatch({name: LowRankDelta(second[:, :3], second[:3] @ second.T @ second), other: DenseDelta(second)}),
        PromptPatch(lambda prompt: prompt, digest="none"),
        WeightPatch({name: DenseDelta(second)}),
    ][place]


@pytest.mark.parametrize("height", range(6))
def test_a_guard_is_given_the_unchanged_matrix_and_the_sum_of_all_that_lies_on_it(handle, drawn, height):
    on = [below(handle, drawn, place) for place in range(height)]
    GIVEN.clear()
    with handle.patched(*on):
        patch = Spy(Guarded("drawn"))(handle, EDITS, seed=0)
    [(weight, earlier)] = GIVEN
    added = [each.deltas[drawn].dense() for each in on if isinstance(each, WeightPatch) and drawn in each.deltas]
    assert torch.allclose(weight, BASE[drawn], atol=1e-4)
    assert (earlier is None) == (not added)
    assert earlier is None or torch.allclose(earlier, sum(added), atol=1e-4)
    assert torch.equal(patch.deltas[drawn].dense(), Drawn()(handle, EDITS, seed=0).deltas[drawn].dense())


def stacked(handle, guard, name, edits=4):
    """What the operator wanted to add, what the guard let through, and the whole change after it, for each edit."""
    for seed in range(edits):
        wanted = Drawn(guard.of.settings["size"])(handle, EDITS[:1], seed=seed).deltas[name].dense()
        patch = guard(handle, EDITS[:1], seed=seed)
        handle.apply(patch)
        yield wanted, patch.deltas[name].dense(), handle.matrix(name) - BASE[name]


def test_in_a_stack_rect_measures_each_change_by_the_unchanged_matrix(handle, drawn):
    for wanted, left, _ in stacked(handle, RECT(Guarded("drawn", {"size": 2.0}), 0.3), drawn):
        kept, relative = left != 0, (wanted / BASE[drawn]).abs()
        assert int(kept.sum()) == round(0.3 * kept.numel()) and torch.equal(left[kept], wanted[kept])
        assert float(relative[kept].min()) >= float(relative[~kept].max()) * (1 - 1e-3)


def test_in_a_stack_prune_restrains_the_sum_by_the_unchanged_matrix(handle, drawn):
    before, largest = torch.zeros_like(BASE[drawn]), np.linalg.norm(BASE[drawn].numpy(), 2)
    for wanted, _, whole in stacked(handle, PRUNE(Guarded("drawn", {"size": 2.0})), drawn):
        sizes = np.linalg.svd((before + wanted).numpy(), compute_uv=False)
        brought = np.minimum(np.log(sizes / largest) / np.log(1.2) + largest, sizes)
        expected = np.where(sizes > largest, brought, sizes)
        np.testing.assert_allclose(
            np.sort(np.linalg.svd(whole.numpy(), compute_uv=False)), np.sort(expected), rtol=1e-3, atol=1e-4
        )
        before = whole


def test_in_a_stack_the_norm_bound_holds_for_the_sum_and_is_used_up(handle, drawn):
    bound = 0.5 * float(BASE[drawn].norm())
    norms = [
        float(whole.norm()) for *_, whole in stacked(handle, NormBound(Guarded("drawn", {"size": 0.3}), 0.5), drawn)
    ]
    assert norms[0] == pytest.approx(0.6 * bound, rel=1e-3)
    assert norms == sorted(norms) and max(norms) <= bound * (1 + 1e-4) and norms[-1] >= bound * 0.99


@pytest.mark.parametrize("guard", [RECT, PRUNE, NormBound])
def test_what_a_patch_keeps_for_later_edits_is_kept(handle, drawn, guard):
    given = Drawn()(handle, EDITS, seed=3).kept
    for patch in (guard(Guarded("drawn"))(handle, EDITS, seed=3), *guard(Guarded("drawn")).each(handle, EDITS, seed=3)):
        assert set(patch.kept) == set(given) and all(torch.equal(patch.kept[key], given[key]) for key in given)


def test_alphaedit_under_a_guard_knows_the_keys_of_the_edits_before(handle, tmp_path):
    with private_cache(str(tmp_path)):
        inner = configured("alphaedit", handle, QUICK["alphaedit"])[0]
        guard = NormBound(Guarded("alphaedit", QUICK["alphaedit"]), 0.5)
        patches = []
        for number in range(3):
            with handle.patched(*patches):
                assert {len(keys) for keys in inner.past(handle).values()} == {number}
                patches.append(guard(handle, EDITS[number : number + 1], seed=0))


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


def test_the_source_of_the_settings_tells_of_the_guarded_operator_too(handle):
    _, source = configured("prune", handle, {"of": {"name": "rect", "settings": {"of": {"name": "rome"}}}})
    own, rect = (preset_for(name, handle).source for name in ("prune", "rect"))
    assert source == f"{own}; of rect: {rect}; of rome: {configured('rome', handle)[1]}"


def test_an_operator_that_is_not_there_is_refused_with_near_names():
    with pytest.raises(UnknownName, match="no edit named 'mmit'; there is memit"):
        Guarded("mmit")
