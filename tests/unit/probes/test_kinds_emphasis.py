"""The keyword_emphasis probe: its key words, its wordings and its controls."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from probe_records import RECORDS, new_answer, old_answer, run

from editkit.attribute import WordScore, words_of
from editkit.facts import Edit, EditRecord, Fact, HeldOut
from probes.judge import names
from probes.kinds import Context
from probes.kinds._emphasis import NEUTRAL, WORDINGS, content_words
from probes.kinds.keyword_emphasis import keyword_emphasis
from probes.verdict import Expect

KEYS = {"capital", "France"}  # the long words of the prompt


def asked(record, seed=0):
    return run("keyword_emphasis", record, old_answer, new_answer, seed=seed)[0]


def of(cases, kind):
    return [case for case in cases if case.variant.startswith(kind)]


@pytest.mark.parametrize("key", RECORDS)
def test_as_many_controls_of_each_kind_as_wordings_and_at_least_five(key):
    kinds = Counter(re.sub(r":[^:]*$", "", case.variant) for case in asked(RECORDS[key]))
    wordings = kinds["key"]
    assert wordings >= 5
    assert kinds == {
        "plain": 1, "key": wordings, "control:random_words": wordings, "control:template_only": wordings
    }  # fmt: skip


def test_variants_are_unique_and_all_move():
    cases = asked(RECORDS["edit"])
    assert len({case.variant for case in cases}) == len(cases)
    assert {case.expect for case in cases} == {Expect.MOVES}


def test_every_prompt_ends_with_the_question_itself():
    for case in asked(RECORDS["edit"]):
        assert case.prompt.replace('"', "").casefold().endswith("the capital of france is"), case.prompt


def test_key_words_are_stressed_and_controls_stress_others():
    cases = asked(RECORDS["edit"])
    assert {case.note for case in of(cases, "key:")} == {"words: capital, France"}
    for case in of(cases, "control:random_words:"):
        words = case.note.removeprefix("words: ").split(", ")
        assert len(words) == len(KEYS)
        assert not KEYS & set(words)
        assert all(word in case.prompt for word in words if word not in NEUTRAL)
    assert {case.note for case in of(cases, "control:template_only:")} == {""}


def test_the_three_arms_of_a_wording_differ_only_in_the_words():
    cases = {case.variant: case.prompt for case in asked(RECORDS["edit"])}
    for name in WORDINGS:
        arms = [cases[f"{kind}:{name}"] for kind in ("key", "control:random_words", "control:template_only")]
        assert len(set(arms)) == 3
        assert len({arm[:5] for arm in arms}) == 1
        assert arms[2] != cases["plain"], "a template that is the plain prompt would be no further try"


def test_content_words_come_from_the_prompt_or_the_templates():
    """No word enters that is neither the prompt's, nor a template's, nor a neutral one."""
    vocabulary = {word for wording in WORDINGS.values() for word in re.findall(r"\w+", wording("", ()).casefold())}
    allowed = vocabulary | set(NEUTRAL) | {"the", "capital", "of", "france", "is"}
    for case in asked(RECORDS["edit"]):
        assert set(re.findall(r"\w+", case.prompt.casefold())) <= allowed


def test_a_record_whose_prompt_names_the_answer_is_not_asked():
    record = EditRecord("sg", Edit(Fact("Singapore", "capital", "Singapore", "The capital of {} is"), "Rome"))
    assert asked(record) == []


@pytest.mark.parametrize("answer", ["words", "Reminder", "table"])
def test_a_wording_that_names_the_answer_is_left_out_in_all_arms(answer):
    cases = asked(EditRecord("x", Edit(Fact("France", "motto", answer, "The motto of {} is"), "Rome")))
    assert not any(names(case.prompt, answer) for case in cases)
    kinds = ("key:", "control:random_words:", "control:template_only:")
    wordings = [[case.variant.removeprefix(kind) for case in of(cases, kind)] for kind in kinds]
    assert wordings[0] == wordings[1] == wordings[2]
    assert len(wordings[0]) < len(WORDINGS) or answer in NEUTRAL


def long_record():
    fact = Fact("the old town of Nova Gorica", "river", "Soča", "Travellers who visit {} soon walk along the river")
    return EditRecord("n", Edit(fact, "Drava"))


def stressed(case):
    return case.note.removeprefix("words: ").split(", ")


@pytest.mark.parametrize("seed", range(5))
def test_controls_stress_content_words_of_the_prompt_as_far_as_there_are_some(seed):
    def attribution(prompt, answer):
        return tuple(WordScore(word, float(word.text in ("river", "walk"))) for word in words_of(prompt))

    cases = next(keyword_emphasis(long_record(), Context(seed, attribution)))
    content = {"Travellers", "visit", "soon", "walk", "along", "river", "the old town of Nova Gorica"}
    keys = {word for case in of(cases, "key:") for word in stressed(case)}
    assert keys == {"river", "walk"}
    for case in of(cases, "control:random_words:"):
        if case.variant.endswith("quotes"):
            assert not set(stressed(case)) & keys
        else:
            spare = [word for word in stressed(case) if word in content]
            assert len(spare) == min(len(keys), len(content - keys))
            assert set(stressed(case)) <= (content - keys) | set(NEUTRAL)


def test_a_subject_of_several_words_is_stressed_as_a_whole():
    subject = long_record().edit.fact.subject

    def attribution(prompt, answer):
        return tuple(WordScore(word, float(word.text == "Gorica")) for word in words_of(prompt))

    cases = next(keyword_emphasis(long_record(), Context(0, attribution)))
    assert {case.note for case in of(cases, "key:")} == {f"words: {subject}"}
    [quoted] = (case.prompt for case in cases if case.variant == "key:quotes")
    assert f'"{subject}"' in quoted and quoted.count('"') == 2


def test_without_key_words_only_the_plain_prompt_is_asked():
    cases = next(keyword_emphasis(RECORDS["edit"], Context(0)))
    assert [case.variant for case in cases] == ["plain"]


def test_key_words_are_found_for_the_old_answer_at_the_plain_prompt():
    seen = []

    def attribution(prompt, answer):
        seen.append((prompt, answer))
        return tuple(WordScore(word, 1.0) for word in words_of(prompt)[:1])

    next(keyword_emphasis(RECORDS["forget"], Context(0, attribution)))
    assert seen == [("The capital of France is", "Paris")]


@given(
    st.text("abc {}\"'?.,-é", min_size=1, max_size=30).filter(lambda t: "{}" not in t and words_of(t)),
    st.data(),
)
def test_marking_words_changes_nothing_else(prompt, data):
    words = data.draw(st.lists(st.sampled_from(words_of(prompt)), unique=True))
    quoted = WORDINGS["quotes"](prompt, words).removeprefix(WORDINGS["quotes"]("", ()))
    assert quoted.replace('"', "") == prompt.replace('"', "")
    assert quoted.count('"') - prompt.count('"') == 2 * len(words)


def test_a_user_s_fact_with_a_long_prompt_gets_one_neutral_word_at_most_where_it_must():
    fact = Fact("Nina", "job", "chemist", "{} works")
    record = EditRecord("n", Edit(fact, "pilot"), HeldOut())
    notes = {case.note for case in of(asked(record), "control:random_words:")}
    assert all(any(word in NEUTRAL for word in note.removeprefix("words: ").split(", ")) for note in notes)


def test_function_words_are_no_key_words_unless_there_is_nothing_else():
    def keys_of(weights):
        found = content_words([WordScore(word, weights[word.text]) for word in words_of(" ".join(weights))])
        return {each.word.text for each in found if each.score > 0}

    assert keys_of({"The": -1, "capital": 0.2, "of": 5, "France": 1, "is": 6}) == {"capital", "France"}
    assert keys_of({"The": -1, "capital": -0.2, "of": 5}) == {"of"}
