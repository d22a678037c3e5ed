"""KN: which columns are changed, and by what."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYOUTS
from edit_examples import ENDING, private_cache

from editkit.edit._locate_then_edit import Contexts
from editkit.edit.knowledge_neurons import KN
from editkit.errors import InputError, MethodError
from editkit.facts import Edit, Fact
from editkit.locate.knowledge_neurons import KnowledgeNeurons
from editkit.patch import WeightPatch
from editkit.scoring import score_pairs
from editkit.tokens import encode_pair

ALONE = Contexts(each=0)
KIND = KN(neurons=KnowledgeNeurons(steps=8), contexts=ALONE)


@pytest.fixture(autouse=True)
def cache(tmp_path):
    with private_cache(str(tmp_path)):
        yield


def first_tokens(handle, edit):
    old, new = (encode_pair(handle.tokenizer, edit.fact.text, name)[1] for name in (edit.fact.object, edit.target_new))
    assert old[0] != new[0]
    return old[0], new[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_neurons_columns_and_no_others_get_the_new_object_for_the_old(handle_of, layout):
    """By the book: λ₂ times a row of the unembedding less λ₁ times another, turned by the activation's sign."""
    handle, edit = handle_of(layout), ENDING[0]
    operator = KN(2.0, 3.0, KIND.neurons, ALONE)
    patch = operator(handle, [edit], seed=0)
    old, new = first_tokens(handle, edit)
    rows = handle.model.get_output_embeddings().weight.detach()
    [neurons] = patch.provenance.notes["neurons"]
    assert 2 <= len(neurons) <= 5
    found = operator.neurons.attributed(handle, [encode_pair(handle.tokenizer, edit.fact.text, edit.fact.object)])
    for layer in range(handle.layers):
        name = handle.weight_name("mlp_out", layer)
        wanted = torch.zeros_like(handle.matrix(name))
        for _, index in (each for each in neurons if each[0] == layer):
            wanted[:, index] = (3 * rows[new] - 2 * rows[old]) * found.activations[0, layer, index].sign()
        if name in patch.deltas:
            assert torch.allclose(patch.deltas[name].dense(), wanted)
        else:
            assert not wanted.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_weights_nothing_changes(handle_of, layout):
    handle = handle_of(layout)
    patch = KN(0.0, 0.0, KIND.neurons, ALONE)(handle, ENDING, seed=0)
    pairs = [(edit.fact.text, edit.target_new) for edit in ENDING]
    before = score_pairs(handle, pairs)
    with handle.patched(patch):
        assert score_pairs(handle, pairs) == before


def test_the_change_is_linear_in_both_weights(handle):
    one, other, both = (
        KN(*w, KIND.neurons, ALONE)(handle, ENDING, seed=0) for w in ((1.0, 0.0), (0.0, 2.0), (1.0, 2.0))
    )
    for name, delta in both.deltas.items():
        assert torch.allclose(delta.dense(), one.deltas[name].dense() + other.deltas[name].dense(), atol=1e-6)


def test_edits_together_are_the_sum_of_each_alone(handle):
    whole = KIND(handle, ENDING, seed=0)
    alone = [KIND(handle, [edit], seed=0) for edit in ENDING]
    assert whole.provenance.notes["neurons"] == [own for each in alone for own in each.provenance.notes["neurons"]]
    for name, delta in whole.deltas.items():
        wanted = sum(each.deltas[name].dense() for each in alone if name in each.deltas)
        assert torch.allclose(delta.dense(), wanted, atol=1e-6)


def test_it_has_one_rank_a_neuron(handle):
    patch = KIND(handle, ENDING[:1], seed=0)
    ranks = {name: delta.right.shape[0] for name, delta in patch.deltas.items()}
    counted = [layer for layer, _ in patch.provenance.notes["neurons"][0]]
    assert ranks == {handle.weight_name("mlp_out", layer): counted.count(layer) for layer in set(counted)}
    assert all(
        (delta.right.sum(1) == 1).all() and (delta.right != 0).sum() == len(delta.right)
        for delta in patch.deltas.values()
    )


def test_a_common_beginning_counts_to_the_prompt(handle):
    """ "São Paulo" and "São Pedro" part after what they share: there the neurons are found."""
    edit = Edit(Fact("Nina Okafor", "city", "São Paulo", "{} works in"), "São Pedro")
    old, new = (encode_pair(handle.tokenizer, edit.fact.text, name)[1] for name in (edit.fact.object, edit.target_new))
    alike = next(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    assert alike > 0
    patch = KIND(handle, [edit], seed=0)
    ids = encode_pair(handle.tokenizer, edit.fact.text, edit.fact.object)[0]
    seen = KIND.neurons.attributed(handle, [([*ids, *old[:alike]], old[alike:])])
    assert patch.provenance.notes["neurons"] == [[[n.layer, n.index] for n in KIND.neurons.of(seen.scores)]]
    rows = handle.model.get_output_embeddings().weight.detach()
    for delta in patch.deltas.values():
        for column in delta.left.T:
            assert torch.allclose(column.abs(), (8 * rows[new[alike]] - rows[old[alike]]).abs(), atol=1e-6)


def test_an_object_that_begins_with_the_other_leaves_a_token_of_each(handle):
    KIND(handle, [Edit(Fact("Nina Okafor", "city", "São", "{} works in"), "São Paulo")], seed=0)


def test_contexts_are_drawn_by_the_seed_and_share_the_neurons(handle):
    operator = KN(neurons=KIND.neurons, contexts=Contexts((8,), 2))
    one, again, other = (operator(handle, ENDING[:1], seed=seed) for seed in (0, 0, 1))
    assert one.digest == again.digest and isinstance(other, WeightPatch)


def test_every_context_speaks_for_the_neurons(handle):
    """Those of both contexts' scores together are not those of the first one's."""
    operator, of_first = KN(neurons=KIND.neurons, contexts=Contexts((8,), 2)), []
    for edit in ENDING:
        asked = [
            encode_pair(handle.tokenizer, context + edit.fact.text, edit.fact.object)
            for context in operator.contexts.before(handle, 0)
        ]
        assert len(asked) > 1
        both, first = (
            [[neuron.layer, neuron.index] for neuron in operator.neurons.of(seen.scores)]
            for seen in (operator.neurons.attributed(handle, pairs) for pairs in (asked, asked[:1]))
        )
        assert operator(handle, [edit], seed=0).provenance.notes["neurons"] == [both]
        of_first.append(first == both)
    assert not all(of_first)


def test_where_nothing_speaks_for_the_old_object_it_says_so(handle):
    name = [handle.weight_name("mlp_out", layer) for layer in range(handle.layers)]
    from editkit.patch import DenseDelta

    silent = WeightPatch({each: DenseDelta(-handle.matrix(each).clone()) for each in name})
    with handle.patched(silent), pytest.raises(MethodError, match="cannot edit 'France': no neuron makes 'Paris'"):
        KIND(handle, ENDING[:1], seed=0)


def test_what_cannot_be_is_refused(handle):
    with pytest.raises(InputError, match="at least 0"):
        KN(old_weight=-1.0)
