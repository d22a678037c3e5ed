"""What counts as a way in which a change breaks, what it is ranked by, and at which level."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import audits
import pytest

from probes.estimate import proportion
from probes.verdict import Answer, Case, Class, Expect, Marks, Reply, Verdict
from reports import sections
from reports.document import Exchanges, Heading, Table, Text
from reports.record import Audit, FactRow, Judged
from reports.sections import build
from reports.sections._verdicts import broke, took, ways, weighed, worst
from reports.sections.examples import section as cases_section
from reports.sections.locality import section as locality_section
from reports.wording import told

FACTS = ("a", "b", "c", "d")
TOOK = {"a": True, "b": True, "c": False, "d": False}
LEAKING = ("a", "c", "d")  # whose old answer comes when they are asked in another way


def verdict(probe: str, fact: str, variant: str, leaks: bool, expect: Expect = Expect.HOLDS) -> Verdict:
    """Of a fact to be forgotten; the prompt is the fact's own where the variant is plain."""
    prompt = f"{fact} is" if variant == "plain" else f"{probe} {variant}: {fact} is"
    case = Case(probe, variant, prompt, expect, fact, ("old",))
    good = Marks(True, True, True)
    after = Marks(not leaks, not leaks, not leaks)
    kinds = Class.OLD, Class.OLD if leaks else Class.OTHER
    return Verdict(case, Answer(Reply("old"), Reply("old" if leaks else "other")), good, after, *kinds)


def audit_of(verdicts: list[Verdict]) -> Audit:
    facts = tuple(FactRow(name, name, "relation", "old", "{} is") for name in FACTS)
    return audits.assembled(facts, tuple(Judged("npo", "unlearn", "joint", each) for each in verdicts))


def asked(probe: str) -> list[Verdict]:
    expect = Expect.MOVES if probe == "keyword_emphasis" else Expect.HOLDS
    return [verdict(probe, fact, f"key:{k}", fact in LEAKING and k == 0, expect) for fact in FACTS for k in range(2)]


def own() -> list[Verdict]:
    return [verdict("rewrite", fact, "plain", not took) for fact, took in TOOK.items()]


@pytest.mark.parametrize("probe", ["keyword_emphasis", "rephrase", "multi_hop"])
def test_what_never_took_breaks_at_its_own_prompt_and_nowhere_else(probe: str) -> None:
    found = {way.probe: way for way in ways(audit_of(own() + asked(probe)))}
    assert set(found) == {"rewrite", probe}
    again, at_own = found[probe], found["rewrite"]
    assert (again.share.value, again.share.n, again.share.groups, again.unknown) == (0.25, 4, 2, 0)
    assert {v.case.group for v in again.broken} == {"a"}
    assert (at_own.share.value, at_own.share.n) == (0.5, 4)
    assert "never took at the fact's own prompt" in at_own.title


@pytest.mark.parametrize("probe", ["keyword_emphasis", "rephrase", "multi_hop"])
def test_where_the_own_prompt_was_not_asked_all_facts_count_and_the_card_says_so(probe: str) -> None:
    audit = audit_of(asked(probe))
    [way] = ways(audit)
    assert (way.share.n, way.share.groups, way.unknown) == (8, 4, 4) and not took(audit)
    _, note, card = shown(audit)
    assert "it is not known whether the change took at their own prompt" in card
    assert "was not asked, so all facts count" in note
    some = audit_of([each for each in own() if each.case.group == "b"] + asked(probe))
    assert "for 3 of them it is not known" in "".join(shown(some))


def test_what_was_to_stay_counts_whether_the_change_took_or_not() -> None:
    stay = [dataclasses.replace(verdict("neighborhood", fact, "x", True, Expect.UNCHANGED), after=Marks(None, None, False))
            for fact in FACTS]  # fmt: skip
    found = {way.probe: way for way in ways(audit_of(own() + stay))}
    assert found["neighborhood"].share.groups == 4


def test_the_plain_prompt_beside_stressed_ones_is_no_stress() -> None:
    plain = [verdict("keyword_emphasis", fact, "plain", True, Expect.MOVES) for fact in FACTS]
    assert not ways(audit_of(plain))
    found = {way.probe: way.share.n for way in ways(audit_of(own() + plain + asked("keyword_emphasis")))}
    assert found == {"rewrite": 4, "keyword_emphasis": 4}  # nor does it hide the same prompt of the other probe


