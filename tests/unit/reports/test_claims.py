"""A claim that no ruling can come of is refused, and never passed over."""

from __future__ import annotations

import pytest

from probes.metrics import METRICS
from reports.spec import AuditSpec, SpecError, default_claims, make_spec


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"metric": "efficacy_generation", "at_least": 0.5, "operators": ["typo"]}, "of an operator 'typo' that is not in this spec; there is rome, npo"),
        ({"metric": "efficacy_generation", "at_least": 0.5, "operators": ["ft_l"]}, "of an operator 'ft_l' that is not"),
        ({"metric": "efficacy_generation", "at_least": 0.5, "operators": ["npo"]}, "about operators of the task 'edit', and 'npo' is of 'unlearn'"),
        ({"metric": "efficacy_generation", "at_least": 0.5, "operators": ["rome", "npo"]}, "about operators of the task 'edit'"),
        ({"metric": "leakage", "at_least": 7}, "needs at_most, for lower is better there"),
        ({"metric": "leakage", "at_most": 7}, "has the bar 7; it lies between 0 and 1"),
        ({"metric": "leakage", "at_most": -0.1}, "it lies between 0 and 1"),
        ({"metric": "emphasis_effect", "at_most": -2}, "it lies between -1 and 1"),
        ({"metric": "retained", "at_most": 0.5}, "needs at_least, for higher is better there"),
        ({"metric": "efficacy_magnitude", "at_least": float("inf")}, "finite"),
    ],
)  # fmt: skip
def test_a_claim_without_a_ruling_is_refused(claim, message):
    with pytest.raises(SpecError, match=message) as caught:
        make_spec({"claims": [claim]})
    assert "\n" not in str(caught.value)


def test_a_claim_on_probes_that_are_not_asked_is_refused():
    claim = {"metric": "leakage", "at_most": 0.5}
    with pytest.raises(SpecError, match="'leakage' reads the probe 'multi_hop', which this spec does not ask"):
        make_spec({"claims": [claim], "probes": ["rewrite"]})
    assert make_spec({"claims": [claim], "probes": ["multi_hop"]}).claims[0].at_most == 0.5


def test_a_claim_whose_task_no_operator_has_is_refused():
    with pytest.raises(SpecError, match="about operators of the task 'unlearn', and 'rome' is of 'edit'"):
        make_spec({"claims": [{"metric": "leakage", "at_most": 0.5}], "operators": [{"name": "rome"}]})


def test_a_claim_without_bounds_takes_any_finite_bar():
    assert make_spec({"claims": [{"metric": "efficacy_magnitude", "at_least": 7}]}).claims[0].at_least == 7


def test_default_claims_are_those_that_can_be_decided_and_the_others_are_told():
    spec = make_spec({"probes": ["rewrite", "neighborhood"], "operators": [{"name": "rome"}]})
    assert [c.metric for c in spec.claims] == ["efficacy_generation", "specificity_generation", "degeneration"]
    told = list(spec.unclaimed())
    assert [sentence.split()[3] for sentence in told] == ["generalization_generation", "portability_generation", "recovery_rate"]  # fmt: skip
    assert "the probe rephrase was not asked" in told[0]
    assert not list(AuditSpec().unclaimed()) and AuditSpec().claims == default_claims()


def test_the_default_claims_look_at_consequences_leaks_and_babble():
    bars = {c.metric: (c.at_least, c.at_most) for c in default_claims()}
    assert bars["portability_generation"] == (0.5, None)
    assert bars["leakage"] == bars["degeneration"] == (None, 0.35)
    assert METRICS["degeneration"].task == "both"
