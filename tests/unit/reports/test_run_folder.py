"""A run goes on only with what it began with: facts, model, spec; and in no folder that another run is in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256

import pytest
from conftest import make_handle
from tables import QUICK
from twins import twin

from editkit.handle import ModelHandle
from probes.ask import Key
from probes.verdict import Reply
from reports import environment
from reports.audit import run
from reports.record import JOURNAL, Journal, RecordError
from reports.run_folder import LOCK, begin, default_folder, taken
from reports.spec import SpecError, make_spec, read_spec, resolved

FACTS = [
    {"subject": "France", "relation": "capital", "object": "Paris", "target_new": "Rome", "prompt": "The capital of {} is"},
    {"subject": "Japan", "relation": "capital", "object": "Tokyo", "target_new": "Paris", "prompt": "The capital of {} is"},
]  # fmt: skip


@pytest.fixture
def ground(tmp_path):
    make_handle("llama").save(tmp_path / "model")
    write(tmp_path)
    return tmp_path


def write(folder, target="Rome"):
    rows = [{**FACTS[0], "target_new": target}, FACTS[1]]
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def spec_of(folder, **more):
    return make_spec(
        {
            "model": {"name": str(folder / "model")},
            "facts": {"source": str(folder / "facts.jsonl"), "known_only": False},
            "operators": [{"name": "ft_l", "settings": QUICK["ft_l"]}],
            "probes": ["rewrite"],
            "max_new_tokens": 3,
            **more,
        }
    )


def cut(folder):
    """What a kill leaves: a journal without its results."""
    data = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(data[: data.index(b'{"kind": "results"')])


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("what", ["facts", "model"])
def test_what_was_changed_is_noticed_before_a_model_is_loaded(ground, monkeypatch, finished, what):
    run(spec_of(ground), ground / "run")
    if not finished:
        cut(ground / "run")
    folder = default_folder(resolved(spec_of(ground)))
    if what == "facts":
        write(ground, target="Lima")
    else:
        make_handle("llama", seed=4).save(ground / "model")
    monkeypatch.setattr(ModelHandle, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(RecordError, match="as it was before it was changed; choose another --out, or pass --fresh"):
        run(spec_of(ground), ground / "run")
    assert default_folder(resolved(spec_of(ground))) != folder, "the same command would meet the old run"


def test_unchanged_facts_and_model_find_the_same_folder(ground):
    assert default_folder(resolved(spec_of(ground))) == default_folder(resolved(spec_of(ground)))


def test_the_digest_of_the_facts_is_in_the_record(ground):
    audit = run(spec_of(ground), ground / "run")
    digest = sha256((ground / "facts.jsonl").read_bytes()).hexdigest()
    assert digest in audit.environment["facts"] and audit.spec["facts"]["sha256"] == digest
    [header] = Journal(ground / "run" / JOURNAL).entries("header")
    assert header["facts"]["sha256"] == digest


@pytest.mark.parametrize("name", ["ft_l", "rome", "npo", "grad_diff"])
def test_the_written_spec_says_everything_and_repeats_the_run_from_elsewhere(ground, monkeypatch, name):
    monkeypatch.setenv("EDITKIT_CACHE", str(ground / "cache"))
    monkeypatch.chdir(ground)
    relative = {
        "model": {"name": "model"},
        "facts": {"source": "facts.jsonl", "known_only": False, "n": 1, "retain": 4},
        "operators": [{"name": name, "settings": QUICK[name]}],
    }
    first = run(spec_of(ground, **relative), ground / "run")
    (ground / "elsewhere").mkdir()
    monkeypatch.chdir(ground / "elsewhere")
    written = read_spec(ground / "run" / "spec.toml", {})
    [operator] = written.operators
    plain = json.loads(json.dumps(first.changes[0].settings).replace("null", '"none"'))
    assert operator.n == 1 and operator.settings == plain and operator.settings != QUICK[name]
    again = run(written, ground / "again")
    assert [c.digest for c in again.changes] == [c.digest for c in first.changes]
    assert [c.estimate for c in again.claims] == [c.estimate for c in first.claims] and again.spec == first.spec
    cut(ground / "run")  # the same run may go on with it as well
    assert [c.digest for c in run(written, ground / "run").changes] == [c.digest for c in first.changes]


def test_a_spec_of_other_facts_is_refused(ground):
    run(spec_of(ground), ground / "run")
    write(ground, target="Lima")
    with pytest.raises(SpecError, match="have changed: the spec is of sha256 .*; restore them, or take sha256 out"):
        run(read_spec(ground / "run" / "spec.toml", {}), ground / "other")


def test_times_are_of_all_sessions(ground, monkeypatch):
    first = run(spec_of(ground), ground / "run")
    cut(ground / "run")
    path = ground / "run" / JOURNAL
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        entry["at"] += 1000
        entry.update({"started": "2020-01-01T00:00:00+00:00"} if entry["kind"] == "session" else {})
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    cut_short = run(spec_of(ground), ground / "run")
    assert cut_short.started == "2020-01-01T00:00:00+00:00"
    assert 1000 < cut_short.seconds < 1000 + 3 * first.seconds + 30
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(b'{"kind": "results"')])
    assert 1000 < run(spec_of(ground), ground / "run").seconds < 1900, "the time before was counted twice"


def test_one_run_a_folder(tmp_path):
    code = "from pathlib import Path; import sys, time; from reports.run_folder import taken\nwith taken(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match="another editkit is at work in .*; wait for it"), taken(tmp_path):
            pytest.fail("two runs in one folder")
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with taken(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [LOCK]


def test_a_file_is_no_run_folder(ground, monkeypatch):
    monkeypatch.setattr(ModelHandle, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="is a file; give a folder to --out"):
        run(spec_of(ground), ground / "facts.jsonl")


def test_every_batch_of_replies_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("reports.record.os.fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    Journal(tmp_path / JOURNAL).put([(Key("s", "a"), Reply("x")), (Key("s", "b"), Reply("y"))])
    assert synced == [(tmp_path / JOURNAL).stat().st_size]


def test_the_code_is_named_once(monkeypatch):
    """A file that is edited while a run goes on does not change what the run says of itself."""
    monkeypatch.setattr(environment, "_code_digest", lambda: pytest.fail("read again"))
    assert environment.environment(make_handle("llama"))["code"] == environment.CODE


def test_a_run_goes_on_with_the_same_weights_config_and_tokenizer(tmp_path):
    """A hub id gives no stamp of files: what was loaded is compared."""
    spec, handle = spec_of(tmp_path), make_handle("llama")
    others = {
        "set of weights": make_handle("llama", seed=1),
        "config or tokenizer": twin(handle, rms_norm_eps=0.5),
    }
    journal = Journal(tmp_path / JOURNAL)
    begin(journal, spec, tmp_path, handle)
    journal.close()
    begin(Journal(tmp_path / JOURNAL), spec, tmp_path, twin(handle))
    for what, other in others.items():
        with pytest.raises(RecordError, match=f"was begun with another {what} of .*; pass --fresh to begin anew"):
            begin(Journal(tmp_path / JOURNAL), spec, tmp_path, other)
