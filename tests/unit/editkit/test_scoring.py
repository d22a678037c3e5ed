"""Scores against a plain forward pass of each prompt by itself, on every layout."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from conftest import LAYOUTS, make_handle
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from editkit import scoring
from editkit.forward import attention
from editkit.patch import PromptPatch
from editkit.scoring import Ask, score_pairs, tell
from editkit.speech import Free, Voice
from editkit.tokens import PromptTooLong, encode, encode_pair

PROMPTS = ["The capital of France is", "Hi", "The capital of Peru, as you know, is", "日本語 Français", "What is"]
TARGETS = ("Paris", "São Paulo", "the euro", "日本語")
WORDS = st.text("abcdefgh ãé.?", min_size=1, max_size=24).filter(str.strip)


@torch.no_grad()
def plain_score(handle, prompt, target):
    """Independent oracle: one unpadded sequence, full logits, no cache."""
    ids, wanted = encode_pair(handle.tokenizer, prompt, target)
    log_probs = handle.model(torch.tensor([ids + wanted])).logits[0].float().log_softmax(-1)
    steps = range(len(ids) - 1, len(ids) + len(wanted) - 1)
    pairs = list(zip(steps, wanted, strict=True))
    return sum(float(log_probs[i, t]) for i, t in pairs), all(int(log_probs[i].argmax()) == t for i, t in pairs)


@torch.no_grad()
def plain_text(handle, prompt, length):
    ids = encode(handle.tokenizer, prompt)
    for _ in range(length):
        ids.append(int(handle.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batched_scores_equal_plain_ones(handle_of, layout):
    handle = handle_of(layout)
    told = tell(handle, [Ask(p, TARGETS, generate=False) for p in PROMPTS])
    for prompt, answer in zip(PROMPTS, told, strict=True):
        for target in TARGETS:
            logprob, argmax = plain_score(handle, prompt, target)
            assert answer.targets[target].logprob == pytest.approx(logprob, abs=2e-4)
            assert answer.targets[target].argmax == argmax


@pytest.mark.parametrize("speaks", [False, True])
def test_a_long_beginning_is_read_once_however_few_may_speak_at_once(handle, monkeypatch, speaks):
    """As an edit's demonstrations; one prompt speaks at a time."""
    begin, asked = "The capital of Peru, as you know, is " * 5, ["Lima", "Cusco, and", "Quito"]
    asks = [Ask(begin + each, ("here",), generate=speaks) for each in asked]
    usual, read = tell(handle, asks, max_new_tokens=3), []
    hook = handle.model.get_input_embeddings().register_forward_pre_hook(lambda _, given: read.append(given[0].numel()))
    monkeypatch.setattr(scoring, "HELD", 1)
    try:
        assert tell(handle, asks, max_new_tokens=3) == usual
    finally:
        hook.remove()
    assert read[0] == sum(read) - 6 * speaks < 2 * len(encode(handle.tokenizer, begin))


@settings(deadline=None, max_examples=15)
@given(prompts=st.lists(WORDS, min_size=1, max_size=6, unique=True), rows=st.integers(1, 4), held=st.integers(1, 40))
def test_how_many_speak_at_once_changes_no_text(prompts, rows, held):
    handle, asks = _shared_handle(), [Ask(prompt) for prompt in prompts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "HELD", held)
        few = [told.text for told in tell(handle, asks, rows=rows, max_new_tokens=4)]
    assert few == [tell(handle, [ask], max_new_tokens=4)[0].text for ask in asks]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_text_equals_a_plain_loop(handle_of, layout):
    handle = handle_of(layout)
    for prompt, answer in zip(PROMPTS, tell(handle, [Ask(p) for p in PROMPTS], max_new_tokens=6), strict=True):
        ids = plain_text(handle, prompt, 6)[len(encode(handle.tokenizer, prompt)) :]
        whole = handle.tokenizer.decode([i for i in ids if i != handle.tokenizer.eos_token_id]).strip()
        assert whole.startswith(answer.text)
        assert answer.text == whole or "\n" in whole or handle.tokenizer.eos_token_id in ids


def test_what_the_text_may_repeat_comes_on_top_of_its_tokens(handle_of):
    handle = handle_of("llama")
    echo = "The capital of Peru"
    room = len(handle.tokenizer(echo, add_special_tokens=False).input_ids)
    assert room > 1
    asks = [Ask(PROMPTS[0]), Ask(PROMPTS[0] + " is", echo=echo)]
    short, long = (answer.text for answer in tell(handle, asks, max_new_tokens=4))
    for ask, text, most in zip(asks, (short, long), (4, 4 + room), strict=True):
        ids = plain_text(handle, ask.prompt, most)[len(encode(handle.tokenizer, ask.prompt)) :]
        assert handle.tokenizer.eos_token_id not in ids
        assert text == handle.tokenizer.decode(ids).strip()


