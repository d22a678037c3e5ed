"""Laws of the answer classifier and of key words."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from editkit.attribute import WordScore, key_words, without, words_of
from editkit.attribute.occlusion import occlude
from editkit.facts import normalise
from probes.judge import classify, first_sentence, judge, names
from probes.verdict import Answer, Case, Class, Expect, Reply

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)  # control characters and all scripts
NAMES = st.text(st.characters(codec="utf-8", categories=["L"]), min_size=3, max_size=9).filter(normalise)
PLAIN_NAMES = st.text("bcdfghkmnprstvz", min_size=3, max_size=9)


@given(ANY_TEXT)
def test_normalise_is_idempotent(text):
    assert normalise(normalise(text)) == normalise(text)


@given(ANY_TEXT, st.lists(ANY_TEXT.filter(str.strip), min_size=1, max_size=3), st.lists(ANY_TEXT, max_size=3), ANY_TEXT)
def test_every_text_has_one_class_whatever_stands_in_it(text, old, lexicon, prompt):
    first = classify(text, old=old, new=(), lexicon=lexicon, prompt=prompt)
    assert first is classify(text, old=old, new=(), lexicon=lexicon, prompt=prompt)
    assert first in Class and first is not Class.NEW


@given(ANY_TEXT)
def test_the_first_sentence_is_part_of_the_text(text):
    assert first_sentence(text) in text
    assert bool(normalise(first_sentence(text))) == bool(normalise(text))


@given(NAMES)
def test_an_answer_that_is_the_name_is_recognised(name):
    assume(classify(name, old=("something else",)) is not Class.DEGENERATE)
    assert classify(name, old=(name,)) is Class.OLD
    assert classify(name, old=("something else",), new=(name,)) is Class.NEW
    assert classify(name, old=("something else",), lexicon=(name,)) is Class.HALLUCINATION
    assert names(name, name)


@given(PLAIN_NAMES, PLAIN_NAMES)
def test_the_name_that_comes_first_is_the_answer(one, other):
    assume(one != other)
    text = f"{one} and {other}"
    assert classify(text, old=(one,), new=(other,)) is Class.OLD
    assert classify(text, old=(other,), new=(one,)) is Class.NEW


@given(st.lists(PLAIN_NAMES, min_size=1, max_size=4), st.integers(3, 6), st.sampled_from(Expect), st.booleans())
def test_what_is_said_three_times_passes_nowhere(words, times, expect, editing):
    text = " ".join(words * times)
    case = Case("p", "v", "prompt", expect, "g", (words[0],), tuple(words[-1:]) if editing else ())
    verdict = judge(case, Answer(Reply(words[0]), Reply(text)))
    assert verdict.class_after is Class.DEGENERATE
    assert not verdict.passed


@given(st.text(st.characters(codec="utf-8", categories=["P", "Z", "C"]), max_size=20), st.sampled_from(Expect))
def test_text_without_a_word_passes_nowhere(text, expect):
    case = Case("p", "v", "prompt", expect, "g", ("old",))
    assert not judge(case, Answer(Reply("old"), Reply(text))).passed


# Key words -----------------------------------------------------------------------------------------------------

WEIGHTS = st.dictionaries(PLAIN_NAMES, st.integers(-8, 8), min_size=2, max_size=8)


def planted(weights):
    """A bag-of-words scorer: each word adds its weight, wherever it stands."""

    def mean_logprob(prompts, answer):
        return [float(sum(weights[word.text] for word in words_of(prompt))) for prompt in prompts]

    return mean_logprob


@given(WEIGHTS)
def test_occlusion_finds_the_planted_weights_exactly(weights):
    prompt = ", ".join(weights) + " …?"
    scores = occlude(prompt, "answer", planted(weights))
    assert {each.word.text: each.score for each in scores} == weights


@given(WEIGHTS)
def test_an_unused_word_adds_nothing_and_is_no_key_word(weights):
    weights = weights | {"unused": 0}
    scores = occlude("unused " + " ".join(weights), "answer", planted(weights))
    assert [each.score for each in scores if each.word.text == "unused"] == [0, 0]
    assert "unused" not in {word.text for word in key_words(scores)}


@given(WEIGHTS, st.integers(1, 5), st.sampled_from([0.25, 0.5, 0.75]))
def test_key_words_are_those_of_the_definition(weights, beta, alpha):
    found = {w.text for w in key_words(occlude(" ".join(weights), "", planted(weights)), beta=beta, alpha=alpha)}
    helpful = {word for word, weight in weights.items() if weight > 0}
    if len(helpful) < beta:
        assert found == helpful
    else:
        best = max(weights.values())
        assert found == {word for word in helpful if weights[word] / best > alpha}


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(0.1, 10))
def test_key_words_do_not_depend_on_the_scale(scores, factor):
    words = words_of(" ".join(f"w{i}" for i in range(len(scores))))
    these = [WordScore(word, float(round(score))) for word, score in zip(words, scores, strict=True)]
    scaled = [WordScore(each.word, each.score * 2 ** round(factor)) for each in these]
    assert key_words(these) == key_words(scaled)


@given(ANY_TEXT.map(lambda text: text.replace("\x00", " ")))
def test_leaving_a_word_out_leaves_the_others_in_their_order(text):
    words = words_of(text)
    for i, word in enumerate(words):
        assert [w.text for w in words_of(without(text, word))] == [w.text for w in (*words[:i], *words[i + 1 :])]
