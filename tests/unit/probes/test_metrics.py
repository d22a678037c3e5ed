"""Every metric against numbers that can be counted by hand."""

import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import entropy

from probes.estimate import holm
from probes.metrics import METRICS, Metric, combined, per_case, summarise, value
from probes.verdict import Answer, Case, Class, Expect, Marks, Reply, Verdict

PROTOCOLS = ("success", "accuracy", "generation")
YES, NO = Marks(True, True, True), Marks(False, False, False)
BLANK = Answer(Reply(""), Reply(""))


def verdict(probe, group="f1", variant="plain", *, before=NO, after=YES, was=Class.OLD, now=Class.NEW, **more):
    margins = {"margin_before": more.pop("margin_before", None), "margin_after": more.pop("margin_after", None)}
    applies, prompt = more.pop("applies", True), more.pop("prompt", f"{probe}, {variant}: where?")
    case = Case(probe, variant, prompt, Expect.HOLDS, group, ("Paris",), **more)
    return Verdict(case, BLANK, before, after, was, now, applies=applies, **margins)


def of(name, verdicts, side="after"):
    return value(METRICS[name], verdicts, side)


def rows_of(name, verdicts, task="edit", **more):
    return [row for row in summarise(verdicts, task=task, **more) if row.metric == name]


def overall(name, verdicts, task="edit", **more):
    (row,) = (r for r in rows_of(name, verdicts, task, **more) if r.stratum is None and r.variant is None)
    return row


@pytest.mark.parametrize(
    ("metric", "probe"),
    [("efficacy", "rewrite"), ("generalization", "rephrase"), ("portability", "multi_hop")],
)
def test_each_protocol_is_read_by_its_own_metric_from_its_own_probe(metric, probe):
    verdicts = [
        verdict(probe, "f1", after=Marks(True, False, False)),
        verdict(probe, "f2", after=Marks(True, True, None)),
        verdict(probe, "f3", after=Marks(False, None, True)),
        verdict(probe, "f4", after=Marks(True, None, True)),
        verdict("other", "f5", after=NO),
    ]
    assert of(f"{metric}_success", verdicts) == 3 / 4
    assert of(f"{metric}_accuracy", verdicts) == 1 / 2
    assert of(f"{metric}_generation", verdicts) == pytest.approx(2 / 3)
    assert of(f"{metric}_success", verdicts, "before") == 0.0


@pytest.mark.parametrize(
    ("metric", "probe"),
    [
        *((f"efficacy_{protocol}", "rewrite") for protocol in PROTOCOLS),
        *((f"forget_efficacy{protocol}", "rewrite") for protocol in ("", "_success", "_accuracy")),
        *((f"forget_generalization{protocol}", "rephrase") for protocol in ("", "_success", "_accuracy")),
        *((f"specificity_{protocol}", "neighborhood") for protocol in PROTOCOLS),
        *((f"retained{protocol}", "neighborhood") for protocol in ("", "_success", "_accuracy")),
    ],
)
def test_degenerate_text_is_a_failure_even_if_marked_a_success(metric, probe):
    babble, text = verdict(probe, "f1", before=YES, now=Class.DEGENERATE), verdict(probe, "f2", before=YES)
    assert of(metric, [babble]) == 0.0
    assert of(metric, [babble, text]) == 0.5


def test_the_unchanged_models_babble_is_a_failure_as_well():
    babble = verdict("rewrite", before=YES, was=Class.DEGENERATE, margin_before=2.0, margin_after=3.0)
    for protocol in PROTOCOLS:
        assert of(f"efficacy_{protocol}", [babble], "before") == 0.0
    assert of("efficacy_magnitude", [babble], "before") == 0.0
    assert of("specificity_success", [replace(babble, case=replace(babble.case, probe="neighborhood"))]) is None


def test_babble_is_ahead_by_nothing():
    ahead, behind = (verdict("rewrite", margin_after=margin, now=Class.DEGENERATE) for margin in (3.0, -2.0))
    assert of("efficacy_magnitude", [ahead]) == 0.0
    assert of("efficacy_magnitude", [behind]) == -2.0


def test_magnitude_is_the_mean_margin():
    verdicts = [verdict("rewrite", f"f{i}", margin_before=-1.0, margin_after=m) for i, m in enumerate((0.5, 1.5))]
    row = overall("efficacy_magnitude", verdicts)
    assert (row.before.value, row.after.value, row.difference.value) == (-1.0, 1.0, 2.0)


