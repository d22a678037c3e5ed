"""Products in bfloat16: right to its precision, off again whatever happens, and never in what is reported."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import LAYOUTS, make_handle
from edit_examples import BEFORE, ENDING
from hypothesis import given
from hypothesis import strategies as st
from training_examples import FORGET, NEVER, RETAIN

from editkit import matrices, products
from editkit.completions import encode_examples, read
from editkit.edit import _search
from editkit.edit._search import TargetSearch, find_targets
from editkit.forward import unembed
from editkit.matrices import Matrix, content
from editkit.patch import LowRankDelta, WeightPatch
from editkit.products import BFLOAT16, FLOAT32, exact, products_of, resolved, rounded, using
from editkit.scope import EVERYTHING
from editkit.scoring import Ask, tell_in_parts
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
    with rounded([handle.module("block", 1)]).on(), torch.no_grad():
        got = layer(x)
        rough = hidden(handle)
    wanted = (x.bfloat16() @ matrix.bfloat16().T).float() + (0 if layer.bias is None else layer.bias)
    assert torch.allclose(got, wanted.detach(), rtol=1e-2, atol=1e-4)
    assert got.dtype == rough.dtype == torch.float32
    assert not torch.equal(rough, before)
    assert torch.allclose(rough, before, rtol=0.1, atol=0.1)
    assert torch.equal(hidden(handle), before)
    assert handle.fingerprint() == state


def test_products_are_off_again_after_an_error(handle):
    before = hidden(handle)
    rough = rounded([handle.model])
    with pytest.raises(KeyboardInterrupt), rough.on():
        raise KeyboardInterrupt
    assert torch.equal(hidden(handle), before)
    with exact(handle).on():
        outer = hidden(handle)
        with rough.on():
            assert not torch.equal(hidden(handle), outer)
        assert torch.equal(hidden(handle), outer)  # nested: the outer ones are back after the inner ones
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
    real = _search.using

    def watched(chosen):
        on.append(chosen)
        return real(chosen)

    monkeypatch.setattr(_search, "using", watched)
    search = dataclasses.replace(SEARCH, stop_below=50.0, products=BFLOAT16)
    [found] = find_targets(handle, ENDING[:1], 1, BEFORE, search, seed=0)
    plain = dataclasses.replace(SEARCH, stop_below=50.0)
    [exact] = find_targets(handle, ENDING[:1], 1, BEFORE, plain, seed=0)
    assert len(on) == 4  # the exact ones around each search, and a step's: bfloat16 in the first, none in the second
    assert found.notes["loss"] == pytest.approx(exact.notes["loss"], abs=1e-6)


def test_a_search_lays_each_weight_above_its_layer_out_once_for_all_its_batches(handle_of, monkeypatch):
    """A weight that may still change cannot be laid out: the model is frozen before."""
    handle = handle_of("gemma2")
    assert any(parameter.requires_grad for parameter in handle.model.parameters())
    laid = []

    class Counted(products.Matrix):
        def __init__(self, weight, dtype):
            laid.append(dtype)
            super().__init__(weight, dtype)

    monkeypatch.setattr(products, "Matrix", Counted)
    monkeypatch.setitem(_search.TOKENS, "cpu", 1)  # each edit is a batch
    find_targets(handle, ENDING[:2], 1, BEFORE, dataclasses.replace(SEARCH, products=BFLOAT16), seed=0)
    above = [m for layer in range(2, handle.layers) for m in handle.module("block", layer).modules()]
    assert laid.count(torch.bfloat16) == sum(isinstance(m, torch.nn.Linear) for m in above) > 0


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


# Laid out weights --


@torch.no_grad()
def logits(handle):
    return unembed(handle, hidden(handle))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_products_say_what_the_model_says_now(handle_of, layout):
    handle = handle_of(layout)
    state = handle.fingerprint()
    name = handle.weight_name("mlp_out", 1)
    factors = torch.Generator().manual_seed(0)
    out, inner = handle.matrix(name).shape
    change = LowRankDelta(torch.randn(out, 1, generator=factors), torch.randn(1, inner, generator=factors))
    plain = logits(handle)
    with using(exact(handle)):
        assert torch.allclose(logits(handle), plain, rtol=1e-4, atol=1e-5)
    with handle.patched(WeightPatch({name: change})):
        patched = logits(handle)
        assert not torch.allclose(patched, plain, rtol=1e-2, atol=1e-3)
        with using(exact(handle)):
            assert torch.allclose(logits(handle), patched, rtol=1e-4, atol=1e-5)
    with using(exact(handle)):
        assert torch.allclose(logits(handle), plain, rtol=1e-4, atol=1e-5)
    assert handle.fingerprint() == state


def test_a_weight_written_behind_torchs_back_is_laid_out_again():
    handle = make_handle("llama")
    with using(exact(handle)):
        logits(handle)
    weight = handle.parameter(handle.weight_name("mlp_out", 1))
    weight.data[0, 0] += 3.0  # no version counter sees this
    plain = logits(handle)
    with using(exact(handle)):
        assert torch.allclose(logits(handle), plain, rtol=1e-4, atol=1e-5)


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    place=st.integers(0, 80),
    transposed=st.booleans(),
    offset=st.integers(0, 3),
)
def test_content_tells_any_single_change_and_no_other(shape, dtype, place, transposed, offset):
    numbers = shape[0] * shape[1]
    whole = torch.zeros(numbers + offset, dtype=dtype)[offset:].view(shape)  # not always at a multiple of 8 bytes
    weight = whole.T if transposed else whole
    before = content(weight)
    assert content(weight.clone()) == before
    whole.view(-1)[place % numbers] = 2.0**-100
    assert content(weight) != before


def test_a_large_model_is_not_held_twice(handle, monkeypatch):
    monkeypatch.setattr(products, "LAID_BYTES", 1)
    assert exact(handle) is None


def test_questions_are_asked_of_laid_out_weights_and_nothing_is_left_on_between_parts(handle, monkeypatch):
    used = []
    real = Matrix.forth
    monkeypatch.setattr(Matrix, "forth", lambda self, x: used.append(self) or real(self, x))
    before = hidden(handle)
    for _ in tell_in_parts(handle, [Ask(f"The capital of {name} is") for name in ("Peru", "Chad")], rows=1):
        asked = len(used)
        assert asked > 0
        assert torch.equal(hidden(handle), before)
        assert len(used) == asked


def test_training_gives_up_the_layouts(handle):
    with using(exact(handle)):
        logits(handle)
    kept = [module for module in handle.model.modules() if module in products._KEPT]
    assert kept
    term = Term("retain", encode_examples(handle, RETAIN), lambda batch: nll(read(handle, batch).total))
    descend(handle, Objective((term,), stopping=NEVER), Schedule(1e-3, 1), EVERYTHING, seed=0)
    assert not any(module in products._KEPT for module in kept)


@pytest.mark.skipif(not matrices.can_lay_out(torch.float32), reason="this torch lays nothing out")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_numbers_of_rows_need_few_kernels(monkeypatch, dtype):
    """torch keeps a kernel for each number of rows, of the size of a megabyte."""
    if not matrices.can_lay_out(dtype):
        pytest.skip(f"this torch lays no {dtype} out")
    sizes, real = set(), matrices._times
    monkeypatch.setattr(matrices, "_times", lambda x, laid: sizes.add(x.numel() // 4) or real(x, laid))
    numbers = torch.Generator().manual_seed(0)
    weight, near = torch.randn(6, 4, generator=numbers).to(dtype), 8 * torch.finfo(dtype).eps
    matrix = Matrix(weight, dtype)
    for rows in range(17, 129):
        x = torch.randn(1, rows, 4, generator=numbers)
        wanted = torch.nn.functional.linear(x.to(dtype), weight).float()
        assert torch.allclose(matrix.forth(x), wanted, rtol=near, atol=near)
    assert len(sizes) <= 7


@given(
    rows=st.lists(st.integers(0, 9), max_size=2).map(tuple),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
    laid=st.booleans(),
)
def test_a_laid_out_product_and_its_gradient_are_those_of_linear(rows, shape, seed, laid):
    numbers = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=numbers)
    x = torch.randn(*rows, shape[1], generator=numbers, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        if not laid:
            patch.setattr(matrices, "can_lay_out", lambda dtype: False)
        got = Matrix(weight, torch.float32)(x)
        wanted = torch.nn.functional.linear(x, weight)
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)
        grad = torch.randn(got.shape, generator=numbers)
        [mine], [theirs] = (torch.autograd.grad(each, x, grad) for each in (got, wanted))
    assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)
