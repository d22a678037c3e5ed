"""What a removal does to the others: measured without leaving a trace, and right where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edit_examples import ENDING, private_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import QUICK

from editkit.errors import InputError
from editkit.interference import Moved, Neighbour, Removal, apart, edits_of, overlap, removal
from editkit.operators import configured
from editkit.patch import DenseDelta, LowRankDelta, PromptPatch, Provenance, WeightPatch
from editkit.scoring import score_pairs


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with private_cache(str(tmp_path_factory.mktemp("cache"))):
        yield


def low_rank(random, rank, d_out=5, d_in=7):
    return LowRankDelta(torch.from_numpy(random.normal(size=(d_out, rank))), torch.from_numpy(random.normal(size=(rank, d_in))))  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 10_000))
def test_overlap_is_the_share_within_the_row_space(one_rank, other_rank, one_dense, other_dense, seed):
    random = np.random.default_rng(seed)
    one, other = low_rank(random, one_rank), low_rank(random, other_rank)
    a, b = one.dense().numpy(), other.dense().numpy()
    expected = np.linalg.norm(b @ np.linalg.pinv(a) @ a) / np.linalg.norm(b)
    patches = [
        WeightPatch({"w": DenseDelta(delta.dense()) if dense else delta})
        for delta, dense in ((one, one_dense), (other, other_dense))
    ]
    assert overlap(*patches) == pytest.approx(expected, abs=1e-6)
    assert overlap(patches[0], patches[0]) == pytest.approx(1)


def test_overlap_counts_what_lies_in_other_matrices_and_is_none_where_nothing_is_shared():
    random = np.random.default_rng(0)
    shared, own = low_rank(random, 2), low_rank(random, 2)
    two = WeightPatch({"w": shared, "v": own})
    share = float(shared.dense().norm() / torch.cat([shared.dense(), own.dense()]).norm())
    assert overlap(WeightPatch({"w": shared}), two) == pytest.approx(share)
    assert overlap(two, WeightPatch({"w": shared})) == pytest.approx(1)
    assert overlap(WeightPatch({"u": own}), two) is None
    assert overlap(PromptPatch(str.upper, digest="upper"), two) is None
    assert overlap(two, WeightPatch({"b": DenseDelta(torch.ones(3))})) is None


def test_why_there_is_no_overlap_is_told_where_there_is_none_and_only_there():
    shared = WeightPatch({"w": low_rank(np.random.default_rng(0), 2)})
    nothing = WeightPatch({"w": DenseDelta(torch.zeros(5, 7))})
    assert apart(shared, WeightPatch({"u": nothing.deltas["w"]})) == "the two change no matrix in common"
    assert overlap(shared, nothing) is None and apart(shared, nothing) == "its change is zero"
    beside = PromptPatch(str.upper, Provenance("ike"), digest="upper")
    for pair in ((beside, shared), (shared, beside)):
        assert "beside the weights (ike), where there is no matrix to compare" in apart(*pair)


@pytest.mark.parametrize("name", ["grace", "serac", "wise"])
def test_operators_that_work_beside_the_weights_say_so(handle, name):
    for operator in ("rome", name, "rome"):
        handle.apply(configured(operator, handle, QUICK[operator])[0](handle, ENDING[:1], seed=0))
    for place in range(3):
        others = removal(handle, place).others
        assert all((other.overlap is None) == bool(other.apart) for other in others)
        beside = [other for other in others if 1 in (place, other.place)]
        assert beside and all(f"({name})" in other.apart for other in beside)
    handle.rollback()


def stack(handle, name="rome"):
    """Three edits, each made on the model with those before it, which all stay on."""
    operator = configured(name, handle, QUICK[name])[0]
    for edit in ENDING:
        handle.apply(operator(handle, [edit], seed=0))
    return handle.patches


def test_a_patch_tells_the_edits_that_it_was_made_for_and_no_examples_to_forget(handle):
    [patch, *_] = stack(handle)
    assert [*edits_of(patch)] == [{"prompt": "The capital of France", "subject": "France", "target_new": "Rome"}]
    handle.rollback()


@pytest.mark.parametrize("place", range(3))
def test_a_removal_is_told_as_it_comes_out(handle, place):
    patches = stack(handle)
    whole = handle.fingerprint()
    found = removal(handle, place)
    assert handle.fingerprint() == whole and handle.patches == patches
    pairs = [(edit.fact.text, edit.target_new) for edit in ENDING]
    before = [score.logprob for score in score_pairs(handle, pairs)]
    handle.remove(place)
    after = [score.logprob for score in score_pairs(handle, pairs)]
    rows = {found.place: found.own} | {other.place: other.edits for other in found.others}
    for number in range(3):
        [moved] = rows[number]
        assert (moved.before, moved.after) == pytest.approx((before[number], after[number]), abs=1e-4)
    assert rows[place][0].after < rows[place][0].before, "without its patch an edit is less likely"
    assert [other.made_on_top for other in found.others] == [other.place > place for other in found.others]
    assert all(0 <= other.overlap <= 1 for other in found.others)
    handle.rollback()


def test_what_is_lost_and_gone_is_counted():
    lost, held, gained, never = (
        Moved("p", "t", -1.0, -2.0, *both) for both in ((True, False), (True, True), (False, True), (False, False))
    )
    others = (Neighbour(0, "rome", False, None, (lost, held)), Neighbour(2, "rome", True, 1.0, (gained, never, lost)))
    found = Removal(1, "rome", (lost, held, gained), others)
    assert (found.gone, found.lost) == (1, 2)


def test_there_must_be_such_a_patch(handle):
    with pytest.raises(InputError, match="no patch number 0"):
        removal(handle, 0)
