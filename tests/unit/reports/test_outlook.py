"""What an audit tells before it asks or changes anything."""

from __future__ import annotations

import json

import pytest
from conftest import make_handle
from tables import QUICK
from telling import Telling

from editkit.errors import InputError
from reports import outlook
from reports.audit import run
from reports.record import JOURNAL
from reports.spec import make_spec

OBJECTS = {
    "France": ("Paris", "Rome"),
    "Italy": ("Rome", "Lima"),
    "Japan": ("Tokyo", "Paris"),
    "Peru": ("Lima", "Rome"),
}
FACTS = [
    {"id": subject.lower(), "subject": subject, "relation": "capital", "object": old, "target_new": new,
     "prompt": "The capital of {} is"}
    for subject, (old, new) in OBJECTS.items()
]  # fmt: skip


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outlook")
    make_handle("llama").save(folder / "model")
    return folder


@pytest.fixture
def audited(ground, tmp_path, monkeypatch):
    monkeypatch.setenv("EDITKIT_CACHE", str(ground / "cache"))

    def audit(*operators, facts=FACTS, n=4, source="", dtype="float32"):
        file = tmp_path / "facts.jsonl"
        file.write_text("\n".join(json.dumps(fact) for fact in facts), encoding="utf-8")
        spec = make_spec(
            {
                "model": {"name": str(ground / "model"), "dtype": dtype},
                "facts": {"source": source or str(file), "known_only": False, "retain": 2, "n": n},
                "operators": [{"settings": QUICK[part["name"]], **part} for part in operators],
                "probes": ["rewrite"],
                "max_new_tokens": 2,
            }
        )
        watch = Telling()
        run(spec, tmp_path / "run", watch=watch)
        return watch

    return audit


def test_each_operator_shows_what_it_will_change_before_anything_is_asked_of_the_unchanged_model(audited):
    watch = audited({"name": "rome"}, {"name": "npo"})
    asking = watch.phases.index("Asking the unchanged model")
    assert watch.phases.index("Plan of rome") < watch.phases.index("Plan of npo") < asking
    rome, npo = watch.tables["Plan of rome"], watch.tables["Plan of npo"]
    assert rome["facts"] == "4: one fact at a time, then all facts stacked"
    assert "mlp.down_proj.weight: 1,536 of " in rome["changes"] and rome["moments"].startswith(
        "to be measured: layers "
    )
    assert npo["facts"] == "4: all facts at once" and " numbers" in npo["changes"] and "moments" not in npo
    assert "time" not in rome, "four facts are not worth a trial"


def test_of_many_facts_the_first_are_tried_unless_a_run_goes_on(audited, monkeypatch, tmp_path):
    monkeypatch.setattr(outlook, "LONG", 4)
    first = audited({"name": "rome"})
    assert "Trying rome on the first facts" in first.phases
    told = first.tables["Plan of rome"]
    assert " s a fact" in told["time"] and "GiB" in told["memory"] and "of their norm" in told["weights move"]
    journal = tmp_path / "run" / JOURNAL
    text = journal.read_text()
    journal.write_text(text[: text.index('{"kind": "results"')])  # as a kill leaves it
    again = audited({"name": "rome"})
    assert "Trying rome on the first facts" not in again.phases and "time" not in again.tables["Plan of rome"]


def test_edits_that_are_rolled_back_one_by_one_do_not_add_up(audited, monkeypatch):
    monkeypatch.setattr(outlook, "LONG", 4)
    told = audited({"name": "rome", "arms": ["single"]}).tables["Plan of rome"]
    assert "weights move" not in told and "may move the weights" not in told.get("mind", "") and told["time"]


@pytest.mark.parametrize("source", ["", "world"])
def test_what_is_odd_about_the_model_is_said_once(audited, source):
    watch = audited({"name": "rome", "arms": ["single"]}, n=1, source=source, dtype="float16")
    told = [*watch.said, watch.tables["Plan of rome"].get("mind", "")]
    assert sum("float16 overflows" in text for text in told) == 1
    assert watch.tables["Plan of rome"]["model"].count("float16 (a change is computed in float32)") == 1


def test_facts_that_no_operator_can_edit_are_refused_before_they_are_asked(audited):
    long = {**FACTS[0], "prompt": "word " * 300 + "the capital of {} is"}
    with pytest.raises(InputError, match="1 fact cannot be edited: france: it needs .* tokens"):
        audited({"name": "rome"}, facts=[long, *FACTS[1:]])


@pytest.mark.parametrize("arms", [["single", "stacked"], ["joint"]])
def test_two_objects_for_one_prompt_are_met_one_by_one_but_not_together(audited, arms):
    other = {**FACTS[0], "id": "again", "relation": "seat", "target_new": "Tokyo"}
    audit = {"name": "rome", "arms": arms}
    if arms == ["joint"]:
        with pytest.raises(InputError, match="cannot be given both"):
            audited(audit, facts=[*FACTS, other])
    else:
        assert any("the later one holds" in text for text in audited(audit, facts=[*FACTS, other]).said)