@pytest.mark.parametrize(
    "metric", ["specificity_success", "specificity_accuracy", "specificity_generation", "retained"]
)
def test_only_what_was_right_before_can_be_kept(metric):
    verdicts = [
        verdict("neighborhood", "f1", before=YES, after=YES),
        verdict("neighborhood", "f2", before=YES, after=NO),
        verdict("neighborhood", "f3", before=NO, after=YES),
    ]
    row = overall(metric, verdicts, "unlearn" if metric == "retained" else "edit")
    assert row.after.value == 0.5 and row.skipped == 1
    assert row.before is None and row.difference is None and row.p is None


def edited(success, other=1.0):
    """Two facts: the share of the rephrasings that took is `success`, everything else is `other`."""
    took = [YES if i < 4 * success else NO for i in range(4)]
    good = YES if other else NO
    return [
        v
        for group in ("f1", "f2")
        for v in (
            verdict("rewrite", group, after=good),
            verdict("neighborhood", group, before=YES, after=YES, now=Class.OLD),
            *(verdict("rephrase", group, f"w{i}", after=mark) for i, mark in enumerate(took)),
        )
    ]


@pytest.mark.parametrize("metric", ["edit_score", "edit_score_success"])
def test_edit_score_is_the_harmonic_mean(metric):
    assert of(metric, edited(0.5)) == pytest.approx(3 / (1 + 2 + 1))
    assert of(metric, edited(1.0)) == 1.0
    assert of(metric, edited(0.5, other=0.0)) == 0.0
    assert of(metric, [v for v in edited(1.0) if v.case.probe != "neighborhood"]) is None
    assert of(metric, edited(0.5), "before") == 0.0


def test_unlearn_score_is_the_harmonic_mean():
    assert of("unlearn_score", edited(0.25)) == pytest.approx(3 / (1 + 4 + 1))


def test_a_perfect_score_is_as_sure_as_wilson_on_its_facts():
    row = overall("edit_score", edited(1.0))
    assert row.after.high == 1.0 and row.after.low == pytest.approx(2 / (2 + 1.959964**2))


def test_a_score_is_as_sure_as_its_thinnest_part():
    """Neighbours of one fact only: a value, and no interval however many other facts there are."""
    verdicts = [v for v in edited(0.5) if (v.case.probe, v.case.group) != ("neighborhood", "f2")]
    after = overall("edit_score", verdicts).after
    assert after.value == 0.75 and after.low is None and after.groups == 1


def test_reversion_reads_rephrased_and_stressed_but_no_control():
    verdicts = [
        verdict("rephrase", now=Class.OLD),
        verdict("rephrase", now=Class.NEW),
        verdict("keyword_emphasis", variant="key:list", now=Class.OLD),
        verdict("keyword_emphasis", variant="control:random_words:0", now=Class.NEW),
        verdict("keyword_emphasis", variant="plain", now=Class.NEW),
    ]
    assert of("reversion", verdicts) == pytest.approx(2 / 3)


def test_popularity_gap_is_best_minus_worst_stratum():
    verdicts = [
        verdict("rephrase", f"{stratum}{i}", stratum=stratum, after=YES if i < good else NO)
        for stratum, good in (("q1", 1), ("q2", 2), ("q4", 4))
        for i in range(4)
    ]
    assert of("popularity_gap", verdicts) == 0.75
    assert of("popularity_gap", verdicts[:4]) is None
    row = overall("popularity_gap", verdicts)
    assert row.after.groups == 4 and 0 <= row.after.low <= 0.75 <= row.after.high <= 1
    assert overall("popularity_gap", verdicts, strata={v.case.group: "all" for v in verdicts}).after.value is None


@pytest.mark.parametrize("failing", [{"after": NO}, {"now": Class.DEGENERATE}])
def test_strata_that_all_fail_are_no_small_gap(failing):
    verdicts = [verdict("rephrase", f"f{i}", stratum=f"q{i % 2}", **failing) for i in range(4)]
    assert of("generalization_generation", verdicts) == 0.0
    assert of("popularity_gap", verdicts) is None
    assert of("popularity_gap", [verdict("rephrase", "f9", stratum="q1"), *verdicts]) == pytest.approx(1 / 3)


