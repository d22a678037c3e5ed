"""The parts of a metric's cases that docs/truth.md tells apart."""

from __future__ import annotations

from probe_records import RECORDS, new_answer, old_answer, run, says
from truth_parts import PARTS, Part, counts, knew, of_variant, shares

from probes.kinds._variants import cased
from probes.metrics import METRICS, value

RECORD = RECORDS["edit"]
OWN = {RECORD.id: RECORD.fact.text}
ASKED = ("rewrite", "rephrase", "neighborhood", "multi_hop", "fluency")


def verdicts(before=old_answer, after=new_answer):
    return [verdict for probe in ASKED for verdict in run(probe, RECORD, before, after)[1]]


def test_each_form_of_letters_is_one_part():
    forms = ("first letter small", "all letters small", "each word a capital")
    found = verdicts()
    told = {form: [v.case.prompt for v in found if PARTS[form].of(v, OWN[v.case.group])] for form in forms}
    assert [*told.values()] == [[text] for text in cased(RECORD.fact.text)]


def test_parts_of_one_metric_make_up_its_cases():
    found = verdicts(after=says(lambda case: "Rome" if "Norway" in case.prompt else case.old[0]))
    told = shares(PARTS | {"all": Part("specificity_generation", of_variant(None))}, found, OWN)
    own, others = told["neighbours, same relation"], told["neighbours, others"]
    assert own.n + others.n == told["all"].n > 0 < own.n
    assert others.value == 1 > own.value
    assert told["all"].value == value(METRICS["specificity_generation"], found)


def test_what_the_unchanged_model_knows_is_counted_on_the_same_cases():
    chosen = {name: Part("generalization_generation", of_variant(name)) for name in ("question", "typo")} | PARTS
    half = says(lambda case: "no idea" if case.variant == "question" else case.old[0])
    told, after = knew(chosen, verdicts(half), OWN), shares(chosen, verdicts(half), OWN)
    assert (told["question"].value, told["typo"].value) == (0, 1)
    assert {name: each.n for name, each in told.items()} == {name: after[name].n for name in told}
    assert "neighbours, same relation" not in told, "what must stay has no new object to be compared with"


def test_neighbours_that_got_the_new_object_and_texts_that_end_at_once():
    def after(case):
        return "Rome!" if case.probe == "neighborhood" and case.relation == "capital" else "one two three"

    told = counts(verdicts(after=says(after)))
    right = [v for v in verdicts() if v.case.probe == "neighborhood"]
    moved = [v for v in right if v.case.relation == "capital"]
    assert told["neighbours with the new object"].value == len(moved) / len(right) > 0
    assert told["texts of two words or less"].value == 0
    assert counts(verdicts(after=says(lambda case: "Rome")))["texts of two words or less"].value == 1
