"""The Markdown report: tables keep their shape, and hostile text means nothing."""

from __future__ import annotations

import re
from typing import Any

import audits
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.document import Code, Document, Heading, Quote, Section
from reports.record import Audit
from reports.render import RENDERERS
from reports.render.markdown import escape, written
from reports.sections import build
from reports.wording import told

CELLS = re.compile(r"(?<!\\)(?:\\\\)*\|")  # a bar that is not escaped


def rendered(audit: Audit) -> str:
    return RENDERERS["markdown"](build(audit), audit)


def tables(source: str) -> list[list[str]]:
    blocks = (block.split("\n") for block in re.split(r"\n\n+", source))
    return [lines for lines in blocks if lines[0].startswith("|")]


@pytest.mark.parametrize("make", [audits.realistic, audits.hostile, audits.unmeasured])
def test_every_row_has_the_cells_of_its_head(make: Any) -> None:
    found = tables(rendered(make()))
    assert found
    for lines in found:
        assert len({len(CELLS.findall(line)) for line in lines}) == 1, lines[0]
        assert set(lines[1]) <= set("|-: ")


def test_hostile_text_means_nothing() -> None:
    source = rendered(audits.hostile())
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", source, flags=re.S | re.M)  # what is fenced is shown as it is
    assert not re.search(r"(?<!\\)<", outside)
    assert not re.search(r"(?<!\\)\]\(", outside)
    assert not re.search(r"https?://", outside)
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", source
    )
    headings = re.findall(r"^#+ .*", outside, re.M)
    assert all(line.startswith(("# ", "## ", "### ")) for line in headings)
    assert len(headings) < 25
    source.encode("utf-8")


@given(st.text(st.sampled_from("ab1.)-+=# |`*_<>[](){}\\~&$!\n\t\x00\u202ew:/")))
def test_escaped_text_is_one_line_and_comes_back(text: str) -> None:
    line = escape(text)
    assert "\n" not in line
    assert not re.search(r"(?<!\\)(?:\\\\)*[|<`*_]", line)
    assert not re.match(r"\s|[-+](\s|$)|#|\d+[.)](\s|$)|--|=|>", line)


def test_intervals_read_as_they_are() -> None:
    assert escape("0.94 [0.79, 0.98], 16 facts") == "0.94 [0.79, 0.98], 16 facts"
    assert escape("-0.50 [-0.65, -0.35], 8 facts") == "-0.50 [-0.65, -0.35], 8 facts"
    assert escape("[0.1, 0.2](x)") == r"\[0.1, 0.2\](x)"


def test_every_claim_is_told() -> None:
    audit = audits.realistic()
    source = rendered(audit)
    assert all(told(claim.estimate) in source for claim in audit.claims)


def test_code_cannot_leave_its_fence() -> None:
    source = written(Code("settings", "a\n````\n# no heading\x1b"))
    assert source.count("`````") == 2 and source.endswith("\n`````") and r"\x1b" in source


def test_long_tables_are_cut_and_say_so() -> None:
    assert "further rows are in cases.parquet and report.html." in rendered(audits.realistic())


def test_other_blocks_and_no_block() -> None:
    assert written(Quote("model", "a|b\n")) == r"> model: a\|b⏎"
    assert written(Heading("#x", 3)) == r"### \#x"
    with pytest.raises(TypeError, match="cannot write a str"):
        RENDERERS["markdown"](Document("t", (Section("x", "s", 0, ("no block",)),)), audits.empty())  # type: ignore[arg-type]


def test_an_empty_audit_renders() -> None:
    assert rendered(audits.empty()).startswith("# Audit of nothing on an unnamed model\n")
