"""LoRA against peft's own training and merging, and what its layers leave behind in the model: nothing."""

from __future__ import annotations

import copy
import math
import sys

import peft
import pytest
import torch
from conftest import LAYOUTS, make_handle
from edit_examples import EDITS, ENDING

from editkit import completions
from editkit.edit.lora import LoRA
from editkit.errors import InputError, UnableError
from editkit.facts import Edit, Example, Fact
from editkit.patch import HookPatch, ModulePatch
from editkit.scope import Scope
from editkit.scoring import score_pairs
from editkit.tokens import encode_pair, pad, pad_id_of

HERE = Scope(layers=(1,), modules=("attention", "mlp"))
SETTINGS = dict(rank=3, alpha=6.0, learning_rate=1e-2, steps=4, stop_below=0.0, scope=HERE)
FEW = ("llama", "gpt2", "gpt2_square", "gpt_neox", "gemma2")
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


class Interruption(BaseException):
    """As Ctrl-C."""


def with_adapter(handle, operator):
    """A copy of the model with an adapter that peft makes and places by itself, the usual way."""
    model = copy.deepcopy(handle.model)
    names = [name.removesuffix(".weight") for name in operator.touches(handle)]
    transposed = handle.is_transposed(operator.touches(handle)[0])
    config = peft.LoraConfig(
        r=operator.rank, lora_alpha=operator.alpha, target_modules=names, fan_in_fan_out=transposed, lora_dropout=0.0
    )
    with torch.random.fork_rng(devices=[]):
        return peft.get_peft_model(model, config).eval()


def factors(adapted, name):
    layer = adapted.get_submodule(f"base_model.model.{name.removesuffix('.weight')}")
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer


def load_factors(adapted, patch, scaling):
    for name, delta in patch.deltas.items():
        a, b, _ = factors(adapted, name)
        a.data.copy_(delta.right)
        b.data.copy_(delta.left / scaling)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_patched_model_answers_as_pefts_adapter(handle_of, layout):
    handle, operator = handle_of(layout), LoRA(**SETTINGS)
    patch = operator(handle, EDITS, seed=0)
    adapted = with_adapter(handle, operator)
    load_factors(adapted, patch, operator.alpha / operator.rank)
    with torch.no_grad(), handle.patched(patch):
        ours, base = handle.model(IDS).logits, adapted.get_base_model()
        theirs = adapted(IDS).logits
        with adapted.disable_adapter():
            assert not torch.allclose(base(IDS).logits, theirs, atol=1e-2)  # the adapter does something
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("layout", FEW)
def test_training_is_as_peft_torch_and_transformers_do_it(handle_of, layout):
    """get_peft_model, torch's Adam, the model's own loss with labels of -100, one sequence at a time."""
    handle, operator = handle_of(layout), LoRA(**SETTINGS)
    patch = operator(handle, EDITS, seed=5)
    adapted = with_adapter(handle, operator)
    load_factors(adapted, LoRA(**SETTINGS | {"steps": 0})(handle, EDITS, seed=5), operator.alpha / operator.rank)
    optimiser = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=operator.learning_rate)
    for _ in range(operator.steps):
        optimiser.zero_grad()
        for edit in EDITS:
            prompt, target = encode_pair(handle.tokenizer, edit.fact.text, edit.target_new)
            labels = torch.tensor([[-100] * len(prompt) + target])
            (adapted(torch.tensor([prompt + target]), labels=labels).loss / len(EDITS)).backward()
        optimiser.step()
    for name, delta in patch.deltas.items():
        *_, layer = factors(adapted, name)
        wanted = layer.get_delta_weight("default").detach()
        wanted = wanted.T if handle.is_transposed(name) else wanted
        assert torch.linalg.vector_norm(delta.dense() - wanted) <= 2e-3 * torch.linalg.vector_norm(wanted)
        assert torch.allclose(delta.dense(), wanted, atol=1e-4)


@pytest.mark.parametrize("layout", FEW)
def test_no_steps_change_nothing(handle_of, layout):
    handle = handle_of(layout)
    patch = LoRA(steps=0)(handle, EDITS, seed=0)
    before = {name: handle.parameter(name).detach().clone() for name in patch.deltas}
    with torch.no_grad():
        plain = handle.model(IDS).logits
        with handle.patched(patch):
            assert torch.equal(handle.model(IDS).logits, plain)
            assert all(torch.equal(handle.parameter(name), value) for name, value in before.items())
    assert patch.provenance.notes["steps"] == 0
    scores = score_pairs(handle, [(e.fact.text, e.target_new) for e in EDITS])
    assert patch.provenance.notes["loss"] == pytest.approx(-sum(s.mean for s in scores) / len(scores), rel=1e-4)


