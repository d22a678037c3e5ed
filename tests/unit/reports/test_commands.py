"""`editkit edit`, `unlearn` and `probe`: nothing of the user's is replaced, and what is saved was asked first."""

from __future__ import annotations

import errno
import json
import os
import re

import pytest
from conftest import make_handle
from tables import QUICK
from typer.testing import CliRunner

from editkit.errors import UnableError
from editkit.handle import ModelHandle
from probes.verdict import Answer, Case, Class, Expect, Marks, Reply, Verdict
from reports.cli import app
from reports.commands import PATCH_FILE, change, check_save, listed, took
from reports.console import err, out
from reports.spec import make_spec
from reports.watch import Silent

FACT = {"subject": "France", "relation": "capital", "object": "Paris", "target_new": "Rome", "prompt": "The capital of {} is"}  # fmt: skip


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    make_handle("llama").save(folder / "models" / "tiny")
    (folder / "mine").mkdir()
    (folder / "mine" / "facts.jsonl").write_text(json.dumps(FACT), encoding="utf-8")
    return folder


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(ModelHandle, "load", lambda *_: pytest.fail("a model was loaded"))


def spec_of(ground, name="ft_l", **more):
    return make_spec(
        {
            "model": {"name": str(ground / "models" / "tiny")},
            "facts": {"source": str(ground / "mine" / "facts.jsonl"), "known_only": False, "retain": 4},
            "operators": [{"name": name, "settings": QUICK[name]}],
            "max_new_tokens": 4,
            **more,
        }
    )


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("thesis", "is a folder that holds other files; name a new folder"),
        ("thesis/thesis.txt", "is a file"),
        ("thesis/thesis.txt/below", "lies below the file"),
        ("mine/facts.jsonl", "is a file"),
        ("mine", "would replace the facts"),
        ("models", "would replace the model"),
        ("models/tiny", "would replace the model"),
        (".", "would replace the facts"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_of_the_users_is_replaced(ground, monkeypatch, no_model, place, message, overwrite):
    (ground / "thesis").mkdir(exist_ok=True)
    (ground / "thesis" / "thesis.txt").write_text("years of work")
    before = files(ground)
    monkeypatch.chdir(ground)
    monkeypatch.setattr(err, "width", 500)
    more = ["--overwrite"] if overwrite else []
    arguments = ["edit", "--facts", "mine/facts.jsonl", "--model", "models/tiny", "--save", place, *more]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and message in done.output and done.output.count("error:") == 1, done.output
    assert files(ground) == before


def test_an_earlier_save_is_replaced_only_with_overwrite(ground, tmp_path, capsys):
    spec, save = spec_of(ground), tmp_path / "new" / "saved"
    change("edit", spec, save, Silent())
    (save / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an earlier save; name a new folder, or pass --overwrite"):
        change("edit", spec, save, Silent())
    assert (save / "config.json").read_text() == "{}"
    change("edit", spec, save, Silent(), overwrite=True)
    assert (save / "config.json").read_text() != "{}"
    assert [p.name for p in save.parent.iterdir()] == ["saved"]
    assert capsys.readouterr().out.count(" of 1 fact ") == 2


def test_an_empty_folder_may_be_saved_to(ground, tmp_path):
    check_save(tmp_path, spec_of(ground))


def test_a_folder_that_cannot_be_written_to_is_refused_before_a_model_is_loaded(
    ground, tmp_path, monkeypatch, no_model
):
    def closed(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{dir}/tmpabc")

    monkeypatch.setattr("editkit.files.tempfile.TemporaryFile", closed)
    with pytest.raises(
        UnableError, match=r"cannot write to --save .*x: Read-only file system; name a folder elsewhere"
    ):
        change("edit", spec_of(ground), tmp_path / "new" / "x", Silent())


@pytest.mark.parametrize(("task", "name"), [("edit", "rome"), ("unlearn", "npo")])
def test_what_was_saved_is_as_readable_as_any_file(ground, tmp_path, monkeypatch, task, name):
    monkeypatch.setenv("EDITKIT_CACHE", str(ground / "cache"))
    change(task, spec_of(ground, name), tmp_path / "saved", Silent())
    plain = tmp_path / "plain"
    plain.touch()
    assert {p.stat().st_mode for p in (tmp_path / "saved").iterdir()} == {plain.stat().st_mode}
    assert {"model.safetensors", "config.json", PATCH_FILE} <= {p.name for p in (tmp_path / "saved").iterdir()}


def verdict(after):
    case = Case("rewrite", "plain", "The capital of France is", Expect.HOLDS, "f", ("Paris",), ("Rome",))
    marks = Marks(None, None, None)
    return Verdict(case, Answer(Reply(""), Reply("")), marks, marks, Class.OLD, after)


@pytest.mark.parametrize(
    ("task", "classes", "message"),
    [
        ("edit", [Class.NEW, Class.OLD], "1 of 2 facts give the new answer"),
        ("edit", [Class.OLD, Class.REFUSAL], "0 of 2 facts give the new answer"),
        ("unlearn", [Class.REFUSAL, Class.HALLUCINATION, Class.OLD], "2 of 3 facts no longer give the old answer"),
        ("unlearn", [Class.DEGENERATE], "0 of 1 fact no longer give the old answer"),
    ],
)
def test_it_is_said_how_many_facts_took(task, classes, message):
    text = took(task, [verdict(each) for each in classes])
    assert text.startswith(message)
    assert ("did not take" in text) == message.startswith("0")
    assert ("Degenerate" in text) == (Class.DEGENERATE in classes)


def test_questions_are_listed_without_a_model(ground, monkeypatch, no_model, capsys):
    monkeypatch.setattr(out, "width", 300)
    listed("edit", spec_of(ground, "rome", probes=("rewrite", "keyword_emphasis", "rephrase")), Silent())
    text = capsys.readouterr().out
    assert "The capital of France is" in text and "own prompt" in text and "No model was asked" in text
    told = re.search(r"(\d+) questions, in (\d+) cases\.", text)  # the plain prompt is asked by two probes
    assert told is not None and int(told[1]) == int(told[2]) - text.count("own prompt")


def test_probe_speaks_in_titles(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(out, "width", 300)
    monkeypatch.chdir(ground)
    change("edit", spec_of(ground), tmp_path / "saved", Silent())
    patch = str(tmp_path / "saved" / PATCH_FILE)
    arguments = [
        "probe",
        "--facts",
        "mine/facts.jsonl",
        "--model",
        "models/tiny",
        "--all-facts",
        "--patch",
        patch,
        "-p",
    ]
    done = CliRunner().invoke(app, [*arguments, "rewrite"])
    assert done.exit_code == 0 and "Degenerate text" in done.output and "efficacy_generation" not in done.output
    wrong = CliRunner().invoke(app, [*arguments, "rewrte"])
    assert wrong.exit_code == 2 and "no probe named 'rewrte'" in wrong.output


def test_help_says_what_the_codes_and_the_facts_are(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    for command in ([], ["audit"]):
        assert "2 bad input" in CliRunner().invoke(app, [*command, "--help"]).output.replace("\n", " ")
    for command in ("audit", "edit", "unlearn", "probe"):
        assert "target_new" in CliRunner().invoke(app, [command, "--help"]).output


def test_options_go_above_the_spec_also_where_they_are_zero(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("reports.cli.run", lambda spec, *_, **__: seen.append(spec))
    (tmp_path / "spec.toml").write_text("seed = 5\n[facts]\nn = 3\n", encoding="utf-8")
    arguments = ["audit", str(tmp_path / "spec.toml"), "--all-facts", "-o", "npo", "--out", str(tmp_path / "run")]
    CliRunner().invoke(app, [*arguments, "--seed", "0"])
    CliRunner().invoke(app, arguments)
    assert [(s.seed, s.facts.n, s.facts.known_only, [o.name for o in s.operators]) for s in seen] == [
        (0, 3, False, ["npo"]),
        (5, 3, False, ["npo"]),
    ]


def test_a_change_that_is_none_of_weights_is_saved_as_its_patch_alone(ground, tmp_path, monkeypatch):
    monkeypatch.setenv("EDITKIT_CACHE", str(ground / "cache"))
    monkeypatch.setattr(out, "width", 200)
    with out.capture() as said:
        change("edit", spec_of(ground, "ike"), tmp_path / "saved", Silent())
    assert [file.name for file in (tmp_path / "saved").iterdir()] == [PATCH_FILE]
    assert "holds the patch alone" in said.get()
