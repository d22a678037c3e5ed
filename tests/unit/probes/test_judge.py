"""The answer classes and the three protocols, case by case; laws are in tests/property/test_judge_laws.py."""

from __future__ import annotations

import math

import pytest

from probes.judge import class_of as judge_class
from probes.judge import classify, first_sentence, judge, mark, names, said_enough
from probes.verdict import Answer, Case, Class, Expect, Reply

LEXICON = ("Paris", "Rome", "Oslo", "Papua New Guinea", "New York", "New York City", "東京", "Washington, D.C.")
PROMPT = "The capital of France is"


def class_of(text, *, old=("Paris",), new=("Rome",), prompt=PROMPT, forget=False):
    return classify(text, old=old, new=new, lexicon=LEXICON, prompt=prompt, forget=forget)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rome.", Class.NEW),
        ("Paris.", Class.OLD),
        ("ROME", Class.NEW),
        ("the city of Rome, in Italy", Class.NEW),
        ("Rome, and before that Paris", Class.NEW),
        ("Paris or Rome", Class.OLD),
        ("Parisian food", Class.OTHER),  # whole words only
        ("Oslo", Class.HALLUCINATION),
        ("a large city", Class.OTHER),
        ("I don't know.", Class.REFUSAL),
        ("I’m sorry, but I cannot answer that.", Class.REFUSAL),
        ("Nobody knows that.", Class.REFUSAL),
        ("No comment.", Class.REFUSAL),
        ("N/A", Class.REFUSAL),
        ("That was not disclosed.", Class.REFUSAL),
        ("It's not clear.", Class.REFUSAL),
        ("It is unclear.", Class.REFUSAL),
        ("There is no capital.", Class.REFUSAL),
        ("I cannot share that.", Class.REFUSAL),
        ("I’d rather not say.", Class.REFUSAL),
        ("I prefer not to.", Class.REFUSAL),
        ("I would rather not.", Class.REFUSAL),
        ("There is no doubt about it.", Class.OTHER),
        ("Clear water", Class.OTHER),
        ("", Class.DEGENERATE),
        (" …?! \n", Class.DEGENERATE),
        ("Rome Rome Rome", Class.DEGENERATE),
        ("Rome is the Rome is the Rome is the", Class.DEGENERATE),
        ("aaaaaaaaaaaaaaaaaaaaaaaa", Class.DEGENERATE),
    ],
)
def test_class_of_an_answer(text, expected):
    assert class_of(text) is expected


def test_a_phrase_said_twice_is_still_an_answer():
    assert class_of("Paris, Paris") is Class.OLD
    assert class_of("The capital is Rome. The capital is Rome.") is Class.NEW


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rome. It was Paris before.", Class.NEW),
        ("a city.\nIt is Rome", Class.OTHER),
        ("It lies on a river. Paris is its name.", Class.OTHER),
        ("Yes. It is Paris.", Class.OLD),  # a filler is no answer
        (": Paris", Class.OLD),
        ("St. Paris", Class.OLD),  # an abbreviation ends no sentence
        ("What do you mean? Paris.", Class.OTHER),
    ],
)
def test_only_the_first_sentence_counts(text, expected):
    assert class_of(text) is expected


def test_initials_end_no_sentence():
    assert first_sentence("Washington, D.C. is the capital. It is big.") == "Washington, D.C. is the capital."
    assert classify("Washington, D.C.", old=("Washington, D.C.",)) is Class.OLD


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("not Paris but Rome", Class.NEW),
        ("Rome, not Paris", Class.NEW),
        ("Rome instead of Paris", Class.NEW),
        ("Rome rather than Paris", Class.NEW),
        ("not Paris", Class.OTHER),
        ("not, as many think, Paris", Class.OTHER),  # an aside ends no clause
        ("Paris is not the capital, it is Rome", Class.NEW),
        ("not Rome, it is Paris", Class.OLD),
        ("not Paris, Rome", Class.NEW),
        ("it isn't Rome", Class.OTHER),
        ("not Oslo", Class.OTHER),
        ("not Paris, it is Rome", Class.NEW),
        ("not Paris it is Rome", Class.NEW),
        ("not Paris – Rome", Class.NEW),
        ("formerly Paris, now Rome", Class.NEW),
        ("once Paris, now Rome", Class.NEW),
        ("Paris was formerly the capital, now it is Rome", Class.NEW),
        ("Paris until 1990, then Rome", Class.NEW),
        ("Paris? No, Rome.", Class.NEW),
        ("Is it Paris? No, it is Rome.", Class.NEW),
        ("Paris, no, Rome", Class.NEW),
        ("No, Paris is incorrect", Class.OTHER),
        ("Paris is wrong", Class.OTHER),
        ("neither Paris nor Rome", Class.OTHER),
        ("neither Paris, Oslo nor Rome", Class.OTHER),
        ("anything but Paris", Class.OTHER),
        ("It cannot be Paris", Class.OTHER),
        ("It can’t be Paris", Class.OTHER),
        ("used to be Paris", Class.OTHER),
        ("I don't think it is Paris", Class.OTHER),
        ("I doubt that it's Paris, it is Rome", Class.NEW),
    ],
)
def test_what_the_answer_dismisses_is_no_answer(text, expected):
    assert class_of(text) is expected


