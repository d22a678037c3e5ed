"""A stack of changes gives back every earlier value to the bit, and keeps few copies."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from conftest import make_handle
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from editkit.blocks import without_patches
from editkit.errors import InputError
from editkit.handle import SHOWN, ModelHandle
from editkit.patch import LowRankDelta, PatchError, PromptPatch, Provenance, WeightPatch
from editkit.stacked import NEWEST, Stacked


def plus(seed, value):
    """A change that floating point does not take back: (x + d) - d is not x."""
    return value + torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=200)
@given(st.lists(st.one_of(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), st.integers(0, 12)), max_size=40))
def test_any_sequence_gives_back_what_was_there(steps):
    parameters = {name: nn.Parameter(torch.randn(3, 2)) for name in "ab"}
    stacked, seen = Stacked(), [{name: p.detach().clone() for name, p in parameters.items()}]
    for step in steps:
        if isinstance(step, tuple):
            stacked.put(step[0], parameters[step[0]], functools.partial(plus, step[1]))
            seen.append({name: p.detach().clone() for name, p in parameters.items()})
        elif step < len(seen):
            stacked.back_to(step)
            seen = seen[: step + 1]
        assert stacked.mark == len(seen) - 1
        assert all(torch.equal(parameters[name], seen[-1][name]) for name in "ab")
        assert all(len(column.kept) <= NEWEST + 1 for column in stacked._columns.values())


def test_a_change_that_fails_changes_nothing():
    parameter, stacked = nn.Parameter(torch.ones(2)), Stacked()

    def fail(value):
        raise PatchError("no")

    with pytest.raises(PatchError):
        stacked.put("a", parameter, fail)
    assert torch.equal(parameter, torch.ones(2)) and stacked.mark == 0
    stacked.back_to(0)
    assert torch.equal(parameter, torch.ones(2))


@pytest.mark.parametrize("strikes_at", range(3))
def test_what_strikes_on_the_way_back_is_made_good_by_going_back_again(monkeypatch, strikes_at):
    parameters = {name: nn.Parameter(torch.ones(2)) for name in "abc"}
    stacked = Stacked()
    for name, parameter in parameters.items():
        stacked.put(name, parameter, functools.partial(plus, 1))
    calls = []

    def overwrite(parameter, value):
        calls.append(1)
        if len(calls) == strikes_at + 1:
            raise KeyboardInterrupt
        parameter.data.copy_(value)

    monkeypatch.setattr("editkit.stacked._overwrite", overwrite)
    with pytest.raises(KeyboardInterrupt):
        stacked.back_to(0)
    stacked.back_to(0)
    assert all(torch.equal(parameter, torch.ones(2)) for parameter in parameters.values())


# -- a handle --


def patch_of(handle, seed, rank=3, layer=1, on_top_of=()):
    name = handle.weight_name("mlp_out", layer)
    out, inner = handle.matrix(name).shape
    random = torch.Generator().manual_seed(seed)
    left, right = torch.randn(out, rank, generator=random), torch.randn(rank, inner, generator=random)
    notes = {"on_top_of": [each.digest for each in on_top_of]}
    return WeightPatch({name: LowRankDelta(left, right)}, Provenance("rome", base=handle.base_digest, notes=notes))


def stack_of(handle, number):
    """Patches each of which says that it was made on top of those before it."""
    patches = []
    for seed in range(number):
        patches.append(patch_of(handle, seed, layer=seed % 3, on_top_of=patches))
    return patches


def test_a_deep_stack_keeps_few_copies_and_comes_off_to_the_bit(handle):
    patches, prints = stack_of(handle, 40), [handle.fingerprint()]
    for patch in patches:
        handle.apply(patch)
        prints.append(handle.fingerprint())
    assert sum(len(column.kept) for column in handle.weights._columns.values()) <= 3 * (NEWEST + 1)
    for depth in (39, 38, 30, 17, 1, 0):
        handle.rollback(depth)
        assert handle.fingerprint() == prints[depth]


@pytest.mark.parametrize("place", range(5))
def test_removing_a_patch_is_as_if_it_had_never_been_put_on(handle, place):
    patches = stack_of(handle, 5)
    others = [patch for number, patch in enumerate(patches) if number != place]
    for patch in others:
        handle._put_on(patch)
    expected = handle.fingerprint()
    handle.rollback()
    before = handle.fingerprint()
    with handle.patched(*patches):
        whole = handle.fingerprint()
        with handle.without(place):
            assert handle.fingerprint() == expected and [*handle.patches] == others
        assert handle.fingerprint() == whole and [*handle.patches] == patches
        assert handle.remove(place) is patches[place]
        assert handle.fingerprint() == expected and [*handle.patches] == others
    assert handle.fingerprint() == before


def test_patches_that_are_off_for_a_while_come_back_though_one_was_taken_out(handle):
    """Those above it say that they were made on top of it."""
    patches = stack_of(handle, 3)
    with handle.patched(*patches):
        handle.remove(1)
        left = handle.fingerprint()
        with without_patches(handle):
            assert handle.patches == ()
        assert handle.fingerprint() == left and [*handle.patches] == [patches[0], patches[2]]


def test_the_others_stay_where_one_does_not_go_on_alone(handle, monkeypatch):
    patches = stack_of(handle, 3)
    with handle.patched(*patches):
        whole, put_on, struck = handle.fingerprint(), handle._put_on, []

        def fail(patch):
            if patch is patches[2] and not struck:
                struck.append(1)
                raise KeyboardInterrupt
            put_on(patch)

        monkeypatch.setattr(handle, "_put_on", fail)
        with pytest.raises(KeyboardInterrupt):
            handle.remove(0)
        assert handle.fingerprint() == whole and [*handle.patches] == patches


def subsets(items):
    return [set(chosen) for size in range(len(items) + 1) for chosen in itertools.combinations(items, size)]


@pytest.mark.parametrize("shown", [SHOWN, 64])
def test_what_removals_left_is_put_on_again_where_all_that_lacks_below_is_waived_and_only_there(handle, shown):
    patches = stack_of(handle, 3)
    for removed, waived in itertools.product(subsets(range(3)), repeat=2):
        left = [number for number in range(3) if number not in removed]
        again = ModelHandle.of(handle.model, handle.tokenizer)
        again.waive(*(patches[number].digest[:shown] for number in waived))
        with handle.patched(*patches):
            for place in sorted(removed, reverse=True):
                handle.remove(place)
            expected = handle.fingerprint()
        refused = [number for number in left if {lower for lower in removed if lower < number} - waived]
        if refused:
            lacks = ", ".join(patches[n].digest[:SHOWN] for n in sorted(removed - waived) if n < refused[0])
            with pytest.raises(PatchError, match=f"and {lacks} is not on 'model'"):
                again.patched(*(patches[number] for number in left)).__enter__()
            assert again.patches == ()
        else:
            with again.patched(*(patches[number] for number in left)):
                assert again.fingerprint() == expected


def test_the_refusal_says_how_it_is_waived_and_what_names_no_patch_waives_none(handle):
    below, above = stack_of(handle, 2)
    short = below.digest[:SHOWN]
    for waived in ((), ("",), (short[:-1],), (above.digest,), (below.digest + "0",)):
        handle.waive(*waived)
        with pytest.raises(PatchError, match=rf"waive\('{short}'\), on the command line --without {short}$"):
            handle.apply(above)
    with pytest.raises(PatchError, match="made for weights"):
        handle.waive(below.digest, "0" * 64)
        handle.apply(WeightPatch(above.deltas, Provenance(base="0" * 64)))
    handle.apply(above)
    handle.rollback()


def test_there_must_be_such_a_patch(handle):
    with handle.patched(PromptPatch(str.upper, digest="upper")):
        for place in (-1, 1):
            with pytest.raises(InputError, match=f"no patch number {place}; 1 patches are on"):
                handle.remove(place)


def test_float16_is_made_again_to_the_bit():
    handle = make_handle("llama", dtype=torch.float16)
    patches, prints = [patch_of(handle, seed) for seed in range(12)], []
    for patch in patches:
        prints.append(handle.fingerprint())
        handle.apply(patch)
    for depth in (5, 2, 0):
        handle.rollback(depth)
        assert handle.fingerprint() == prints[depth]
