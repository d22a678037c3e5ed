"""Knowledge neurons: what is attributed adds up, and what counts is counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import LAYOUTS
from hypothesis import given
from hypothesis import strategies as st

from editkit.errors import InputError, MethodError
from editkit.facts import Fact
from editkit.locate import LOCATORS, LayerScore, median_layer, scope_of
from editkit.locate.knowledge_neurons import KnowledgeNeurons, Neuron, coarse, refined
from editkit.patch import DenseDelta, WeightPatch
from editkit.tokens import PromptTooLong, encode_pair

PROMPTS = ["The capital of France is", "It is said that. The capital of France is"]
FACT = Fact("France", "capital", "Paris", "The capital of {} is")


@torch.no_grad()
def probability(handle, prompt, answer, layer=None, share=1.0):
    """By the book: p of the whole answer in one full pass, a layer's activations at the prompt's last token scaled."""
    ids, target = encode_pair(handle.tokenizer, prompt, answer)

    def scale(module, inputs):
        scaled = inputs[0].clone()
        scaled[0, len(ids) - 1] *= share
        return (scaled,)

    hook = handle.module("mlp_out", layer or 0).register_forward_pre_hook(
        scale if layer is not None else lambda *_: None
    )
    try:
        log_probs = handle.model(torch.tensor([ids + target])).logits[0].double().log_softmax(-1)
    finally:
        hook.remove()
    return float(sum(log_probs[len(ids) - 1 + i, token] for i, token in enumerate(target)).exp())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layer_sums_to_what_is_lost_without_it(handle_of, layout):
    handle = handle_of(layout)
    scores = KnowledgeNeurons(steps=300).attributions(handle, PROMPTS, "São Paulo")
    assert scores.shape == (2, handle.layers, handle.matrix(handle.weight_name("mlp_out", 0)).shape[1])
    for own, prompt in zip(scores, PROMPTS, strict=True):
        whole = probability(handle, prompt, "São Paulo")
        for layer in range(handle.layers):
            lost = whole - probability(handle, prompt, "São Paulo", layer, 0.0)
            # a norm right behind the matrix turns about within its epsilon of zero: there the sum is coarser
            assert float(own[layer].sum()) == pytest.approx(lost, abs=(1e-2 if handle.arch.mlp_norm else 1e-3) * whole)


def test_the_sum_follows_the_numeric_integral_of_the_path(handle):
    """Sum over neurons of w ∂p/∂w at a·w is dp(a·w)/da: its integral by differences of full passes."""
    points = np.linspace(0, 1, 41)
    path = [probability(handle, PROMPTS[0], "Rome", 1, share) for share in points]
    numeric = np.trapezoid(np.gradient(path, points), points)
    whole = probability(handle, PROMPTS[0], "Rome")
    found = float(KnowledgeNeurons(steps=20).attributions(handle, PROMPTS[:1], "Rome")[0, 1].sum())
    assert found == pytest.approx(numeric, abs=5e-3 * whole)


def test_twice_the_steps_leave_a_quarter_of_the_error(handle_of):
    handle = handle_of("gpt2")
    lost = probability(handle, PROMPTS[0], "Rome") - probability(handle, PROMPTS[0], "Rome", 0, 0.0)
    errors = [
        abs(float(KnowledgeNeurons(steps=n).attributions(handle, PROMPTS[:1], "Rome")[0, 0].sum()) - lost)
        for n in (2, 4)
    ]
    assert errors[0] > 1e-6 * abs(lost)
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("layout", ["llama", "gpt2_square", "gemma2"])
def test_a_neuron_that_reaches_nothing_has_no_attribution(handle_of, layout):
    handle = handle_of(layout)
    name = handle.weight_name("mlp_out", 1)
    delta = torch.zeros_like(handle.matrix(name))
    delta[:, 7] = -handle.matrix(name)[:, 7]
    before = KnowledgeNeurons().attributions(handle, PROMPTS, "Rome")
    with handle.patched(WeightPatch({name: DenseDelta(delta)})):
        after = KnowledgeNeurons().attributions(handle, PROMPTS, "Rome")
    assert before[:, 1, 7].abs().min() > 0
    assert not after[:, 1, 7].any()
    assert after[:, 1].any()


def test_prompts_together_are_attributed_as_each_alone(handle):
    together = KnowledgeNeurons().attributions(handle, PROMPTS, "Rome")
    for own, prompt in zip(together, PROMPTS, strict=True):
        alone = KnowledgeNeurons().attributions(handle, [prompt], "Rome")[0]
        assert torch.allclose(own, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


def test_coarse_counts_what_is_above_a_share_of_the_best():
    scores = torch.tensor([[1.0, 0.2, 0.21], [-3.0, 0.9, 0.0]])
    assert coarse(scores, 0.2) == [Neuron(0, 0), Neuron(0, 2), Neuron(1, 1)]
    assert coarse(-scores.abs(), 0.2) == []


@given(st.dictionaries(st.integers(0, 9), st.integers(1, 6), max_size=8), st.floats(0, 1), st.integers(1, 5))
def test_refining_keeps_the_most_shared_and_enough_of_them(counts, shared, fewest):
    counted = Counter({Neuron(0, index): count for index, count in counts.items()})
    kept = refined(counted, 6, shared, fewest)
    assert len(kept) >= min(fewest, len(counted))
    least = min((counted[each] for each in kept), default=0)
    assert all(counted[each] < least for each in set(counted) - set(kept))
    assert {each for each, count in counted.items() if count >= shared * 6} <= set(kept) or not kept


def test_the_strongest_are_kept_and_come_first():
    scores = torch.zeros(2, 2, 4)
    scores[:, 0, 1], scores[:, 1, 2], scores[:, 1, 3], scores[0, 0, 0] = 0.5, 1.0, 0.7, 1.0
    assert KnowledgeNeurons().of(scores) == (Neuron(1, 2), Neuron(1, 3), Neuron(0, 1))
    assert KnowledgeNeurons(most=2).of(scores) == (Neuron(1, 2), Neuron(1, 3))
    assert set(KnowledgeNeurons(shared=0.5).of(scores)) == {Neuron(1, 2), Neuron(1, 3), Neuron(0, 1), Neuron(0, 0)}
    assert KnowledgeNeurons().of(-scores.abs()) == ()


def test_a_layer_is_scored_by_the_neurons_a_fact_has_there(handle):
    heard = []
    locator = KnowledgeNeurons(most=4, fewest=4)
    scores = LOCATORS["knowledge_neurons"](most=4, fewest=4)(
        handle, [FACT, FACT], seed=0, progress=lambda *what: heard.append(what)
    )
    found = Counter(n.layer for n in locator.of(locator.attributions(handle, [FACT.text], FACT.object)))
    assert [(each.layer, each.score) for each in scores] == [(layer, found[layer]) for layer in range(handle.layers)]
    assert heard[-1] == ("attributing", 2, 2)


def test_what_cannot_be_is_refused(handle):
    for wrong in ({"steps": 0}, {"fewest": 6}, {"threshold": 1.0}, {"shared": 1.5}, {"products": "float8"}):
        with pytest.raises(InputError):
            KnowledgeNeurons(**wrong)
    with pytest.raises(InputError, match="no prompt"):
        KnowledgeNeurons().attributions(handle, [], "Rome")
    with pytest.raises(PromptTooLong, match="takes 256"):
        KnowledgeNeurons().attributions(handle, ["word " * 300], "Rome")


SCORES = [LayerScore(0, 0.1), LayerScore(1, 0.5), LayerScore(2, 0.5), LayerScore(3, -1.0)]


def test_the_best_layers_are_a_scope(handle):
    scope = scope_of(SCORES[:3], 2)
    assert (scope.layers, scope.modules) == ((1, 2), ("mlp_out",))
    assert scope.parameters(handle) == [handle.weight_name("mlp_out", layer) for layer in (1, 2)]
    assert scope_of(SCORES, 1).layers == (1,)
    with pytest.raises(InputError, match="5 layers are wanted and 4"):
        scope_of(SCORES, 5)


def test_the_median_layer_has_half_of_what_is_above_zero_up_to_it():
    assert median_layer(SCORES) == 1
    assert median_layer([LayerScore(0, 1.0), LayerScore(1, 1.0), LayerScore(2, 1.1)]) == 1
    assert median_layer([LayerScore(0, 1.0), LayerScore(1, 9.0)]) == 1
    with pytest.raises(MethodError, match="nothing was located"):
        median_layer(SCORES[3:])
