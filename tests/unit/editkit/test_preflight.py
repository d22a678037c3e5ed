"""What is said before a long run: every bad edit at once, and a plan that leaves the model alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from conftest import LAYOUTS, make_handle
from edit_examples import EDITS as PROMPTS
from edit_examples import ENDING, private_cache
from tables import QUICK

from editkit.facts import Edit, Fact
from editkit.linalg import SolveError
from editkit.moments import second_moments
from editkit.operators import EDITS, Confined, configured, provenance_of
from editkit.patch import DenseDelta, WeightPatch
from editkit.preflight import LARGE_CHANGE, plan, problems


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with private_cache(str(tmp_path_factory.mktemp("cache"))):
        yield


def edit(prompt="The capital of {} is", subject="France", old="Paris", new="Rome"):
    return Edit(Fact(subject, "capital", old, prompt), new)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_good_edits_have_no_problems(handle_of, layout):
    assert problems(handle_of(layout), [*PROMPTS, *ENDING[1:]]) == []


def test_each_problem_has_its_place_and_says_whether_it_is_the_end(handle):
    given = [
        edit(),
        edit(prompt="word " * handle.context + "{} is"),
        edit(new="Lima"),
        edit(subject="Peru", new="Lima"),
    ]
    found = problems(handle, given)
    assert [(each.place, each.fatal) for each in found] == [(1, True), (2, False)]
    told = " / ".join(each.text for each in found)
    for part in ("shorten the prompt", "that of edit 1, which gives it 'Rome'"):
        assert part in told


def test_a_subject_that_shares_its_last_token_is_told(handle, monkeypatch):
    """A tokenizer with a token for "France's"."""

    class Merging:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, text, **options):
            found = self.inner(text, **options)
            if options.get("return_offsets_mapping"):
                end = text.index("France") + len("France")
                found["offset_mapping"] = [(a, b + 2 if b == end else b) for a, b in found["offset_mapping"]]
            return found

    monkeypatch.setattr(handle, "tokenizer", Merging(handle.tokenizer))
    [found] = problems(handle, [edit("The capital of {}'s kings is")])
    assert (found.place, found.fatal) == (0, False) and "also holds what follows" in found.text


def test_float16_is_told():
    [found] = problems(make_handle("llama", dtype=torch.float16), [edit()])
    assert found.place is None and not found.fatal and "float16" in found.text


@pytest.mark.parametrize("name", [name for name in EDITS.names() if name in QUICK])
def test_every_operator_can_be_planned_and_the_model_stays(handle, name):
    operator = configured(name, handle, QUICK[name])[0]
    before = handle.fingerprint()
    found = plan(handle, operator, ENDING, seed=0)
    assert handle.fingerprint() == before and handle.patches == ()
    assert found.edits == 3 and found.each > 0 and found.once >= 0
    assert found.seconds == pytest.approx(found.once + 3 * found.each)
    assert bool(found.touches) == isinstance(operator, Confined)
    assert found.changed == sum(handle.parameter(each).numel() for each in found.touches)


def test_moments_that_are_kept_are_told_from_those_to_be_measured(handle):
    settings = QUICK["memit"] | {"moments": {"tokens": 300, "length": 25}}
    operator = configured("memit", handle, settings)[0]
    assert plan(handle, operator, ENDING, seed=0, trial=False).moments == {0: False, 1: False}
    second_moments(handle, [1], operator.moments)
    assert plan(handle, operator, ENDING, seed=0, trial=False).moments == {0: False, 1: True}
    one = configured("rome", handle, QUICK["rome"])[0]
    assert plan(handle, replace(one, moments=operator.moments), ENDING, seed=0, trial=False).moments == {1: True}


@dataclass(frozen=True, slots=True)
class Blow:
    """Moves a matrix by `share` of its norm."""

    share: float
    fails: bool = False

    def __call__(self, handle, edits, *, seed, progress=None):
        if self.fails:
            raise SolveError("no direction of this layer's keys is free")
        name = handle.weight_name("mlp_out", 0)
        delta = DenseDelta(self.share * handle.matrix(name).clone())
        return WeightPatch({name: delta}, provenance_of("blow", self, handle, edits, seed))


@pytest.mark.parametrize(("share", "edits", "warned"), [(0.4, 4, False), (0.4, 9, True), (0.01, 9, False)])
def test_many_edits_that_will_blow_the_weights_up_are_told(handle, share, edits, warned):
    given = [edit(subject=f"Land {'abcdefghi'[number]}") for number in range(edits)]
    found = plan(handle, Blow(share), given, seed=0)
    assert found.moved == pytest.approx(share * edits**0.5, rel=1e-4)
    assert (found.moved > LARGE_CHANGE) == warned == any("times their own norm" in each.text for each in found.problems)


def test_an_edit_that_would_change_nothing_is_found_before_the_long_run(handle):
    with pytest.raises(SolveError, match="no direction"):
        plan(handle, Blow(0.1, fails=True), ENDING, seed=0)


def test_a_fatal_edit_is_not_tried(handle):
    bad = edit(prompt="word " * handle.context + "{} is")
    found = plan(handle, Blow(0.1), [bad, bad], seed=0)
    assert found.each is None and found.seconds is None and found.moved is None
    assert [each.fatal for each in found.problems] == [True, True]
