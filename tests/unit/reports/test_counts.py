"""What is called a question, a case and a premise, alike in every report."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from pathlib import Path

import audits
import pyarrow.parquet as pq
import pytest
from probe_records import RECORDS, old_answer, run, says
from pydantic import TypeAdapter
from rich.console import Console

from probes.metrics import summarise
from probes.verdict import Class
from reports import verdicts
from reports.cases import write_cases
from reports.document import Table
from reports.record import JOURNAL, Audit, Journal, Judged, read_audit
from reports.render import RENDERERS
from reports.sections import build
from reports.sections.multi_hop import section as multi_hop_section
from reports.wording import asked_text, variant_title


@pytest.fixture(scope="module")
def audit() -> Audit:
    return audits.realistic()


def without_repeats(audit: Audit) -> Audit:
    once = {(j.operator, j.arm, j.verdict.case.group, j.verdict.case.prompt): j for j in audit.judged}
    return dataclasses.replace(audit, judged=tuple(once.values()))


def test_a_question_is_a_prompt_about_a_fact_in_an_arm(audit: Audit) -> None:
    once = without_repeats(audit)
    assert audit.questions() == len(once.judged) == once.questions() < len(audit.judged)
    assert asked_text(audit) == f"{len(once.judged)} questions put before and after the change, judged as 564 cases"
    assert asked_text(once) == f"{len(once.judged)} questions put before and after the change"


def test_every_report_counts_them_alike(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    document = build(audit)
    words = asked_text(audit)
    for kind in ("html", "markdown", "json"):
        assert words in RENDERERS[kind](document, audit), kind
    body = json.loads(RENDERERS["json"](document, audit))
    assert body["cases"] == {"number": len(audit.judged), "questions": audit.questions(),
                             "premises": len(audit.premises()), "file": "cases.parquet"}  # fmt: skip
    screen = Console(file=io.StringIO(), width=300)
    monkeypatch.setattr(verdicts, "out", screen)
    monkeypatch.setattr("reports.console.out", screen)
    verdicts.show_verdicts(audit, Path("runs"))
    assert words in screen.file.getvalue()  # type: ignore[attr-defined]


def test_that_one_answer_is_judged_twice_is_said_where_it_is(audit: Audit) -> None:
    again = len(audit.judged) - audit.questions()
    said = f"{again} of {len(audit.judged)} judged cases repeat the prompt of another case"
    assert said in RENDERERS["markdown"](build(audit), audit)
    once = without_repeats(audit)
    assert "judged cases" not in RENDERERS["markdown"](build(once), once)


# Premises --


@pytest.mark.parametrize("key", ["edit", "forget"])
def test_a_question_brings_its_premises_along_passed_and_failed(key: str) -> None:
    cases, _ = run("multi_hop", RECORDS[key], old_answer, old_answer)
    first = next(case.prompt for case in cases if case.base_only)
    wrong = says(lambda case: "somewhere else" if case.prompt == first else case.old[0])
    _, found = run("multi_hop", RECORDS[key], wrong, wrong)
    hops = {hop.question.prompt: hop for hop in RECORDS[key].held_out.hops}
    for verdict in found:
        hop = next(hop for prompt, hop in hops.items() if prompt in verdict.case.prompt)
        assert len(verdict.premises) == len({question.prompt for question in hop.premises})
        assert all(
            premise.case.base_only and premise.passed == (premise.case.prompt != first) for premise in verdict.premises
        )
        assert all(
            premise.reply.text == ("somewhere else" if not premise.passed else premise.case.old[0])
            for premise in verdict.premises
        )
    assert any(not premise.passed for verdict in found for premise in verdict.premises)


def test_no_metric_counts_premises(audit: Audit) -> None:
    for task in ("edit", "unlearn"):
        own = [item.verdict for item in audit.judged if item.task == task]
        assert any(verdict.premises for verdict in own)
        bare = [dataclasses.replace(verdict, premises=()) for verdict in own]
        assert summarise(own, task=task) == summarise(bare, task=task)


def test_premises_are_in_the_record_and_come_back(audit: Audit, tmp_path: Path) -> None:
    Journal(tmp_path / JOURNAL).finish(audit)
    assert read_audit(tmp_path).premises() == audit.premises() != []


def test_each_premise_is_a_row_of_the_cases_without_an_after(audit: Audit, tmp_path: Path) -> None:
    write_cases(audit, tmp_path / "cases.parquet")
    rows = [row for row in pq.read_table(tmp_path / "cases.parquet").to_pylist() if row["expect"] == "premise"]
    keys = {(i.operator, i.arm, p.case.group, p.case.prompt) for i in audit.judged for p in i.verdict.premises}
    assert Counter((r["operator"], r["arm"], r["fact"], r["prompt"]) for r in rows) == Counter(keys)
    assert {row["passed"] for row in rows} == {True, False}
    for row in rows:
        assert row["passed"] == (row["class_before"] == "old") and row["text_before"] and row["applies"] is None
        assert all(value is None for name, value in row.items() if name.endswith("_after"))


def test_premises_stand_in_the_filterable_table(audit: Audit) -> None:
    table = next(
        block for s in build(audit).sections if s.id == "examples" for block in s.blocks if isinstance(block, Table)
    )
    said = Counter(row[8] for row in table.rows)
    passed = sum(premise.passed for _, premise in audit.premises())
    assert (said["premise passed"], said["premise failed"]) == (passed, len(audit.premises()) - passed)
    assert len(table.rows) == len(audit.judged) + len(audit.premises())


def test_questions_are_counted_by_kind(audit: Audit) -> None:
    rows = kinds_of(audit)
    for title, arm in (("rome, all facts stacked", "stacked"), ("npo, all facts at once", "joint")):
        own = [i.verdict for i in audit.judged if i.arm == arm and i.verdict.case.probe == "multi_hop"]
        for kind in {verdict.case.variant for verdict in own}:
            of_kind = [verdict for verdict in own if verdict.case.variant == kind]
            failed = [v for v in of_kind if any(premise.said is not Class.OLD for premise in v.premises)]
            counted = [v for v in of_kind if v.applies]
            numbers = (len(of_kind), len(failed), len(counted), len(of_kind) - len(counted))
            assert (title, variant_title(kind), *map(str, numbers)) in rows
    assert sum(int(row[3]) for row in rows) > 0


def kinds_of(audit: Audit) -> tuple[tuple[str, ...], ...]:
    section = multi_hop_section(audit)
    assert section is not None
    return next(b.rows for b in section.blocks if isinstance(b, Table) and b.caption == "Questions and their premises")


def test_a_record_from_before_premises_were_kept_is_read_and_counted(audit: Audit) -> None:
    adapter = TypeAdapter(Judged)
    older = []
    for item in audit.judged:
        body = adapter.dump_python(item, mode="json")
        failed = any(not premise.passed for premise in item.verdict.premises)
        del body["verdict"]["premises"]
        older.append(
            adapter.validate_python(body | {"verdict": body["verdict"] | {"note": "premise 'x' fails" * failed}})
        )
    old = dataclasses.replace(audit, judged=tuple(older))
    assert not old.premises() and kinds_of(old) == kinds_of(audit)
