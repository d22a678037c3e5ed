"""Specs: resolved, written back, and refused with place and way out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.spec import AuditSpec, SpecError, make_spec, read_spec, to_toml


def test_the_default_spec_runs_both_families():
    spec = AuditSpec()
    assert [(o.name, o.task, o.arms) for o in spec.operators] == [
        ("rome", "edit", ("single", "stacked")),
        ("npo", "unlearn", ("joint",)),
    ]
    assert spec.facts.n >= 8


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 99) | st.just("all"), seed=st.integers(0, 2**31), level=st.floats(0.5, 0.99), known=st.booleans()
)
def test_a_spec_written_and_read_is_the_same(tmp_path_factory, n, seed, level, known):
    spec = make_spec({"seed": seed, "level": level, "facts": {"n": n, "known_only": known}})
    path = tmp_path_factory.mktemp("spec") / "spec.toml"
    path.write_text(to_toml(spec))
    again = read_spec(path, {})
    assert again == spec and again.key() == spec.key()


def test_a_users_file_is_changed_whole_unless_a_number_is_given():
    assert make_spec({"facts": {"source": "mine.jsonl"}}).facts.n == "all"
    assert make_spec({"facts": {"source": "mine.jsonl", "n": 3}}).facts.n == 3
    assert make_spec({"facts": {"source": "world"}}).facts.n == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[facts]\nn = 0", "line 2: facts.n: 0 is no number of facts; give one from 1 on, or 'all'"),
        ("sed = 1", r"line 1: unknown key 'sed'; there is seed"),
        ("[facts]\nrelation = ['capital']", r"line 2: unknown key 'facts.relation'; there is relations"),
        ("seed = 'x'", "line 1: seed: Input should be a valid integer"),
        ("seed = ", "is no valid TOML"),
        ("seed = 9223372036854775808", "line 1: seed: Input should be less than 9223372036854775808"),
        ("seed = -1", "line 1: seed: Input should be greater than or equal to 0"),
        ("[[operators]]\nname = 'rme'", "no operator named 'rme'; there is rome"),
        ("[[operators]]\nname = 'npo'\narms = ['single']", "operator 'npo' has no arm 'single'; there is joint"),
        ("[[operators]]\nname = 'rome'\n[[operators]]\nname = 'rome'", "stands twice"),
        ("[[operators]]\nname = 'rome'\n[operators.settings]\nlayr = 3", "no setting 'layr'; there is layer"),
        (
            "[[operators]]\nname = 'rome'\n[operators.settings.target]\nsteps = 'x'",
            "'target.steps' is 'x', expected int",
        ),
        ("operators = []", "no operator; name at least one"),
        ("probes = ['rephrse']", "no probe named 'rephrse'; there is rephrase"),
        ("[[claims]]\nmetric = 'efficacy_generation'", "needs one of at_least, at_most"),
        ("[[claims]]\nmetric = 'eficacy_generation'\nat_least = 1", "no metric named"),
    ],
)
def test_a_wrong_spec_is_told_in_one_line(tmp_path, text, message):
    path = tmp_path / "spec.toml"
    path.write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        read_spec(path, {})
    assert "\n" not in str(caught.value) and "spec.toml" in str(caught.value)


def test_the_command_line_goes_above_the_file(tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text("seed = 1\n[facts]\nn = 5\nretain = 3")
    spec = read_spec(path, {"seed": 2, "facts": {"n": 7}})
    assert (spec.seed, spec.facts.n, spec.facts.retain) == (2, 7, 3)


def test_a_missing_spec_is_told(tmp_path):
    with pytest.raises(SpecError, match="cannot read spec .*missing.toml: No such file"):
        read_spec(tmp_path / "missing.toml", {})


def test_one_wrong_option_is_told_alone():
    with pytest.raises(SpecError) as error:
        read_spec(None, {"model": {"dtype": "foo"}}, {"model.dtype": "--dtype"})
    assert str(error.value).count(";") == 0 and "default factory" not in str(error.value)