@pytest.mark.parametrize("layout", ["llama", "gpt2", "gemma2"])
def test_a_shared_prefix_changes_nothing(handle_of, layout):
    handle = handle_of(layout)
    prompts = [
        f"The Eiffel Tower is located in the city of Paris. The capital of {c} is"
        for c in ("Peru", "Italy", "Japan or so")
    ]
    together = tell(handle, [Ask(p, TARGETS) for p in prompts])
    alone = [tell(handle, [Ask(p, TARGETS)])[0] for p in prompts]
    for a, b in zip(together, alone, strict=True):
        assert a.text == b.text
        for target in TARGETS:
            assert a.targets[target].logprob == pytest.approx(b.targets[target].logprob, abs=2e-4)


@settings(deadline=None, max_examples=15)
@given(prompts=st.lists(WORDS, min_size=1, max_size=6), target=WORDS, rows=st.integers(1, 4))
def test_order_and_batch_size_do_not_matter(prompts, target, rows):
    handle = _shared_handle()
    pairs = [(p, target) for p in prompts]
    forward = score_pairs(handle, pairs, rows=rows)
    backward = score_pairs(handle, pairs[::-1])[::-1]
    assert [s.logprob for s in forward] == pytest.approx([s.logprob for s in backward], abs=2e-4)


def _shared_handle(cache=[]):  # noqa: B006 (Hypothesis forbids function-scoped fixtures)
    if not cache:
        cache.append(make_handle("llama", pad=False, bos=True))
    return cache[0]


def test_no_pad_token_is_needed():
    handle = make_handle("gpt2", pad=False)
    assert handle.tokenizer.pad_token is None
    [score] = score_pairs(handle, [("The capital of France is", "Paris")])
    assert score.logprob == pytest.approx(plain_score(handle, "The capital of France is", "Paris")[0], abs=2e-4)


def test_a_prompt_past_the_context_is_refused(handle):
    with pytest.raises(PromptTooLong, match="takes 256; shorten it"):
        tell(handle, [Ask("word " * 400)])


def test_prompt_patches_rewrite_what_is_asked(handle):
    with handle.patched(PromptPatch(lambda p: "Hi. " + p, digest="hi")):
        changed = score_pairs(handle, [("The capital of France is", "Paris")])
    direct = score_pairs(handle, [("Hi. The capital of France is", "Paris")])
    assert changed[0].logprob == pytest.approx(direct[0].logprob, abs=1e-5)
    assert changed[0].logprob != score_pairs(handle, [("The capital of France is", "Paris")])[0].logprob


def test_attention_is_put_back(handle):
    before = handle.model.config._attn_implementation
    with pytest.raises(KeyError), attention(handle, "eager"):
        assert handle.model.config._attn_implementation == "eager"
        raise KeyError
    assert handle.model.config._attn_implementation == before


FREE = [Ask(prompt, free=Free(12, seed=3)) for prompt in PROMPTS]


def test_a_free_text_is_the_same_whatever_stands_beside_it(handle_of):
    handle = handle_of("llama")
    together = [each.text for each in tell(handle, FREE + [Ask(p) for p in PROMPTS], max_new_tokens=3)[: len(FREE)]]
    alone = [tell(handle, [ask])[0].text for ask in FREE]
    assert together == alone
    other = [tell(handle, [Ask(p, free=Free(12, seed=4))])[0].text for p in PROMPTS]
    assert other != alone


def test_a_free_text_goes_on_over_line_breaks_and_past_what_is_enough(handle_of):
    handle = handle_of("llama")
    answers = tell(handle, FREE, max_new_tokens=1, enough=lambda text: True)
    whole = tell(handle, FREE)
    assert [each.text for each in answers] == [each.text for each in whole]
    lengths = {len(handle.tokenizer(each.text).input_ids) for each in answers}
    assert max(lengths) > 6


def test_of_one_likeliest_token_a_free_text_is_greedy(handle_of):
    handle = handle_of("gpt2")
    prompt = "The capital of France is"
    free = tell(handle, [Ask(prompt, free=Free(6, top=1))])[0].text
    ids = plain_text(handle, prompt, 6)[len(encode(handle.tokenizer, prompt)) :]
    assert handle.tokenizer.decode([i for i in ids if i != handle.tokenizer.eos_token_id]).strip().startswith(free)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([3.0, 1.0, 2.0, -9.0, 0.0, -1.0, 2.5])
    drawn = Counter(Voice(1, Free(1, seed=seed)).next(logits, 0) for seed in range(4000))
    top = logits.topk(5)
    expected = 4000 * top.values.double().softmax(-1)
    assert set(drawn) == set(top.indices.tolist())
    assert chisquare([drawn[i] for i in top.indices.tolist()], expected.numpy()).pvalue > 1e-3
