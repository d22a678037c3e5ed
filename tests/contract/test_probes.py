"""What every registered probe keeps to, on stub models."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from probe_records import RECORDS, Model, new_answer, old_answer, run, says

from editkit.attribute import WordScore
from editkit.facts import EditRecord, normalise
from probes.judge import names
from probes.kinds import PROBES, Context
from probes.kinds._cases import new_names, old_names
from probes.verdict import Expect

EVERY = [pytest.param(name, key, id=f"{name}-{key}") for name in PROBES for key in RECORDS]
every_probe_and_record = pytest.mark.parametrize(("name", "key"), EVERY)
ABOUT_THE_SUBJECT = ("rewrite", "rephrase", "keyword_emphasis", "doubt")
ASSERTED = ("doubt", "level 2")  # somebody says the old object


def asked_and_verdicts(name: str, key: str, before: Model = old_answer, after: Model = new_answer, **options: int):
    return run(name, RECORDS[key], before, after, **options)


@every_probe_and_record
def test_each_case_yields_a_verdict(name, key):
    asked, verdicts = asked_and_verdicts(name, key)
    assert [verdict.case for verdict in verdicts] == [case for case in asked if not case.base_only]


@every_probe_and_record
def test_cases_name_their_probe_their_group_and_their_variant(name, key):
    asked, _ = asked_and_verdicts(name, key)
    assert {(case.probe, case.group) for case in asked} <= {(name, RECORDS[key].id)}
    assert all(case.variant for case in asked)


@every_probe_and_record
def test_same_seed_same_questions(name, key):
    assert asked_and_verdicts(name, key, seed=7) == asked_and_verdicts(name, key, seed=7)


@every_probe_and_record
def test_the_new_answer_stands_in_no_prompt(name, key):
    asked, _ = asked_and_verdicts(name, key)
    for case in asked:
        wanted = [] if case.base_only else [*new_names(RECORDS[key]), *case.new]
        assert not [each for each in wanted if names(case.prompt, each)], case.prompt


@every_probe_and_record
def test_the_old_answer_stands_only_in_premises_and_where_a_kind_says_so(name, key):
    asked, _ = asked_and_verdicts(name, key)
    for case in asked:
        if not case.base_only and (name, case.variant) != ASSERTED:
            assert not any(names(case.prompt, each) for each in case.old), case.prompt
            if case.variant != "inverse":
                assert not any(names(case.prompt, each) for each in old_names(RECORDS[key])), case.prompt


@every_probe_and_record
def test_prompts_about_the_subject_name_it(name, key):
    asked, _ = asked_and_verdicts(name, key)
    if name in ABOUT_THE_SUBJECT:
        assert all(normalise(RECORDS[key].fact.subject) in normalise(case.prompt) for case in asked)


@every_probe_and_record
def test_the_base_model_against_itself_breaks_nothing(name, key):
    for model in (old_answer, new_answer, says(lambda case: "")):
        _, verdicts = asked_and_verdicts(name, key, model, model)
        assert not [v for v in verdicts if v.case.expect is Expect.UNCHANGED and v.passed is False]


@every_probe_and_record
def test_a_model_that_has_the_change_passes(name, key):
    _, verdicts = asked_and_verdicts(name, key)
    assert all(v.applies for v in verdicts)
    assert all(v.passed for v in verdicts if v.case.expect is not Expect.UNCHANGED)


@every_probe_and_record
def test_a_model_that_lacks_the_change_fails(name, key):
    _, verdicts = asked_and_verdicts(name, key, old_answer, old_answer)
    assert not any(v.passed for v in verdicts if v.case.expect is not Expect.UNCHANGED)


@every_probe_and_record
def test_babble_passes_nowhere(name, key):
    _, verdicts = asked_and_verdicts(name, key, old_answer, says(lambda case: "the the the the"))
    assert not any(v.passed for v in verdicts)


@every_probe_and_record
def test_a_neighbour_that_is_lost_fails(name, key):
    _, verdicts = asked_and_verdicts(name, key, old_answer, says(lambda case: "nothing"))
    assert not any(v.passed for v in verdicts if v.case.expect is Expect.UNCHANGED)


@every_probe_and_record
def test_what_must_stay_has_no_new_answer(name, key):
    asked, _ = asked_and_verdicts(name, key)
    for case in asked:
        if case.expect is Expect.UNCHANGED:
            assert case.new == ()
        else:
            assert bool(case.new) == isinstance(RECORDS[key], EditRecord)


@pytest.mark.parametrize("name", list(PROBES))
def test_the_docstring_begins_with_the_question_it_answers(name):
    module = inspect.getmodule(PROBES[name])
    assert module.__name__ == f"probes.kinds.{name}"
    assert module.__doc__.partition("\n")[0].endswith("?")


@pytest.mark.parametrize("name", list(PROBES))
def test_key_words_are_asked_for_only_once_the_probe_runs(name):
    """So that the runner can see to it that no patch is on."""
    asked = []

    def attribution(prompt: str, answer: str) -> tuple[WordScore, ...]:
        asked.append(prompt)
        return ()

    for record in RECORDS.values():
        PROBES[name](record, Context(0, attribution)).close()
    assert asked == []


def test_probes_load_no_torch():
    code = "import sys; from probes.kinds import PROBES; PROBES.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
