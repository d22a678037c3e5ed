"""The wordings of the rephrase probe."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from probe_records import PARAPHRASES, QUESTIONS, RECORDS, edit_record, new_answer, old_answer, run

from probes.framing import asked_in, framed
from probes.kinds._variants import TYPO_LETTERS, WRAPPERS, mistyped
from probes.kinds.rephrase import TYPOS


def asked(record, seed=0):
    return run("rephrase", record, old_answer, new_answer, seed=seed)[0]


def test_all_kinds_of_wording_are_there():
    kinds = Counter(case.variant for case in asked(RECORDS["edit"]))
    assert set(kinds) == {"paraphrase", "question", *WRAPPERS, "casing", "typo"}
    assert (kinds["paraphrase"], kinds["question"], kinds["casing"]) == (len(PARAPHRASES), len(QUESTIONS), 3)


@pytest.mark.parametrize("key", ["bare edit", "bare forget"])
def test_a_fact_that_brings_nothing_is_asked_in_the_wrappers(key):
    kinds = {case.variant for case in asked(RECORDS[key])}
    assert kinds == {*WRAPPERS, "casing", "typo"}


def test_questions_are_framed_and_clozes_left_open():
    for case in asked(RECORDS["edit"]):
        assert not case.prompt.rstrip().endswith("?")
        assert case.variant == "cloze" or (case.variant == "question") == case.prompt.startswith("User:")
    assert framed("Who?") == "User: Who?\nAssistant:"
    assert framed("It is") == "It is"
    assert asked_in(framed("Who?")) == "Who?"
    assert asked_in("It is") == ""
    assert asked_in("I asked. User: Who?\nAssistant:") == "Who?"


def test_wordings_that_name_an_answer_are_left_out():
    record = edit_record(paraphrases=("Unlike in Rome, in {} the capital is", "It is not Paris that {}", "{} has"))
    texts = [case.prompt for case in asked(record) if case.variant == "paraphrase"]
    assert texts == ["France has"]


def test_the_prompt_itself_is_left_to_the_rewrite_probe():
    record = edit_record(paraphrases=("The capital of {} is",))
    assert "The capital of France is" not in [case.prompt for case in asked(record)]


def test_no_prompt_is_asked_twice():
    record = edit_record(paraphrases=("{} has", "{} has"))
    prompts = [case.prompt for case in asked(record)]
    assert len(prompts) == len(set(prompts))


def test_another_seed_makes_other_slips():
    slips = {tuple(c.prompt for c in asked(RECORDS["edit"], seed) if c.variant == "typo") for seed in range(8)}
    assert len(slips) > 1
    assert all(len(each) == TYPOS for each in slips)


@given(
    st.lists(st.text("abcdefgh", min_size=1, max_size=8), min_size=1, max_size=6),
    st.text("xyzXYZ '", min_size=1, max_size=12).filter(str.strip),
    st.integers(0, 99),
    st.data(),
)
def test_a_slip_is_in_one_long_word_and_never_in_the_subject(words, subject, seed, data):
    place = data.draw(st.integers(0, len(words)))
    template = " ".join([*words[:place], "{}", *words[place:]])
    slipped = mistyped(template, subject, random.Random(seed))
    if slipped is None:
        return
    left, right = slipped[: slipped.index(subject)], slipped[slipped.index(subject) + len(subject) :]
    assert f"{left}{{}}{right}" != template
    pairs = list(zip(template.split(), f"{left}{{}}{right}".split(), strict=True))
    [(before, after)] = [(a, b) for a, b in pairs if a != b]
    assert len(before) >= TYPO_LETTERS
    assert (before[0], before[-1]) == (after[0], after[-1])
    assert abs(len(before) - len(after)) <= 1


def test_without_a_long_word_there_is_no_slip():
    assert mistyped("{} is in", "Copenhagen", random.Random(0)) is None
