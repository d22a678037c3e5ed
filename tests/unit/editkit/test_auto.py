"""The search for settings: it finds what is best by its own measure, keeps away from the user's facts, and is kept."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from conftest import make_handle
from edit_examples import private_cache

from editkit import auto
from editkit.auto import Tried, auto_preset
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
    assert found.settings == {"layer": 2, "strength": 3}
    assert {(layer, strength) for layer, strength, _ in CALLED} == {(0, 1), (1, 1), (2, 1), (3, 1), (2, 3), (2, 2)}
    assert found.source.startswith("auto: layer 2, strength 3, searched on 6 built-in facts")
    assert "layer 1 0.01" in found.source and "the rest: a guess" in found.source


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
    auto_preset(knob, handle, avoid=[next(iter(used)).upper()])
    assert {subject for *_, subject in CALLED}.isdisjoint({next(iter(used))})


def test_where_nothing_takes_it_says_so(handle, knob, monkeypatch):
    monkeypatch.setattr(auto._Search, "_shares", lambda self, patches: (0.0, 0.0, 0.0))
    with pytest.raises(MethodError, match="no value of layer makes an edit of 'knob' take"):
        auto_preset(knob, handle)
    assert not (cache_folder() / "auto").exists(), "a failure is not kept"


def test_an_operator_without_anything_to_search_says_so(handle):
    with pytest.raises(InputError, match="'ike' has no settings that are searched"):
        auto_preset("ike", handle)


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
