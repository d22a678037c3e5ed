"""What is said before a long run: every bad edit at once, and a plan that leaves the model alone."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from conftest import LAYOUTS, make_handle
from edit_examples import EDITS as PROMPTS
from edit_examples import ENDING, private_cache
from tables import QUICK

from editkit import preflight
from editkit.drift import Drift, drift
from editkit.edit import _search, rome
from editkit.errors import MethodError
from editkit.facts import Edit, Fact
from editkit.linalg import SolveError
from editkit.moments import second_moments
from editkit.operators import EDITS, Confined, configured, provenance_of
from editkit.patch import DenseDelta, LowRankDelta, WeightPatch
from editkit.preflight import LARGE_CHANGE, plan
from editkit.problems import problems

RECORD = Path(__file__).parents[3] / "docs" / "truth" / "sequential"


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
    assert [(each.place, each.other, each.fatal) for each in found] == [(1, None, True), (2, 0, True)]
    told = " / ".join(each.text for each in found)
    for part in ("shorten the prompt", "'The capital of France is' cannot be given both 'Rome' and 'Lima'"):
        assert part in told


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_a_prompt_with_two_objects_cannot_be_met_in_one_call_and_the_later_one_holds_in_two(handle, order):
    given = [(edit(), edit(new="ROME"), edit(new="Lima"))[place] for place in order]
    places = [place for place in range(1, 3) if (given[place].target_new == "Lima") != (given[0].target_new == "Lima")]
    for alone in (False, True):
        found = problems(handle, given, one_by_one=alone)
        assert [(each.place, each.other, each.fatal) for each in found] == [(place, 0, not alone) for place in places]
        assert all(("the later one holds" in each.text) == alone for each in found)
    planned = plan(handle, Blow(0.1), given, seed=0).problems
    assert [each.place for each in planned if each.fatal] == places


def test_prompts_that_differ_by_signs_alone_may_ask_for_different_things(handle):
    """C++ and C# are two subjects; "the capital" and "The capital" hardly two questions."""
    given = [
        edit("Who made {}?", subject, "nobody", new)
        for subject, new in (("C++", "Rome"), ("C#", "Lima"), ("C#", "Oslo"))
    ]
    found = problems(handle, given)
    assert [(each.place, each.other, each.fatal) for each in found] == [(1, 0, False), (2, 1, True)]
    assert "alike but for case and signs" in found[0].text
    assert (
        problems(handle, [edit("Who made {}?", "C++", "nobody", "Rome"), edit("Who made {}?", "C#", "nobody", "Rome")])
        == []
    )


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
    assert found.memory > 0
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


@pytest.mark.parametrize("guard", ["rect", "prune", "norm_bound"])
def test_the_moments_of_a_guarded_operator_are_told(handle, guard):
    memit = {"name": "memit", "settings": QUICK["memit"] | {"moments": {"tokens": 310 + len(guard), "length": 25}}}
    inner = configured("memit", handle, memit["settings"])[0]
    for of in (memit, {"name": "rect", "settings": {"of": memit}}):
        operator = configured(guard, handle, {"of": of})[0]
        assert plan(handle, operator, ENDING, seed=0, trial=False).moments == {0: False, 1: False}
        assert plan(handle, inner, ENDING, seed=0, trial=False).moments == {0: False, 1: False}
    second_moments(handle, [0], inner.moments)
    assert plan(handle, operator, ENDING, seed=0, trial=False).moments == {0: True, 1: False}
    plain = configured(guard, handle, QUICK[guard])[0]  # on fine-tuning, which reads none
    assert plan(handle, plain, ENDING, seed=0, trial=False).moments == {}


def registered(monkeypatch, name, kind):
    EDITS.names()
    monkeypatch.setitem(EDITS._items, name, kind)


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


@dataclass(frozen=True, slots=True)
class BatchedBlow(Blow):
    batch: int = 0


@dataclass(frozen=True, slots=True)
class Told(Blow):
    """Says which matrix that is."""

    def touches(self, handle):
        return [handle.weight_name("mlp_out", 0)]


@dataclass(frozen=True, slots=True)
class Thin(Told):
    """Adds one rank for each edit."""

    share: float = 0.0

    def __call__(self, handle, edits, *, seed, progress=None):
        [name] = self.touches(handle)
        rows, columns = handle.matrix(name).shape
        delta = LowRankDelta(torch.zeros(rows, len(edits)), torch.zeros(len(edits), columns))
        return WeightPatch({name: delta}, provenance_of("thin", self, handle, edits, seed))


def lands(number):
    return [edit(subject=f"Land {chr(97 + place // 26)}{chr(97 + place % 26)}") for place in range(number)]


def warned(found):
    return any("times their own norm" in each.text for each in found.problems)


