"""Occlusion on a tiny model against a plain loop over single prompts."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYOUTS

from editkit.attribute import ATTRIBUTORS, key_words, without, words_of
from editkit.attribute.occlusion import Occlusion, occlude
from editkit.tokens import encode_pair

PROMPT = "What, as you know, is the capital of France?"


@torch.no_grad()
def plain(handle, prompt, answer):
    """Independent oracle: one unpadded sequence, full logits."""
    ids, wanted = encode_pair(handle.tokenizer, prompt, answer)
    log_probs = handle.model(torch.tensor([ids + wanted])).logits[0].float().log_softmax(-1)
    return sum(float(log_probs[len(ids) - 1 + i, t]) for i, t in enumerate(wanted)) / len(wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_equal_a_plain_loop(handle_of, layout):
    handle = handle_of(layout)
    scores = Occlusion()(handle, PROMPT, "São Paulo")
    whole = plain(handle, PROMPT, "São Paulo")
    parts = PROMPT.split()
    assert [score.word.text for score in scores] == [part.strip(",?") for part in parts]
    for i, score in enumerate(scores):
        left = " ".join(parts[:i] + parts[i + 1 :])
        assert score.score == pytest.approx(whole - plain(handle, left, "São Paulo"), abs=2e-4)


def test_all_prompts_go_in_one_call():
    calls = []

    def mean_logprob(prompts, answer):
        calls.append(list(prompts))
        return [0.0] * len(prompts)

    scores = occlude("a b c", "x", mean_logprob)
    assert calls == [["a b c", "b c", "a c", "a b"]]
    assert key_words(scores) == ()


def test_a_prompt_of_one_word_has_no_scores():
    assert occlude("France?", "Paris", lambda prompts, answer: pytest.fail("asked")) == ()


def test_words_carry_their_place_but_not_their_punctuation():
    words = words_of('The "capital" of Côte-d\'Or: … is')
    assert [word.text for word in words] == ["The", "capital", "of", "Côte-d'Or", "is"]
    assert without("The capital,  of\nFrance", words_of("The capital,  of\nFrance")[1]) == "The  of\nFrance"


def test_it_is_registered_under_its_name():
    assert ATTRIBUTORS["occlusion"] is Occlusion
