"""One way to write a number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.estimate import Estimate, Ruling
from probes.metrics import METRICS
from probes.verdict import Class
from reports.wording import CLASSES, NOT_MEASURED, demand, metric_question, metric_title, number, ruling_text, told

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
    assert ruling_text(Ruling.UNDECIDED, 35, 8) == "not enough evidence (needs 35 facts)"
    assert ruling_text(Ruling.UNDECIDED, 4, 8) == "not enough evidence"
    assert ruling_text(Ruling.HOLDS, 35, 8) == "holds"


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