def test_forgetting_is_read_from_class_mark_and_probability():
    verdicts = [
        verdict("rewrite", "f1", now=Class.OLD, after=Marks(False, False, False)),
        verdict("rewrite", "f2", now=Class.HALLUCINATION, after=Marks(True, False, True)),
        verdict("rewrite", "f3", now=Class.REFUSAL, after=Marks(True, True, True)),
        verdict("rewrite", "f4", now=Class.DEGENERATE, after=Marks(True, True, False)),
        verdict("rephrase", "f1", now=Class.OLD, after=NO),
        verdict("multi_hop", "f1", now=Class.OLD, after=NO),
        verdict("multi_hop", "f2", now=Class.OTHER),
        verdict("multi_hop", "f3", now=Class.OLD, applies=False),
    ]
    found = {name: of(name, verdicts) for name in METRICS}
    assert found["forget_accuracy"] == pytest.approx(1 / 3)
    assert found["forget_efficacy_accuracy"] == 0.25
    assert found["forget_efficacy_success"] == 0.5
    assert found["forget_efficacy"] == 0.5
    assert found["forget_rephrased"] == 1.0 and found["forget_generalization"] == 0.0
    assert found["leakage"] == 0.5
    assert found["hallucination"] == 0.25 and found["refusal"] == 0.2
    assert found["degeneration"] == 1 / 8
    assert overall("forget_accuracy", verdicts, "unlearn").before is None


@pytest.mark.parametrize(
    ("metric", "probe"),
    [
        ("forget_accuracy", "rewrite"),
        ("forget_rephrased", "rephrase"),
        ("leakage", "multi_hop"),
        ("reversion", "rephrase"),
        ("hallucination", "rewrite"),
    ],
)
def test_babble_is_no_proof_that_the_answer_is_gone(metric, probe):
    bad = Class.HALLUCINATION if metric == "hallucination" else Class.OLD
    babble, said = verdict(probe, "f1", now=Class.DEGENERATE), verdict(probe, "f2", now=bad)
    assert of(metric, [babble]) is None
    assert of(metric, [babble, said]) == 1.0


BABBLE = -1


def emphasised(group, key, random_words, template_only, *, was=Class.OLD, now=Class.NEW):
    """One fact; the flags say which wording brings the old answer back, and which is answered with babble."""
    classes = {0: Class.NEW, 1: Class.OLD, BABBLE: Class.DEGENERATE}
    kinds = [("key:", key), ("control:random_words:", random_words), ("control:template_only:", template_only)]
    asked = [
        verdict("keyword_emphasis", group, f"{kind}{i}", now=classes[flag])
        for kind, flags in kinds
        for i, flag in enumerate(flags)
    ]
    return [verdict("keyword_emphasis", group, "plain", was=was, now=now), *asked]


def test_recovery_is_the_best_of_equally_many_tries():
    verdicts = emphasised("f1", [0, 1, 0], [0, 0, 0], [1, 0, 0]) + emphasised("f2", [1, 1, 1], [0, 0, 0], [0, 0, 0])
    assert of("recovery_rate", verdicts) == 1.0
    assert of("recovery_random", verdicts) == 0.0
    assert of("recovery_template", verdicts) == 0.5
    assert of("emphasis_effect", verdicts) == 0.5


def test_more_controls_than_wordings_are_no_more_tries():
    """Two of four controls bring it back: two drawn at random miss it in 1 of 6 ways."""
    verdicts = emphasised("f1", [0, 1], [1, 1, 0, 0], [0, 0])
    assert of("recovery_random", verdicts) == pytest.approx(5 / 6)
    assert of("emphasis_effect", verdicts) == -0.5  # one of two, and both of the controls in the same two wordings


def test_the_effect_counts_wordings_that_all_arms_answer_on_the_unchanged_model():
    verdicts = emphasised("f1", [1, 1], [0, 0], [1, 0])
    assert of("emphasis_effect", verdicts) == 0.5
    lost = [
        replace(v, class_before=Class.OTHER) if v.case.variant == "control:template_only:0" else v for v in verdicts
    ]
    assert of("emphasis_effect", lost) == 1.0
    assert of("recovery_rate", lost) == 1.0


def test_a_model_that_babbles_at_the_plain_wording_has_forgotten_nothing():
    assert of("recovery_rate", emphasised("f1", [0], [0], [0], now=Class.DEGENERATE)) is None


RECOVERIES = ("recovery_rate", "recovery_random", "recovery_template", "emphasis_effect")


def test_facts_that_babble_when_stressed_are_no_evidence():
    verdicts = [v for i in range(8) for v in emphasised(f"f{i}", *[[BABBLE] * 6] * 3)]
    for name in RECOVERIES:
        row = overall(name, verdicts)
        assert row.after.value is None and row.after.n == 0 and row.skipped == len(verdicts)


def test_a_stressed_wording_that_is_answered_with_babble_is_as_if_not_asked():
    with_babble = emphasised("f1", [1, 0, BABBLE], [0, BABBLE, 0], [0, 0, 1])
    without = [v for v in with_babble if v.class_after is not Class.DEGENERATE]
    for name in RECOVERIES:
        assert of(name, with_babble) == of(name, without)
    assert of("recovery_rate", with_babble) == 1.0  # two tries, two wordings
    assert of("recovery_template", with_babble) == pytest.approx(2 / 3)  # of three wordings two are tried
    assert of("emphasis_effect", with_babble) == 1.0  # only the first wording is answered in all three arms