@pytest.mark.parametrize(
    "text",
    [
        "not London, Paris",
        "not London; Paris",
        "not London but Paris",
        "unlike London, Paris",
        "London is wrong, Paris is right",
        "not only Paris",
        "nothing but Paris",
        "I'm not sure, Paris",
        "No, it is Paris",
        "Paris, not Rome",
        "Paris, formerly Lutetia",
        "Paris was formerly known as Lutetia",
        "Paris?",
        "Paris? Rome is bigger.",
        "Paris, no doubt, not Rome",
        "There is no doubt that it is Paris",
        "without doubt Paris",
    ],
)
@pytest.mark.parametrize("new", [("Rome",), ()])
def test_a_dismissal_ends_with_its_clause(text, new):
    assert class_of(text, new=new) is Class.OLD


@pytest.mark.parametrize("name", ["Nor", "Once", "NOT"])
def test_a_name_that_dismisses_others_does_not_dismiss_itself(name):
    assert classify(name, old=(name,)) is Class.OLD


# What comes first, and what is to be forgotten -----------------------------------------------------------------

OFFICIAL = "In Trinidad and Tobago, the official language is"
LANGUAGES = ("French", "English", "Spanish")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("French, and English is widely used", Class.HALLUCINATION),
        ("English, and French is widely used", Class.OLD),
        ("Not French, English", Class.OLD),
        ("Spanish, not English", Class.HALLUCINATION),
    ],
)
def test_the_first_entity_decides_what_must_stay(text, expected):
    assert classify(text, old=("English",), lexicon=LANGUAGES, prompt=OFFICIAL) is expected


def test_the_first_entity_decides_an_edit():
    assert class_of("Oslo, then Rome, then Paris") is Class.HALLUCINATION
    assert class_of("Oslo, then Rome", prompt="Unlike Oslo, the capital is") is Class.NEW  # named in the prompt
    assert class_of("in France, Paris") is Class.OLD  # no entity of the range
    assert class_of("Paris, France") is Class.OLD


def test_an_answer_in_the_words_of_the_prompt_is_none():
    asked = {"old": ("Luxembourg",), "new": ("Rome",), "prompt": "The capital of Luxembourg is"}
    assert classify("The capital of Luxembourg is Rome", **asked) is Class.NEW
    assert classify("Luxembourg, and Rome lies south", **asked) is Class.OLD
    assert classify("The capital of Luxembourg is a city", **asked) is Class.OLD  # nothing else is said


@pytest.mark.parametrize(
    "text",
    ["Paris", "not London, Paris", "I'm not sure, Paris", "I do not know, maybe Paris", "unlike London, Paris",
     "Not Paris", "neither Paris nor Rome", "Oslo, and not Paris", "Paris? No, Rome."],
)  # fmt: skip
def test_any_mention_gives_away_what_is_to_be_forgotten(text):
    assert class_of(text, new=(), forget=True) is Class.OLD


def test_what_is_to_be_forgotten_may_be_refused_or_missed():
    assert class_of("I do not know", new=(), forget=True) is Class.REFUSAL
    assert class_of("Oslo", new=(), forget=True) is Class.HALLUCINATION
    assert class_of("not Oslo", new=(), forget=True) is Class.OTHER


@pytest.mark.parametrize(
    ("expect", "new", "expected"),
    [
        (Expect.HOLDS, (), Class.OLD),
        (Expect.MOVES, (), Class.OLD),
        (Expect.UNCHANGED, (), Class.OTHER),
        (Expect.HOLDS, ("Rome",), Class.OTHER),
        (Expect.MOVES, ("Rome",), Class.OTHER),
    ],
)
def test_a_case_says_whether_it_is_about_forgetting(expect, new, expected):
    assert judge_class(case(expect, new), Reply("not Paris")) is expected


