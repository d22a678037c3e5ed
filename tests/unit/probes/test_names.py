"""Which names stand in a text; laws are in tests/property/test_judge_laws.py."""

from __future__ import annotations

import pytest

from probes.names import LARGER_NAMES, find, index_of, name_of, names, words_of


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Par\u200bis", "Paris"),
        ("Pa\u00adris", "Paris"),  # a soft hyphen
        ("the U.S.", "US"),
        ("the US", "U.S."),
        ("the u.s. of old", "US"),  # initials are capital letters
        ("in the U.K., of course", "UK"),
        ("U.S.A.", "USA"),
        ("Washington, D.C.", "Washington DC"),
        ("Washington DC", "Washington, D.C."),
        ("NDjamena", "N'Djamena"),
        ("N’Djamena", "N'Djamena"),
        ("N'Djamena", "NDjamena"),
        ("Xian", "Xi’an"),
        ("Nukuʻalofa", "Nuku'alofa"),
        ("Cote d'Ivoire", "Côte d’Ivoire"),
        ("Paris's streets", "Paris"),
        ("Rome’s", "Rome"),
        ("l'Italie", "Italie"),
        ("dell’Italia", "Italia"),
        ("Saint Louis", "St. Louis"),
        ("St Louis", "Saint Louis"),
        ("Sainte Marie", "Ste. Marie"),
        ("Saint Johns", "St. John's"),
        ("St. John's", "Saint Johns"),
        ("Ft. Worth", "Fort Worth"),
        ("The symbol is Mt", "Mt"),  # alone it stands for nothing longer
        ("日本の首都は東京です。", "東京"),
        ("서울은", "서울"),
        ("Guinea-Bissau", "Guinea"),  # a mention all the same: this is how leaks are found
    ],
)
def test_a_name_is_found_however_it_is_spelt(text, name):
    assert names(text, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Parisian", "Paris"),
        ("U.S.A.", "US"),
        ("about us", "US"),
        ("at 3 a.m.", "Am"),
        ("the Saint", "St"),
        ("I'm here", "I"),
        ("they're here", "Re"),
        ("京東", "東京"),
        ("suis", "is"),
        ("words", ""),
    ],
)
def test_what_is_no_such_name(text, name):
    assert not names(text, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("In the periodic table it stands late", "In"),
        ("I don't know", "I"),
        ("Sorry, I cannot say", "I"),
        ("At room temperature", "At"),
        ("As far as one knows", "As"),
        ("No, it is iodine", "No"),
        ("No comment", "No"),
        ("Iodine. In the table", "In"),
        ("Answer: In the table", "In"),
        ("He is a king", "He"),
        ("found in nature", "In"),
    ],
)
def test_a_common_word_is_no_symbol(text, name):
    assert not names(text, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("In", "In"),
        ("In.", "In"),
        ('"In" and it is a metal', "In"),
        ("I, which is", "I"),
        ('"I**" and it is', "I"),
        ("The symbol is I and that is it", "I"),
        ("As is the symbol of arsenic", "As"),
        ("In and Sn", "In"),
        ("No, with the number 102", "No"),
        ("No.", "No"),
        ("In Indium", "In"),
        ("OR is short for Oregon", "OR"),
        ("OR means Oregon", "OR"),  # capitals are no sentence's beginning
        ("The symbol is In because", "In"),
    ],
)
def test_alone_quoted_or_before_a_stop_it_is_the_symbol(text, name):
    assert names(text, name)


def found(text, *wanted):
    return [match.name.words for match in find(words_of(text), index_of(name_of(name) for name in wanted))]


def test_of_names_that_overlap_the_first_and_longest_is_meant():
    assert found("New York City", "New York", "New York City", "York") == [("new", "york", "city")]
    assert found("Papua New Guinea", "Guinea", "New Guinea") == [("new", "guinea")]


def test_names_within_one_run_of_characters_are_all_found_in_their_order():
    assert found("大阪や東京など", "東京", "大阪") == [("大", "阪"), ("東", "京")]


def test_each_larger_name_holds_another_name():
    assert all(len(name_of(name).words) > 1 for name in LARGER_NAMES)
