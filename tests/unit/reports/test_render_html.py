"""The HTML report: hostile text stays text, nothing is fetched, and it reads without colour or scripts."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import count, pairwise
from typing import Any

import audits
import pytest

from reports.document import Chart, Document, Exchange, Exchanges, Heading, Quote, Section, Table
from reports.present import clean, present
from reports.record import Audit
from reports.render import RENDERERS
from reports.render._svg import drawn
from reports.render.html import _split_number
from reports.sections import build
from reports.sections._charts import Point, intervals
from reports.sections.examples import LIMIT
from reports.wording import told

ELEMENTS = set(
    [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "a",
        "header",
        "div",
        "p",
        "time",
        "h1",
        "h2",
        "h3",
        "h4",
        "nav",
        "ul",
        "li",
        "main",
        "section",
        "footer",
        "script",
        "span",
        "strong",
        "details",
        "summary",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "small",
        "bdi",
        "figure",
        "figcaption",
        "blockquote",
        "pre",
        "code",
        "article",
        "dl",
        "dt",
        "dd",
        "svg",
        "desc",
        "g",
        "path",
        "line",
        "rect",
        "text",
        "tspan",
    ]
)
ATTRIBUTES = set(
    [
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "id",
        "href",
        "aria-labelledby",
        "aria-hidden",
        "aria-label",
        "tabindex",
        "role",
        "scope",
        "dir",
        "rowspan",
        "data-choices",
        "data-column",
    ]
)
SVG_ATTRIBUTES = set(
    [
        "viewbox",
        "width",
        "height",
        "transform",
        "d",
        "x",
        "y",
        "x1",
        "x2",
        "y1",
        "y2",
        "stroke-width",
        "stroke-dasharray",
        "stroke-miterlimit",
        "opacity",
        "fill-opacity",
        "stroke-opacity",
        "text-anchor",
        "font-size",
        "font-weight",
        "role",
        "aria-labelledby",
        "class",
        "id",
    ]
)
VOID = {"meta"}


class Page(HTMLParser):
    """Elements, attributes and texts of a page; refuses one whose tags do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data[:80]!r}")

    def inside(self, *tags: str) -> str:
        return "\n".join(text for tag, text in self.texts if tag in tags)

    @property
    def words(self) -> str:
        return "".join(text for tag, text in self.texts if tag not in ("style", "script"))


def rendered(audit: Audit) -> str:
    return RENDERERS["html"](build(audit), audit)


@pytest.fixture(scope="module")
def hostile() -> str:
    return rendered(audits.hostile())


@pytest.fixture(scope="module")
def realistic() -> str:
    return rendered(audits.realistic())


