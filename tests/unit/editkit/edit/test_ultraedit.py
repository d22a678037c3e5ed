"""UltraEdit against numpy, limit laws, and statistics that ride on patches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_handle
from edit_examples import ENDING, distance
from hypothesis import given
from hypothesis import strategies as st

from editkit.edit._running import Running, joined
from editkit.edit.alphaedit import AlphaEdit
from editkit.edit.ultraedit import FEATURES, UltraEdit
from editkit.errors import InputError, MethodError
from editkit.facts import Edit, Fact
from editkit.patch import WeightPatch, load_patch
from editkit.tokens import encode_pair

METHOD = UltraEdit((0, 1), learning_rate=1e-3)


def dense(patch):
    return {name: delta.dense() for name, delta in patch.deltas.items()}


def seen_by_hand(handle, edit, layer, tokens):
    """What `mlp_out` reads and the gradient in what it gives, by retain_grad in a full pass over one sequence."""
    ids, target = encode_pair(handle.tokenizer, edit.fact.text, edit.target_new)
    kept = {}

    def keep(module, inputs, output):
        output.retain_grad()
        kept.update(hidden=inputs[0].detach(), output=output)

    hook = handle.module("mlp_out", layer).register_forward_hook(keep)
    try:
        log_probs = handle.model(torch.tensor([ids + target])).logits[0].float().log_softmax(-1)
        places = range(len(ids) - 1, len(ids) + len(target) - 1)
        loss = -torch.stack([log_probs[p, t] for p, t in zip(places, target, strict=True)]).mean()
        loss.backward()
    finally:
        hook.remove()
        handle.model.zero_grad(set_to_none=True)
    which = slice(None) if tokens == "all" else slice(places[0], places[-1] + 1)
    return kept["hidden"][0, which].double().numpy(), kept["output"].grad[0, which].double().numpy()


@pytest.mark.parametrize("tokens", ["all", "answer"])
@pytest.mark.parametrize("layout", ["llama", "gpt2_square", "gptj", "gemma2"])
def test_it_equals_numpy_by_hand(layout, tokens):
    handle, method = make_handle(layout), dataclasses.replace(METHOD, tokens=tokens, ridge=0.5)
    reads = {layer: [seen_by_hand(handle, edit, layer, tokens) for edit in ENDING] for layer in (0, 1)}
    hidden, grads = ({k: np.concatenate([r[i] for r in v]) for k, v in reads.items()} for i in (0, 1))
    everything = np.concatenate([np.concatenate([hidden[k], grads[k]], 1) for k in (0, 1)])
    mean, deviation = everything.mean(0), everything.std(0, ddof=1)
    patch = method(handle, ENDING, seed=0)
    for layer in (0, 1):
        h, g = hidden[layer], grads[layer]
        normal = (np.concatenate([h, g], 1) - mean) / deviation
        h_hat, g_hat = normal[:, : h.shape[1]], normal[:, h.shape[1] :]
        v = -1e-3 * (h_hat * h_hat).sum(1, keepdims=True) * g_hat
        expected = np.linalg.solve(h.T @ h + 0.5 * np.eye(h.shape[1]), h.T @ v).T
        found = patch.deltas[handle.weight_name("mlp_out", layer)].dense()
        assert distance(found, torch.from_numpy(expected).float()) < 1e-3


def test_a_rate_of_0_changes_nothing(handle):
    patch = dataclasses.replace(METHOD, learning_rate=0.0)(handle, ENDING, seed=0)
    assert not any(value.any() for value in dense(patch).values())
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = handle.model(ids).logits
        with handle.patched(patch):
            assert torch.equal(handle.model(ids).logits, before)


def test_the_change_is_in_proportion_to_the_rate(handle):
    one, ten = (dense(dataclasses.replace(METHOD, learning_rate=r)(handle, ENDING, seed=0)) for r in (1e-3, 1e-2))
    for name, value in one.items():
        assert distance(ten[name], 10 * value) < 1e-5


def test_the_order_of_a_batch_does_not_matter(handle):
    one, other = (dense(METHOD(handle, edits, seed=0)) for edits in (ENDING, ENDING[::-1]))
    for name, value in one.items():
        assert distance(other[name], value) < 1e-4


def test_edits_of_a_batch_share_its_statistics(handle):
    whole, parts = METHOD(handle, ENDING, seed=0), [METHOD(handle, [edit], seed=0) for edit in ENDING]
    for key, tensor in whole.kept.items():
        assert distance(joined(Running.read(part.kept[key]) for part in parts).tensor(), tensor) < 1e-5


def test_batches_of_one_are_patches_put_on_one_after_another(handle, tmp_path):
    """Also when the patches come from files: the statistics ride on them."""
    whole = dataclasses.replace(METHOD, batch=1)(handle, ENDING, seed=0)
    depth, total, kept = len(handle.patches), {}, {}
    try:
        for edit in ENDING:
            METHOD(handle, [edit], seed=0).save(tmp_path / "patch.safetensors")
            patch = load_patch(tmp_path / "patch.safetensors")
            for name, value in dense(patch).items():
                total[name] = total.get(name, 0) + value
            for key, tensor in patch.kept.items():
                kept.setdefault(key, []).append(Running.read(tensor))
            handle.apply(patch)
    finally:
        handle.rollback(depth)
    for name, value in dense(whole).items():
        assert distance(value, total[name]) < 1e-3
        key = f"{name}:{FEATURES}"
        assert distance(whole.kept[key], joined(kept[key]).tensor()) < 1e-5


def test_earlier_edits_count_in_the_statistics(handle):
    first = METHOD(handle, ENDING[:1], seed=0)
    heedless = WeightPatch(first.deltas, first.provenance)
    with handle.patched(first):
        mindful = dense(METHOD(handle, ENDING[1:2], seed=0))
    with handle.patched(heedless):
        alone = dense(METHOD(handle, ENDING[1:2], seed=0))
    assert all(distance(mindful[name], value) > 1e-2 for name, value in alone.items())


def test_statistics_are_no_keys_of_alphaedit(handle):
    with handle.patched(METHOD(handle, ENDING, seed=0)):
        assert not any(AlphaEdit((0, 1)).past(handle).values())


def test_other_linear_layers_are_named_by_their_paths(handle):
    path = "model.layers.1.mlp.gate_proj"
    patch = UltraEdit(matrices=(path,), learning_rate=1e-3)(handle, ENDING, seed=0)
    assert patch.parameters == (f"{path}.weight",) and patch.deltas[f"{path}.weight"].dense().any()


def test_many_tokens_make_a_dense_change_of_the_same_size(handle):
    asked = [
        dataclasses.replace(edit.fact, prompt=f"{lead}{edit.fact.prompt}") for lead in ("", "So: ") for edit in ENDING
    ]
    edits = [dataclasses.replace(edit, fact=fact) for edit, fact in zip(ENDING * 2, asked, strict=True)]
    delta = UltraEdit((1,), learning_rate=1e-3, batch=2)(handle, edits, seed=0).deltas
    assert set(delta[handle.weight_name("mlp_out", 1)].tensors()) == {"value"}


rows = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=n, max_size=n)
)


@given(st.lists(rows, min_size=1, max_size=5))
def test_statistics_of_parts_are_those_of_the_whole(given_parts):
    parts = [torch.tensor(part, dtype=torch.float64) for part in given_parts]
    whole, together = torch.cat(parts), joined(map(Running.of, parts))
    assert together.count == len(whole)
    np.testing.assert_allclose(together.mean, whole.numpy().mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(together.squares, whole.numpy().var(0) * len(whole), rtol=1e-7, atol=1e-6)
    read = Running.read(together.tensor())
    assert read.count == together.count and torch.equal(read.mean, together.mean)


@given(rows.filter(lambda part: len(part) > 1))
def test_normalised_features_have_mean_0_and_deviation_1_or_0(part):
    values = torch.tensor(part, dtype=torch.float64)
    normal = Running.of(values).normalised(values)
    assert normal.mean(0).abs().max() < 1e-6
    for feature in range(3):
        assert (
            abs(float(normal[:, feature].std()) - 1) < 1e-6
            or not normal[:, feature].any()
            or (float(values[:, feature].std()) <= 1.1e-5 * float(values[:, feature].mean().abs()))
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UltraEdit(), "edits nothing; give `layers`"),
        (lambda: UltraEdit((0,), learning_rate=-1.0), "learning_rate >= 0"),
        (lambda: UltraEdit((0,), ridge=0.0), "ridge > 0"),
        (lambda: UltraEdit((0,), tokens="last"), "there is all, answer"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_what_cannot_be_done_names_the_way_out(handle):
    with pytest.raises(InputError, match="no linear layer 'model.norm'"):
        UltraEdit(matrices=("model.norm",))(handle, ENDING, seed=0)
    one = Edit(Fact("France", "initial", "F", "The initial of {} is"), "a")
    with pytest.raises(MethodError, match="a single token have no spread"):
        UltraEdit((1,), tokens="answer")(handle, [one], seed=0)
