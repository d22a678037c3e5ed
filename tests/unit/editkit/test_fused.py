"""Blocks in few operators say what the model's own modules say, forth and back, or are not used."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers
from conftest import COMMON, LAYOUTS, make_handle, make_tokenizer
from edit_examples import BEFORE, ENDING
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit import fused as module
from editkit.blocks import frozen
from editkit.edit._places import AtAttentionAndMLP, AtMLP
from editkit.edit._search import TargetSearch, find_targets
from editkit.edit._upper import Row, prepare
from editkit.forward import attention
from editkit.fused import Fused
from editkit.handle import ModelHandle
from editkit.hooks import rewritten

FUSED = {"llama", "llama_tied", "qwen2"}
ROWS = [Row((), (5, 6, 7)), Row((8, 9), (5, 6)), Row((8,), (5, 6, 7)), Row((8, 9, 10), (11,))]
EVEN = [Row((8,), (5, 6, 7)), Row((9,), (5, 7, 6))]


def forth_and_back(handle, rows, fused, layer=0):
    """Hidden states at real tokens, and the gradient of a sum of them as to the change at each row's first token."""
    with attention(handle, "eager"), frozen(handle.model):
        batch = prepare(handle, layer, rows)
        source = torch.Generator().manual_seed(0)
        change = torch.randn(batch.values.shape, generator=source).requires_grad_()
        real = batch.mask[:, -batch.ids.shape[1] :, None]
        hidden = batch.run(change, fused) * real
        weights = torch.randn(hidden.shape, generator=source)
        return hidden.detach(), torch.autograd.grad((hidden * weights).sum(), change)[0] * real


def near(found, expected, share):
    assert (found - expected).abs().max() <= share * expected.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_laid_out_as_llamas_are_fused_and_no_others(layout):
    handle = make_handle(layout)
    state = handle.fingerprint()
    assert (Fused.of(handle, range(1, handle.layers), "float32") is not None) == (layout in FUSED)
    assert handle.fingerprint() == state


@pytest.mark.parametrize("layout", sorted(FUSED))
@pytest.mark.parametrize("rows", [ROWS, EVEN, ROWS[:1]], ids=["padded", "even", "no prefix"])
def test_fused_blocks_give_the_same_states_and_the_same_gradient(handle_of, layout, rows):
    handle = handle_of(layout)
    above = range(1, handle.layers)
    plain = forth_and_back(handle, rows, None)
    for products, share in (("float32", 1e-5), ("bfloat16", 5e-2)):
        for found, expected in zip(forth_and_back(handle, rows, Fused.of(handle, above, products)), plain, strict=True):
            near(found, expected, share)


@settings(deadline=None, max_examples=30)
@given(shapes=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_whatever_the_rows(tiny_handles, shapes, seed):
    handle = tiny_handles.setdefault("qwen2", make_handle("qwen2"))
    draw = torch.Generator().manual_seed(seed)
    rows = [Row(*(tuple(torch.randint(2, 300, (n,), generator=draw).tolist()) for n in shape)) for shape in shapes]
    found = forth_and_back(handle, rows, Fused.of(handle, range(1, handle.layers), "float32"))
    for ours, expected in zip(found, forth_and_back(handle, rows, None), strict=True):
        near(ours, expected, 2e-5)


def of_config(config) -> ModelHandle:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ModelHandle.of(transformers.AutoModelForCausalLM.from_config(config).float(), make_tokenizer())


SIZES = COMMON | {"intermediate_size": 48, "num_key_value_heads": 2, "vocab_size": len(make_tokenizer())}


@pytest.mark.parametrize(
    "config",
    [
        transformers.Qwen3Config(**SIZES, head_dim=8),  # norms of its own on queries and keys
        transformers.StableLmConfig(**SIZES),  # layer norms, a part of each head turned
        transformers.OlmoConfig(**SIZES, clip_qkv=0.01),
        transformers.LlamaConfig(**SIZES, attention_bias=True),
        transformers.LlamaConfig(**SIZES, hidden_act="gelu"),
    ],
    ids=["qwen3", "stablelm", "olmo", "bias at the end of attention", "another activation"],
)
def test_what_has_llamas_parts_and_does_something_else_with_them_is_not_fused(config):
    handle = of_config(config)
    assert Fused.of(handle, range(1, handle.layers), "float32") is None


def test_a_longer_head_and_a_scaled_rotation_are():
    scaled = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
    handle = of_config(transformers.LlamaConfig(**SIZES, head_dim=16, rope_parameters=scaled))
    found = forth_and_back(handle, ROWS, Fused.of(handle, range(1, handle.layers), "float32"))
    for ours, expected in zip(found, forth_and_back(handle, ROWS, None), strict=True):
        near(ours, expected, 1e-5)


def test_a_row_longer_than_a_sliding_window_runs_in_the_models_own_blocks():
    handle = of_config(transformers.MistralConfig(**SIZES, sliding_window=4))
    fused = Fused.of(handle, range(1, handle.layers), "float32")
    assert fused is not None and fused.reaches(4) and not fused.reaches(5)
    rows = [Row((8, 9, 10), (11, 12, 13))]
    for ours, expected in zip(forth_and_back(handle, rows, fused), forth_and_back(handle, rows, None), strict=True):
        assert torch.equal(ours, expected)


def test_a_block_that_somebody_looks_into_is_left_alone(handle):
    above = range(1, handle.layers)
    with rewritten(handle.model, {handle.arch.path("mlp", 2): lambda output: 2 * output}):
        assert Fused.of(handle, above, "float32") is None
    assert Fused.of(handle, above, "float32") is not None


def test_a_model_too_large_to_be_held_twice_is_left_alone(handle, monkeypatch):
    monkeypatch.setattr("editkit.products.LAID_BYTES", 1)
    assert Fused.of(handle, range(1, handle.layers), "float32") is None


@pytest.mark.parametrize("layout", sorted(FUSED))
@pytest.mark.parametrize("place", [AtMLP, AtAttentionAndMLP])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_search_finds_the_same_in_fused_blocks(handle_of, layout, place, layer, monkeypatch):
    handle, ran = handle_of(layout), []
    real = Fused.run
    monkeypatch.setattr(Fused, "run", lambda *given: ran.append(1) or real(*given))
    search = TargetSearch(12, 0.2, 6.0, weight_decay=0.0, stop_below=0.0, tokens_per_step=8)
    found = find_targets(handle, ENDING, layer, BEFORE, search, seed=0, place=place.prepare)
    assert ran
    monkeypatch.setattr(Fused, "of", lambda *_: None)
    plain = find_targets(handle, ENDING, layer, BEFORE, search, seed=0, place=place.prepare)
    for ours, expected in zip(found, plain, strict=True):
        near(ours.residual, expected.residual, 1e-3)
        assert ours.notes["loss"] == pytest.approx(expected.notes["loss"], rel=1e-3)


def test_weights_are_copied_once_for_all_batches_of_a_search(handle, monkeypatch):
    made = []
    real = module._weights

    def counted(block, dtype, **options):
        made.append(dtype)
        return real(block, dtype, **options)

    monkeypatch.setattr(module, "_weights", counted)
    monkeypatch.setitem(find_targets.__globals__["TOKENS"], "cpu", 1)  # each edit is a batch
    search = dataclasses.replace(TargetSearch(), steps=3, products="bfloat16")
    find_targets(handle, ENDING[:2], 1, BEFORE, search, seed=0)
    assert made.count(torch.bfloat16) == handle.layers - 2
