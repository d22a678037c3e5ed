"""What every registered operator's class, module and preset say of it; what it does is in `test_operators.py`."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
import typing
from importlib import resources

import pytest
from conftest import LAYOUTS
from tables import QUICK

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
    assert preset_for(name, handle).source == source


def tables():
    folder = resources.files("editkit").joinpath("presets")
    files = {name: folder.joinpath(f"{name}.toml") for name in OPERATORS}
    read = {name: tomllib.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    return [(name, table) for name, content in read.items() for table in content.get("preset", [])]


def without_depths(value):
    """Settings without a model: each "depth:…" is layer 0."""
    if isinstance(value, dict):
        return {key: without_depths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [*dict.fromkeys(map(without_depths, value))]
    return 0 if str(value).startswith("depth:") else value


@pytest.mark.parametrize(("name", "table"), tables())
def test_every_preset_builds_its_operator_and_names_its_source(name, table):
    assert set(table) <= {"match", "settings", "source"}
    build(operator_class(name)[1], without_depths(table.get("settings", {})))
    assert len(table["source"]) > 10


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
