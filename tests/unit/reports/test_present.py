"""Hostile text made visible."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from reports.present import EMPTY, clean, encodable, present

ANY_TEXT = st.text(st.characters())  # surrogates too
NASTY = st.text(st.sampled_from("a\n\t\r\x00\x1b\x7f\x85\u200b\u202e\u2066\ufeff\u2028\ud800\u0301 |`<"))


@given(ANY_TEXT | NASTY)
def test_clean_text_holds_nothing_invisible_and_one_line(text: str) -> None:
    shown = clean(text)
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert shown.splitlines() in ([], [shown])


@given(st.text(st.characters(exclude_categories=("C", "M", "Zl", "Zp"))))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert clean(text) == text


@given(ANY_TEXT | NASTY, st.integers(1, 50))
def test_what_is_presented_is_never_empty_nor_long(text: str, limit: int) -> None:
    shown = present(text, limit)
    assert shown.strip()
    assert len(shown) <= max(limit + 1, len(EMPTY))
    assert shown.endswith("…") or len(text) <= limit


@given(ANY_TEXT | NASTY)
def test_encodable_text_is_utf8_and_otherwise_the_same(text: str) -> None:
    stored = encodable(text)
    stored.encode("utf-8")
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert stored == text


def test_signs_and_escapes() -> None:
    assert clean("a\nb\tc") == "a⏎b⇥c"
    assert clean("\x00\x1b\u202e\ud800\U000e0001") == r"\x00\x1b\u202e\ud800\U000e0001"
    assert clean("é" + "\u0301" * 9).count(r"\u0301") == 5
    assert (present(""), present("  ")) == (EMPTY, "␣␣")
