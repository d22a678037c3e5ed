"""Products in bfloat16: right to its precision, off again whatever happens, and never in what is reported."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import LAYOUTS, make_handle
from edit_examples import BEFORE, ENDING
from training_examples import FORGET, NEVER, RETAIN

from editkit import products
from editkit.completions import encode_examples, read
from editkit.edit._search import TargetSearch, find_targets
from editkit.products import BFLOAT16, FLOAT32, Products, products_of, resolved, using
from editkit.scope import EVERYTHING
from editkit.training import Objective, Schedule, Term, descend
from editkit.unlearn._losses import nll

IDS = torch.arange(5, 17)[None]
SEARCH = TargetSearch(12, 0.2, 6.0, weight_decay=0.0, stop_below=0.0)


@torch.no_grad()
def hidden(handle):
    return handle.backbone(IDS).last_hidden_state


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layer_multiplies_in_bfloat16_and_all_else_stays(handle_of, layout):
    handle = handle_of(layout)
    before, state = hidden(handle), handle.fingerprint()
    layer = handle.module("mlp_out", 1)
    x = torch.randn(
        3, handle.matrix(handle.weight_name("mlp_out", 1)).shape[1], generator=torch.Generator().manual_seed(0)
    )
    matrix = handle.matrix(handle.weight_name("mlp_out", 1))
    with Products([handle.module("block", 1)]).on(), torch.no_grad():
        got = layer(x)
        rounded = hidden(handle)
    wanted = (x.bfloat16() @ matrix.bfloat16().T).float() + (0 if layer.bias is None else layer.bias)
    assert torch.allclose(got, wanted.detach(), rtol=1e-2, atol=1e-4)
    assert got.dtype == rounded.dtype == torch.float32
    assert not torch.equal(rounded, before)
    assert torch.allclose(rounded, before, rtol=0.1, atol=0.1)
    assert torch.equal(hidden(handle), before)
    assert handle.fingerprint() == state


def test_products_are_off_again_after_an_error(handle):
    before = hidden(handle)
    rounded = Products([handle.model])
    with pytest.raises(KeyboardInterrupt), rounded.on():
        raise KeyboardInterrupt
    assert torch.equal(hidden(handle), before)
    with rounded.on(), rounded.on():  # nested: the inner one changes nothing
        pass
    assert torch.equal(hidden(handle), before)


@pytest.mark.parametrize("layout", ["llama", "gpt2", "gemma2"])
def test_a_search_in_bfloat16_finds_nearly_the_same_and_tells_the_float32_loss(handle_of, layout):
    handle = handle_of(layout)
    state = handle.fingerprint()
    rough = dataclasses.replace(SEARCH, products=BFLOAT16)
    [exact] = find_targets(handle, ENDING[:1], 1, BEFORE, SEARCH, seed=0)
    [found] = find_targets(handle, ENDING[:1], 1, BEFORE, rough, seed=0)
    assert handle.fingerprint() == state
    assert (exact.notes["products"], found.notes["products"]) == (FLOAT32, BFLOAT16)
    assert not torch.equal(found.residual, exact.residual)
    assert torch.cosine_similarity(found.residual, exact.residual, dim=0) > 0.98
    # One step from where the search ended tells the loss there: in float32, whatever the search multiplied in.
    assert found.notes["loss"] == pytest.approx(exact.notes["loss"], rel=0.05)


def test_a_search_in_bfloat16_ends_on_a_loss_in_float32(handle, monkeypatch):
    on = []
    real = Products.on

    def watched(self):
        on.append(True)
        return real(self)

    monkeypatch.setattr(Products, "on", watched)
    search = dataclasses.replace(SEARCH, stop_below=50.0, products=BFLOAT16)
    [found] = find_targets(handle, ENDING[:1], 1, BEFORE, search, seed=0)
    plain = dataclasses.replace(SEARCH, stop_below=50.0)
    [exact] = find_targets(handle, ENDING[:1], 1, BEFORE, plain, seed=0)
    assert len(on) == 1
    assert found.notes["loss"] == pytest.approx(exact.notes["loss"], abs=1e-6)


def test_training_in_bfloat16_moves_float32_weights_about_as_far(handle):
    state = handle.fingerprint()
    examples = encode_examples(handle, RETAIN)
    term = Term("retain", examples, lambda batch: nll(read(handle, batch).total), per="token")
    objective = Objective((term,), encode_examples(handle, FORGET), stopping=NEVER)
    moved = {}
    for choice in (FLOAT32, BFLOAT16):
        descent = descend(handle, objective, Schedule(1e-3, 6, products=choice), EVERYTHING, seed=0)
        assert descent.notes["products"] == choice
        moved[choice] = torch.cat([d.value.flatten() for _, d in sorted(descent.deltas.items())])
        assert moved[choice].dtype == torch.float32
    assert handle.fingerprint() == state
    assert not torch.equal(moved[FLOAT32], moved[BFLOAT16])
    assert torch.cosine_similarity(moved[FLOAT32], moved[BFLOAT16], dim=0) > 0.9


@pytest.mark.parametrize("fast", [True, False])
def test_auto_asks_the_processor(handle, monkeypatch, fast):
    monkeypatch.setattr(products, "cpu_is_fast_at_bfloat16", lambda: fast)
    assert resolved(handle, "auto") == (BFLOAT16 if fast else FLOAT32)
    assert (products_of(handle, "auto") is not None) == fast
    assert resolved(handle, FLOAT32) == FLOAT32
    with using(products_of(handle, FLOAT32)):
        assert not any("forward" in vars(module) for module in handle.model.modules())


def test_auto_leaves_a_model_that_is_not_float32(monkeypatch):
    handle = make_handle("llama")
    monkeypatch.setattr(products, "cpu_is_fast_at_bfloat16", lambda: True)
    handle.model.bfloat16()
    assert resolved(handle, "auto") == FLOAT32


@pytest.mark.parametrize("settings", [TargetSearch, Schedule])
def test_another_word_is_refused_with_those_there_are(settings):
    with pytest.raises(ValueError, match="products is 'fp8'; there is auto, float32, bfloat16"):
        settings(products="fp8")
