"""rewrite, neighborhood, popularity and multi_hop."""

from __future__ import annotations

from dataclasses import replace

import pytest
from probe_records import (
    BEGINNING,
    ENDING,
    FACT,
    INVERSE,
    LYON,
    NEIGHBORS,
    OWN,
    RANGE,
    RECORDS,
    asked,
    edit_record,
    forget_record,
    new_answer,
    old_answer,
    run,
    says,
)

from editkit.facts import Hop
from probes.framing import framed
from probes.metrics import METRICS, value
from probes.verdict import Expect


def cases_of(name, key, **options):
    return run(name, RECORDS[key], old_answer, new_answer, **options)[0]


# rewrite -------------------------------------------------------------------------------------------------------


def test_the_prompt_is_asked_as_it_is_written():
    [case] = cases_of("rewrite", "edit")
    assert (case.prompt, case.variant, case.expect) == ("The capital of France is", "plain", Expect.HOLDS)
    assert (case.old, case.new, case.contrast) == (("Paris", "Paname"), ("Rome", "Roma"), ("Rome",))
    assert case.stratum == "q4"
    [case] = cases_of("rewrite", "question prompt")
    assert case.prompt == "What is the capital of France?"


def test_forgetting_compares_with_four_others_of_the_range_by_seed():
    samples = {cases_of("rewrite", "forget", seed=seed)[0].contrast for seed in range(6)}
    assert len(samples) > 1
    for sample in samples:
        assert len(set(sample)) == 4
        assert set(sample) <= set(RANGE) - {"Paris"}
    [case] = cases_of("rewrite", "forget")
    assert case.new == ()


def test_a_forgotten_fact_compares_with_the_same_objects_in_all_probes():
    wanted = cases_of("rewrite", "forget")[0].contrast
    assert {case.contrast for case in cases_of("rephrase", "forget")} == {wanted}


# doubt ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["edit", "question prompt"])
def test_doubt_asks_again_after_a_dispute_and_after_the_old_object_is_asserted(key):
    cases = cases_of("doubt", key)
    assert [case.variant for case in cases] == ["level 1"] * 2 + ["level 2"] * 2
    [own] = cases_of("rewrite", key)
    for case in cases:
        assert case.prompt.startswith("User: ")
        assert case.prompt.endswith(framed(own.prompt)), "the question is asked as it was, last"
        assert ("Paris" in case.prompt) == (case.variant == "level 2")
        assert (case.old, case.new, case.contrast) == (own.old, own.new, own.contrast)


def test_what_is_forgotten_is_not_told_again_by_a_doubt():
    assert {case.variant for case in cases_of("doubt", "forget")} == {"level 1"}


def test_a_subject_with_braces_is_no_slot():
    record = replace(RECORDS["edit"], edit=replace(RECORDS["edit"].edit, fact=replace(FACT, subject="Fr{}nce")))
    asked, _ = run("doubt", record, old_answer, new_answer)
    assert all(case.prompt.count("{}") == case.prompt.count("Fr{}nce") > 0 for case in asked)


@pytest.mark.parametrize("key", ["edit", "forget"])
def test_metrics_of_doubt_read_both_tasks(key):
    _, held = run("doubt", RECORDS[key], old_answer, new_answer)
    _, lost = run("doubt", RECORDS[key], old_answer, old_answer)
    for name in ("doubt_success", "doubt_accuracy", "doubt_generation"):
        assert (value(METRICS[name], held, "after"), value(METRICS[name], lost, "after")) == (1, 0)
    assert value(METRICS["doubt_reversion"], held, "after") == 0
    assert value(METRICS["doubt_reversion"], lost, "after") == 1


# fluency -------------------------------------------------------------------------------------------------------


def test_free_texts_go_on_from_the_own_prompt_and_one_other_wording():
    cases = cases_of("fluency", "edit")
    assert [case.variant for case in cases] == ["plain", "paraphrase"]
    assert cases[0].prompt == "The capital of France is" != cases[1].prompt
    assert {case.free for case in cases} == {50}
    assert not any(case.free for name in ("rewrite", "rephrase") for case in cases_of(name, "edit"))


# neighborhood and popularity -----------------------------------------------------------------------------------


def test_neighbours_are_asked_as_they_are_and_must_stay():
    cases = cases_of("neighborhood", "edit")
    assert len(cases) == len(NEIGHBORS)
    assert {case.expect for case in cases} == {Expect.UNCHANGED}
    assert {case.contrast for case in cases} == {("Rome",)}
    assert [case.variant for case in cases] == ["same relation"] * 4 + ["other relation"] * 2
    assert [case.prompt for case in cases][:2] == ["The capital of Norway is", "The capital of Peru is"]
    assert cases[-1].prompt == "User: What is the currency of Sweden?\nAssistant:"


def test_forgetting_compares_neighbours_with_their_own_kind():
    by_prompt = {case.prompt: case for case in cases_of("neighborhood", "forget")}
    capital = by_prompt["The capital of Norway is"]
    assert set(capital.contrast) <= set(RANGE) - {"Oslo"}
    assert by_prompt["The currency of Poland is the"].contrast == ("krona",)


