"""Audits of operators that fail on a fact, and of operators whose patches no file can hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
from conftest import make_handle
from picky import Picky
from torch import nn

from editkit.errors import MethodError
from editkit.facts import Edit
from editkit.operators import EDITS, UNLEARNERS, provenance_of
from editkit.patch import HookPatch, ModulePatch, PromptPatch
from editkit.training import TrainingError
from reports.audit import run
from reports.record import JOURNAL, Journal, RecordError, read_audit
from reports.spec import make_spec

SUBJECTS = ("France", "Italy", "Japan", "Peru")
FACTS = [
    {"id": subject.lower(), "subject": subject, "relation": "capital", "object": old, "target_new": new, "prompt": "The capital of {} is"}
    for subject, old, new in zip(SUBJECTS, ("Paris", "Rome", "Tokyo", "Lima"), ("Rome", "Lima", "Paris", "Tokyo"), strict=True)
]  # fmt: skip


class Doubled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return 2 * self.inner(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class PickyTogether(Picky):
    def each(self, handle, edits, *, seed, progress=None):
        self.asked.append(tuple(edit.fact.subject for edit in edits))
        return [Picky.__call__(self, handle, [edit], seed=seed) for edit in edits]


@dataclass(frozen=True, slots=True)
class OfCode:
    """Gives patches that no file can hold."""

    kind: str = "prompt"
    asked: ClassVar[list[str]] = []

    def __call__(self, handle, edits: Sequence[Edit], *, seed, progress=None):
        edit = edits[-1]
        self.asked.append(edit.fact.subject)
        mlp, told = handle.arch.path("mlp", 1), provenance_of("of_code", self, handle, edits, seed)
        if self.kind == "prompt":
            hint = f"{edit.fact.text} {edit.target_new}. "
            return PromptPatch(lambda prompt: hint + prompt, told, digest=f"prompt {hint}")
        if self.kind == "hook":
            return HookPatch({mlp: lambda output: output * 0.5}, told, digest=f"hook {edit.fact.subject}")
        return ModulePatch({mlp: Doubled}, told, digest=f"module {edit.fact.subject}")


@dataclass(frozen=True, slots=True)
class Exploding:
    def __call__(self, handle, request, *, seed, progress=None):
        raise TrainingError("the loss is nan at step 1; use a smaller learning rate")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial")
    make_handle("llama").save(folder / "model")
    (folder / "facts.jsonl").write_text("\n".join(json.dumps(fact) for fact in FACTS), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def registered(monkeypatch, ground):
    monkeypatch.setenv("EDITKIT_CACHE", str(ground / "cache"))
    EDITS.names(), UNLEARNERS.names()  # loaded, before more are put beside them
    for name, kind in (("picky", Picky), ("picky_together", PickyTogether), ("of_code", OfCode)):
        monkeypatch.setitem(EDITS._items, name, kind)
    monkeypatch.setitem(UNLEARNERS._items, "exploding", Exploding)
    monkeypatch.setattr(Picky, "asked", [])
    monkeypatch.setattr(OfCode, "asked", [])


def spec_of(ground, *operators, **more):
    return make_spec(
        {
            "model": {"name": str(ground / "model")},
            "facts": {"source": str(ground / "facts.jsonl"), "known_only": False, "retain": 2},
            "operators": list(operators),
            "probes": ["rewrite"],
            "claims": [{"metric": "efficacy_generation", "at_least": 0.5}],
            "max_new_tokens": 2,
            **more,
        }
    )


def cut(folder, marker='{"kind": "results"'):
    """The record as it was before its results, as a kill leaves it; the reports are gone."""
    text = (folder / JOURNAL).read_text()
    (folder / JOURNAL).write_text(text[: text.index(marker)])


def judged(audit, arm):
    return {j.verdict.case.group for j in audit.judged if j.arm == arm}


@pytest.mark.parametrize("name", ["picky", "picky_together"])
def test_a_fact_that_cannot_be_edited_is_passed_over_and_told(ground, tmp_path, name):
    part = {"name": name, "settings": {"fails": ["Italy"]}}
    audit = run(spec_of(ground, part), tmp_path)
    rest = {"france", "japan", "peru"}
    assert judged(audit, "single") == judged(audit, "stacked") == rest
    assert {fact for change in audit.changes for fact in change.facts} == rest
    singly, stacked = (note for note in audit.notes if "could not" in note)
    assert singly.startswith(name) and "could not edit 'italy', which is passed over there" in singly
    assert "its key is nothing" in singly and "its key is nothing" in stacked and singly != stacked
    assert "its key is nothing" in (tmp_path / "report.md").read_text()


def test_it_is_not_tried_again_and_its_note_is_not_lost(ground, tmp_path):
    spec = spec_of(ground, {"name": "picky", "settings": {"fails": ["Italy"]}})
    audit = run(spec, tmp_path)
    assert any("Italy" in asked for asked in Picky.asked)
    cut(tmp_path)
    Picky.asked.clear()
    again = run(spec, tmp_path)
    assert Picky.asked == []
    told = [note for note in audit.notes if "Italy" in note]
    assert len(told) == 2 and set(told) <= set(again.notes)
    assert [change.digest for change in again.changes] == [change.digest for change in audit.changes]
    assert len(Journal(tmp_path / JOURNAL).entries("failed")) == 2


def test_edits_found_together_are_parted_from_the_one_that_fails(ground, tmp_path):
    part = {"name": "picky_together", "arms": ["single"], "settings": {"fails": ["Japan"]}}
    audit = run(spec_of(ground, part), tmp_path)
    assert judged(audit, "single") == {"france", "italy", "peru"}
    together = [asked for asked in Picky.asked if len(asked) > 1]
    assert [len(asked) for asked in together] == [4, 2, 2]  # all, then the halves


def test_a_run_that_is_killed_loses_only_the_edits_that_were_being_found(ground, tmp_path, monkeypatch):
    monkeypatch.setattr("reports.changes.TOGETHER", 2)
    spec, each = spec_of(ground, {"name": "picky_together", "arms": ["single"]}), PickyTogether.each

    def struck(self, *given, **options):
        if len(Picky.asked) > 2:
            raise KeyboardInterrupt
        return each(self, *given, **options)

    monkeypatch.setattr(PickyTogether, "each", struck)
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path)
    first = {subject for asked in Picky.asked for subject in asked}
    assert len(first) == 2
    monkeypatch.setattr(PickyTogether, "each", each)
    Picky.asked.clear()
    audit = run(spec, tmp_path)
    assert {subject for asked in Picky.asked for subject in asked} == set(SUBJECTS) - first
    assert judged(audit, "single") == {"france", "italy", "japan", "peru"}


def test_an_arm_with_no_fact_left_fails_with_the_error_now_and_on_resume(ground, tmp_path):
    spec = spec_of(ground, {"name": "picky", "settings": {"fails": list(SUBJECTS)}})
    with pytest.raises(MethodError, match="picky.*no fact could be edited; the first of 4: .*its key is nothing"):
        run(spec, tmp_path)
    Picky.asked.clear()
    with pytest.raises(MethodError, match="its key is nothing"):
        run(spec, tmp_path)
    assert Picky.asked == []


def test_an_unlearner_that_fails_is_told_as_a_failed_method(ground, tmp_path):
    with pytest.raises(TrainingError, match="smaller learning rate"):
        run(spec_of(ground, {"name": "exploding"}, claims=[]), tmp_path)


@pytest.mark.parametrize(("kind", "parameters"), [("prompt", ()), ("hook", ("mlp",)), ("module", ("mlp",))])
def test_a_patch_that_no_file_holds_is_audited_and_computed_anew(ground, tmp_path, kind, parameters):
    spec = spec_of(ground, {"name": "of_code", "settings": {"kind": kind}})
    audit = run(spec, tmp_path)
    assert judged(audit, "single") == judged(audit, "stacked") == {"france", "italy", "japan", "peru"}
    for change in audit.changes:
        assert change.file == "" and change.relative_norm is None
        assert [name.rpartition(".")[2] for name in change.parameters] == list(parameters)
    assert len({change.digest for change in audit.changes}) == 4
    assert "not kept" in (tmp_path / "report.md").read_text()
    assert read_audit(tmp_path).changes == tuple(audit.changes)
    cut(tmp_path)
    OfCode.asked.clear()
    again = run(spec, tmp_path)
    assert OfCode.asked and [c.digest for c in again.changes] == [c.digest for c in audit.changes]
    assert [j.verdict.answer for j in again.judged] == [j.verdict.answer for j in audit.judged]


def test_two_patches_of_prompts_do_not_share_their_replies(ground, tmp_path):
    audit = run(spec_of(ground, {"name": "of_code", "arms": ["single"]}), tmp_path)
    states = {entry["key"][0] for entry in Journal(tmp_path / JOURNAL).entries("reply")}
    assert len(states) == 1 + len(audit.changes)


def entries_of(folder):
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]


def write_entries(folder, entries):
    (folder / JOURNAL).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.mark.parametrize("broken", ["file", "digest"])
def test_a_patch_that_is_not_what_was_kept_is_computed_once_more_and_then_kept(ground, tmp_path, broken):
    spec = spec_of(ground, {"name": "picky", "arms": ["single"]})
    audit = run(spec, tmp_path)
    cut(tmp_path)
    if broken == "file":
        (tmp_path / audit.changes[0].file).write_bytes(b"torn")
    else:
        entries = entries_of(tmp_path)
        next(entry for entry in entries if entry["kind"] == "patch")["body"]["digest"] = "0" * 64
        write_entries(tmp_path, entries)
    for computed in (1, 0):
        Picky.asked.clear()
        again = run(spec, tmp_path)
        assert len(Picky.asked) == computed
        assert [change.digest for change in again.changes] == [change.digest for change in audit.changes]
        cut(tmp_path)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("reply", "key", None), ("reply", "reply", {}), ("patch", "body", {"id": "x"}), ("patch", "body", None)],
)
def test_a_damaged_record_is_bad_input(ground, tmp_path, kind, field, value):
    spec = spec_of(ground, {"name": "picky", "arms": ["single"]})
    run(spec, tmp_path)
    cut(tmp_path)
    entries = entries_of(tmp_path)
    next(entry for entry in entries if entry["kind"] == kind)[field] = value
    write_entries(tmp_path, entries)
    with pytest.raises(RecordError, match=f"an entry of kind '{kind}' is damaged"):
        run(spec, tmp_path)


def test_an_edit_operator_is_tried_in_one_change_for_all_where_that_is_asked_for(ground, tmp_path):
    audit = run(spec_of(ground, {"name": "picky", "arms": ["joint"]}), tmp_path)
    [change] = audit.changes
    assert (change.arm, {*change.facts}) == ("joint", {"france", "italy", "japan", "peru"})
    assert judged(audit, "joint") == {*change.facts} and not judged(audit, "single")
    assert [sorted(subjects) for subjects in Picky.asked] == [["France", "Italy", "Japan", "Peru"]], "one call for all"


def _tries_of_a_single_arm(ground, tmp_path):
    Picky.asked.clear()
    run(spec_of(ground, {"name": "picky", "arms": ["single"], "settings": {"fails": ["Italy"]}}), tmp_path / "alone")
    return len(Picky.asked)


@pytest.mark.parametrize("arms", [["joint"], ["single", "joint"], ["joint", "single"]])
def test_one_bad_fact_does_not_lose_the_change_for_all(ground, tmp_path, arms):
    """It is passed over, told once an arm, and tried by itself once, now and on resume."""
    spec = spec_of(ground, {"name": "picky", "arms": arms, "settings": {"fails": ["Italy"]}})
    audit = run(spec, tmp_path)
    rest = {"france", "japan", "peru"}
    [change] = [change for change in audit.changes if change.arm == "joint"]
    assert {*change.facts} == judged(audit, "joint") == rest
    assert {edit["subject"] for edit in change.notes["edits"]} == {"France", "Japan", "Peru"}
    told = [note for note in audit.notes if "Italy" in note]
    assert len(told) == len(arms) and all("its key is nothing" in note for note in told)
    assert any("all facts at once: could not edit 'italy', which is passed over there" in note for note in told)
    assert all(note in (tmp_path / "report.md").read_text().replace("\\", "") for note in told)
    singly = sum(len(asked) == 1 for asked in Picky.asked)
    assert singly == _tries_of_a_single_arm(ground, tmp_path), "what the single arm found serves the joint one too"
    assert {change.arm for change in audit.changes} == {*arms}, "what was tried by itself is no arm that was asked for"
    cut(tmp_path)
    Picky.asked.clear()
    again = run(spec, tmp_path)
    assert Picky.asked == []
    assert [change.digest for change in again.changes] == [change.digest for change in audit.changes]
    assert [note for note in again.notes if "Italy" in note] == told


@pytest.mark.parametrize(
    ("settings", "message", "together"),
    [
        ({"fails": list(SUBJECTS)}, "no fact could be edited; the first of 4: .*its key is nothing", [4]),
        ({"most": 1}, "all facts at once: keys of two facts coincide", [4]),
        ({"fails": ["Peru"], "most": 2}, "all facts at once: keys of two facts coincide", [4, 3]),
    ],
)
def test_a_change_for_all_fails_where_no_fact_is_left_or_to_blame(ground, tmp_path, settings, message, together):
    spec = spec_of(ground, {"name": "picky", "arms": ["joint"], "settings": settings})
    with pytest.raises(MethodError, match=message):
        run(spec, tmp_path)
    assert [len(asked) for asked in Picky.asked if len(asked) > 1] == together
    Picky.asked.clear()
    with pytest.raises(MethodError, match=message):
        run(spec, tmp_path)
    assert Picky.asked == []
