"""What every registered operator's class, module and preset say of it; what it does is in `test_operators.py`."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
import typing
from dataclasses import fields, is_dataclass
from importlib import resources
from types import SimpleNamespace

import pytest
import torch
from conftest import LAYOUTS
from tables import QUICK
from transformers import AutoConfig

from editkit.arch import ARCHITECTURES
from editkit.facts import Edit, ForgetRequest
from editkit.operators import EDITS, UNLEARNERS, configured, operator_class, preset_for
from editkit.settings import build, settings_of

OPERATORS = (*EDITS.names(), *UNLEARNERS.names())
EACH = pytest.mark.parametrize("name", OPERATORS)
CASES = pytest.mark.parametrize(("name", "layout"), [(name, layout) for name in OPERATORS for layout in LAYOUTS])


def test_quick_settings_are_of_operators_that_there_are():
    assert set(QUICK) <= set(OPERATORS)


@CASES
def test_settings_are_plain_and_round_trip(name, layout, handle_of):
    operator, _ = configured(name, handle_of(layout), QUICK.get(name))
    plain = settings_of(operator)
    assert build(type(operator), json.loads(json.dumps(plain))) == operator
    with pytest.raises(ValueError, match="no setting 'no_such'"):
        build(type(operator), {**plain, "no_such": 1})


@CASES
def test_there_is_a_preset_with_a_source(name, layout, handle_of):
    handle = handle_of(layout)
    operator, source = configured(name, handle)
    assert isinstance(operator, operator_class(name)[1])
    assert len(source) > 10
    assert source.startswith(preset_for(name, handle).source)  # a guard tells that of the other operator, too


def tables():
    folder = resources.files("editkit").joinpath("presets")
    files = {name: folder.joinpath(f"{name}.toml") for name in OPERATORS}
    read = {name: tomllib.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    return [(name, table) for name, content in read.items() for table in content.get("preset", [])]


def without_depths(value):
    """Settings without a model: each "depth:…" is layer 0, each "d_in:…" a share of one input."""
    if isinstance(value, dict):
        return {key: without_depths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [*dict.fromkeys(map(without_depths, value))]
    if str(value).startswith("d_in:"):
        return float(value.removeprefix("d_in:"))
    return 0 if str(value).startswith("depth:") else value


@pytest.mark.parametrize(("name", "table"), tables())
def test_every_preset_builds_its_operator_and_names_its_source(name, table):
    assert set(table) <= {"match", "settings", "source"}
    build(operator_class(name)[1], without_depths(table.get("settings", {})))
    assert len(table["source"]) > 10


def of_config(match):
    """As much of a handle as presets look at, of the model that a table names."""
    layers = match["n_layer"] if "n_layer" in match else match["num_hidden_layers"]
    config, weight = SimpleNamespace(to_dict=lambda: match), torch.empty(1, 64)
    places = {"weight_name": lambda part, layer: part, "matrix": lambda name: weight}
    return SimpleNamespace(model=SimpleNamespace(config=config), layers=layers, **places)


NAMED = [(name, table) for name, table in tables() if "match" in table]
MATCHES = [json.loads(each) for each in sorted({json.dumps(table["match"], sort_keys=True) for _, table in NAMED})]


@pytest.mark.parametrize(("name", "table"), NAMED)
def test_a_table_is_taken_for_its_own_model(name, table):
    assert preset_for(name, of_config(table["match"])).source == table["source"]


def layers_in(settings):
    """The numbers of all blocks that plain settings name, within one another too."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from layers_in(value)
        elif key == "layer":
            yield value
        elif key == "layers":
            yield from value or ()
        elif key == "matrices":
            yield from (int(re.search(r"\.(\d+)\.", path)[1]) for path in value)


@EACH
def test_presets_suit_every_model_that_one_is_for(name):
    """Those of the operator itself, of one that it is like, and the guess for all others."""
    for match in MATCHES:
        handle = of_config(match)
        operator, source = configured(name, handle)
        named = [*layers_in(settings_of(operator))]
        assert all(0 <= layer < handle.layers for layer in named), (match, source)


@pytest.mark.parametrize(("name", "table"), NAMED)
def test_a_table_is_for_a_model_that_there_can_be(name, table):
    kind = table["match"]["model_type"]
    assert set(table["match"]) <= set(AutoConfig.for_model(kind).to_dict())
    layout = next((own for _, own in ARCHITECTURES.items() if kind in own.model_types), None)
    assert layout, f"no layout for {kind!r}"
    for path in table.get("settings", {}).get("matrices", []):
        block = int(re.search(r"\.(\d+)\.", path)[1])
        assert path.startswith(f"{layout.path('block', block)}.")


@EACH
def test_its_module_says_where_it_comes_from(name):
    text = inspect.getmodule(operator_class(name)[1]).__doc__
    assert re.search(r"https?://\S+", text)
    assert "Differs from the authors' code" in text


@EACH
def test_its_request_is_the_type_that_holds_no_held_out_question(name):
    kind, operator = operator_class(name)
    hints = typing.get_type_hints(operator.__call__)
    request = next(hint for argument, hint in hints.items() if argument not in ("handle", "seed", "return"))
    if kind == "edit":
        assert typing.get_args(request) == (Edit,)
    else:
        assert request is ForgetRequest


def settings_classes():
    """The operators' classes, their bases, and those of their settings, within one another too."""
    found = [operator_class(name)[1] for name in OPERATORS]
    for kind in found:  # grows as it goes
        hints = typing.get_type_hints(kind).values()
        near = [*kind.__mro__, *hints, *(each for hint in hints for each in typing.get_args(hint))]
        found += [each for each in dict.fromkeys(near) if is_dataclass(each) and each not in found]
    return found


@pytest.mark.parametrize("kind", settings_classes(), ids=lambda kind: kind.__name__)
def test_every_setting_is_named_by_the_docstring_of_its_class_or_a_base(kind):
    told = " ".join(vars(each).get("__doc__") or "" for each in kind.__mro__)
    named = set(re.findall(r"`([a-z_]+)`", told))
    assert {field.name for field in fields(kind)} <= named
