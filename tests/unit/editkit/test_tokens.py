"""Where a subject stands among the tokens, and how prompt and target meet."""

from __future__ import annotations

import pytest
import torch
from conftest import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from editkit.facts import fill, normalise
from editkit.tokens import encode, encode_pair, join, pad, pad_id_of, subject_span

TOKENIZERS = [make_tokenizer(), make_tokenizer(bos=True), make_tokenizer(pad=False)]
NAMES = st.text(st.characters(categories=["L", "N"], include_characters=" -'"), min_size=1, max_size=12).filter(
    lambda s: s.strip() == s
)


@given(subject=NAMES, before=NAMES, after=NAMES, tokenizer=st.sampled_from(TOKENIZERS))
def test_the_span_holds_the_subject(subject, before, after, tokenizer):
    template = f"{before} {{}} {after}"
    span = subject_span(tokenizer, template, subject)
    ids = tokenizer(fill(template, subject)).input_ids
    assert subject in tokenizer.decode(ids[span.start : span.stop], clean_up_tokenization_spaces=False)
    inner = tokenizer.decode(ids[span.start + 1 : span.last], clean_up_tokenization_spaces=False)
    assert subject not in inner or span.stop - span.start <= 2 or not inner


def test_a_subject_that_occurs_twice_is_found_in_its_slot():
    tokenizer = TOKENIZERS[0]
    first = subject_span(tokenizer, "{} is not Paris but", "Paris")
    second = subject_span(tokenizer, "Paris is not {} but", "Paris")
    assert first.start == 0 < second.start


@given(prompt=NAMES, target=NAMES, tokenizer=st.sampled_from(TOKENIZERS))
def test_prompt_and_target_together_are_the_running_text(prompt, target, tokenizer):
    ids, rest = encode_pair(tokenizer, prompt, target)
    assert ids == encode(tokenizer, prompt) and rest
    text = tokenizer.decode([*ids, *rest], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert text == join(prompt, target)


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("It is", "red", "It is red"),
        ("It is ", "red", "It is red"),
        ("It is", ", they say", "It is, they say"),
        ("A (", "b", "A (b"),
        ("日本の首都は", "東京", "日本の首都は東京"),
        ("それは、", "東京", "それは、東京"),
        ("Japan's capital is", "東京", "Japan's capital is 東京"),
        ("日本の首都は", "Tokyo", "日本の首都は Tokyo"),
        ("일본의 수도는", "도쿄", "일본의 수도는 도쿄"),
    ],
)
def test_one_space_between_unless_there_is_a_border(prompt, target, text):
    assert join(prompt, target) == text


@given(
    st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=7), min_size=1, max_size=5),
    st.sampled_from(["left", "right"]),
)
def test_padding_keeps_every_sequence(sequences, side):
    padded = pad(sequences, side=side, pad_id=1)
    for row, sequence in enumerate(sequences):
        kept = padded.mask[row]
        assert padded.ids[row][kept].tolist() == sequence
        assert padded.positions[row][kept].tolist() == list(range(len(sequence)))
        assert bool(kept[0 if side == "right" else -1])
    assert (padded.ids[~padded.mask] == 1).all()
    assert padded.mask.dtype == torch.bool


def test_a_tokenizer_without_pad_token_pads_with_eos():
    assert pad_id_of(make_tokenizer(pad=False)) == 1


@given(st.text(max_size=40))
def test_normalise_is_idempotent(text):
    assert normalise(normalise(text)) == normalise(text)
