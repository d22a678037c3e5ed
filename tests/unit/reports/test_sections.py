"""What the sections say of an audit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import audits
import pytest

from probes.estimate import Ruling
from probes.verdict import Answer as Replies
from probes.verdict import Case, Class, Expect, Marks, Reply, Verdict
from reports.document import Banner, Bullets, Cards, Chart, Details, Document, Exchanges, Section, Table, Text
from reports.record import Audit
from reports.sections import SECTIONS, build
from reports.sections._verdicts import Way, broke, examples, telling, ways, weighed, worst
from reports.sections.examples import LIMIT
from reports.wording import arm_title, told

SPEAK = {"summary", "efficacy", "rephrase", "emphasis", "multi_hop", "locality", "popularity", "forgetting", "examples",
         "limits", "provenance"}  # fmt: skip


@pytest.fixture(scope="module")
def audit() -> Audit:
    return audits.realistic()


@pytest.fixture(scope="module")
def document(audit: Audit) -> Document:
    return build(audit)


def section_of(document: Document, name: str) -> Section:
    return next(section for section in document.sections if section.id == name)


def blocks_of(blocks: tuple[Any, ...]) -> Iterator[Any]:
    """All blocks, those folded away and behind charts too."""
    for block in blocks:
        yield block
        if isinstance(block, Details):
            yield from blocks_of(block.blocks)
        if isinstance(block, Chart) and block.table is not None:
            yield block.table


def texts_of(section: Section) -> str:
    found = []
    for block in blocks_of(section.blocks):
        found += [block.text] if isinstance(block, Text | Banner) else []
        found += block.items if isinstance(block, Bullets) else []
        found += [cell for row in block.rows for cell in row] if isinstance(block, Table) else []
    return "\n".join(found)


@pytest.mark.parametrize("name", SECTIONS.names())
@pytest.mark.parametrize("make", [audits.realistic, audits.empty, audits.unmeasured, audits.hostile])
def test_a_section_bears_its_name_or_says_nothing(name: str, make: Any) -> None:
    section = SECTIONS[name](make())
    assert section is None or (section.id == name and section.title and section.blocks)


def test_sections_stand_in_the_order_they_ask_for_and_none_of_ours_is_silent(document: Document) -> None:
    orders = [section.order for section in document.sections]
    assert orders == sorted(orders)
    assert {section.id for section in document.sections} >= SPEAK


def test_the_summary_rules_as_the_audit_does_and_tells_every_claim(audit: Audit, document: Document) -> None:
    summary = section_of(document, "summary")
    banner = next(block for block in summary.blocks if isinstance(block, Banner))
    assert audit.ruling() is Ruling.FAILS
    assert (banner.verdict, banner.tone) == ("It does not hold", "bad")
    table = next(block for block in summary.blocks if isinstance(block, Table))
    assert sorted(row[4] for row in table.rows) == sorted(told(claim.estimate) for claim in audit.claims)
    cards = next(block for block in summary.blocks if isinstance(block, Cards))
    for operator, _, arm in audit.arms():
        own = [claim.ruling for claim in audit.claims if (claim.operator, claim.arm) == (operator, arm)]
        value = next(value for label, value, _ in cards.items if label == arm_title(operator, arm))
        assert value.startswith(f"{own.count(Ruling.HOLDS)} of {len(own)} claims")
        assert f", {own.count(Ruling.UNDECIDED)} undecided" in value
    for row, tone in zip(table.rows, table.tones, strict=True):
        assert row[2].startswith({"good": "holds", "bad": "does not hold", "open": "not enough evidence"}[tone])


def test_the_worst_ways_differ_and_show_a_case_that_breaks(audit: Audit, document: Document) -> None:
    shown = next(block for block in section_of(document, "summary").blocks if isinstance(block, Exchanges))
    chosen = worst(audit)
    assert len(shown.items) == len(chosen) == 3
    assert len({way.probe for way in chosen}) == 3
    assert chosen[0] == ways(audit)[0]
    cases = {(v.case.prompt, v.answer.after.text) for item in audit.judged if broke(v := item.verdict)}
    assert all((item.prompt, item.after) in cases for item in shown.items)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"after": Marks(True, True, False)}, True),
        ({"after": Marks(True, True, None)}, None),
        ({"after": Marks(True, True, False), "applies": False}, None),
        ({"expect": Expect.UNCHANGED, "after": Marks(None, None, False)}, True),
        ({"expect": Expect.UNCHANGED, "before": Marks(None, None, False), "after": Marks(None, None, False)}, None),
        ({"expect": Expect.MOVES, "class_after": Class.OLD}, True),
        ({"expect": Expect.MOVES, "class_after": Class.DEGENERATE, "after": Marks(None, None, False)}, True),
        ({"expect": Expect.MOVES, "class_after": Class.OLD, "variant": "control:random_words:x"}, None),
        ({"expect": Expect.MOVES, "class_after": Class.OLD, "variant": "plain"}, None),
    ],
)
def test_what_breaks(changes: dict[str, Any], expected: bool | None) -> None:
    case = Case("rephrase", changes.pop("variant", "x"), "p", changes.pop("expect", Expect.HOLDS), "g", ("o",))
    verdict = Verdict(case, Replies(Reply("o"), Reply("n")), Marks(True, True, True), Marks(True, True, True), Class.OLD,
                      Class.NEW)  # fmt: skip
    assert broke(dataclasses.replace(verdict, **changes)) is expected


def test_the_summary_says_what_was_changed_before_it_counts(document: Document) -> None:
    assert document.title == "Audit of rome (edit) and npo (unlearn) on SmolLM2-135M-Instruct"
    summary = section_of(document, "summary")
    banner = next(block for block in summary.blocks if isinstance(block, Banner))
    assert banner.lines == (
        "Edited by rome: France, capital: Paris → Rome; Japan, capital: Tokyo → Lima; Peru, capital: Lima → Oslo; "
        "and 5 more facts.",
        "Made to be forgotten by npo: the same 8 facts.",
    )
    kinds = [type(block) for block in summary.blocks]
    assert kinds.index(Cards) < kinds.index(Exchanges) < kinds.index(Table)
    cards = next(block for block in summary.blocks if isinstance(block, Cards))
    assert len(set(cards.notes)) == len(cards.items) == 3
    table = next(block for block in summary.blocks if isinstance(block, Table))
    assert all(hint.endswith("?") for hint in table.hints)
    for item in next(block for block in summary.blocks if isinstance(block, Exchanges)).items:
        assert len(re.findall(r"\d+ (?:cases?|facts?)\b(?! on)", item.text)) == 1  # how many is said once


def broken(prompt: str, before: Class, after: Class = Class.OTHER, margin: float = -1.0) -> Verdict:
    case = Case("multi_hop", "composition", prompt, Expect.HOLDS, "g", ("o",))
    bad = Marks(False, False, False)
    return Verdict(case, Replies(Reply("a"), Reply("b")), bad, bad, before, after, None, margin)


def test_what_the_unchanged_model_knew_is_shown_first_and_no_prompt_twice() -> None:
    verdicts = [broken("1", Class.OTHER, Class.OLD, -9.0), broken("2", Class.OLD, margin=-0.1),
                broken("2", Class.OLD, margin=-3.0), broken("3", Class.OLD, margin=-2.0)]  # fmt: skip
    assert [(v.case.prompt, v.margin_after) for v in telling(verdicts)] == [("2", -3.0), ("3", -2.0), ("1", -9.0)]


def test_ways_that_break_at_the_same_prompt_show_different_ones() -> None:
    share = audits.realistic().claims[0].estimate
    both = (broken("1", Class.OLD, margin=-5.0), broken("2", Class.OLD))
    ways_ = [Way("rome", "edit", arm, "multi_hop", share, both) for arm in ("single", "stacked", "joint")]
    assert [item.prompt for item in examples(ways_, {})] == ["1", "2", "1"]


def test_where_the_unchanged_model_was_wrong_too_the_card_says_so() -> None:
    share = audits.realistic().claims[0].estimate
    way = Way("rome", "edit", "single", "multi_hop", share, (broken("1", Class.OTHER),))
    assert (
        "The unchanged model did not answer this right either; it knew the single steps." in examples([way], {})[0].text
    )
    known = dataclasses.replace(way, broken=(broken("1", Class.OLD),))
    assert "either" not in examples([known], {})[0].text


def test_premises_that_failed_are_counted_with_their_reason(audit: Audit, document: Document) -> None:
    section = section_of(document, "multi_hop")
    out = [i.verdict for i in audit.judged if i.verdict.case.probe == "multi_hop" and not i.verdict.applies]
    tables = {block.caption: block for block in blocks_of(section.blocks) if isinstance(block, Table)}
    assert sum(int(row[5]) for row in tables["Questions and their premises"].rows) == len(out)
    assert tables["Why questions did not apply"].rows == ((out[0].note, str(len(out))),)


def test_damage_counts_only_what_was_right(audit: Audit, document: Document) -> None:
    table = next(b for b in section_of(document, "locality").blocks if isinstance(b, Table))
    right = [i for i in audit.judged if i.verdict.case.expect is Expect.UNCHANGED and i.verdict.before.generation]
    assert sum(int(row[3]) for row in table.rows) == len(right)


def test_limits_keep_to_the_wording_rule(audit: Audit, document: Document) -> None:
    said = texts_of(section_of(document, "limits")).lower()
    assert "erased" not in said and "compliant" not in said
    assert "was still given by" in said  # leaks were found in this one
    assert "11" in said and "the model did not know it" in said and "quantising" in said


def test_where_nothing_leaks_a_bound_is_told() -> None:
    kept = audits.realistic()
    gone = {"class_after": Class.REFUSAL, "after": Marks(True, True, True)}
    silent = tuple(
        dataclasses.replace(item, verdict=dataclasses.replace(item.verdict, **gone)) if item.task == "unlearn" else item
        for item in kept.judged
    )
    said = texts_of(section_of(build(audits.assembled(kept.facts, silent)), "limits"))
    assert "no extraction found; up to 0.35 of such questions might still (95 %) by" in said


def test_the_cases_that_break_come_first_and_the_rest_is_counted(audit: Audit) -> None:
    many = dataclasses.replace(audit, judged=audit.judged * 5)
    section = section_of(build(many), "examples")
    table = next(block for block in section.blocks if isinstance(block, Table))
    assert len(table.rows) == LIMIT < len(many.judged)
    assert list(table.tones) == sorted(table.tones, key=lambda tone: {"bad": 0, "open": 1}.get(tone, 2))
    assert table.tones.count("bad") == sum(bad is True for _, bad in weighed(many))
    left = len(many.judged) + len(many.premises()) - LIMIT
    assert f"{left:,} further rows are left out here" in texts_of(section)


def test_the_same_facts_for_edits_and_forgetting_are_told_apart(document: Document) -> None:
    shown = next(b for b in section_of(document, "multi_hop").blocks if isinstance(b, Exchanges)).items
    by_title = {item.title: item.text for item in shown}
    assert by_title["npo, all facts at once"].startswith("To be forgotten: ")
    assert by_title["rome, all facts stacked"].startswith("Changed: ")


@pytest.mark.parametrize("make", [audits.empty, audits.unmeasured, audits.hostile])
def test_odd_audits_give_a_document(make: Any) -> None:
    document = build(make())
    assert {"summary", "limits", "provenance"} <= {section.id for section in document.sections}
    assert len(document.title) < 500


def test_an_empty_audit_claims_nothing() -> None:
    summary = section_of(build(audits.empty()), "summary")
    assert next(block for block in summary.blocks if isinstance(block, Banner)).verdict == "Not enough evidence"


def test_what_has_no_value_is_not_measured() -> None:
    said = texts_of(section_of(build(audits.unmeasured()), "summary"))
    assert "1.00, no interval (n = 1)" in said and said.count("not measured") == 2
    assert "nan" not in said.lower()


def test_a_claim_that_misses_its_bar_is_not_promised_by_more_facts(audit: Audit) -> None:
    estimate = dataclasses.replace(audit.claims[0].estimate, value=0.6, low=0.42, high=0.76)
    missed = dataclasses.replace(audit.claims[0], ruling=Ruling.UNDECIDED, estimate=estimate, at_least=0.65, needed=80)
    near = dataclasses.replace(missed, estimate=dataclasses.replace(estimate, value=0.7))
    document = build(dataclasses.replace(audit, claims=(missed, near)))
    assert re.findall(r"\d+ facts would do", texts_of(section_of(document, "summary"))) == ["80 facts would do"]
    limits = texts_of(section_of(document, "limits"))
    assert "more facts, and a better share than was measured" in limits and "80 facts, if all pass" in limits