def test_the_card_of_key_words_tells_what_random_words_do_on_the_same_facts() -> None:
    controls = [
        verdict("keyword_emphasis", fact, f"control:random_words:{k}", fact != "b", Expect.MOVES)
        for fact in FACTS
        for k in range(2)
    ]
    template = [verdict("keyword_emphasis", fact, "control:template_only:0", True, Expect.MOVES) for fact in FACTS]
    audit = audit_of(own() + asked("keyword_emphasis") + controls + template)
    way = next(way for way in ways(audit) if way.probe == "keyword_emphasis")
    assert way.control == proportion([1, 1, 0, 0], ["a", "a", "b", "b"])
    text = " ".join(shown(audit))
    assert f"With random words instead: {told(way.control).rpartition(', 4 cases')[0]}, which is no less." in text
    assert "no less" not in " ".join(shown(audit_of(own() + asked("keyword_emphasis") + [
        dataclasses.replace(each, class_after=Class.OTHER) for each in controls])))  # fmt: skip
    assert all(way.control is None for way in ways(audit) if way.probe != "keyword_emphasis")


def shown(audit: Audit) -> list[str]:
    """The heading, the note and the texts of the cards of the worst ways."""
    blocks = next(section for section in build(audit).sections if section.id == "summary").blocks
    place = next(i for i, block in enumerate(blocks) if isinstance(block, Heading))
    heading, note, cards = blocks[place : place + 3]
    assert isinstance(heading, Heading) and isinstance(note, Text) and isinstance(cards, Exchanges)
    return [heading.text, note.text, " ".join(item.text for item in cards.items)]


def test_the_worst_are_those_of_each_kind_of_question_and_the_heading_says_whether() -> None:
    audit = audits.realistic()
    chosen, ranked = worst(audit), ways(audit)
    assert chosen[0] == ranked[0] and chosen == sorted(chosen, key=ranked.index)
    best = {probe: next(way for way in ranked if way.probe == probe) for probe in {way.probe for way in ranked}}
    assert chosen == sorted(best.values(), key=ranked.index)[:3]
    assert "each by another kind of question" in shown(audit)[0]
    few = dataclasses.replace(
        audit, judged=tuple(i for i in audit.judged if i.verdict.case.probe in ("rewrite", "rephrase"))
    )
    assert len(worst(few)) == 3
    assert shown(few)[0] == "The three worst ways it breaks"


def test_the_table_of_cases_says_breaks_where_the_ways_count_it() -> None:
    audit = audit_of(own() + asked("rephrase"))
    section = cases_section(audit)
    assert section is not None
    table = next(block for block in section.blocks if isinstance(block, Table))
    said = [row[8] for row in table.rows]
    assert (said.count("breaks"), said.count("never took")) == (sum(len(way.broken) for way in ways(audit)), 2)
    assert sum(bool(broke(item.verdict)) for item, _ in weighed(audit)) == said.count("breaks") + 2
    assert said[:3] == ["breaks"] * 3 and said[3:5] == ["never took"] * 2


# The level --


def at_level(audit: Audit, level: float) -> Audit:
    figures = tuple(
        dataclasses.replace(f, row=dataclasses.replace(f.row, after=dataclasses.replace(f.row.after, level=level)))
        for f in audit.figures
    )
    return dataclasses.replace(audit, figures=figures)


def test_ways_and_damage_have_the_level_of_the_audit() -> None:
    usual = audits.realistic()
    narrow = at_level(usual, 0.8)
    by_key = {(w.operator, w.arm, w.probe): w.share for w in ways(usual)}
    for way in ways(narrow):
        wide = by_key[way.operator, way.arm, way.probe]
        assert way.share.level == 0.8 and (way.control is None or way.control.level == 0.8)
        assert way.share.value == wide.value
        assert (way.share.low or 0) > (wide.low or 0) and (way.share.high or 1) < (wide.high or 1)
    assert damage(narrow) != damage(usual)
    stay = [i.verdict for i in usual.judged if (i.arm, i.verdict.case.probe) == ("joint", "neighborhood")]
    right = [v for v in stay if v.before.generation]
    expected = proportion([float(not v.after.generation) for v in right], [v.case.group for v in right], 0.8)
    assert told(expected) in damage(narrow)


def damage(audit: Audit) -> list[str]:
    section = locality_section(audit)
    assert section is not None
    table = next(
        b for b in section.blocks if isinstance(b, Table) and b.caption == "What was right and is not any more"
    )
    return [row[4] for row in table.rows]


LEAST = {"proportion": 3, "mean": 3, "bootstrap": 3, "paired_difference": 4, "groups_needed": 2}  # arguments to level


def test_no_estimate_of_the_reports_is_at_a_level_of_its_own() -> None:
    """Whoever writes a section and forgets the level would tell a 95 % interval as one of another level."""
    calls = [
        (path, node, LEAST[node.func.id])
        for path in Path(sections.__path__[0]).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LEAST
    ]
    assert len(calls) >= 5
    for path, node, least in calls:
        named = any(word.arg == "level" for word in node.keywords)
        assert named or len(node.args) >= least, f"{path.name}, line {node.lineno}: no level"
