"""The JSON report, and what all formats share."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import audits
import pyarrow.parquet as pq
import pytest

from reports import render
from reports.cases import CASES, SCHEMA, write_cases
from reports.record import Audit
from reports.render import RENDERERS, write_reports
from reports.render.json import FORMAT
from reports.sections import build
from reports.wording import told


@cache
def page_of(make: Any) -> str:
    return rendered(make(), "html")


def rendered(audit: Audit, kind: str = "json") -> str:
    return RENDERERS[kind](build(audit), audit)


def strict(source: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(source, parse_constant=refuse)


@pytest.mark.parametrize("make", [audits.realistic, audits.hostile, audits.unmeasured, audits.empty])
def test_it_is_strict_json_in_ascii_and_comes_back(make: Any) -> None:
    source = rendered(make())
    assert source.isascii()
    body = strict(source)
    assert body["format"] == FORMAT == "editkit-report/1"
    assert json.dumps(body, indent=1, allow_nan=False) + "\n" == source


def test_it_carries_figures_claims_facts_and_changes() -> None:
    audit = audits.realistic()
    body = strict(rendered(audit))
    assert [claim["estimate"]["low"] for claim in body["claims"]] == [claim.estimate.low for claim in audit.claims]
    assert [f["after"]["value"] for f in body["figures"]] == [f.row.after.value for f in audit.figures]
    assert [fact["id"] for fact in body["facts"]] == [fact.id for fact in audit.facts]
    assert [change["digest"] for change in body["changes"]] == [change.digest for change in audit.changes]
    assert set(body["metrics"]) == {figure.row.metric for figure in audit.figures}
    assert [section["id"] for section in body["sections"]] == [section.id for section in build(audit).sections]
    assert body["ruling"] == audit.ruling().value


def test_texts_of_models_come_back_letter_by_letter() -> None:
    audit = audits.hostile()
    body = strict(rendered(audit))
    assert [fact["subject"] for fact in body["facts"]] == [fact.subject for fact in audit.facts]
    assert body["notes"] == list(audits.HOSTILE)


@pytest.mark.parametrize("make", [audits.realistic, audits.unmeasured])
def test_all_formats_tell_every_claim_alike(make: Any) -> None:
    audit = make()
    page = html.unescape(re.sub(r"<[^>]*>", "", page_of(make)))
    source = rendered(audit, "markdown")
    for claim, body in zip(audit.claims, strict(rendered(audit))["claims"], strict=True):
        words = told(claim.estimate)
        assert words in page
        assert words in source
        assert words == body["text"]["measured"]


ESTIMATE = re.compile(r"[+-]?\d+\.\d+(?: \[[^\]]+\], [\d,]+ (?:cases? on [\d,]+ )?facts?|, no interval \([^)]*\))")


@pytest.mark.parametrize("make", [audits.realistic, audits.unmeasured])
def test_every_estimate_of_the_page_is_in_json_and_markdown(make: Any) -> None:
    """Whatever section told it: also those that no figure of the record holds."""
    page = html.unescape(re.sub(r"<[^>]*>", "\n", re.sub(r"</?small[^>]*>", "", page_of(make))))
    shown = set(ESTIMATE.findall(page))
    assert len(shown) > (150 if make is audits.realistic else 0)
    source = rendered(make(), "markdown").replace("\\", "")
    texts = "\n".join(strings(strict(rendered(make()))))
    assert sorted(text for text in shown if text not in source) == []
    assert sorted(text for text in shown if text not in texts) == []


def strings(value: Any) -> Iterator[str]:
    """All texts of a JSON value."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(item)


def test_counts_that_no_figure_holds_are_in_json() -> None:
    body = strict(rendered(audits.realistic()))
    tables = {table["caption"]: table for section in body["sections"] for table in section["tables"]}
    wanted = ("Kept by popularity of the asked fact", "What was right and is not any more", "Questions and their premises",
              "Classes of the answers, cases before → after")  # fmt: skip
    for caption in wanted:
        assert tables[caption]["rows"], caption
        assert all(len(row) == len(tables[caption]["columns"]) for row in tables[caption]["rows"])
    assert "Cases, those that break first" not in tables  # they are in cases.parquet


def test_renderers_are_named_as_their_files() -> None:
    stems = {path.stem for path in Path(render.__path__[0]).glob("*.py") if not path.stem.startswith("_")}
    assert set(RENDERERS.names()) == stems == {"html", "json", "markdown"}


def test_all_files_are_written_whole(tmp_path: Path) -> None:
    audit = audits.unmeasured()
    paths = write_reports(audit, tmp_path)
    assert {path.name for path in paths} == {"report.html", "report.json", "report.md", "cases.parquet"}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}
    before = [path.read_bytes() for path in paths]
    assert write_reports(audit, tmp_path) == paths
    assert [path.read_bytes() for path in paths] == before


def test_nothing_is_written_if_one_format_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> str:
        raise RuntimeError("no")

    monkeypatch.setitem(RENDERERS._items, "markdown", broken)
    with pytest.raises(RuntimeError):
        write_reports(audits.empty(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [audits.realistic, audits.hostile, audits.empty])
def test_cases_have_the_same_columns_whatever_was_asked(make: Any, tmp_path: Path) -> None:
    audit = make()
    write_cases(audit, tmp_path / CASES)
    table = pq.read_table(tmp_path / "cases.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.num_rows == len(audit.judged) + len(audit.premises())
    rows = table.to_pylist()[: len(audit.judged)]
    for row, item in zip(rows, audit.judged, strict=True):
        assert row["class_after"] == item.verdict.class_after.value
        assert row["passed"] == item.verdict.passed
        assert row["fact"] == item.verdict.case.group
        assert row["margin_before"] == item.verdict.margin_before
    if make is audits.realistic:
        assert [row["text_after"] for row in rows] == [item.verdict.answer.after.text for item in audit.judged]
        assert json.loads(rows[0]["logprob_before"]) == audit.judged[0].verdict.answer.before.logprob