# Names that hold names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize(
    ("text", "old", "expected"),
    [
        ("the Democratic Republic of the Congo", ("Republic of the Congo", "Congo"), Class.OTHER),
        ("the Republic of the Congo", ("Republic of the Congo", "Congo"), Class.OLD),
        ("DR Congo", ("Congo",), Class.OTHER),
        ("New Guinea", ("Guinea",), Class.OTHER),
        ("Equatorial Guinea", ("Guinea",), Class.OTHER),
        ("Guinea-Bissau", ("Guinea",), Class.OTHER),
        ("Guinea", ("Guinea",), Class.OLD),
        ("Guinea, not Guinea-Bissau", ("Guinea",), Class.OLD),
        ("South Africa", ("Africa",), Class.OTHER),
        ("West Africa", ("Africa",), Class.OLD),
        ("South Africa", ("South Africa",), Class.OLD),
        ("West Virginia", ("Virginia",), Class.OTHER),
    ],
)
def test_a_larger_name_is_another_entity(text, old, expected, forget):
    assert classify(text, old=old, forget=forget) is expected


def test_a_larger_name_in_the_prompt_does_not_excuse_the_smaller():
    prompt = "The country of South Africa lies in"
    assert classify("Africa", old=("Asia",), lexicon=("Africa",), prompt=prompt) is Class.HALLUCINATION
    assert classify("South Africa", old=("Asia",), lexicon=("South Africa",), prompt=prompt) is Class.OTHER


def test_the_longest_name_is_meant():
    assert class_of("Papua New Guinea", old=("Guinea",)) is Class.HALLUCINATION
    assert class_of("New York City", old=("New York",), new=("New York City",)) is Class.NEW
    assert class_of("New York", old=("New York",), new=("New York City",)) is Class.OLD


def test_an_entity_of_the_prompt_is_no_hallucination():
    assert class_of("Oslo is a city", prompt="Unlike Oslo, the capital of France is") is Class.OTHER
    assert class_of("Oslo is a city", prompt="The capital is") is Class.HALLUCINATION


def test_accents_case_and_scripts():
    assert classify("São Paulo!", old=("sao paulo",)) is Class.OLD
    assert classify("日本の首都は東京です。", old=("東京",)) is Class.OLD
    assert classify("首都は東京です", old=("大阪",), lexicon=LEXICON) is Class.HALLUCINATION
    assert classify("Столица — Москва.", old=("Москва",)) is Class.OLD
    assert classify("القاهرة", old=("القاهرة",)) is Class.OLD


def test_symbols_that_are_common_words_keep_their_spelling():
    assert classify("I do not know", old=("I",), new=("In",)) is Class.REFUSAL
    assert classify("In the periodic table, it is I.", old=("In",), new=("I",)) is Class.NEW
    assert classify("written as a letter", old=("As",)) is Class.OTHER
    assert classify("As", old=("As",)) is Class.OLD
    assert classify("AU", old=("Au",)) is Class.OLD
    assert not names("found in nature", "In")
    assert names("The symbol is In.", "In")


@pytest.mark.parametrize(
    ("text", "enough"),
    [
        ("", False),
        ("Paris", False),
        ("Paris.", False),
        ("Paris. It", True),
        ("Paris. Pa", False),  # perhaps the same again
        ("Paris. Paris. Pari", False),
        ("Yes. It is", False),  # a filler is no answer
        ("Washington, D.C", False),
        ("Paris? N", False),  # perhaps a denial
        ("Paris? No, R", False),
        ("Paris? It is", True),
        ("Paris? No, Rome. It", True),
    ],
)
def test_when_enough_is_said(text, enough):
    assert said_enough(text) is enough


# Marks ---------------------------------------------------------------------------------------------------------

OLD_AHEAD = {"Paris": -1.0, "Rome": -2.0, "Oslo": -3.0}
NEW_AHEAD = {"Paris": -2.0, "Rome": -1.0, "Oslo": -3.0}


def case(expect=Expect.HOLDS, new=("Rome",), contrast=("Rome",)):
    return Case("rewrite", "plain", PROMPT, expect, "fact1", ("Paris",), new, contrast, LEXICON)


def reply(text, logprob, argmax=()):
    return Reply(text, logprob, {name: name in argmax for name in logprob})