def test_an_arm_that_only_babbles_is_left_out_alone():
    verdicts = emphasised("f1", [BABBLE, BABBLE], [1, 0], [0, 0])
    assert [of(name, verdicts) for name in RECOVERIES] == [None, 1.0, 0.0, None]


def test_recovery_is_only_asked_where_the_old_answer_came_and_went():
    never_knew = emphasised("f1", [1], [1], [1], was=Class.OTHER)
    still_knows = emphasised("f2", [1], [1], [1], now=Class.OLD)
    for name in RECOVERIES:
        assert of(name, never_knew + still_knows) is None
    row = overall("recovery_rate", never_knew + still_knows + emphasised("f3", [1], [0], [0]))
    assert (row.after.value, row.after.n, row.after.groups, row.skipped) == (1.0, 1, 1, 8)


def test_without_a_control_there_is_no_effect():
    assert of("emphasis_effect", emphasised("f1", [1], [], [0])) is None


def test_what_two_probes_ask_is_one_question_to_a_metric_that_reads_all():
    """As the default audit asks it: the plain wording is the rewrite's, and a stratum's questions are neighbours'."""
    same = {"prompt": "The capital of France is", "now": Class.DEGENERATE}
    near = {"prompt": "The capital of Peru is", "before": YES}
    verdicts = [
        verdict("rewrite", **same),
        verdict("keyword_emphasis", **same),
        verdict("neighborhood", variant="same_relation", **near),
        verdict("popularity", variant="q1", **near),
        verdict("rephrase", variant="typo"),
        verdict("rewrite", "f2", **same),  # another fact's change, another answer
    ]
    row = overall("degeneration", verdicts)
    assert (row.after.value, row.after.n, row.skipped) == (0.5, 4, 0)
    by_variant = {r.variant: (r.after.value, r.after.n) for r in rows_of("degeneration", verdicts)}
    assert by_variant["q1"] == by_variant["same_relation"] == by_variant["typo"] == (0.0, 1)
    assert by_variant["plain"] == (1.0, 2)
    assert overall("efficacy_generation", verdicts).after.n == 2  # metrics of a probe read all of it


def test_of_two_cases_with_one_question_the_one_that_applies_counts():
    share = dict(task="both", probes=(), better="higher", unit="share", question="How many?")
    metric = Metric("all", compute=lambda verdict, side: float(verdict.class_after is Class.NEW), **share)
    verdicts = [
        verdict("keyword_emphasis", prompt="Where?", applies=False, now=Class.OLD),
        verdict("rewrite", prompt="Where?"),
    ]
    assert value(metric, verdicts) == value(metric, verdicts[::-1]) == 1.0
    assert value(metric, verdicts[:1]) is None


def test_degenerate_text_is_seen_whether_or_not_a_premise_holds():
    verdicts = [verdict("multi_hop", applies=False, now=Class.DEGENERATE), verdict("rewrite")]
    row = overall("degeneration", verdicts)
    assert (row.before.value, row.after.value, row.after.n, row.skipped) == (0.0, 0.5, 2, 0)


def test_rows_overall_by_stratum_and_by_wording():
    verdicts = [
        verdict("rephrase", "f1", "typo", stratum="q1", after=NO),
        verdict("rephrase", "f1", "question", stratum="q1"),
        verdict("rephrase", "f2", "typo", stratum="q4"),
        verdict("rephrase", "f2", "question", stratum="q4", applies=False),
    ]
    rows = {(r.stratum, r.variant): r for r in rows_of("generalization_generation", verdicts)}
    assert {cut: row.after.value for cut, row in rows.items()} == {
        (None, None): pytest.approx(2 / 3),
        ("q1", None): 0.5,
        ("q4", None): 1.0,
        (None, "typo"): 0.5,
        (None, "question"): 1.0,
    }
    assert {cut: row.skipped for cut, row in rows.items() if row.skipped} == {
        (None, None): 1,
        ("q4", None): 1,
        (None, "question"): 1,
    }


def test_strata_may_be_given_and_reach_every_probe():
    verdicts = [verdict("multi_hop", "f1", stratum="q9"), verdict("multi_hop", "f2", after=NO)]
    rows = rows_of("portability_generation", verdicts, strata={"f1": "rare", "f2": None})
    assert [(row.stratum, row.after.value) for row in rows] == [(None, 0.5), ("rare", 1.0), (None, 0.5)]
    assert {row.stratum for row in rows_of("portability_generation", verdicts)} == {None}


