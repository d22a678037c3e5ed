"""Second moments against numpy; what they depend on; where they are kept."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import CORPUS, LAYOUTS, make_handle
from edit_examples import private_cache
from twins import twin

from editkit import moments, sampling
from editkit.moments import MomentSettings, factors, second_moments
from editkit.patch import DenseDelta, WeightPatch
from editkit.sampling import TextPlan, sampled_texts
from editkit.tokens import encode

SMALL = MomentSettings(tokens=60, length=20)


@pytest.fixture(autouse=True)
def cache(tmp_path):
    with private_cache(str(tmp_path / "cache")):
        yield tmp_path / "cache"


def numpy_moment(handle, layer, pieces):
    """Every piece run by itself through the whole model."""
    keys = []
    hook = handle.module("mlp_out", layer).register_forward_hook(lambda m, i, o: keys.append(i[0][0].double().numpy()))
    try:
        with torch.no_grad():
            for piece in pieces:
                handle.model(torch.tensor([piece]))
    finally:
        hook.remove()
    stacked = np.concatenate(keys)
    return stacked.T @ stacked / len(stacked)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_they_equal_numpys_on_every_layout(handle_of, layout):
    handle = handle_of(layout)
    found = second_moments(handle, [0, 2], MomentSettings(tokens=10_000, length=9), texts=CORPUS)
    pieces = [ids[i : i + 9] for ids in (encode(handle.tokenizer, t) for t in CORPUS) for i in range(0, len(ids), 9)]
    for layer, moment in found.items():
        assert moment.tokens == sum(map(len, pieces))
        np.testing.assert_allclose(moment.matrix, numpy_moment(handle, layer, pieces), rtol=1e-3, atol=1e-5)


def test_sums_are_as_exact_as_float64_is():
    """Keys of one sign, so that nothing cancels, whose entries span twelve powers of ten: against fractions."""
    keys = torch.rand(300, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e6, 1e3, 1.0, 1e-6])
    exact = [[Fraction(number) for number in row] for row in keys.tolist()]
    expected = [[float(sum(row[i] * row[j] for row in exact)) for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(moments._gram(keys), expected, rtol=1e-10, atol=0)


def test_nothing_is_lost_from_batch_to_batch(monkeypatch):
    """What the matrix reads is caught while it is measured (one token a row: no padding), of sizes far apart."""
    monkeypatch.setattr(moments, "ROWS", 7)
    handle, keys = make_handle("llama"), []
    with torch.no_grad():
        up = handle.model.get_parameter("model.layers.1.mlp.up_proj.weight")
        up.mul_(torch.logspace(-4, 4, len(up))[:, None])
    handle.module("mlp_out", 1).register_forward_hook(lambda m, i, o: keys.append(i[0][:, 0].double().numpy()))
    moment = second_moments(handle, [1], MomentSettings(tokens=300, length=1), texts=CORPUS * 9)[1]
    stacked = np.concatenate(keys)
    expected = stacked.T @ stacked / 300
    scale = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    assert len(keys) > 40 and len(stacked) == moment.tokens == 300
    assert (np.abs(moment.matrix.numpy() - expected) / scale).max() < 1e-12


def test_no_more_tokens_are_read_than_asked_for(handle):
    read = []
    moment = second_moments(handle, [0], SMALL, texts=(read.append(t) or t for t in CORPUS * 50))[0]
    assert moment.tokens == SMALL.tokens
    assert len(read) < 10


def test_left_open_the_tokens_are_four_for_each_input(handle):
    moment = second_moments(handle, [0], MomentSettings(length=20), texts=CORPUS * 50)[0]
    assert moment.tokens == 4 * len(moment.matrix)


def test_too_few_tokens_for_full_rank_are_told(handle):
    with pytest.warns(UserWarning, match="layer 0: 20 tokens say little of 48 inputs"):
        second_moments(handle, [0], MomentSettings(tokens=20), texts=CORPUS * 50)


def test_a_second_call_measures_nothing(handle, monkeypatch):
    first = second_moments(handle, [1], SMALL)[1]
    monkeypatch.setattr(moments, "_measure", None)
    monkeypatch.setattr(sampling, "_draw", None)
    again = second_moments(handle, [1], SMALL)[1]
    assert torch.equal(first.matrix, again.matrix)
    assert (first.tokens, first.key) == (again.tokens, again.key)


def test_a_layer_that_is_missing_is_measured_alone(handle, monkeypatch):
    second_moments(handle, [0], SMALL)
    measured = []
    real = moments._measure
    monkeypatch.setattr(moments, "_measure", lambda h, layers, *rest: measured.append(layers) or real(h, layers, *rest))
    both = second_moments(handle, [0, 1], SMALL)
    assert measured == [[1]]
    assert both[0].matrix.shape == both[1].matrix.shape


def test_nothing_above_the_last_layer_is_computed(handle):
    called = []
    hook = handle.module("block", 2).register_forward_hook(lambda *_: called.append(1))
    try:
        second_moments(handle, [0, 1], SMALL, texts=CORPUS)
        assert not called
        second_moments(handle, [2], SMALL, texts=CORPUS)
        assert called
    finally:
        hook.remove()


def test_the_key_changes_with_whatever_the_matrix_depends_on(handle, tmp_path):
    other = make_handle("llama", seed=1)
    other_config, other_tokenizer = twin(handle, hidden_act="relu"), twin(handle, bos=True)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(CORPUS), encoding="utf-8")
    change = dataclasses.replace
    keys = [
        second_moments(handle, [0], SMALL)[0].key,
        second_moments(handle, [1], SMALL)[1].key,
        second_moments(other, [0], SMALL)[0].key,
        second_moments(handle, [0], change(SMALL, tokens=80))[0].key,
        second_moments(handle, [0], change(SMALL, length=10))[0].key,
        second_moments(handle, [0], change(SMALL, seed=1))[0].key,
        second_moments(handle, [0], change(SMALL, dtype="float32"))[0].key,
        second_moments(handle, [0], change(SMALL, corpus=str(corpus)))[0].key,
        second_moments(handle, [0], SMALL, texts=CORPUS[::-1])[0].key,
        second_moments(other, [0], SMALL, texts=CORPUS)[0].key,
        second_moments(make_handle("llama", dtype=torch.float64), [0], SMALL)[0].key,
        *(second_moments(each, [0], SMALL)[0].key for each in (other_config, other_tokenizer)),
        *(second_moments(each, [0], SMALL, texts=CORPUS)[0].key for each in (other_config, other_tokenizer)),
    ]
    assert len(set(keys)) == len(keys)
    assert second_moments(handle, [0], SMALL, texts=CORPUS)[0].key == keys[7]  # the same text, however it is given


def test_they_are_the_unpatched_models_and_patches_stay_on(handle):
    plain = second_moments(handle, [1], SMALL, texts=CORPUS)[1]
    name = handle.weight_name("mlp_out", 0)
    patch = WeightPatch({name: DenseDelta(torch.ones(handle.matrix(name).shape))})
    with handle.patched(patch):
        before = handle.fingerprint()
        again = second_moments(handle, [1], dataclasses.replace(SMALL, seed=5), texts=CORPUS)[1]
        assert handle.fingerprint() == before
        assert handle.patches == (patch,)
    assert again.key != plain.key
    assert torch.equal(again.matrix, plain.matrix)


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_a_broken_file_is_measured_anew(handle, cache):
    first = second_moments(handle, [0], SMALL)[0]
    [file] = (cache / "moments").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(second_moments(handle, [0], SMALL)[0].matrix, first.matrix)


def test_a_folder_that_cannot_be_written_costs_only_time(handle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="set EDITKIT_CACHE"):
        assert second_moments(handle, [0], SMALL)[0].tokens <= SMALL.tokens


def test_bad_input_is_refused(handle):
    with pytest.raises(ValueError, match="no layer 9"):
        second_moments(handle, [9], SMALL)
    with pytest.raises(ValueError, match="no text to measure"):
        second_moments(handle, [0], SMALL, texts=["", "  "])
    with pytest.raises(ValueError, match="tokens >= 0"):
        MomentSettings(tokens=-1)
    with pytest.raises(ValueError, match="float16"):
        MomentSettings(dtype="float16")


def test_progress_comes_to_its_end(handle):
    heard = []
    second_moments(handle, [0], SMALL, progress=lambda *what: heard.append(what))
    assert {what for what, _, _ in heard} == {"writing text", "reading text"}
    assert heard[-1][1] == heard[-1][2]
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(heard) if a[0] == b[0])


# -- text that the model writes --


@pytest.mark.parametrize("layout", ["llama", "gpt2", "gemma2"])
def test_text_depends_on_the_seed_alone(handle_of, layout):
    handle = handle_of(layout)
    draw = sampling._draw
    with torch.inference_mode():
        one, same, other = (draw(handle, TextPlan(5, 12, seed), None) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert len(set(one)) == 5


def test_texts_begin_with_their_openers_and_have_the_length_asked_for(handle):
    plan = TextPlan(3, 12, 0, openers=("The capital", "What is"))
    texts = sampled_texts(handle, plan)
    assert [t.startswith(o) for t, o in zip(texts, ("The capital", "What is", "The capital"), strict=True)] == [
        True
    ] * 3
    with torch.inference_mode():
        longer = sampling._draw(handle, dataclasses.replace(plan, length=20), None)
    assert all(len(long) > len(short) for long, short in zip(longer, texts, strict=True))


def test_the_models_own_text_is_of_things_that_have_names(handle, monkeypatch):
    """Of everyday things it costs a tenth of the specificity: docs/moments.md."""
    plans = []

    def watched(on, plan, progress=None):
        plans.append(plan)
        return sampled_texts(on, plan, progress)

    monkeypatch.setattr("editkit.moments.sampled_texts", watched)
    second_moments(handle, [1], SMALL)
    [plan] = plans
    assert plan.top_k == 50 and not set(plan.openers) & set(sampling.OPENERS)
    texts = sampled_texts(handle, plan)
    assert [text.startswith(opener[:4]) for text, opener in zip(texts, sampling.NAMED, strict=False)] == [True] * len(
        texts
    )


def test_greedy_text_is_the_models_own(handle):
    """With one token to choose from, sampling is greedy: an independent loop without cache says the same."""
    with torch.inference_mode():
        [text] = sampling._draw(handle, TextPlan(1, 12, 0, top_k=1, openers=("The capital of",)), None)
    ids = encode(handle.tokenizer, "The capital of")
    special = handle.tokenizer.all_special_ids
    with torch.no_grad():
        while len(ids) < 12:
            logits = handle.model(torch.tensor([ids])).logits[0, -1]
            logits[special] = -torch.inf
            ids.append(int(logits.argmax()))
    assert text == handle.tokenizer.decode(ids)


def test_tokens_are_drawn_as_often_as_their_probability_says():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().repeat(20_000, 1)
    drawn = sampling._pick(logits, 0, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    assert torch.allclose(share, torch.tensor([0.5, 0.3, 0.2]), atol=0.015)
    best = sampling._pick(logits, 2, torch.Generator().manual_seed(0))
    assert set(best.tolist()) == {0, 1}


@pytest.mark.parametrize("strikes_at", [1, 2, 5])
def test_a_measurement_that_was_killed_goes_on_and_comes_to_the_same(handle, cache, monkeypatch, strikes_at):
    settings = MomentSettings(tokens=400, length=5)
    monkeypatch.setattr(moments, "ROWS", 8)
    expected = second_moments(handle, [0, 1], settings, texts=CORPUS * 9)
    for file in (cache / "moments").iterdir():
        file.unlink()
    monkeypatch.setattr(moments, "KEEP_EVERY", 0.0)
    seen = []

    def told(what, done, total):
        seen.append(done)
        if len(seen) == strikes_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        second_moments(handle, [0, 1], settings, texts=CORPUS * 9, progress=told)
    again = []
    found = second_moments(handle, [0, 1], settings, texts=CORPUS * 9, progress=lambda *told: again.append(told[1]))
    assert again[0] == seen[-1] == 8 * strikes_at, "it goes on with the batch that was not kept"
    for layer in (0, 1):
        assert torch.equal(found[layer].matrix, expected[layer].matrix) and found[layer].key == expected[layer].key
    assert not list((cache / "moments").glob("*.partial*"))


def test_a_broken_part_is_measured_anew(handle, cache, monkeypatch):
    expected = second_moments(handle, [0], SMALL, texts=CORPUS)[0]
    [file] = (cache / "moments").iterdir()
    file.unlink()
    partial = moments._Partial([expected.key], [0])
    partial.file.write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="partial.safetensors cannot be read"):
        assert torch.equal(second_moments(handle, [0], SMALL, texts=CORPUS)[0].matrix, expected.matrix)


def test_the_factor_of_a_moment_is_taken_once_and_the_moment_not_read_again(handle, monkeypatch):
    memo, settings = {}, MomentSettings(tokens=300, length=20)
    first = factors(second_moments(handle, [0, 1], settings, texts=CORPUS * 50), memo)
    for layer, moment in second_moments(handle, [0, 1], settings, texts=CORPUS * 50).items():
        torch.testing.assert_close(first[layer][0] @ first[layer][0].T, moment.matrix)

    def never(*_):
        raise AssertionError("read, or factored, again")

    with monkeypatch.context() as patch:
        patch.setattr(moments, "cholesky", never)
        patch.setattr(moments._Place, "_matrix", never)
        again = factors(second_moments(handle, [0, 1], settings, texts=CORPUS * 50), memo)
    assert all(again[layer][0] is first[layer][0] for layer in (0, 1))
    other = factors(second_moments(handle, [1], settings, texts=CORPUS[::-1] * 50), memo)
    assert not torch.equal(other[1][0], first[1][0])
    assert len(memo[moments.FACTORS]) == 1, "those of the last call are kept, no more"