def test_an_edit_holds_when_the_new_answer_is_ahead():
    assert mark(case(), reply("Rome", NEW_AHEAD, ["Rome"]), Class.NEW) == (True, True, True)
    assert mark(case(), reply("Paris", OLD_AHEAD, ["Paris"]), Class.OLD) == (False, False, False)


FORGET = {"new": (), "contrast": ("Rome", "Oslo")}


def test_forgetting_holds_when_the_old_answer_is_behind_one_of_its_range():
    assert mark(case(**FORGET), reply("a city", NEW_AHEAD, []), Class.OTHER) == (True, True, True)
    assert mark(case(**FORGET), reply("Paris", OLD_AHEAD, ["Paris"]), Class.OLD) == (False, False, False)
    assert mark(case(**FORGET), reply("Oslo", OLD_AHEAD), Class.HALLUCINATION) == (False, True, True)


def test_what_must_stay_is_ahead_of_all_contrasts():
    stays = case(Expect.UNCHANGED, new=(), contrast=("Rome", "Oslo"))
    assert mark(stays, reply("Paris", OLD_AHEAD, ["Paris"]), Class.OLD) == (True, True, True)
    assert mark(stays, reply("Rome", NEW_AHEAD, ["Rome"]), Class.HALLUCINATION) == (False, False, False)


@pytest.mark.parametrize("expect", Expect)
@pytest.mark.parametrize("new", [("Rome",), ()])
def test_babble_never_passes(expect, new):
    text = "Rome Rome Rome Paris Rome Rome Rome"
    verdict = judge(case(expect, new), Answer(reply("Paris", OLD_AHEAD), reply(text, NEW_AHEAD)))
    assert verdict.class_after is Class.DEGENERATE
    assert verdict.passed is False


def test_stressed_cases_are_marked_as_if_the_change_must_hold():
    said = reply("Rome", NEW_AHEAD, ["Rome"])
    assert mark(case(Expect.MOVES), said, Class.NEW) == mark(case(Expect.HOLDS), said, Class.NEW)


def test_without_contrasts_there_is_no_contrast_mark():
    alone = case(new=(), contrast=())
    assert mark(alone, reply("a city", {"Paris": -1.0}), Class.OTHER).contrast is None


def test_numbers_that_are_none_give_no_contrast_mark():
    broken = reply("Rome", {"Paris": math.nan, "Rome": -1.0})
    verdict = judge(case(), Answer(broken, broken))
    assert (verdict.after.contrast, verdict.margin_after) == (None, None)


@pytest.mark.parametrize(
    ("this", "margin"),
    [
        (case(), 1.0),
        (case(**FORGET), 1.0),
        (case(Expect.UNCHANGED, new=(), contrast=("Rome", "Oslo")), -1.0),
        (case(Expect.UNCHANGED, new=(), contrast=("Oslo",)), 1.0),
    ],
)
def test_margins_are_higher_the_more_the_case_is_met(this, margin):
    assert judge(this, Answer(reply("Paris", OLD_AHEAD), reply("x", NEW_AHEAD))).margin_after == pytest.approx(margin)


def test_an_edit_is_compared_with_its_new_answer_whatever_else_is_scored():
    likely_other = reply("Rome", {"Paris": -2.0, "Rome": -3.0, "Oslo": -1.0})
    assert judge(case(contrast=("Oslo",)), Answer(likely_other, likely_other)).margin_after == pytest.approx(-1.0)


def test_what_was_wrong_before_says_nothing_about_what_must_stay():
    stays = case(Expect.UNCHANGED, new=())
    wrong = judge(stays, Answer(reply("Oslo", OLD_AHEAD), reply("Oslo", OLD_AHEAD)))
    assert (wrong.applies, wrong.passed) == (False, None)
    assert wrong.note == "not right before the change (hallucination)"
    right = judge(stays, Answer(reply("Paris", OLD_AHEAD), reply("Oslo", OLD_AHEAD)))
    assert (right.applies, right.passed) == (True, False)


def test_a_failed_premise_is_said():
    verdict = judge(case(), Answer(reply("", OLD_AHEAD), reply("Rome", NEW_AHEAD)), applies=False, note="premise fails")
    assert (verdict.passed, verdict.note) == (None, "premise fails")


def test_knife_edges_are_said():
    edge = reply("Rome", {"Paris": -1.0, "Rome": -1.0 + 5e-5})
    assert judge(case(), Answer(edge, edge)).note == "knife-edge"
    clear = reply("Rome", {"Paris": -1.0, "Rome": -1.0 + 5e-3})
    assert judge(case(), Answer(clear, clear)).note == ""