@pytest.mark.parametrize(("share", "edits"), [(0.39, 1), (0.39, 2), (0.39, 3), (0.05, 15), (0.05, 17)])
def test_many_edits_that_will_blow_the_weights_up_are_told(handle, share, edits):
    found = plan(handle, Blow(share), lands(edits), seed=0)
    assert found.moved == pytest.approx((share * edits**0.5, share * edits), rel=1e-4)
    assert (found.moved[1] > LARGE_CHANGE) == warned(found) == (share * edits > LARGE_CHANGE)


@pytest.mark.parametrize(
    ("name", "edits", "told"),
    [
        ("ft_l", 9, ""),
        (
            "ft_l",
            10,
            "10 edits of ft_l one on top of the other lost 31 % of what else SmolLM2-135M knew; with these it is 10",
        ),
        ("memit", 30, ""),
        ("memit", 100, "100 edits of memit in one change lost 26 %"),
        ("rect", 10, "10 edits of ft_m one on top of the other lost 49 %"),
        ("norm_bound", 100, ""),
        ("grace", 300, ""),
    ],
)
def test_how_much_so_many_edits_were_seen_to_cost_is_told(handle, name, edits, told):
    operator = configured(name, handle, QUICK[name])[0]
    found = " ".join(each.text for each in plan(handle, operator, lands(edits), seed=0, trial=False).problems)
    assert told.replace(" %", "%") in found and ("lost" in found) == bool(told)


@pytest.mark.parametrize("below", [1, 5, 20])
def test_what_is_on_the_model_counts_and_warns_no_less(handle, below):
    """Each of these is the same change: by the weights that they have moved already it would seem ever smaller."""
    matrix = handle.matrix(handle.weight_name("mlp_out", 0)).clone()
    change = WeightPatch({handle.weight_name("mlp_out", 0): DenseDelta(0.1 * matrix)})
    with ExitStack() as stack:
        for _ in range(below):
            stack.enter_context(handle.patched(change))
        found = plan(handle, Fixed(change), lands(1), seed=0)
        moved = drift(handle, change)
    assert (moved.below, moved.own, moved.together) == pytest.approx((0.1 * below, 0.1, 0.1 * (below + 1)), rel=1e-4)
    assert found.moved[1] == pytest.approx(0.1 * (below + 1), rel=1e-4)
    assert warned(found) == (0.1 * (below + 1) > LARGE_CHANGE)
    if warned(found):
        assert any(f"on top of the {below} that are on the model" in each.text for each in found.problems)


def test_a_memory_beside_the_weights_is_told_by_its_own_norm(handle):
    patch = configured("wise", handle, QUICK["wise"])[0](handle, ENDING[:1], seed=0)
    norm = patch.relative_norm(handle)
    assert norm > 0 and drift(handle, patch) == Drift(0.0, norm, norm)
    assert drift(handle, configured("ike", handle, QUICK["ike"])[0](handle, ENDING[:1], seed=0)) is None


@dataclass(frozen=True, slots=True)
class Fixed:
    """Gives one and the same patch."""

    patch: WeightPatch

    def __call__(self, handle, edits, *, seed, progress=None):
        return self.patch


@pytest.mark.parametrize(
    ("name", "settings"),
    [("ultraedit", {"learning_rate": 0.0}), ("ft_l", {"bound": 1e-12}), ("ike", {}), ("lora", None)],
)
def test_a_trial_that_does_not_take_is_told_before_the_long_run(handle, name, settings):
    """Of LoRA's settings it is seen that they take."""
    operator = configured(name, handle, QUICK[name] | (settings or {}))[0]
    found = plan(handle, operator, ENDING, seed=0)
    vain = [each.text for each in found.problems if "did not take" in each.text]
    assert bool(vain) == (settings is not None)
    if vain:
        assert repr(ENDING[0].target_new) in vain[0] and "--preset auto" in vain[0]
    assert not any("did not take" in each.text for each in plan(handle, operator, ENDING, seed=0, trial=False).problems)


