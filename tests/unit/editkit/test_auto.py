"""The search for settings: it finds what is best by its own measure, keeps away from the user's facts, and is kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from conftest import make_handle
from edit_examples import private_cache
from hypothesis import given
from hypothesis import strategies as st

from editkit import auto
from editkit.auto import Tried, auto_preset
from editkit.data import load
from editkit.errors import InputError, MethodError
from editkit.models import cache_folder
from editkit.operators import EDITS, Preset, candidates, configured, provenance_of
from editkit.patch import DenseDelta, PromptPatch, WeightPatch


@pytest.fixture(autouse=True)
def cache(tmp_path):
    with private_cache(str(tmp_path / "cache")):
        yield


@dataclass(frozen=True, slots=True)
class Knob:
    """An operator that is told by its settings how well it shall do: a hint in the prompt, that only `layer` 2 with
    `strength` 3 gives."""

    layer: int = 0
    strength: int = 0

    def __call__(self, handle, edits, *, seed, progress=None):
        told = provenance_of("knob", self, handle, edits, seed)
        CALLED.append((self.layer, self.strength, edits[0].fact.subject))
        if self.layer == 1:
            raise MethodError("nothing can be changed there")
        name = handle.weight_name("mlp_out", 0)
        return WeightPatch({name: DenseDelta(torch.zeros_like(handle.matrix(name)))}, told)


CALLED = []


@pytest.fixture
def knob(monkeypatch):
    """`Knob` is registered, and scored by its settings alone."""
    EDITS.names()
    monkeypatch.setitem(EDITS._items, "knob", Knob)
    monkeypatch.setattr(auto, "candidates", lambda name, handle: {"layer": [0, 1, 2, 3], "strength": [1, 3, 2]})
    monkeypatch.setattr(auto, "preset_for", lambda name, handle: Preset({"layer": 0, "strength": 1}, "a guess"))
    CALLED.clear()

    def shares(self, patches):
        settings = patches[0].provenance.settings
        near = 1 - abs(settings["layer"] - 2) / 4
        return near, near, 1 - abs(settings["strength"] - 3) / 4

    monkeypatch.setattr(auto._Search, "_shares", shares)
    return "knob"


def test_each_setting_is_left_at_its_best_and_the_source_tells_all_that_was_tried(handle, knob):
    found = auto_preset(knob, handle)
    assert configured(knob, handle, found.settings)[0] == Knob(**found.settings)
    assert found.settings == {"layer": 2, "strength": 3}
    assert {(layer, strength) for layer, strength, _ in CALLED} == {(0, 1), (1, 1), (2, 1), (3, 1), (2, 3), (2, 2)}
    assert found.source.startswith("auto: layer 2, strength 3, searched on 6 built-in facts")
    assert "layer 1 0.00" in found.source and "the rest: a guess" in found.source


def test_what_is_given_is_not_searched(handle, knob):
    found = auto_preset(knob, handle, fixed={"layer": 3})
    assert found.settings == {"layer": 3, "strength": 3} and {layer for layer, *_ in CALLED} == {3}
    CALLED.clear()
    assert auto_preset(knob, handle, fixed={"layer": 3, "strength": 1}).settings == {"layer": 3, "strength": 1}
    assert not CALLED


def test_it_is_kept_for_the_same_model_facts_and_settings_only(handle, knob):
    first = auto_preset(knob, handle)
    CALLED.clear()
    assert auto_preset(knob, handle) == first and not CALLED
    auto_preset(knob, handle, seed=1)
    assert CALLED
    CALLED.clear()
    auto_preset(knob, make_handle("llama", seed=5))
    assert CALLED
    for file in (cache_folder() / "auto").iterdir():
        file.write_text("{")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert auto_preset(knob, handle) == first


def test_it_keeps_away_from_the_subjects_of_the_edits_to_come(handle, knob):
    auto_preset(knob, handle)
    used = {subject for *_, subject in CALLED}
    assert len(used) == auto.FACTS
    CALLED.clear()
    gone = min(used)
    auto_preset(knob, handle, avoid=[gone.upper()])
    others = {subject for *_, subject in CALLED}
    assert len(others) == auto.FACTS, "searched anew, on as many facts"
    assert gone not in others


def test_a_subject_that_would_be_used_is_not_where_it_is_to_be_avoided(handle):
    """So few subjects are left that each is taken, but for the one."""
    everyone = {entry.fact.subject for entry in load("world").editable}
    few = set(sorted(everyone)[:: len(everyone) // 6])
    far = everyone - few

    def used(avoid):
        return {record.fact.subject for record in auto._facts(handle, avoid, 0)[0]}

    taken = used(far)
    assert taken and taken <= few
    for gone in taken:
        assert used(far | {f"  {gone.upper()}."}) <= few - {gone}


def test_what_was_found_on_other_facts_is_searched_anew(handle, knob, monkeypatch):
    records, known = auto._facts(handle, (), 0)
    auto_preset(knob, handle)
    for others in (records[1:], records[::-1]):
        CALLED.clear()
        monkeypatch.setattr(auto, "_facts", lambda *given, others=others: (others, known))
        auto_preset(knob, handle)
        assert {subject for *_, subject in CALLED} == {record.fact.subject for record in others}


@pytest.mark.parametrize("shares", [(0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (0.0, 0.0, None)])
def test_where_nothing_takes_it_says_so(handle, knob, monkeypatch, shares):
    """An unchanged model has kept all neighbours: that is no edit."""
    monkeypatch.setattr(auto._Search, "_shares", lambda self, patches: shares)
    with pytest.raises(
        MethodError, match=r"no value of layer makes an edit of 'knob' take .*tried: 0, 1, 2, 3.*by hand"
    ):
        auto_preset(knob, handle)
    assert not (cache_folder() / "auto").exists(), "a failure is not kept"


@given(*[st.floats(0, 1)] * 4, st.integers(1, auto.FACTS))
def test_what_takes_is_better_than_what_does_not_whatever_the_neighbours_say(one, two, three, four, taken):
    assert Tried({}, 0.0, one, two).score < Tried({}, taken / auto.FACTS, three, four).score
    assert not Tried({}, 0.0, one, two).takes and Tried({}, taken / auto.FACTS, three, four).takes


def test_of_a_guard_the_settings_of_the_operator_within_are_searched(handle, knob, monkeypatch):
    grids = {"knob": auto.candidates(knob, handle), "rect": {}, "norm_bound": {}}
    starts = {
        "knob": Preset({"layer": 0, "strength": 1}, "a guess"),
        "rect": Preset({}, "r"),
        "norm_bound": Preset({}, "n"),
    }
    monkeypatch.setattr(auto, "candidates", lambda name, handle: grids[name])
    monkeypatch.setattr(auto, "preset_for", lambda name, handle: starts[name])
    shares = auto._Search._shares  # by the settings of `Knob`

    def of_the_innermost(self, patches):
        told = patches[0].provenance.settings
        while "of" in told:
            told = told["of"]["settings"]
        return shares(self, [SimpleNamespace(provenance=SimpleNamespace(settings=told))])

    monkeypatch.setattr(auto._Search, "_shares", of_the_innermost)
    within = {"name": "knob", "settings": {"strength": 2}}
    found = auto_preset("rect", handle, fixed={"of": within})
    assert found.settings == {"of": {"name": "knob", "settings": {"layer": 2, "strength": 2}}}
    assert "of.settings.layer 2" in found.source and "the rest: r; knob within: a guess" in found.source
    grids["knob"] = {"layer": [0, 2]}
    plain = auto_preset("rect", handle, fixed={"of": {"name": "knob"}})
    assert plain.settings["of"]["settings"] == {"layer": 2, "strength": 1}, "what its own preset says is told with it"
    nested = auto_preset("norm_bound", handle, fixed={"most": 0.5, "of": {"name": "rect", "settings": {"of": within}}})
    assert nested.settings == {"most": 0.5, "of": {"name": "rect", "settings": found.settings}}


@pytest.mark.parametrize("guard", [None, "rect"])
def test_a_given_setting_ends_the_presets_other_way_to_say_it_also_within_a_guard(handle, guard):
    fixed = {"threshold": 1e-3}
    start, _ = auto._start(
        guard or "alphaedit", handle, {"of": {"name": "alphaedit", "settings": fixed}} if guard else fixed
    )
    settings = start.settings["of"]["settings"] if guard else start.settings
    assert (settings["threshold"], settings["directions"]) == (1e-3, 0.0)


@pytest.mark.parametrize("name", ["rect", "prune", "norm_bound"])
@pytest.mark.parametrize("inner", ["memit", "rome"])
def test_what_a_guard_can_search_is_what_the_operator_within_can(handle, name, inner):
    start, grid = auto._start(name, handle, {"of": {"name": inner}})
    assert grid == {f"of.settings.{setting}": values for setting, values in candidates(inner, handle).items()} != {}
    for setting, values in grid.items():
        for value in values:
            operator = configured(name, handle, auto._with(start.settings, setting, value))[0]
            assert (
                operator.inner(handle) == configured(inner, handle, auto._with({}, setting, value)["of"]["settings"])[0]
            )


def test_an_operator_without_anything_to_search_says_so(handle):
    with pytest.raises(InputError, match="'serac' has no settings that are searched"):
        auto_preset("serac", handle)


def test_shares_are_of_the_prompts_themselves(handle):
    """A hint that makes the model say what it says anyway: judged by the model's own words."""
    [record, *_], _ = auto._facts(handle, (), 0)
    search = auto._Search("rome", handle, [record], {}, 0, None)
    search.near = [[("The capital of France is", "no answer of this model")]]
    told = provenance_of("rome", Knob(), handle, [record.edit], 0)
    efficacy, generalization, specificity = search._shares([PromptPatch(lambda prompt: prompt, told, digest="same")])
    assert (efficacy, generalization, specificity) == (0.0, 0.0, 0.0)