def test_the_loss_it_tells_is_that_of_the_patched_model(handle):
    patch = LoRA(**SETTINGS)(handle, EDITS, seed=0)
    with handle.patched(patch):
        scores = score_pairs(handle, [(e.fact.text, e.target_new) for e in EDITS])
    assert patch.provenance.notes["loss"] == pytest.approx(-sum(s.mean for s in scores) / len(scores), rel=1e-3)


@pytest.mark.parametrize(
    ("layout", "matrices"),
    [("llama", 4), ("qwen2", 4), ("gpt2", 2), ("gpt_neox", 2), ("gptj", 4), ("phi", 4)],
)
def test_the_scope_says_which_matrices_and_biases_stay(handle_of, layout, matrices):
    handle = handle_of(layout)
    assert len(LoRA().touches(handle)) == matrices * handle.layers  # those of attention, fused where the layout does
    assert LoRA(scope=Scope(layers=(2,), modules=("mlp_out",))).touches(handle) == (handle.weight_name("mlp_out", 2),)
    everything = LoRA(scope=Scope()).touches(handle)
    assert all(handle.parameter(name).dim() == 2 and handle.arch.blocks in name for name in everything)
    patch = LoRA(**SETTINGS)(handle, EDITS, seed=0)
    assert set(patch.deltas) == set(LoRA(**SETTINGS).touches(handle))
    for name, delta in patch.deltas.items():
        out, into = handle.matrix(name).shape
        assert (delta.left.shape, delta.right.shape) == ((out, 3), (3, into))


def strike_in_training(monkeypatch, operator, handle):
    def progress(what, done, of):
        if done == 2:
            raise Interruption

    operator(handle, EDITS, seed=0, progress=progress)


def strike_in_backward(monkeypatch, operator, handle):
    def backward(self, *_, **__):
        raise Interruption

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    operator(handle, EDITS, seed=0)


def strike_half_way_in(monkeypatch, operator, handle):
    from peft.tuners.lora import LoraModel

    replaced, whole = [], LoraModel._replace_module

    def replace(self, *arguments):
        whole(self, *arguments)
        replaced.append(arguments)
        if len(replaced) == 3:
            raise Interruption

    monkeypatch.setattr(LoraModel, "_replace_module", replace)
    operator(handle, EDITS, seed=0)


@pytest.mark.parametrize("strike", [strike_in_training, strike_in_backward, strike_half_way_in])
@pytest.mark.parametrize("layout", ["llama", "gpt2_square"])
def test_whatever_strikes_the_model_is_as_it_was(handle_of, layout, strike, monkeypatch):
    handle = handle_of(layout)
    handle.parameter(handle.weight_name("mlp_out", 0)).requires_grad_(False)  # no flag like the others'
    try:
        before, modules = handle.fingerprint(), [*handle.model.named_modules()]
        attributes, state = set(vars(handle.model)), torch.get_rng_state()
        with pytest.raises(Interruption):
            strike(monkeypatch, LoRA(**SETTINGS), handle)
        assert handle.fingerprint() == before
        assert [*handle.model.named_modules()] == modules  # the very modules, in their order
        assert set(vars(handle.model)) == attributes and "peft_config" not in attributes
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        handle.parameter(handle.weight_name("mlp_out", 0)).requires_grad_(True)


def test_success_leaves_modules_attributes_and_randomness_as_they_were(handle):
    before, modules, attributes = handle.fingerprint(), [*handle.model.named_modules()], set(vars(handle.model))
    state = torch.get_rng_state()
    patch = LoRA(**SETTINGS)(handle, EDITS, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)  # another global state must not matter
    assert LoRA(**SETTINGS)(handle, EDITS, seed=0).digest == patch.digest
    assert LoRA(**SETTINGS)(handle, EDITS, seed=1).digest != patch.digest
    assert handle.fingerprint() == before and [*handle.model.named_modules()] == modules
    assert set(vars(handle.model)) == attributes and "peft_config" not in attributes


def test_a_peft_config_of_the_users_own_stays():
    handle, own = make_handle("llama"), {"theirs": peft.LoraConfig()}
    handle.model.peft_config = own
    with pytest.warns(UserWarning, match="peft_config"):  # peft's own word on it
        LoRA(**SETTINGS)(handle, EDITS, seed=0)
    assert handle.model.peft_config is own