@pytest.mark.parametrize("name", ["rome", "alphaedit"])
def test_the_warning_comes_where_edits_one_after_another_began_to_cost_much(handle, name):
    """By the record of such runs on the embedded model: of the first edit's norm it is told what the rest lost."""
    lines = (RECORD / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    first, *rows = [json.loads(line) for line in lines]
    assert first["edits"] == 1 and {row["edits"] for row in rows} >= {10, 30, 100}
    assert not warned(plan(handle, Blow(first["norm"]), lands(1), seed=0))
    for row in rows:
        found = plan(handle, Blow(first["norm"]), lands(row["edits"]), seed=0)
        least, most = found.moved
        assert least * 0.95 <= row["norm"] <= most
        assert warned(found) == (row["collateral"][0] < 0.75)


def test_edits_of_one_update_go_their_own_ways_and_updates_may_go_one(handle):
    blow = BatchedBlow(0.1)
    for batch, most in ((0, 0.4), (16, 0.4), (4, 0.8), (1, 1.6)):
        assert plan(handle, replace(blow, batch=batch), lands(16), seed=0).moved == pytest.approx((0.4, most), rel=1e-4)


def test_a_bound_on_the_norm_bounds_what_is_told(handle, monkeypatch):
    registered(monkeypatch, "blow", Told)
    bound = {"most": 0.05, "of": {"name": "blow", "settings": {"share": 0.4}}}
    for name, settings in (
        ("norm_bound", bound),
        ("rect", {"keep": 1.0, "of": {"name": "norm_bound", "settings": bound}}),
    ):
        found = plan(handle, configured(name, handle, settings)[0], lands(40), seed=0)
        assert found.moved == pytest.approx((0.05, 0.05), rel=1e-4) and not warned(found)
    loose = configured("norm_bound", handle, bound | {"most": 100.0})[0]
    assert plan(handle, loose, lands(40), seed=0).moved == pytest.approx((0.4 * 40**0.5, 16), rel=1e-4)


def test_the_memory_grows_by_what_each_further_edit_adds_to_the_patch(handle, monkeypatch):
    monkeypatch.setattr(preflight, "_peak_memory", lambda handle: 10**6)
    matrix = handle.parameter(handle.weight_name("mlp_out", 0))
    rank_one = 4 * sum(matrix.shape)
    for number in (1, 2, 3, 7):
        grows, stays = (plan(handle, operator, lands(number), seed=0) for operator in (Thin(), Blow(0.1)))
        assert grows.memory == 10**6 + 4 * matrix.numel() + max(0, number - 2) * rank_one
        assert stays.memory == 10**6
    assert plan(handle, Thin(), lands(3), seed=0, trial=False).memory is None


def test_the_memory_holds_what_the_process_held(handle):
    """On the CPU; against the kernel's own account where there is one."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in handle.model.parameters())
    found = plan(handle, Blow(0.1), lands(2), seed=0).memory
    assert found > weights
    status = Path("/proc/self/status")
    if status.is_file():
        [peak] = [int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        assert found == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("guard", [None, "rect", "norm_bound"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_edit_that_is_refused_for_its_key_is_told_wherever_it_stands(handle, monkeypatch, guard, place):
    """Real ROME, whose update is made to refuse one subject's key; nothing is searched to find that out."""
    bad, steps = [], []
    rank_one, loss = rome.rank_one, _search._Search.loss

    def refusing(key, *given, **more):
        if any(torch.allclose(key, each, atol=1e-5) for each in bad):
            raise SolveError("the key is almost nothing")
        return rank_one(key, *given, **more)

    def counted(search, *given, **more):
        steps.append(search.subjects)
        return loss(search, *given, **more)

    operator = configured("rome", handle, QUICK["rome"])[0]
    before = operator.contexts.before(handle, 0)
    [target] = _search.find_targets(handle, [ENDING[place]], operator.layer, before, operator.target, seed=0)
    bad.append(target.key)
    monkeypatch.setattr(rome, "rank_one", refusing)
    monkeypatch.setattr(_search._Search, "loss", counted)
    if guard:
        operator = configured(guard, handle, {"of": {"name": "rome", "settings": QUICK["rome"]}})[0]
    fourth = Edit(Fact("Peru", "capital", "Lima", "The capital of {}"), "Rome")
    found = plan(handle, operator, [*ENDING, fourth], seed=0)
    assert [(each.place, each.fatal) for each in found.problems if each.place is not None] == [(place, True)]
    subject = ENDING[place].fact.subject
    assert f"cannot edit {subject!r} at layer 1: the key is almost nothing" in found.problems[0].text
    if place == 2:
        assert sum(subject in subjects for subjects in steps) == 2, "with the fourth, and by itself"
    assert found.each is not None and found.moved is not None, "the others were tried all the same"
    steps.clear()
    assert plan(handle, operator, [*ENDING, fourth], seed=0, trial=False).problems == () and not steps


def test_an_edit_that_would_change_nothing_is_found_before_the_long_run(handle):
    with pytest.raises(SolveError, match="no direction"):
        plan(handle, Blow(0.1, fails=True), ENDING, seed=0)


def test_a_fatal_edit_is_not_tried(handle):
    bad = edit(prompt="word " * handle.context + "{} is")
    found = plan(handle, Blow(0.1), [bad, bad], seed=0)
    assert found.each is None and found.seconds is None and found.moved is None
    assert [each.fatal for each in found.problems] == [True, True]


def test_where_every_edit_is_refused_the_error_is_the_operators(handle, monkeypatch):
    def refuse(*_, **__):
        raise SolveError("the key is almost nothing")

    monkeypatch.setattr(rome, "rank_one", refuse)
    with pytest.raises(MethodError, match="the key is almost nothing"):
        plan(handle, configured("rome", handle, QUICK["rome"])[0], ENDING, seed=0)
