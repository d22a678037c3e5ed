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
    KINDS,
    DenseDelta,
    HookPatch,
    LowRankDelta,
    ModulePatch,
    PatchError,
    PromptPatch,
    Provenance,
    WeightPatch,
    bytes_of,
    load_patch,
    write,
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
        ModulePatch({mlp: Doubled}, digest="doubled"),
        HookPatch({mlp: lambda output: output * 0.5}, digest="halved"),
        PromptPatch(lambda prompt: prompt + " ", digest="blank"),
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

    monkeypatch.setattr("editkit.stacked._overwrite", overwrite)
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
    with (
        handle.patched(PromptPatch(str.upper, digest="upper")),
        pytest.raises(PatchError, match="no change of weights"),
    ):
        handle.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_state_names_the_weights_and_what_is_on_them(handle):
    one, other = low_rank(handle, seed=1), low_rank(handle, seed=2)
    states = [handle.state]
    for patches in ((one,), (other,), (one, other)):
        with handle.patched(*patches):
            states.append(handle.state)
    assert len(set(states)) == 4 and states[0] == handle.state


def test_rollback_past_the_stack_is_refused(handle):
    with pytest.raises(ValueError, match="0 patches are on"):
        handle.rollback(1)


@pytest.mark.parametrize("kind", [ModulePatch, HookPatch, PromptPatch])
def test_a_patch_of_code_needs_a_digest(kind):
    what = str.upper if kind is PromptPatch else {}
    with pytest.raises(PatchError, match=f"a {kind.__name__} without a digest would share its replies"):
        kind(what, digest="")
    with pytest.raises(TypeError, match="digest"):
        kind(what)
    assert kind(what, digest="x").digest == "x"


def test_two_rewrites_of_prompts_are_two_states(handle):
    states = set()
    for digest in ("one", "two"):
        with handle.patched(PromptPatch(str.upper, digest=digest)):
            states.add(handle.state)
    assert len(states | {handle.state}) == 3


def test_the_digest_of_weights_is_taken_once(handle, monkeypatch):
    patch, calls = low_rank(handle), []
    monkeypatch.setattr("editkit.patch.bytes_of", lambda tensor: calls.append(1) or bytes_of(tensor))
    assert patch.digest == patch.digest and len(calls) == 2  # left and right
    assert low_rank(handle).digest == patch.digest != low_rank(handle, seed=9).digest
    with pytest.raises(AttributeError):
        patch.deltas = {}


@pytest.mark.parametrize("number", range(5))
def test_the_base_is_known_under_a_patch_though_nobody_read_it_before(number):
    expected = make_handle("llama").base_digest
    handle = make_handle("llama")
    patch = every_kind(handle)[number]
    with handle.patched(patch):
        assert handle.base_digest == expected
        assert handle.state != expected


def test_every_kind_says_what_it_changes_and_by_how_much(handle):
    sparse, whole, module, hook, prompt = every_kind(handle)
    name, mlp = handle.weight_name("mlp_out", 0), handle.arch.path("mlp", 1)
    assert [p.parameters for p in (whole, module, hook, prompt)] == [(name,), (mlp,), (mlp,), ()]
    assert sparse.parameters == (handle.weight_name("mlp_out", 1),)
    moved = WeightPatch({name: DenseDelta(0.25 * handle.matrix(name))})
    assert moved.relative_norm(handle) == pytest.approx(0.25)
    with handle.patched(moved, moved):
        assert moved.relative_norm(handle) == pytest.approx(0.25), "beside the weights without any patch"
    assert WeightPatch({}).relative_norm(handle) is None
    assert [p.relative_norm(handle) for p in (module, hook, prompt)] == [None] * 3


def test_a_patch_is_loaded_by_its_kind(handle, tmp_path):
    for patch in every_kind(handle):
        path = tmp_path / f"{type(patch).__name__}.safetensors"
        if patch.savable:
            patch = WeightPatch(patch.deltas, Provenance(base=handle.base_digest))
            patch.save(path)
            loaded = load_patch(path)
            assert type(loaded) is type(patch) and loaded.digest == patch.digest
        else:
            with pytest.raises(PatchError, match=f"a {type(patch).__name__} holds Python code"):
                patch.save(path)
            assert not path.exists()


def test_a_kind_of_a_third_party_is_read_and_an_unknown_one_is_named(tmp_path, monkeypatch):
    class Hint:
        @classmethod
        def read(cls, tensors, provenance):
            return PromptPatch(str.upper, provenance, digest=str(tensors["a"].tolist()))

    write(tmp_path / "p.safetensors", "hint/1", {"a": torch.ones(2)}, Provenance("hint"))
    with pytest.raises(PatchError, match="kind 'hint/1', known is .*weight/1.*; install what made it"):
        load_patch(tmp_path / "p.safetensors")
    monkeypatch.setitem(KINDS._items, "hint/1", Hint)
    assert load_patch(tmp_path / "p.safetensors").digest == "[1.0, 1.0]"
    with pytest.raises(PatchError, match="holds a PromptPatch, not a WeightPatch"):
        WeightPatch.load(tmp_path / "p.safetensors")


def test_a_patch_file_without_its_parts_is_refused(tmp_path):
    write(tmp_path / "p.safetensors", "weight/1", {"a:left": torch.ones(2, 1)}, Provenance())
    with pytest.raises(PatchError, match="is a damaged patch"):
        load_patch(tmp_path / "p.safetensors")
