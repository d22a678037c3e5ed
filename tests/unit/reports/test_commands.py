"""`editkit edit`, `unlearn` and `probe`: nothing of the user's is replaced, and what is saved was asked first."""

from __future__ import annotations

import errno
import json
import os
import re

import pytest
from conftest import make_handle
from edit_examples import ENDING
from hypothesis import given
from hypothesis import strategies as st
from picky import Picky
from tables import QUICK
from telling import Telling
from typer.testing import CliRunner

from editkit.data import DataError
from editkit.entries import Entry
from editkit.errors import InputError, MethodError, UnableError
from editkit.facts import Fact
from editkit.handle import ModelHandle
from editkit.operators import EDITS, configured
from editkit.patch import load_patch
from probes.verdict import Answer, Case, Class, Expect, Marks, Reply, Verdict
from reports.cli import app
from reports.commands import change, listed, plan, took
from reports.console import err, out
from reports.removing import remove
from reports.saving import PATCH_FILE, check_save
from reports.spec import make_spec
from reports.watch import Silent
from reports.wording import named

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
        ("edit", [Class.NEW, Class.OLD], "1 of 2 facts gives the new answer"),
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


# Which facts were changed, and which were not ----------------------------------------------------------------------

CAPITALS = (("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Peru", "Lima"))


