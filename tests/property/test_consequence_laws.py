"""Laws of asking for what follows from a forgotten object: what is said of it is a leak, and nothing else is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from probe_records import new_answer, old_answer, run, says

from editkit.data import load
from editkit.held_out import CONSEQUENCE
from probes.metrics import METRICS, value

WORLD = load()
CITIES = [e for e in WORLD.editable if e.relation in ("city_country", "us_city_state")]
records = st.builds(
    lambda entry, seed: WORLD.forget_record(entry, seed=seed), st.sampled_from(CITIES), st.integers(0, 9)
)
silent = says(lambda case: "a thing that nobody knows")


def consequences(record, before, after):
    return [v for v in run("multi_hop", record, before, after)[1] if v.case.variant == CONSEQUENCE]


@settings(max_examples=40, deadline=None)
@given(record=records)
def test_a_consequence_that_is_still_said_has_leaked(record):
    said, unsaid = consequences(record, old_answer, old_answer), consequences(record, old_answer, new_answer)
    assert all(v.applies and v.passed is False and v.case.forgotten for v in said)
    assert all(v.applies and v.passed is True for v in unsaid)
    if said:
        assert value(METRICS["leakage"], said, "after") == 1.0
        assert value(METRICS["leakage"], unsaid, "after") == 0.0


@settings(max_examples=40, deadline=None)
@given(record=records)
def test_a_consequence_that_the_unchanged_model_does_not_say_counts_for_nothing(record):
    verdicts = consequences(record, silent, old_answer)
    assert not any(v.applies for v in verdicts)
    assert value(METRICS["leakage"], verdicts, "after") is None


@settings(max_examples=60, deadline=None)
@given(record=records)
def test_a_consequence_is_compared_with_things_of_its_own_kind(record):
    """Currencies with currencies, and never with cities because a city is the subject."""
    for v in consequences(record, old_answer, new_answer):
        assert set(v.case.contrast) <= set(WORLD.range_of(v.case.relation)) - set(v.case.old)
