"""Patches go on and come off to the bit: every kind, any nesting, also when something strikes in between."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYOUTS, make_handle
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from editkit.patch import (
    DenseDelta,
    HookPatch,
    LowRankDelta,
    ModulePatch,
    PatchError,
    PromptPatch,
    Provenance,
    WeightPatch,
)


def low_rank(handle, layer=1, seed=0, scale=1.0, rank=2):
    name = handle.weight_name("mlp_out", layer)
    out, inner = handle.matrix(name).shape
    random = torch.Generator().manual_seed(seed)
    left = scale * torch.randn(out, rank, generator=random)
    return WeightPatch({name: LowRankDelta(left, torch.randn(rank, inner, generator=random))})


def dense(handle, layer=0, seed=1):
    name = handle.weight_name("mlp_out", layer)
    random = torch.Generator().manual_seed(seed)
    return WeightPatch({name: DenseDelta(torch.randn(handle.matrix(name).shape, generator=random))})


class Doubled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return 2 * self.inner(*args, **kwargs)


def every_kind(handle):
    mlp = handle.arch.path("mlp", 1)
    return [
        low_rank(handle),
        dense(handle),
        ModulePatch({mlp: Doubled}),
        HookPatch({mlp: lambda output: output * 0.5}),
        PromptPatch(lambda prompt: prompt + " "),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_delta_is_added_out_by_in_whatever_the_storage(handle_of, layout):
    handle = handle_of(layout)
    name = handle.weight_name("mlp_out", 1)
    patch = low_rank(handle)
    delta = patch.deltas[name]
    module, keys = handle.module("mlp_out", 1), torch.randn(5, handle.matrix(name).shape[1])
    before = module(keys).detach()
    with handle.patched(patch):
        moved = module(keys).detach() - before
    assert torch.allclose(moved, keys @ (delta.left @ delta.right).T, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_comes_off_to_the_bit(handle_of, layout):
    handle = handle_of(layout)
    before = handle.fingerprint()
    for patch in every_kind(handle):
        with handle.patched(patch):
            assert handle.fingerprint() != before
        assert handle.fingerprint() == before


def test_nesting_unwinds_level_by_level(handle):
    prints = [handle.fingerprint()]
    for patch in every_kind(handle):
        handle.apply(patch)
        prints.append(handle.fingerprint())
    assert len(set(prints)) == len(prints)
    for depth in reversed(range(len(prints) - 1)):
        handle.rollback(depth)
        assert handle.fingerprint() == prints[depth]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_within_the_block_restores(handle, error):
    before = handle.fingerprint()
    with pytest.raises(error), handle.patched(low_rank(handle), dense(handle)):
        with handle.patched(low_rank(handle, seed=5)):
            raise error
    assert handle.fingerprint() == before and handle.patches == ()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("strikes_at", [0, 1, 2])
def test_an_error_while_attaching_restores(handle, monkeypatch, error, strikes_at):
    names = [handle.weight_name("mlp_out", layer) for layer in range(3)]
    patch = WeightPatch({n: DenseDelta(torch.ones_like(handle.matrix(n))) for n in names})
    before, calls = handle.fingerprint(), []

    def overwrite(parameter, value):
        if len(calls) == strikes_at:
            calls.append("struck")
            raise error
        calls.append("wrote")
        with torch.no_grad():
            parameter.copy_(value)

    monkeypatch.setattr("editkit.patch._overwrite", overwrite)
    with pytest.raises(error):
        handle.apply(patch)
    assert calls[strikes_at] == "struck"
    assert handle.fingerprint() == before and handle.patches == ()


@settings(deadline=None, max_examples=20)
@given(
    steps=st.lists(
        st.one_of(st.integers(0, 4).map(lambda k: ("apply", k)), st.integers(0, 6).map(lambda d: ("rollback", d))),
        max_size=10,
    )
)
def test_any_sequence_keeps_the_stack(steps):
    handle = _hypothesis_handle()
    handle.rollback()  # what an example that failed left on
    kinds, prints = every_kind(handle), [handle.fingerprint()]
    for action, number in steps:
        if action == "apply":
            handle.apply(kinds[number])
            prints.append(handle.fingerprint())
        elif number < len(prints):
            handle.rollback(number)
            prints = prints[: number + 1]
            assert handle.fingerprint() == prints[-1]
    handle.rollback()
    assert handle.fingerprint() == prints[0]


def _hypothesis_handle(cache=[]):  # noqa: B006 (Hypothesis forbids function-scoped fixtures)
    if not cache:
        cache.append(make_handle("gpt2"))
    return cache[0]


def test_bfloat16_is_computed_wide_and_cast_once():
    handle = make_handle("llama", dtype=torch.bfloat16)
    patch = low_rank(handle, scale=0.01)
    [(name, delta)] = patch.deltas.items()
    expected = (handle.matrix(name).float() + delta.dense()).to(torch.bfloat16)
    with handle.patched(patch):
        assert torch.equal(handle.matrix(name), expected)


def test_float16_overflow_is_refused_and_nothing_changes():
    handle = make_handle("llama", dtype=torch.float16)
    before = handle.fingerprint()
    with pytest.raises(PatchError, match="not finite in torch.float16"):
        handle.apply(low_rank(handle, scale=1e6))
    assert handle.fingerprint() == before


def test_a_patch_survives_its_file(handle, tmp_path):
    patch = WeightPatch(
        {**low_rank(handle).deltas, **dense(handle).deltas},
        Provenance("rome", {"layer": 1}, 7, handle.base_digest, "r", {"torch": "x"}, {"steps": 3}),
    )
    patch.save(tmp_path / "p.safetensors")
    loaded = WeightPatch.load(tmp_path / "p.safetensors")
    assert loaded.digest == patch.digest and loaded.provenance == patch.provenance
    with handle.patched(patch):
        one = handle.fingerprint()
    with handle.patched(loaded):
        assert handle.fingerprint() == one
    assert [p.name for p in tmp_path.iterdir()] == ["p.safetensors"]


def test_a_patch_of_another_base_is_refused(handle):
    patch = WeightPatch(low_rank(handle).deltas, Provenance(base="0" * 64))
    with pytest.raises(PatchError, match="made for weights 000000000000"):
        handle.apply(patch)
    assert handle.patches == ()


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ({"no.such.weight": DenseDelta(torch.zeros(2, 2))}, "no parameter 'no.such.weight'"),
        ({"model.layers.0.mlp.down_proj.weight": DenseDelta(torch.zeros(2, 2))}, r"shape \(2, 2\)"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(handle, deltas, message):
    with pytest.raises(PatchError, match=message):
        handle.apply(WeightPatch(deltas))


def test_a_file_that_is_no_patch_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"not safetensors")
    for name, message in (("a", "no patch"), ("b", "no patch file"), ("missing", "no patch file")):
        with pytest.raises(PatchError, match=message):
            WeightPatch.load(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("layout", ["llama", "llama_tied", "gpt2", "gemma2"])
def test_a_saved_checkpoint_is_a_plain_transformers_one(handle_of, layout, tmp_path):
    handle = handle_of(layout)
    ids = torch.tensor([handle.tokenizer("The capital of France is").input_ids])
    with handle.patched(low_rank(handle)), torch.no_grad():
        handle.save(tmp_path / "model")
        expected = handle.model(ids).logits
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, expected)
    assert not list(tmp_path.glob(".*")), "temporary folders are left behind"


def test_what_is_no_weight_cannot_be_saved_as_a_checkpoint(handle, tmp_path):
    with handle.patched(PromptPatch(str.upper)), pytest.raises(PatchError, match="no change of weights"):
        handle.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_state_names_the_weights_and_what_is_on_them(handle):
    one, other = low_rank(handle, seed=1), low_rank(handle, seed=2)
    states = [handle.state]
    for patches in ((one,), (other,), (one, other)):
        with handle.patched(*patches):
            states.append(handle.state)
    assert len(set(states)) == 4 and states[0] == handle.base_digest == handle.state


def test_rollback_past_the_stack_is_refused(handle):
    with pytest.raises(ValueError, match="0 patches are on"):
        handle.rollback(1)