@pytest.fixture
def four(ground, tmp_path, monkeypatch):
    """A file of four facts; gives a spec of an operator on it."""
    EDITS.names()
    monkeypatch.setitem(EDITS._items, "choosy", Picky)
    monkeypatch.setattr(Picky, "asked", [])
    monkeypatch.setattr(out, "width", 300)
    rows = [FACT | {"subject": subject, "object": old, "target_new": "Cairo"} for subject, old in CAPITALS]
    (tmp_path / "four.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def spec(name="choosy", facts=None, preset="published", **settings):
        source = {"source": str(tmp_path / "four.jsonl"), "known_only": False}
        part = {"name": name, "settings": settings, "preset": preset}
        return spec_of(ground, "ft_l", facts=source | (facts or {}), operators=[part])

    return spec


def said_of(spec, save):
    with out.capture() as said:
        change("edit", spec, save, Silent())
    return said.get()


def known_are(monkeypatch, *subjects):
    monkeypatch.setattr("reports.choose.is_right", lambda entry, *_: entry.fact.subject in subjects)


def test_one_bad_fact_does_not_lose_the_others(four, tmp_path):
    told = said_of(four(fails=["Italy"]), tmp_path / "saved")
    assert "Passed over, for choosy finds no edit: Italy (four/2): cannot edit 'Italy': its key is nothing." in told
    assert told.count("Italy (") == 1 and "0 of 3 facts give the new answer" in told
    first, *alone, last = map(sorted, Picky.asked)
    assert {subject for [subject] in alone} == {*first} == {*last, "Italy"} and len(last) == 3
    notes = load_patch(tmp_path / "saved" / PATCH_FILE).provenance.notes
    assert {edit["subject"] for edit in notes["edits"]} == {"France", "Japan", "Peru"}
    assert notes["passed_over"] == {"four/2": "cannot edit 'Italy': its key is nothing"}


def test_a_trial_that_is_refused_does_not_stop_the_run(four, tmp_path, monkeypatch):
    """As where the first facts of a long list are the bad ones."""
    said_of(four(), tmp_path / "order")
    first = Picky.asked[0][0]
    monkeypatch.setattr("reports.commands.LONG", 1)
    monkeypatch.setattr("editkit.preflight.MOST", 1)
    told = said_of(four(fails=[first]), tmp_path / "saved")
    assert "Plan" in told and "were all refused; the last: cannot edit" in told and " s a fact" not in told
    assert f"Passed over, for choosy finds no edit: {first}" in told
    assert "of 3 facts give the new answer" in told and (tmp_path / "saved" / PATCH_FILE).is_file()


def test_facts_that_can_be_edited_together_are_not_tried_one_by_one(four, tmp_path):
    assert "Passed over" not in said_of(four(), tmp_path / "saved")
    assert len(Picky.asked) == 1
    assert "passed_over" not in load_patch(tmp_path / "saved" / PATCH_FILE).provenance.notes


@pytest.mark.parametrize(
    ("settings", "n", "message"),
    [
        ({"fails": [subject for subject, _ in CAPITALS]}, 4, "no fact could be edited; the first of 4: .*its key is nothing$"),
        ({"fails": [subject for subject, _ in CAPITALS]}, 1, "no fact could be edited; the first of 1: .*its key is nothing$"),
        ({"most": 1}, 4, "^keys of two facts coincide$"),
    ],
)  # fmt: skip
def test_an_edit_fails_where_no_fact_is_left_or_to_blame(four, tmp_path, settings, n, message):
    with pytest.raises(MethodError, match=message):
        change("edit", four(facts={"n": n}, **settings), tmp_path / "saved", Silent())
    assert not (tmp_path / "saved").exists()
    assert (len(Picky.asked) == 1) == (n == 1), "a single fact has been tried by itself"
    assert sum(len(asked) == n for asked in Picky.asked) == 1, "all were tried together once"


def facts_in(line):
    return set(re.findall(r"\(four/(\d)\)", line))


@pytest.mark.parametrize("known", [None, ("France", "Japan", "Peru"), ("Italy", "Peru")])
def test_every_fact_of_a_file_is_named_once_with_what_became_of_it(four, tmp_path, monkeypatch, known):
    """Taken, not known, or not needed: by number in the file."""
    known_are(monkeypatch, *(known or ()))
    told = said_of(four(facts={"n": 2, "known_only": known is not None}), tmp_path / "saved")
    lines = [line for line in told.splitlines() if facts_in(line)]
    assert sorted(number for line in lines for number in facts_in(line)) == ["1", "2", "3", "4"]
    assert len(facts_in(lines[0])) == 2 and lines[0].startswith("Facts: ")
    passed = [line for line in lines if "does not answer it right (with --all-facts" in line]
    expected = {str(place) for place, (subject, _) in enumerate(CAPITALS, 1) if known and subject not in known}
    assert set().union(*map(facts_in, passed)) == expected
    spare = [line for line in lines if "left out by --n: " in line]
    assert sum(len(facts_in(line)) for line in spare) == 2 - len(expected)


def test_a_plan_names_them_too(four, capsys):
    plan(four(facts={"n": 3}), Silent())
    told = capsys.readouterr().out
    assert "Facts: " in told and "1 fact left out by --n: " in told and len(facts_in(told)) == 4


def test_a_refusal_says_which_facts_the_model_knows(four, tmp_path, monkeypatch):
    known_are(monkeypatch, "Italy", "Peru")
    with pytest.raises(DataError, match="answers right 2 of 4; use --n 2, ") as refused:
        change("edit", four(facts={"n": 3, "known_only": True}), tmp_path / "saved", Silent())
    right, wrong = str(refused.value).split("Right: ")[1].split("; not: ")
    assert facts_in(right) == {"2", "4"} and facts_in(wrong) == {"1", "3"}
    known_are(monkeypatch)
    with pytest.raises(DataError, match="answers right 0 of 4") as refused:
        change("edit", four(facts={"n": 3, "known_only": True}), tmp_path / "saved", Silent())
    assert "Right:" not in str(refused.value)


@given(st.integers(0, 12), st.integers(1, 5))
def test_some_are_named_and_the_others_counted(number, most):
    entries = [Entry(f"f/{place}", Fact(f"s{place}", "r", "o", "{} is")) for place in range(number)]
    told = named(entries, most)
    assert re.findall(r"\((f/\d+)\)", told) == [entry.id for entry in entries[:most]]
    more = re.findall(r" and (\d+) more$", told)
    assert [*map(int, more)] == ([number - most] if number > most else [])


@pytest.mark.parametrize(
    ("name", "preset", "hinted"), [("ft_m", "published", True), ("ft_m", "auto", False), ("choosy", "published", False)]
)
def test_who_has_an_untuned_model_is_led_to_a_search_for_settings(four, tmp_path, monkeypatch, name, preset, hinted):
    def given(part, handle, *_):
        operator, source = configured(part.name, handle)
        return operator, "a search" if part.preset == "auto" else source

    monkeypatch.setattr("reports.commands.operator_of", given)
    told = said_of(four(name, {"n": 1}, preset), tmp_path / "saved")
    hint = "The settings may not suit this model"  # the source of a guess names the search as well
    assert "did not take" in told and (hint in told) == hinted
    monkeypatch.setattr("reports.commands.run_probes", lambda *_, **__: [verdict(Class.NEW)])
    assert hint not in said_of(four(name, {"n": 1}, preset), tmp_path / "took")


def test_an_operator_that_finds_nothing_leads_there_too(four, tmp_path, ground, monkeypatch):
    monkeypatch.setenv("EDITKIT_CACHE", str(ground / "cache"))
    with pytest.raises(MethodError, match="the first of 4: cannot edit .* --preset auto searches some for rome on it$"):
        change("edit", four("rome", **QUICK["rome"] | {"layer": 2}), tmp_path / "saved", Silent())


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


def test_a_change_on_top_of_one_outside_the_weights_is_not_lost(ground, tmp_path, monkeypatch):
    monkeypatch.setenv("EDITKIT_CACHE", str(ground / "cache"))
    monkeypatch.setattr(out, "width", 200)
    change("edit", spec_of(ground, "ike"), tmp_path / "ike", Silent())
    below = tmp_path / "ike" / PATCH_FILE
    with out.capture() as said:
        change("edit", spec_of(ground, "ft_m"), tmp_path / "saved", Silent(), on=[below])
    assert [file.name for file in (tmp_path / "saved").iterdir()] == [PATCH_FILE]
    assert "A patch below this one is no change of weights, so the folder holds the patch alone" in said.get()
    files = [below, tmp_path / "saved" / PATCH_FILE]
    with pytest.raises(InputError, match="ike.*no change of weights.*leave --save out, and give the patches that stay"):
        remove(spec_of(ground), files, files[1], tmp_path / "left", Silent())


def test_a_plan_of_an_unlearner_is_refused_in_a_line(ground):
    with pytest.raises(InputError, match="'npo' is an operator for `editkit unlearn`"):
        plan(spec_of(ground, "npo"), Silent())


def test_a_plan_shows_what_the_facts_are_changed_to_and_says_which_of_it_was_drawn(four, tmp_path, capsys):
    watch = Telling()
    plan(four(), watch)
    told = capsys.readouterr().out
    assert all(f"{old} → Cairo" in told for _, old in CAPITALS) and not any(
        "No target_new" in text for text in watch.said
    )
    rows = [json.loads(line) for line in (tmp_path / "four.jsonl").read_text().splitlines()]
    del rows[0]["target_new"]
    (tmp_path / "four.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    plan(four(), watch)
    assert any(text.startswith(f"No target_new for {CAPITALS[0][0]} (four/1): ") for text in watch.said)


def test_a_removal_says_in_words_why_there_is_no_overlap_and_how_to_go_on(ground, tmp_path, monkeypatch):
    monkeypatch.setenv("EDITKIT_CACHE", str(ground / "cache"))
    monkeypatch.setattr(out, "width", 300)
    handle, saved = ModelHandle.load(str(ground / "models" / "tiny")), []
    for name, edit in zip(("grace", "ft_m", "rome", "wise"), (*ENDING, ENDING[0]), strict=True):
        patch = configured(name, handle, QUICK.get(name))[0](handle, [edit], seed=0)
        handle.apply(patch)
        patch.save(tmp_path / name)
        saved.append(tmp_path / name)
    told = []
    for which in (tmp_path / "ft_m", tmp_path / "wise"):
        with out.capture() as said:
            remove(spec_of(ground), saved, which, None, Silent())
        told.append(said.get())
    first, last = told
    assert re.search(
        r"No overlap can be told of \S*grace: a change beside the weights \(grace\), where there is no", first
    )
    assert re.search(
        r"No overlap can be told of \S*wise: a change beside the weights \(wise\), where there is no", first
    )
    assert re.search(r"No overlap can be told of \S*ft_m, \S*rome: a change beside the weights \(wise\)", last)
    assert f"give --without {tmp_path / 'ft_m'}" in first
    assert "--without" not in last, "nothing was made on top of it"
