"""What every registered metric promises."""

import random
from dataclasses import replace

import pytest

from probes.estimate import Ruling, decide
from probes.kinds import PROBES as KINDS
from probes.metrics import METRICS, UNITS, readings, summarise, value
from probes.verdict import Answer, Case, Class, Expect, Marks, Reply, Verdict
from reports.spec import default_claims

EMPHASIS = ("key", "control:random_words", "control:template_only")
PROBES = {name: ["typo", "question"] for name in KINDS.names()} | {
    "keyword_emphasis": ["plain", *(f"{kind}:{wording}" for kind in EMPHASIS for wording in ("list", "twice"))]
}


def some_verdicts(seed, facts=7):
    draw = random.Random(seed)

    def marks():
        return Marks(*(draw.choice([True, True, False, None]) for _ in range(3)))

    return [
        Verdict(
            Case(
                probe, variant, f"{probe} {variant} {i}?", Expect.HOLDS, f"f{fact}", ("Paris",), stratum=f"q{fact % 2}"
            ),
            Answer(Reply(""), Reply("")),
            marks(),
            marks(),
            Class.OLD if draw.random() < 0.8 else draw.choice(list(Class)),
            draw.choice(list(Class)),
            draw.gauss(-1, 1),
            draw.gauss(1, 1),
            applies=draw.random() < 0.95,
        )
        for fact in range(facts)
        for probe, variants in PROBES.items()
        for variant in variants
        for i in range(1 if variant == "plain" else 3)
    ]


def without(probe, seed):
    return [v for v in some_verdicts(seed) if v.case.probe != probe]


every_metric = pytest.mark.parametrize("name", METRICS.names())


@every_metric
def test_it_says_what_it_is(name):
    metric = METRICS[name]
    assert metric.name == name and metric.compute.__name__ == name
    assert metric.question.endswith("?") and metric.question in metric.compute.__doc__
    assert metric.better in {"higher", "lower"} and metric.task in {"edit", "unlearn", "both"}
    assert set(metric.probes) <= set(PROBES)
    assert all(part.task in (metric.task, "both") for part in metric.of)


@every_metric
def test_no_verdicts_no_value(name):
    assert value(METRICS[name], []) is None
    assert value(METRICS[name], [], "before") is None
    (row,) = (row for row in summarise([], task="both") if row.metric == name)
    assert row.after.value is None and row.after.low is None and row.p is None
    assert row.after.n == row.after.groups == row.skipped == 0


@pytest.mark.parametrize("seed", range(4))
def test_values_lie_in_range_and_in_their_intervals(seed):
    verdicts = some_verdicts(seed)
    seen = set()
    for row in summarise(verdicts, task="both", seed=seed):
        bounds = UNITS[METRICS[row.metric].unit]
        for estimate in (row.before, row.after):
            if estimate is None or estimate.value is None:
                continue
            seen.add(row.metric)
            ends = [estimate.value] if estimate.low is None else [estimate.low, estimate.value, estimate.high]
            assert ends == sorted(ends), row
            assert bounds is None or bounds[0] <= ends[0] <= ends[-1] <= bounds[1], row
        assert row.difference is None or row.before is not None
        assert row.p is None or 0 < row.p <= 1
        assert 0 <= row.skipped <= len(verdicts)
    assert seen == set(METRICS)


@every_metric
def test_cases_that_do_not_apply_count_where_the_metric_says_so_and_nowhere_else(name):
    """What a question about the text itself asks does not rest on what the unchanged model knew."""
    counting = [v for v in some_verdicts(1) if v.applies]
    others = [replace(v, case=replace(v.case, prompt=f"And {v.case.prompt}")) for v in some_verdicts(2)]
    failed = [replace(v, applies=False) for v in others]
    met = [replace(v, applies=True) for v in others]
    same_as = counting + met if METRICS[name].whatever_applies else counting
    assert value(METRICS[name], counting + failed) == value(METRICS[name], same_as)


def changed(after, *, but_plain=None):
    """Eight facts that the unchanged model knew, and a change that succeeds by all marks: only its words may be none."""
    yes = Marks(True, True, True)
    found = [
        replace(v, before=yes, after=yes, class_before=Class.OLD, class_after=after, applies=True, margin_after=3.0)
        for v in some_verdicts(0, facts=8)
    ]
    if but_plain is None:
        return found
    return [replace(v, class_after=but_plain) if v.case.variant == "plain" else v for v in found]


def rulings(verdicts):
    """What comes of the default claims."""
    rows = {row.metric: row for row in summarise(verdicts, task="both") if row.stratum is None and row.variant is None}
    return {c.metric: decide(rows[c.metric].after, c.at_least, c.at_most) for c in default_claims()}


def is_no_success(metric, number):
    """Whether the number is none, or no better than that of a total failure."""
    if number is None:
        return True
    return number <= 0 if metric.better == "higher" else metric.bounds is not None and number == metric.bounds[1]


@every_metric
def test_babble_is_no_success(name):
    """An answer that is no text shows neither what was learned nor what was forgotten, whatever its probabilities."""
    metric, babble = METRICS[name], changed(Class.DEGENERATE)
    rows = [row for row in summarise(babble, task="both") if row.metric == name]
    assert rows and all(is_no_success(metric, row.after.value) for row in rows), rows
    unwell = [replace(v, class_before=Class.DEGENERATE) for v in babble]
    assert is_no_success(metric, value(metric, unwell, "before"))
    if metric.whatever_applies:
        return
    written = changed(Class.DEGENERATE, but_plain=Class.OTHER)  # the fact's own prompt is the last that is answered
    assert is_no_success(metric, value(metric, written))


def test_of_babble_all_is_degenerate_and_no_default_claim_holds():
    assert value(METRICS["degeneration"], changed(Class.DEGENERATE)) == 1.0
    for written in (None, Class.OTHER, Class.NEW):
        found = rulings(changed(Class.DEGENERATE, but_plain=written))
        assert Ruling.HOLDS not in found.values(), found
    assert set(rulings(changed(Class.OTHER)).values()) == {Ruling.HOLDS}  # the same change, put in words


@every_metric
def test_it_reads_its_own_probes_only(name):
    metric, verdicts = METRICS[name], some_verdicts(2)
    assert value(metric, verdicts) == value(metric, [v for v in verdicts if metric.reads(v)])
    if metric.kind != "combined":
        assert readings(metric, [v for v in verdicts if not metric.reads(v)]) == []
    for probe in metric.probes:
        assert any(value(metric, without(probe, seed)) != value(metric, some_verdicts(seed)) for seed in range(3))
