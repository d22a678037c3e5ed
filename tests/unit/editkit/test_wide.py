"""Narrow weights held in float32 for a while: the same values, and the same bits again."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from conftest import make_handle
from edit_examples import ENDING, private_cache
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from editkit import products, wide
from editkit.edit.rome import ROME
from editkit.handle import ModelHandle
from editkit.models import LoadOptions
from editkit.moments import MomentSettings, kept, second_moments
from editkit.operators import configured
from editkit.patch import LowRankDelta, WeightPatch
from editkit.products import exact, using
from editkit.sampling import TextPlan, sampled_texts
from editkit.scoring import score_pairs
from editkit.wide import in_float32, working_dtype

NARROW = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with private_cache(str(tmp_path_factory.mktemp("cache"))):
        yield


@pytest.fixture(params=NARROW, ids=str)
def narrow(request):
    return make_handle("llama", dtype=request.param)


def a_patch(handle, layer, size=1e-3):
    name = handle.weight_name("mlp_out", layer)
    out, inner = handle.matrix(name).shape
    generator = torch.Generator().manual_seed(layer)
    left, right = (torch.randn(*shape, generator=generator) for shape in ((out, 1), (1, inner)))
    return WeightPatch({name: LowRankDelta(size * left, right)})


def dtypes(handle):
    return {tensor.dtype for tensor in (*handle.model.parameters(), *handle.model.buffers())}


def test_the_values_are_the_same_and_all_is_as_it_was(narrow):
    before = {name: value.detach().clone() for name, value in narrow.model.named_parameters()}
    fingerprint = narrow.fingerprint()
    with in_float32(narrow):
        assert dtypes(narrow) == {torch.float32} == {narrow.dtype}
        assert all(torch.equal(value, before[name].float()) for name, value in narrow.model.named_parameters())
        with in_float32(narrow):
            assert dtypes(narrow) == {torch.float32}
        assert dtypes(narrow) == {torch.float32}
    assert narrow.fingerprint() == fingerprint


def test_the_weights_keep_their_name_within():
    narrow, other = make_handle("llama", dtype=torch.bfloat16), make_handle("llama", dtype=torch.bfloat16)
    with in_float32(narrow):
        assert narrow.base_digest == other.base_digest


@given(bits=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1), dtype=st.sampled_from(NARROW))
def test_every_number_comes_back_to_the_bit(bits, dtype):
    value = torch.tensor(bits, dtype=torch.int16).view(dtype)
    parameter = nn.Parameter(value[~value.isnan()].clone())
    before = parameter.detach().clone()
    wide._set(parameter, torch.float32, None)
    assert parameter.dtype == torch.float32
    wide._set(parameter, dtype, None)
    assert torch.equal(parameter.detach().view(torch.int16), before.view(torch.int16))


@pytest.mark.parametrize("strikes_at", [0, 7, -20, -1])  # in the midst of widening, and of narrowing
def test_whatever_strikes_all_is_as_it_was(narrow, monkeypatch, strikes_at):
    before, calls, plain = narrow.fingerprint(), itertools.count(), wide._set
    number = sum(1 for _ in narrow.model.parameters())

    def strike(*arguments):
        if next(calls) == strikes_at % (2 * number):
            raise KeyboardInterrupt
        plain(*arguments)

    monkeypatch.setattr(wide, "_set", strike)
    with pytest.raises(KeyboardInterrupt), in_float32(narrow):
        pass
    assert narrow.fingerprint() == before


def test_an_error_within_leaves_it_as_it_was(narrow):
    before = narrow.fingerprint()
    with pytest.raises(RuntimeError, match="struck"), in_float32(narrow):
        raise RuntimeError("struck")
    assert narrow.fingerprint() == before


def test_gradients_are_kept(narrow):
    parameter = narrow.parameter(narrow.weight_name("mlp_out", 1))
    parameter.grad = torch.ones_like(parameter)
    own = parameter.grad
    with in_float32(narrow):
        assert parameter.grad is None
    assert parameter.grad is own


def test_in_inference_mode_it_leaves_weights_that_can_be_trained(narrow):
    with torch.inference_mode(), in_float32(narrow):
        pass
    assert not any(parameter.is_inference() for parameter in narrow.model.parameters())
    narrow.model(torch.tensor([[5, 6]])).logits.sum().backward()


def test_patches_put_on_and_taken_off_within_are_rounded_as_ever(narrow):
    """Below the change stand others, made on the narrow weights; all are taken off within and put on again."""
    patches = [a_patch(narrow, layer) for layer in (1, 1, 2)]
    with narrow.patched(*patches):
        before = narrow.fingerprint()
        weights = {name: value.detach().float() for name, value in narrow.model.named_parameters()}
        above = a_patch(narrow, 1, 1e-2)
        with narrow.patched(above):
            wanted = {name: value.detach().float() for name, value in narrow.model.named_parameters()}
        with in_float32(narrow):
            with narrow.patched(above):
                assert all(torch.equal(v, wanted[name]) for name, v in narrow.model.named_parameters())
            narrow.restack(0, patches)
            assert all(torch.equal(v, weights[name]) for name, v in narrow.model.named_parameters())
        assert narrow.fingerprint() == before


def test_native_leaves_the_weights_as_they_are(narrow):
    native = ModelHandle(narrow.model, narrow.tokenizer, narrow.arch, options=LoadOptions(compute="native"))
    assert (working_dtype(native), working_dtype(narrow)) == (narrow.dtype, torch.float32)
    with in_float32(native):
        assert native.dtype == narrow.dtype != torch.float32


def test_wider_weights_are_left_alone():
    handle = make_handle("llama", dtype=torch.float64)
    with in_float32(handle):
        assert handle.dtype == working_dtype(handle) == torch.float64


def test_what_was_laid_out_is_given_up():
    """Else a model in bfloat16 would be held in float32 as well, for as long as it lives."""
    narrow = make_handle("llama", dtype=torch.bfloat16)
    layers = [module for module in narrow.model.modules() if isinstance(module, nn.Linear)]
    with in_float32(narrow):
        with using(exact(narrow)):
            score_pairs(narrow, [("One", " two")])
        assert any(layer in products._KEPT for layer in layers)
    assert not any(layer in products._KEPT for layer in layers)


def test_texts_and_moments_are_those_of_the_same_weights_in_float32(narrow):
    wide_one = make_handle("llama", dtype=narrow.dtype)
    wide_one = ModelHandle.of(wide_one.model.float(), wide_one.tokenizer)
    plan = TextPlan(3, 12, seed=0, top_k=5)
    assert sampled_texts(narrow, plan) == sampled_texts(wide_one, plan)
    assert plan.key(narrow) != plan.key(wide_one)  # the one's weights are not the other's
    settings = MomentSettings(tokens=300, length=20)
    own, wanted = (second_moments(each, [1], settings)[1] for each in (narrow, wide_one))
    assert torch.equal(own.matrix, wanted.matrix) and own.key != wanted.key


def test_a_plan_finds_the_moments_that_an_edit_measured():
    narrow = make_handle("llama", dtype=torch.bfloat16)
    operator, _ = configured("rome", narrow, {"layer": 1, "moments": {"tokens": 60, "length": 20}})
    quick = dataclasses.replace(operator, target=dataclasses.replace(operator.target, steps=1))
    assert isinstance(quick, ROME)
    assert kept(narrow, [1], MomentSettings(tokens=60, length=20)) == {1: False}
    quick(narrow, ENDING[:1], seed=0)
    assert kept(narrow, [1], MomentSettings(tokens=60, length=20)) == {1: True}