@pytest.fixture(params=["hostile", "realistic"])
def source(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


def test_each_ruling_names_its_columns_for_screens_too_narrow_for_a_heading(realistic):
    named = [attributes["data-column"] for tag, attributes in Page(realistic).elements if "data-column" in attributes]
    rulings = len(audits.realistic().claims)
    assert named == ["Demand", "Measured"] * rulings
    assert "attr(data-column)" in realistic


def test_only_known_elements_and_attributes(source: str) -> None:
    in_svg = {"svg", "title", "desc", "g", "path", "line", "rect", "text", "tspan"}
    for tag, attributes in Page(source).elements:
        assert tag in ELEMENTS, tag
        assert set(attributes) <= ATTRIBUTES | (SVG_ATTRIBUTES if tag in in_svg else set()), (tag, attributes)


def test_nothing_can_be_fetched_or_run(source: str) -> None:
    page = Page(source)
    assert [attributes for tag, attributes in page.elements if "src" in attributes or "style" in attributes] == []
    assert all((a.get("href") or "#").startswith("#") for _, a in page.elements)
    assert "url(" not in page.inside("style") and "@import" not in page.inside("style")
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_the_policy_allows_this_style_and_this_script_and_nothing_else(source: str) -> None:
    page = Page(source)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy") or ""
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.inside(kind).encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy and "http" not in policy


def test_hostile_answers_stand_there_as_text(hostile: str) -> None:
    quoted = Page(hostile).inside("bdi")
    for text in audits.HOSTILE:
        assert present(text, 160) in quoted, text[:60]
    words = Page(hostile).words
    for text in (audits.HOSTILE[0], audits.HOSTILE[1], audits.HOSTILE[2]):
        assert text in words  # operators and the model have these names
    assert "49" not in re.sub(r"\d*\.\d+", "", Page(hostile).inside("h1", "bdi"))  # 7*7 was not worked out


def test_nothing_invisible_gets_into_the_page(hostile: str) -> None:
    hidden = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
    assert not hidden.search(hostile)
    hostile.encode("utf-8")


def test_every_claim_and_figure_is_in_words(realistic: str) -> None:
    audit, words = audits.realistic(), Page(realistic).words
    for claim in audit.claims:
        assert told(claim.estimate) in words
    for figure in audit.figures:
        if figure.row.variant is None:
            assert told(figure.row.after) in words


def test_a_colour_never_stands_alone(realistic: str) -> None:
    badges = re.findall(r'<span class="badge (\w+)">(.*?)</span>', realistic)
    assert len(badges) > 100
    said = {
        "good": {"holds", "as demanded"},
        "bad": {"does not hold", "breaks"},
        "open": {"not enough evidence", "never took"},
    }
    rest = {"control", "not counted", "premise passed", "premise failed"}
    assert all(text in said.get(tone, rest) for tone, text in badges)


def test_structure_for_readers_of_all_kinds(realistic: str) -> None:
    page = Page(realistic)
    tags = [tag for tag, _ in page.elements]
    assert all(tags.count(tag) == 1 for tag in ("html", "header", "nav", "main", "footer", "h1"))
    assert tags.count("caption") == tags.count("table") > 10
    heads = [a for tag, a in page.elements if tag == "th"]
    assert all(a.get("scope") in ("col", "row", "rowgroup") for a in heads)
    assert dict(page.elements[0][1])["lang"] == "en"
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    linked = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert {name for names in linked for name in (names or "").split()} <= set(ids)
    assert all(f"#{name}" in realistic for name in ("main", "summary", "examples"))


def test_headings_do_not_leap(source: str) -> None:
    levels = [int(tag[1]) for tag, _ in Page(source).elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_a_card_stands_one_level_below_the_heading_over_it() -> None:
    cards = Exchanges((Exchange("t", "", "p", "b", "a"),))
    for blocks, level in (((cards,), 3), ((Heading("h"), cards), 4)):
        source = RENDERERS["html"](Document("t", (Section("x", "s", 0, blocks),)), audits.empty())
        assert f"<h{level}>t</h{level}>" in source


def test_landmarks_differ_in_name(realistic: str) -> None:
    """A chart and its table share a title: neither is a landmark, and what is one is named once."""
    assert not [a for _, a in Page(realistic).elements if a.get("role") == "region"]
    named = [a.get("aria-labelledby") for tag, a in Page(realistic).elements if tag == "section"]
    assert len(set(named)) == len(named) > 5


def test_no_table_has_a_single_column(realistic: str) -> None:
    heads = re.findall(r"<thead>(.*?)</thead>", realistic)
    assert heads and all(head.count("<th ") > 1 for head in heads)


def test_each_chart_is_drawn_for_wide_and_for_narrow_screens(realistic: str) -> None:
    drawings = [a for tag, a in Page(realistic).elements if tag == "svg"]
    wide = [a for a in drawings if a["class"] == "on-wide"]
    narrow = [a for a in drawings if a["class"] == "on-narrow"]
    assert len(wide) == len(narrow) == len(drawings) / 2 > 5
    assert all(float(a["width"] or 0) <= 360 for a in narrow)
    style = Page(realistic).inside("style")
    assert ".chart svg.on-narrow { display: none;" in style
    phone = style[style.index("@media (max-width: 600px)") : style.index("@media print")]
    assert ".chart svg.on-wide { display: none; } .chart svg.on-narrow { display: block; }" in phone


def test_paper_shows_what_is_folded_away_in_light_colours(realistic: str) -> None:
    style, script = Page(realistic).inside("style"), Page(realistic).inside("script")
    printed = style[style.index("@media print") :]
    assert "details::details-content { content-visibility: visible; display: block; }" in printed
    assert "details.open = true" in script and "beforeprint" in script  # browsers without that selector
    assert "@media screen and (prefers-color-scheme: dark)" in style
    assert style.count("prefers-color-scheme") == 1


def test_rows_have_as_many_cells_as_columns(source: str) -> None:
    """Counting the cells that a first cell stands for over several rows."""
    for table in re.findall(r"<table>.*?</table>", source, re.S):
        columns, left = len(re.findall(r"<th scope=\"col\"", table)), 0
        for row in re.findall(r"<tr>(.*?)</tr>", table.partition("</thead>")[2], re.S):
            spans = [int(n) for n in re.findall(r'rowspan="(\d+)"', row)]
            cells = len(re.findall(r"<t[hd][ >]", row)) + (left > 0)
            left = spans[0] - 1 if spans else max(0, left - 1)
            assert cells == columns


def test_a_page_with_as_many_cases_as_it_may_hold_stays_below_two_megabytes() -> None:
    audit = audits.realistic(facts=37)
    assert len(audit.judged) > LIMIT > 2000  # the default audit judges some 1,430 cases on 120 premises
    assert len(rendered(audit).encode()) < 2_000_000


def test_rendering_is_repeatable() -> None:
    assert rendered(audits.unmeasured()) == rendered(audits.unmeasured())


@pytest.mark.parametrize("make", [audits.empty, audits.unmeasured])
def test_odd_audits_render(make: Any) -> None:
    page = Page(rendered(make()))
    assert not re.search(r"\b(nan|None|inf)\b", page.words)


def test_blocks_that_no_section_uses_yet() -> None:
    blocks = (Heading("<h>", 4), Quote("model", "</blockquote>\u202e", "bad"))
    page = Page(RENDERERS["html"](Document("<t>", (Section("x", "<s>", 0, blocks),)), audits.empty()))
    assert page.inside("bdi") == r"</blockquote>\u202e"
    with pytest.raises(TypeError, match="cannot hold a str"):
        RENDERERS["html"](Document("t", (Section("x", "s", 0, ("no block",)),)), audits.empty())  # type: ignore[arg-type]


def test_labels_of_charts_are_text_and_colours_are_the_themes() -> None:
    estimate = audits.realistic().claims[0].estimate
    points = [Point(text, text, side, estimate) for text in audits.HOSTILE[:8] for side in ("before", "after")]
    chart = intervals("</title><script>", points, "share", "d", Table("t", ("a",), ()))
    assert isinstance(chart, Chart)
    page = Page(f"<div>{''.join(drawn(chart, count(1)))}</div>")
    assert {tag for tag, _ in page.elements} <= {
        "div",
        "svg",
        "title",
        "desc",
        "g",
        "path",
        "line",
        "rect",
        "text",
        "tspan",
    }
    assert not [a for _, a in page.elements if "fill" in a or "stroke" in a or "style" in a]
    assert clean(audits.HOSTILE[0]) in page.inside("text")
    classes = {name for _, a in page.elements for name in (a.get("class") or "").split()}
    assert {"fill-ink", "stroke-series0", "fill-series1", "stroke-muted", "fill-paper"} <= classes


def test_points_without_an_interval_have_no_line() -> None:
    bare = audits.unmeasured().claims[0].estimate
    chart = intervals("t", [Point("r", "s", "after", bare)], "share", "d", Table("t", ("a",), ()))
    assert chart is not None
    assert "stroke-series0" not in re.sub(r"<path.*?>", "", "".join(drawn(chart, count(1))))
    nothing = audits.unmeasured().claims[1].estimate
    assert intervals("t", [Point("r", "s", "after", nothing)], "share", "d", Table("t", ("a",), ())) is None


def test_what_stands_below_a_number_begins_with_a_word():
    assert _split_number("0.94 [0.79, 0.98], 16 facts") == ("0.94", " [0.79, 0.98], 16 facts")
    assert _split_number("0.07, no interval (n = 1, 102 cases)") == ("0.07,", " no interval (n = 1, 102 cases)")
    assert _split_number("not measured") == ("not measured", "")