@pytest.mark.parametrize("probe", ["neighborhood", "popularity"])
def test_a_neighbour_that_is_there_twice_counts_once(probe):
    record = edit_record(neighborhood=(asked("Peru", "Lima"), asked("Peru", "Lima")))
    assert len(run(probe, record, old_answer, new_answer)[0]) == 1


def test_a_neighbour_that_has_the_new_object_has_nothing_to_be_compared_with():
    [case], _ = run("neighborhood", edit_record(neighborhood=(asked("Italy", "Rome"),)), old_answer, new_answer)
    assert case.contrast == ()


def test_popularity_asks_those_of_the_relation_that_have_a_stratum():
    cases = cases_of("popularity", "edit")
    assert [(case.variant, case.stratum) for case in cases] == [("q1", "q1"), ("q2", "q2"), ("q4", "q4")]
    assert {case.relation for case in cases} == {"capital"}
    shared = {case.prompt for case in cases_of("neighborhood", "edit")}
    assert {case.prompt for case in cases} <= shared  # so that they cost nothing


# multi_hop -----------------------------------------------------------------------------------------------------


def wrong_at(*prompts):
    return says(lambda case: "somewhere else" if case.prompt in prompts else case.old[0])


def verdicts_of(record, before=old_answer, after=new_answer):
    return {verdict.case.prompt: verdict for verdict in run("multi_hop", record, before, after)[1]}


def test_each_premise_is_asked_once_of_the_base_model_alone():
    cases = cases_of("multi_hop", "edit")
    premises = [case for case in cases if case.base_only]
    assert len({case.prompt for case in premises}) == len(premises) == 4
    assert cases[: len(premises)] == premises  # in a round of their own


def test_an_edit_wants_the_new_consequence():
    verdicts = verdicts_of(RECORDS["edit"])
    assert [(v.case.old, v.case.new, v.passed) for v in verdicts.values()] == [
        (("Paris",), ("Rome",), True),
        (("French",), ("Italian",), True),
    ]


def test_a_hop_whose_premise_fails_does_not_apply_and_says_which():
    verdicts = verdicts_of(RECORDS["edit"], before=wrong_at(LYON.prompt))
    assert verdicts[ENDING.prompt].applies is False
    assert verdicts[ENDING.prompt].note == f"premise {LYON.prompt!r} fails: 'somewhere else' instead of 'France'"
    assert verdicts["User: " + BEGINNING.prompt + "\nAssistant:"].applies is True


def test_a_common_premise_that_fails_takes_all_its_hops_along():
    assert not any(v.applies for v in verdicts_of(RECORDS["edit"], before=wrong_at(OWN.prompt)).values())


def test_what_was_forgotten_must_not_be_reached():
    gone, reached = verdicts_of(RECORDS["forget"]), verdicts_of(RECORDS["forget"], after=old_answer)
    assert {v.case.variant: v.passed for v in gone.values()} == {"composition": True, "inverse": True}
    assert {v.case.variant: v.passed for v in reached.values()} == {"composition": False, "inverse": False}
    assert gone[INVERSE.prompt].case.old == ("France",)
    assert set(gone[INVERSE.prompt].case.contrast) <= {"Norway", "Peru", "Japan", "Spain"}
    assert set(gone[ENDING.prompt].case.contrast) <= set(RANGE) - {"Paris"}


def test_a_forgotten_answer_that_the_unchanged_model_does_not_give_shows_no_forgetting():
    verdict = verdicts_of(RECORDS["forget"], before=wrong_at(ENDING.prompt))[ENDING.prompt]
    assert not verdict.applies
    assert "not given before the change" in verdict.note


def test_a_forgotten_answer_that_only_the_changed_model_reaches_is_said():
    verdict = verdicts_of(RECORDS["forget"], before=wrong_at(ENDING.prompt), after=old_answer)[ENDING.prompt]
    assert not verdict.applies
    assert "but after it" in verdict.note


def test_a_shortcut_to_a_forgotten_answer_is_a_leak_whatever_its_hops():
    verdict = verdicts_of(RECORDS["forget"], before=wrong_at(LYON.prompt), after=old_answer)[ENDING.prompt]
    assert verdict.passed is False
    assert verdict.note.startswith(f"premise {LYON.prompt!r} fails")


@pytest.mark.parametrize(("answer", "new"), [("Lyon", "Rome"), ("Paris", "Lyon")])
def test_a_hop_that_names_its_own_answer_is_not_asked(answer, new):
    question = asked("Lyon", answer)
    record = edit_record(hops=(Hop(question, (), "composition", new),))
    assert verdicts_of(record) == {}


def test_hops_without_premises_are_asked_at_once():
    record = forget_record(hops=(Hop(ENDING, (), "neighbour"),))
    assert [v.passed for v in verdicts_of(record).values()] == [True]
