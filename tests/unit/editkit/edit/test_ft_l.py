"""FT-L: the bound to the bit, the fast loop against the plain one, labels."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import LAYOUTS
from edit_examples import EDITS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from editkit.edit import _one_matrix
from editkit.edit.ft_l import FTL
from editkit.scoring import score_pairs
from editkit.settings import build, settings_of
from editkit.tokens import encode_pair


def plain(handle, edits, operator):
    """Full forward passes of unpadded sequences with a changed weight, torch's own Adam, projection by hand."""
    name = handle.weight_name("mlp_out", operator.layer)
    weight = handle.matrix(name)
    delta = torch.zeros(weight.shape, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=operator.learning_rate)
    for _ in range(operator.steps):
        stored = weight + delta
        changed = {name: stored.T if handle.is_transposed(name) else stored}
        losses = []
        for edit in edits:
            ids, target = encode_pair(handle.tokenizer, edit.fact.text, edit.target_new)
            whole = torch.tensor([[*ids, *target]])
            logits = torch.func.functional_call(handle.model, changed, (whole,)).logits[0].float()
            labels = whole[0].clone()
            labels[: len(ids)] = -100
            losses.append(torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100))
        loss = torch.stack(losses).mean()
        [delta.grad] = torch.autograd.grad(loss, delta)
        adam.step()
        with torch.no_grad():
            delta.clamp_(-operator.bound, operator.bound)
    return delta.detach()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fast_loop_equals_the_plain_one(handle_of, layout):
    handle = handle_of(layout)
    operator = FTL(1, bound=3e-3, learning_rate=1e-3, steps=5, stop_below=0.0)
    patch = operator(handle, EDITS, seed=0)
    found = patch.deltas[handle.weight_name("mlp_out", 1)].value
    expected = plain(handle, EDITS, operator)
    assert float((found - expected).norm() / expected.norm()) < 1e-3
    assert patch.provenance.notes["steps"] == 5


def test_parts_of_a_large_request_add_up(handle, monkeypatch):
    operator = FTL(1, steps=3, stop_below=0.0)
    whole = operator(handle, EDITS, seed=0)
    monkeypatch.setattr(_one_matrix, "ROWS", 2)
    parts = operator(handle, EDITS, seed=0)
    name = handle.weight_name("mlp_out", 1)
    assert torch.allclose(whole.deltas[name].value, parts.deltas[name].value, atol=1e-5)


@settings(deadline=None, max_examples=8)
@given(bound=st.floats(1e-5, 1e-2))
@example(bound=1e-3)  # rounds upwards in float32
def test_no_entry_passes_the_bound_by_a_bit(bound):
    handle = _shared_handle()
    patch = FTL(1, bound=bound, learning_rate=1e-2, steps=2)(handle, EDITS, seed=0)
    value = patch.deltas[handle.weight_name("mlp_out", 1)].value
    assert value.dtype == torch.float32
    assert float(value.double().abs().max()) <= bound
    assert float(value.abs().max()) >= bound * 0.999  # the bound is used, not missed


def _shared_handle(cache=[]):  # noqa: B006 (Hypothesis forbids function-scoped fixtures)
    from conftest import make_handle

    if not cache:
        cache.append(make_handle("llama"))
    return cache[0]


@pytest.mark.parametrize("layout", ["llama", "gpt2", "gemma2"])
def test_the_loss_counts_target_tokens_and_no_others(handle_of, layout):
    handle = handle_of(layout)
    notes = FTL(1, learning_rate=1e-12, bound=1e-12, steps=1)(handle, EDITS, seed=0).provenance.notes
    scores = score_pairs(handle, [(e.fact.text, e.target_new) for e in EDITS])
    assert len({score.tokens for score in scores}) > 1
    assert notes["loss"] == pytest.approx(-sum(score.mean for score in scores) / len(scores), rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_new_objects_gain(handle_of, layout):
    handle = handle_of(layout)
    pairs = [(e.fact.text, e.target_new) for e in EDITS]
    before = score_pairs(handle, pairs)
    patch = FTL(0, bound=0.05, learning_rate=0.02, steps=8)(handle, EDITS, seed=0)
    with handle.patched(patch):
        after = score_pairs(handle, pairs)
    assert sum(s.mean for s in after) > sum(s.mean for s in before) + 1
    assert patch.provenance.notes["loss"] == pytest.approx(-sum(s.mean for s in after) / len(after), rel=1e-3)


def test_it_stops_when_the_loss_is_small_enough(handle):
    patch = FTL(1, stop_below=1e9)(handle, EDITS, seed=0)
    assert patch.provenance.notes["steps"] == 0
    assert not patch.deltas[handle.weight_name("mlp_out", 1)].value.any()


def test_the_order_of_edits_does_not_matter(handle):
    operator = FTL(1, steps=3)
    name = handle.weight_name("mlp_out", 1)
    one, other = (operator(handle, edits, seed=0).deltas[name].value for edits in (EDITS, EDITS[::-1]))
    assert torch.allclose(one, other, atol=1e-5)


def test_a_wider_bound_holds_a_smaller_loss(handle):
    losses = [
        FTL(1, bound=b, learning_rate=1e-2, steps=6)(handle, EDITS, seed=0).provenance.notes["loss"]
        for b in (1e-4, 1e-3, 1e-2)
    ]
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]


def test_settings_round_trip_and_bad_input_is_refused(handle):
    operator = FTL(2, bound=1e-3)
    assert build(FTL, json.loads(json.dumps(settings_of(operator)))) == operator
    with pytest.raises(ValueError, match="bound > 0"):
        FTL(0, bound=0.0)
    with pytest.raises(ValueError, match="no edits"):
        operator(handle, [], seed=0)
    with pytest.raises(ValueError, match="no layer 9"):
        FTL(9)(handle, EDITS, seed=0)
