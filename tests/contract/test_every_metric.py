"""What every registered metric promises."""

import random
from dataclasses import replace

import pytest

from probes.kinds import PROBES as KINDS
from probes.metrics import METRICS, UNITS, readings, summarise, value
from probes.verdict import Answer, Case, Class, Expect, Marks, Reply, Verdict

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
            Case(probe, variant, "Where?", Expect.HOLDS, f"f{fact}", ("Paris",), stratum=f"q{fact % 2}"),
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
        for _ in range(1 if variant == "plain" else 3)
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
def test_cases_that_do_not_apply_do_not_count(name):
    counting = [v for v in some_verdicts(1) if v.applies]
    others = [replace(v, applies=False) for v in some_verdicts(2)]
    assert value(METRICS[name], counting + others) == value(METRICS[name], counting)


@every_metric
def test_it_reads_its_own_probes_only(name):
    metric, verdicts = METRICS[name], some_verdicts(2)
    assert value(metric, verdicts) == value(metric, [v for v in verdicts if metric.reads(v)])
    if metric.kind != "combined":
        assert readings(metric, [v for v in verdicts if not metric.reads(v)]) == []
    for probe in metric.probes:
        assert any(value(metric, without(probe, seed)) != value(metric, some_verdicts(seed)) for seed in range(3))