def test_the_score_is_a_harmonic_mean_and_leaves_out_what_there_is_not():
    assert Tried({}, 1.0, 0.5, 0.5).score == pytest.approx(3 / (1 + 2 + 2))
    assert Tried({}, 1.0, 0.5, None).score == pytest.approx(2 / 3)
    assert Tried({}, 0.0, 1.0, 1.0).score < Tried({}, 0.1, 0.1, 0.1).score


@pytest.mark.parametrize("name", EDITS.names())
def test_candidates_fit_their_operator_and_its_layers(handle, name):
    for setting, values in candidates(name, handle).items():
        assert len(values) == len({json.dumps(value) for value in values})
        for value in values:
            operator = configured(name, handle, auto._with({}, setting, value))[0]
            layers = [each for each in (value if isinstance(value, list) else [value]) if "layer" in setting]
            assert all(0 <= layer < handle.layers for layer in layers) and operator


NOTHING_TO_SEARCH = {"serac": "its scope is trained on built-in facts", "easyeditor": "its settings are EasyEdit's"}


@pytest.mark.parametrize("name", EDITS.names())
def test_every_operator_can_be_searched_but_for_these(handle, name):
    """Nobody with a new model should have to write numbers."""
    assert bool(auto._start(name, handle, {})[1]) == (name not in NOTHING_TO_SEARCH)


def test_a_real_search_finds_a_layer_where_edits_take(handle):
    """The whole way on a tiny model, by fine-tuning, which makes even a random one say what it is told."""
    before = handle.fingerprint()
    found = auto_preset("ft_m", handle, fixed={"learning_rate": 0.1, "steps": 15})
    assert handle.fingerprint() == before
    [file] = (cache_folder() / "auto").iterdir()
    tried = {each["settings"]["layer"]: Tried(**each) for each in json.loads(file.read_text())["tried"]}
    assert set(tried) == set(candidates("ft_m", handle)["layer"]) and len(tried) > 1
    best = max(tried.values(), key=lambda each: each.score)
    assert found.settings == {"layer": best.settings["layer"], "learning_rate": 0.1, "steps": 15}
    assert best.efficacy > 0.5 and best.specificity is None, "a random model knows no neighbours"
