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


SPACED = st.lists(PLAIN_NAMES.filter(lambda name: len(name) > 3), min_size=3, max_size=3, unique=True)
BETWEEN = st.sampled_from([" and ", ", ", " or ", ", then ", " (", ": "])
DISMISSING = st.sampled_from(
    ["not", "isn't", "it wasn’t", "never", "no longer", "instead of", "rather than", "unlike", "anything but",
     "cannot be", "formerly", "used to be", "I don't think it is", "I doubt it's"]
)  # fmt: skip
DENYING = st.sampled_from(
    [
        "is not",
        "isn't",
        "is wrong",
        "was incorrect",
        "is no longer",
        "used to be the",
        "is an incorrect answer",
        "is untrue",
    ]
)
INVISIBLE = st.sampled_from("\u200b\u200c\u200d\u2060\ufeff\u00ad")


@given(SPACED, st.permutations([0, 1, 2]), BETWEEN, BETWEEN)
def test_whatever_entity_comes_first_is_the_answer(three, order, between, later):
    new, old, other = three
    text = three[order[0]] + between + three[order[1]] + later + three[order[2]]
    expected = (Class.NEW, Class.OLD, Class.HALLUCINATION)[order[0]]
    assert classify(text, old=(old,), new=(new,), lexicon=(other,)) is expected
    without_new = (Class.HALLUCINATION, Class.OLD, Class.HALLUCINATION)[order[0]]
    assert classify(text, old=(old,), lexicon=(new, other)) is without_new
    assert classify(text, old=(old,), lexicon=(new, other), forget=True) is Class.OLD


@given(SPACED, DISMISSING, st.sampled_from([", ", "; ", " but ", " – ", " but it is ", ", it is "]))
def test_a_dismissed_name_gives_way_to_what_follows_its_clause(three, opening, between):
    new, old, other = three
    assert classify(f"{opening} {old}{between}{new}", old=(old,), new=(new,)) is Class.NEW
    assert classify(f"{opening} {other}{between}{old}", old=(old,), lexicon=(other,)) is Class.OLD
    assert classify(f"{opening} {other}{between}{old}", old=(old,)) is Class.OLD  # whether or not it is known
    assert classify(f"{new}, {opening} {old}", old=(old,), new=(new,)) is Class.NEW


@given(SPACED, DISMISSING, DENYING, st.booleans())
def test_what_is_dismissed_or_denied_counts_only_where_it_is_to_be_forgotten(three, opening, denial, before):
    text = f"{opening} {three[0]}" if before else f"{three[0]} {denial}"
    assert classify(text, old=(three[0],)) is not Class.OLD
    assert classify(text, old=(three[0],), forget=True) is Class.OLD


@given(ANY_TEXT, PLAIN_NAMES, ANY_TEXT)
def test_to_forget_is_never_laxer(before, name, after):
    text = f"{before} {name} {after}"
    if classify(text, old=(name,)) is Class.OLD:
        assert classify(text, old=(name,), forget=True) is Class.OLD


@given(NAMES, INVISIBLE, st.integers(0, 9))
def test_invisible_characters_hide_no_name(name, invisible, place):
    hidden = name[:place] + invisible + name[place:]
    assert names(hidden, name)
    assert names(name, hidden)


@given(st.text("ABCDEFGHJKLMNOPQRSTUVWXYZ", min_size=2, max_size=5), st.booleans())
def test_the_full_stops_of_initials_make_no_difference(letters, last):
    dotted = ".".join(letters) + "." * last
    assert names(f"the {dotted} only", letters)
    assert names(f"the {letters} only", dotted)
    assert not names(f"the {'.'.join(letters)}.Z. only", letters)


@given(PLAIN_NAMES, PLAIN_NAMES, st.sampled_from("'’ʼʻ"))
def test_an_apostrophe_within_a_name_makes_no_difference(head, tail, mark):
    assert names(head + tail, f"{head}{mark}{tail}")
    assert names(f"{head}{mark}{tail}", head + tail)
    assert names(f"{head}{mark}s {tail}", head)


@given(PLAIN_NAMES, *[st.sampled_from(["St.", "St", "Saint", "Ste.", "Sainte", "SAINT"])] * 2)
def test_saints_are_written_in_many_ways(name, one, other):
    assert names(f"in {one} {name}", f"{other} {name}")


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
