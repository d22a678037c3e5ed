"""One way to write a number."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import audits
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.estimate import Estimate, Ruling
from probes.metrics import METRICS
from probes.verdict import Answer, Case, Class, Expect, Marks, Reply, Verdict
from reports.record import Claim, Judged
from reports.wording import (
    CLASSES,
    NOT_MEASURED,
    demand,
    metric_question,
    metric_title,
    number,
    ruling_text,
    stratum_title,
    told,
    variant_title,
)

FINITE = st.floats(-100, 100)


def estimate(
    value: float | None, low: float | None, high: float | None, n: int, groups: int, how: str = ""
) -> Estimate:
    return Estimate(value, low, high, 0.95, n, groups, how)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9444, "0.94"), (1.0, "1.00"), (0.999, "0.999"), (0.001, "0.001"), (0.0, "0.00"), (-0.0001, "0.000"), (12.5, "12.50")],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@given(FINITE)
def test_a_number_is_near_what_it_says_and_no_false_end(value: float) -> None:
    assert float(number(value)) == pytest.approx(value, abs=0.0051)
    if abs(value) < 0.9985 and abs(value) > 0.0015:
        assert abs(float(number(value))) not in (0.0, 1.0)
    assert float(number(value, signed=True)) == float(number(value))


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        (estimate(0.94, 0.79, 0.98, 16, 16), "0.94 [0.79, 0.98], 16 facts"),
        (estimate(0.94, 0.79, 0.98, 64, 16), "0.94 [0.79, 0.98], 64 cases on 16 facts"),
        (estimate(1.0, None, None, 1, 1), "1.00, no interval (n = 1)"),
        (estimate(1.0, None, None, 6, 1), "1.00, no interval (n = 1, 6 cases)"),
        (estimate(0.5, None, None, 8, 8, "no interval: every group is equal"),
         "0.50, no interval (8 facts: every group is equal)"),
        (estimate(None, None, None, 0, 0), NOT_MEASURED),
        (estimate(math.nan, None, None, 4, 2), NOT_MEASURED),
        (None, NOT_MEASURED),
    ],
)  # fmt: skip
def test_estimates(given_: Estimate | None, text: str) -> None:
    assert told(given_) == text


def test_demands_and_rulings() -> None:
    assert (demand(0.9, None), demand(None, 0.1), demand(0.1, 0.2)) == ("≥ 0.90", "≤ 0.10", "≥ 0.10 and ≤ 0.20")


def claim(value: float | None, ruling: Ruling = Ruling.UNDECIDED, **changes: Any) -> Claim:
    found = estimate(value, 0.4, 0.9, 8, 8) if value is not None else estimate(None, None, None, 0, 0)
    bars = {"at_least": 0.65, "needed": 35} | changes
    return Claim("rome", "edit", "single", "efficacy_generation", found, ruling, **bars)


@pytest.mark.parametrize(
    ("claim_", "text"),
    [
        (claim(0.8), "not enough evidence (35 facts would do if all pass)"),
        (claim(0.6), "not enough evidence"),  # as many facts as you like, if they go on like this
        (claim(0.2, at_least=None, at_most=0.35), "not enough evidence (35 facts would do if all pass)"),
        (claim(0.6, at_least=None, at_most=0.35), "not enough evidence"),
        (claim(0.8, needed=8), "not enough evidence"),
        (claim(None), "not enough evidence (no case counted)"),
        (dataclasses.replace(claim(None), arm="joint"), "not enough evidence (not asked)"),
        (claim(0.8, Ruling.HOLDS), "holds"),
        (claim(0.2, Ruling.FAILS), "does not hold"),
    ],
)
def test_an_open_ruling_says_what_it_would_take_and_no_more(claim_: Claim, text: str) -> None:
    case = Case("rewrite", "plain", "p", Expect.HOLDS, "g", ("o",))
    marks = Marks(False, False, False)
    verdict = Verdict(case, Answer(Reply("o"), Reply("o")), marks, marks, Class.OLD, Class.OLD)
    audit = dataclasses.replace(audits.empty(), judged=(Judged("rome", "edit", "single", verdict),))
    assert ruling_text(claim_, audit) == text


def test_variants_and_strata_are_put_into_words() -> None:
    assert variant_title("q4") == stratum_title("q4") == "most popular quarter (q4)"
    assert variant_title("key:random_words:0") == "key words: random words: 0"
    assert variant_title("composition") == "two facts combined"
    assert (stratum_title("rare"), stratum_title(None)) == ("rare", "–")


def test_every_metric_has_a_title_of_its_own_and_its_question() -> None:
    titles = [metric_title(name) for name in METRICS]
    assert len(set(titles)) == len(titles)
    assert all(
        "_" not in title and metric_question(name).endswith("?") for name, title in zip(METRICS, titles, strict=True)
    )
    assert metric_title("never_heard_of") == "Never heard of"
    assert metric_question("never_heard_of") == ""


def test_every_class_has_a_word() -> None:
    assert set(CLASSES) == set(Class)