def test_before_and_after_are_paired_over_the_cases_that_have_both():
    verdicts = [verdict("rewrite", f"f{i}", before=NO) for i in range(5)]
    verdicts.append(verdict("rewrite", "f5", before=Marks(None, None, None)))
    row = overall("efficacy_generation", verdicts)
    assert (row.before.n, row.after.n, row.difference.n) == (5, 6, 5)
    assert row.difference.value == 1.0 and row.p == 2 / 2**5


def test_tasks_have_their_own_metrics_and_share_some():
    edit, unlearn, both = ({row.metric for row in summarise([], task=task)} for task in ("edit", "unlearn", "both"))
    assert edit & unlearn == {name for name, metric in METRICS.items() if metric.task == "both"}
    assert edit | unlearn == both == set(METRICS)


def test_the_order_of_verdicts_does_not_matter():
    draw = random.Random(7)
    verdicts = [
        verdict(
            probe, f"f{i}", f"w{j}", after=draw.choice([YES, NO]), before=draw.choice([YES, NO]), stratum=f"q{i % 2}"
        )
        for probe in ("rewrite", "rephrase", "neighborhood", "multi_hop")
        for i in range(6)
        for j in range(3)
    ]
    assert summarise(draw.sample(verdicts, len(verdicts)), task="edit", seed=3) == summarise(
        verdicts, task="edit", seed=3
    )


def nothing(verdict, side):
    """Nothing at all"""


def test_a_metric_must_ask_something_in_a_known_unit_and_direction():
    with pytest.raises(ValueError, match="metric 'nothing' asks nothing"):
        per_case("edit", ["rewrite"], better="higher")(nothing)
    with pytest.raises(ValueError, match="has unit 'miles'; there is share"):
        per_case("edit", ["rewrite"], better="higher", unit="miles")(nothing)
    with pytest.raises(ValueError, match="is better 'longer'; say higher or lower"):
        combined("edit", [], better="longer")(nothing)
    assert "nothing" not in METRICS


def test_numbers_are_had_without_torch_and_metrics_are_read_on_the_first_look_up():
    script = (
        "import sys, probes.metrics as m; "
        "assert 'probes.metrics.editing' not in sys.modules; "
        "assert 'edit_score' in m.METRICS and 'torch' not in sys.modules and 'scipy.stats' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_decorated_function_is_its_metric():
    metric = METRICS["efficacy_success"]
    assert isinstance(metric, Metric) and metric.compute(verdict("rewrite"), "after") == 1.0


def test_p_values_are_adjusted_for_the_metrics_tested_on_the_same_cut():
    verdicts = [verdict("rewrite", f"f{i}", margin_before=-1.0, margin_after=1.0) for i in range(8)]
    rows = [row for row in summarise(verdicts, task="edit") if row.p is not None]
    families = {(row.stratum, row.variant) for row in rows}
    assert len(families) == 2  # overall, and the one wording
    for family in families:
        own = [row for row in rows if (row.stratum, row.variant) == family]
        assert [row.p_holm for row in own] == holm([row.p for row in own])
        assert len(own) > 1 and min(own, key=lambda row: row.p).p_holm > min(row.p for row in own)
    assert all(row.p_holm is None for row in summarise(verdicts, task="edit") if row.p is None)


# Free text -----------------------------------------------------------------------------------------------------


def texts(before, after):
    return replace(verdict("fluency", free=50), answer=Answer(Reply(before), Reply(after)))


def test_fluency_is_the_weighted_entropy_of_pairs_and_triples():
    text = "the cat and the dog and the cat sat, and the dog sat too"
    words = text.replace(",", " ,").split()

    def of_runs(length):
        runs = [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)]
        return entropy(np.unique(runs, return_counts=True)[1], base=2)

    authors = np.mean(np.array([of_runs(2), of_runs(3)]) * [2 / 3, 4 / 3])  # ROME's weights of n = 2 and 3
    assert of("fluency", [texts(text, text.upper())], "after") == pytest.approx(authors)
    assert of("fluency", [texts(text, "Rome Rome Rome Rome")]) == 0.0
    assert of("fluency", [texts(text, "")]) == of("fluency", [texts(text, "one")]) == 0.0


def test_a_free_text_replaces_no_answer_to_the_same_prompt():
    """Both count in what reads all probes, and as two questions."""
    babble = verdict("fluency", now=Class.DEGENERATE, prompt="The capital is", free=50)
    assert of("degeneration", [babble, verdict("rewrite", prompt="The capital is")]) == 1 / 2
