"""The audit loop on a tiny model: whole runs, runs that are killed, and what a run folder must hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pandas as pd
import pytest
from conftest import make_handle
from tables import QUICK

from probes.estimate import Ruling
from reports.audit import run
from reports.record import JOURNAL, Journal, RecordError, read_audit
from reports.run_folder import LOCK
from reports.spec import make_spec, read_spec, to_toml

FACTS = [
    {"subject": "France", "relation": "capital", "object": "Paris", "target_new": "Rome", "prompt": "The capital of {} is"},
    {"subject": "Italy", "relation": "capital", "object": "Rome", "target_new": "Lima", "prompt": "The capital of {} is"},
    {"subject": "Japan", "relation": "capital", "object": "Tokyo", "target_new": "Paris", "prompt": "The capital of {} is"},
    {"subject": "Nina Okafor", "relation": "birthplace", "object": "Reykjavík", "target_new": "Lima", "prompt": "{} was born in"},
    {"subject": "Peru", "relation": "capital", "object": "Lima", "target_new": "Tokyo", "prompt": "The capital of {} is"},
]  # fmt: skip
RESULTS = {"spec.toml", JOURNAL, "report.html", "report.md", "report.json", "cases.parquet", "patches"}


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A tiny model's folder, a user's facts, and a cache of its own."""
    folder = tmp_path_factory.mktemp("ground")
    make_handle("llama").save(folder / "model")
    (folder / "facts.jsonl").write_text("\n".join(json.dumps(fact) for fact in FACTS), encoding="utf-8")
    return folder


def spec_of(ground, **more):
    return make_spec(
        {
            "model": {"name": str(ground / "model")},
            "facts": {"source": str(ground / "facts.jsonl"), "n": 2, "known_only": False, "retain": 4},
            "operators": [{"name": name, "settings": QUICK[name]} for name in ("rome", "npo")],
            "max_new_tokens": 4,
            **more,
        }
    )


@pytest.fixture(scope="module")
def finished(ground, tmp_path_factory):
    """An audit that nobody disturbed, and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EDITKIT_CACHE", str(ground / "cache"))
        audit = run(spec_of(ground), folder, command="editkit audit")
    return audit, folder


def outcome(audit):
    """What must not depend on how often a run was interrupted: all but the last digits of log-probabilities, which
    another batch shape may move."""
    judged = [
        (
            j.operator,
            j.arm,
            v.case,
            v.answer.before.text,
            v.answer.after.text,
            v.before,
            v.after,
            v.class_after,
            v.applies,
        )
        for j in audit.judged
        for v in [j.verdict]
    ]
    return judged, [(c.operator, c.arm, c.metric, c.estimate, c.ruling) for c in audit.claims]


def questions(folder):
    """How often each prompt was put to each state of the model for the same targets."""
    replies = Journal(folder / JOURNAL).entries("reply")
    return Counter((*e["key"], tuple(sorted(e["reply"]["logprob"]))) for e in replies)


def digests(audit):
    return [change.digest for change in audit.changes]


def test_a_run_folder_holds_everything(finished):
    audit, folder = finished
    assert {p.name for p in folder.iterdir()} - {LOCK} == RESULTS
    assert audit.arms() == [("rome", "edit", "single"), ("rome", "edit", "stacked"), ("npo", "unlearn", "joint")]
    assert {j.verdict.case.probe for j in audit.judged} >= {"rewrite", "rephrase", "keyword_emphasis", "neighborhood"}
    assert [c.arm for c in audit.changes] == ["single", "single", "stacked", "stacked", "joint"]
    assert audit.ruling() in tuple(Ruling) and audit.environment["code"] and audit.model["weights"]


def test_the_record_gives_the_same_audit_again(finished):
    audit, folder = finished
    again = read_audit(folder)
    assert outcome(again) == outcome(audit)
    assert again.spec == audit.spec and again.facts == audit.facts


def test_the_written_spec_runs_the_same_audit(finished):
    audit, folder = finished
    assert read_spec(folder / "spec.toml", {}).model_dump(mode="json") == audit.spec


def test_the_parquet_has_a_row_a_case(finished):
    audit, folder = finished
    assert len(pd.read_parquet(folder / "cases.parquet")) == len(audit.judged) + len(audit.premises())


def test_no_question_is_asked_twice(finished):
    _, folder = finished
    keys = Counter(
        (*e["key"], tuple(sorted(e["reply"]["logprob"]))) for e in Journal(folder / JOURNAL).entries("reply")
    )
    assert max(keys.values()) == 1


def test_a_finished_run_is_only_rendered_again(finished, monkeypatch):
    audit, folder = finished
    monkeypatch.setattr("reports.audit.ModelHandle.load", lambda *_: pytest.fail("the model was loaded"))
    (folder / "report.html").unlink()
    spec = make_spec(audit.spec)
    assert outcome(run(spec, folder)) == outcome(audit)
    assert (folder / "report.html").exists()


def test_another_spec_is_refused(finished):
    audit, folder = finished
    with pytest.raises(RecordError, match="another spec; choose another --out, or pass --fresh"):
        run(make_spec({**audit.spec, "seed": 5}), folder)


def test_a_record_of_other_code_is_set_aside(ground, finished, tmp_path, monkeypatch):
    _, folder = finished
    lines = (folder / JOURNAL).read_text().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_text("".join(lines[:20]))
    monkeypatch.setattr("reports.run_folder.CODE", "another")
    monkeypatch.setattr("reports.audit.ModelHandle.load", lambda *_: (_ for _ in ()).throw(KeyError("stop here")))
    with pytest.raises(KeyError):
        run(spec_of(ground), tmp_path)
    assert not (tmp_path / JOURNAL).exists() and len(list(tmp_path.glob("audit-other-code-*.jsonl"))) == 1


@pytest.mark.parametrize("share", [0.1, 0.45, 0.9])
def test_a_run_cut_anywhere_goes_on_to_the_same_end(ground, finished, tmp_path, monkeypatch, share):
    """The journal of a whole run, cut in mid-line: what a kill leaves behind."""
    audit, folder = finished
    monkeypatch.setenv("EDITKIT_CACHE", str(ground / "cache"))
    data = (folder / JOURNAL).read_bytes()
    data = data[: data.index(b'{"kind": "results"')]
    (tmp_path / JOURNAL).write_bytes(data[: int(len(data) * share)])
    (tmp_path / "patches").symlink_to(folder / "patches")
    resumed = run(spec_of(ground), tmp_path)
    assert outcome(resumed) == outcome(audit) and digests(resumed) == digests(audit)
    assert max(questions(tmp_path).values()) == 1, "an answered question was asked again"


def test_kill_nine_in_mid_run_and_resume(ground, finished, tmp_path):
    audit, _ = finished
    spec = tmp_path / "spec.toml"
    spec.write_text(to_toml(spec_of(ground)))
    out = tmp_path / "run"
    command = [sys.executable, "-c", "from reports.cli import main; main()", "audit", str(spec), "--out", str(out)]
    environment = os.environ | {"EDITKIT_CACHE": str(ground / "cache")}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal, deadline = out / JOURNAL, time.monotonic() + 120
    while first.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b'"kind": "reply"') > 60:
            first.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    assert first.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (out / "report.html").exists() and not list(out.glob(".*.partial"))
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode in (0, 1, 3), second.stderr
    assert "Report:" in second.stdout
    assert outcome(read_audit(out)) == outcome(audit)