def test_parts_of_a_batch_add_up(handle, monkeypatch):
    whole = LoRA(**SETTINGS)(handle, EDITS, seed=0)
    monkeypatch.setattr(
        "editkit.edit.lora.parts",
        lambda rows, order: completions.parts(rows, order, tokens=1),  # a row at a time
    )
    alone = LoRA(**SETTINGS)(handle, EDITS, seed=0)
    for name, delta in whole.deltas.items():
        assert torch.allclose(delta.dense(), alone.deltas[name].dense(), atol=1e-4)


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_padding_never_counts_on_either_side(layout, monkeypatch):
    """Rows of unequal length, padded on the left instead, and with another token to pad with: the same factors."""
    handle = make_handle(layout)
    usual = LoRA(**SETTINGS)(handle, EDITS, seed=0)
    assert len({len(row.ids) for row in completions.encode_examples(handle, examples_of(EDITS))}) > 1

    def collate(handle, examples, rows):
        chosen = [examples[row] for row in rows]
        padded = pad([e.ids for e in chosen], side="left", pad_id=pad_id_of(handle.tokenizer) + 3)
        predicts = torch.zeros_like(padded.mask)
        for place, example in enumerate(chosen):
            predicts[place, -example.tokens - 1 : -1] = True
        return completions.Batch(
            torch.tensor(rows), padded, predicts, padded.ids[:, 1:][predicts[:, :-1]], predicts.nonzero()[:, 0]
        )

    monkeypatch.setattr("editkit.edit.lora.collate", collate)
    other = LoRA(**SETTINGS)(handle, EDITS, seed=0)
    for name, delta in usual.deltas.items():
        assert torch.allclose(delta.dense(), other.deltas[name].dense(), atol=1e-4)


def examples_of(edits):
    return [Example(edit.fact.text, edit.target_new) for edit in edits]


def test_the_order_of_edits_does_not_matter(handle):
    one, other = (LoRA(**SETTINGS)(handle, edits, seed=0) for edits in (EDITS, EDITS[::-1]))
    for name, delta in one.deltas.items():
        assert torch.allclose(delta.dense(), other.deltas[name].dense(), atol=1e-4)


def test_factors_are_float32_where_the_model_is_narrower():
    handle = make_handle("llama", dtype=torch.bfloat16)
    before = handle.fingerprint()
    patch = LoRA(**SETTINGS | {"steps": 8})(handle, ENDING, seed=0)
    assert handle.fingerprint() == before
    assert {t.dtype for delta in patch.deltas.values() for t in (delta.left, delta.right)} == {torch.float32}
    pairs = [(e.fact.text, e.target_new) for e in ENDING]
    before = score_pairs(handle, pairs)
    with handle.patched(patch):
        after = score_pairs(handle, pairs)
    assert sum(s.mean for s in after) > sum(s.mean for s in before) + 0.5


def test_a_matrix_that_a_patch_wraps_is_left_alone(handle):
    """Its name is another one while it is wrapped, and what its wrapper does with it is the patch's own business."""
    path = handle.arch.path("mlp_out", 1)
    wrapper = ModulePatch({path: lambda old: torch.nn.Sequential(old, torch.nn.Identity())}, digest="wrapped")
    hook = HookPatch({handle.arch.path("mlp_out", 0): lambda output: output * 1}, digest="hooked")
    plain = set(LoRA(**SETTINGS).touches(handle))
    with handle.patched(wrapper, hook):
        before = handle.fingerprint()
        above = LoRA(**SETTINGS)(handle, EDITS, seed=0)
        assert handle.fingerprint() == before
        assert set(above.deltas) == plain - {f"{path}.weight"}
        with handle.patched(above):
            assert handle.fingerprint() != before
        with pytest.raises(InputError, match="no linear layer"):
            LoRA(scope=Scope(layers=(1,), modules=("mlp_out",)))(handle, EDITS, seed=0)


def test_it_stops_when_the_loss_is_small_enough(handle):
    patch = LoRA(stop_below=1e9)(handle, EDITS, seed=0)
    assert patch.provenance.notes["steps"] == 0
    assert not any(delta.left.any() for delta in patch.deltas.values())


def test_alpha_over_rank_scales_what_is_added(handle):
    """One step of Adam has a fixed size in B: the change grows as alpha does, and not with the rank's count of it."""
    one, two = (LoRA(**SETTINGS | {"steps": 1, "alpha": alpha})(handle, EDITS[:1], seed=0) for alpha in (3.0, 6.0))
    for name, delta in one.deltas.items():
        grown = two.deltas[name].dense().norm() / delta.dense().norm()
        assert math.isclose(grown, 2.0, rel_tol=1e-2)


def test_a_missing_peft_is_told_with_the_way_out(handle, monkeypatch):
    before = handle.fingerprint()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UnableError, match="pip install"):
        LoRA()(handle, EDITS, seed=0)
    assert handle.fingerprint() == before


@pytest.mark.parametrize(
    "bad",
    [{"rank": 0}, {"alpha": 0.0}, {"learning_rate": 0.0}, {"steps": -1}, {"scope": Scope(modules=("unembedding",))}],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(InputError, match="lora|needs"):
        LoRA(**bad)


def test_bad_requests_are_refused(handle):
    with pytest.raises(InputError, match="no layer 9"):
        LoRA(scope=Scope(layers=(9,)))(handle, EDITS, seed=0)
    long = Edit(Fact("France", "capital", "Paris", "The capital of {} is " + "very " * 300), "Rome")
    with pytest.raises(InputError, match="shorten"):
        LoRA()(handle, [long], seed=0)
