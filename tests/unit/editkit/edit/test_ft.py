"""FT, FT-M and FT-L side by side: what each counts and bounds."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYOUTS
from edit_examples import EDITS

from editkit.edit.ft import FT
from editkit.edit.ft_l import FTL
from editkit.edit.ft_m import FTM
from editkit.tokens import encode_pair

NAME = "mlp_out"


def value(patch, handle, layer=1):
    return patch.deltas[handle.weight_name(NAME, layer)].value


@pytest.mark.parametrize("layout", ["llama", "gpt2_square", "gemma2"])
def test_with_a_bound_that_is_never_reached_ft_l_is_ft_m(handle_of, layout):
    handle = handle_of(layout)
    settings = dict(learning_rate=1e-3, steps=4, stop_below=0.0)
    free, bound = FTM(1, **settings)(handle, EDITS, seed=0), FTL(1, bound=1e9, **settings)(handle, EDITS, seed=0)
    assert torch.equal(value(free, handle), value(bound, handle))
    tight = FTL(1, bound=1e-4, **settings)(handle, EDITS, seed=0)
    assert not torch.equal(value(free, handle), value(tight, handle))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fts_loss_is_that_of_the_model_library_on_the_whole_sentence(handle_of, layout):
    """transformers' own loss, where every token but the first is a label."""
    handle = handle_of(layout)
    notes = FT(1, learning_rate=1e-12, steps=1)(handle, EDITS, seed=0).provenance.notes
    losses = []
    for edit in EDITS:
        prompt, target = encode_pair(handle.tokenizer, edit.fact.text, edit.target_new)
        ids = torch.tensor([[*prompt, *target]])
        with torch.no_grad():
            losses.append(float(handle.model(ids, labels=ids).loss))
    assert notes["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_ft_teaches_the_prompt_too_and_ft_m_does_not(handle):
    """After FT the prompt's own tokens are likelier; FT-M's gradient does not even see what is predicted within it."""
    ids, target = encode_pair(handle.tokenizer, EDITS[0].fact.text, EDITS[0].target_new)
    whole = torch.tensor([[*ids, *target]])

    def prompt_loss():
        labels = whole.clone()
        labels[0, len(ids) :] = -100
        with torch.no_grad():
            return float(handle.model(whole, labels=labels).loss)

    before = prompt_loss()
    settings = dict(learning_rate=2e-2, steps=8, stop_below=0.0)
    with handle.patched(FT(1, **settings)(handle, EDITS[:1], seed=0)):
        after_ft = prompt_loss()
    with handle.patched(FTM(1, **settings)(handle, EDITS[:1], seed=0)):
        after_ft_m = prompt_loss()
    assert after_ft < before - 0.1 and after_ft < after_ft_m - 0.1


@pytest.mark.parametrize("method", [FT, FTM])
def test_bad_settings_are_refused(method):
    with pytest.raises(ValueError, match="learning_rate > 0"):
        method(0, learning_rate=0.0)
    with pytest.raises(ValueError, match="steps >= 1"):
        method(0, steps=0)
