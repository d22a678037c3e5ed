"""Facts, registry, layouts, files, presets."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint

import pytest
import transformers
from conftest import COMMON, LAYOUTS

from editkit.arch import ARCHITECTURES, Architecture, UnknownLayout, architecture_of
from editkit.errors import InputError
from editkit.facts import Edit, Example, Fact, ForgetRequest
from editkit.files import atomic_folder, atomic_path, write_text
from editkit.operators import EDITS, UNLEARNERS, candidates, configured, operator_class, preset_for
from editkit.registry import BrokenExtension, Registry, UnknownName
from editkit.settings import build, settings_of


def test_a_fact_checks_its_prompt():
    with pytest.raises(ValueError, match="no '{}' in prompt 'The capital of France is'; put it where the subject goes"):
        Fact("France", "capital", "Paris", "The capital of France is")
    with pytest.raises(ValueError, match="2 '{}'"):
        Fact("France", "capital", "Paris", "{} {}")
    with pytest.raises(ValueError, match="object is empty"):
        Fact("France", "capital", " ", "The capital of {} is")
    assert Fact("a {} b", "r", "o", "Of {} is").text == "Of a {} b is"


def test_an_edit_must_ask_for_something_else():
    fact = Fact("France", "capital", "Paris", "The capital of {} is")
    for target in ("Paris", " paris. "):
        with pytest.raises(ValueError, match="already has"):
            Edit(fact, target)
    with pytest.raises(ValueError, match="target_new is empty"):
        Edit(fact, "")


def test_nothing_is_both_forgotten_and_kept():
    example = Example("The capital of France is", "Paris")
    with pytest.raises(ValueError, match="stand in forget and in retain"):
        ForgetRequest((example,), (example,))
    with pytest.raises(ValueError, match="nothing to forget"):
        ForgetRequest(())


def test_a_registry_names_what_comes_near():
    registry: Registry[int] = Registry("number", "editkit.locate")
    registry.register("rome")(1)
    with pytest.raises(UnknownName, match="no number named 'rom'; there is rome"):
        registry["rom"]
    with pytest.raises(ValueError, match="two numbers are named 'rome'"):
        registry.register("rome")(2)


def test_operators_are_found_in_both_registries():
    with pytest.raises(UnknownName, match="no operator named 'rme'; there is rome"):
        operator_class("rme")


def test_a_name_that_an_edit_and_an_unlearner_bear_is_refused(monkeypatch):
    UNLEARNERS.names()  # loaded, before another is put beside them
    monkeypatch.setitem(UNLEARNERS._items, "rome", Inner)
    with pytest.raises(InputError, match=r"two operators are named 'rome': editkit.edit.rome.ROME and test_core.Inner"):
        operator_class("rome")
    assert operator_class("ft_l")[0] == "edit" and operator_class("npo")[0] == "unlearn"


def test_an_extension_that_cannot_be_loaded_is_named(monkeypatch):
    point = EntryPoint("mine", "no_such_module:thing", "editkit.number")
    monkeypatch.setattr("editkit.registry.entry_points", lambda group: [point] if group == "editkit.number" else [])
    registry: Registry[int] = Registry("number", "")
    with pytest.raises(
        BrokenExtension, match=r"the extension 'mine' \(editkit.number\) cannot be loaded: ModuleNotFound"
    ):
        registry.names()


PRESET = """
[[preset]]
source = "measured by its author, 2025"
settings = {rate = 0.25, steps = 5}

[[preset]]
match = {model_type = "llama"}
source = "measured on llama by its author"
settings = {rate = 0.125}
"""


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """An operator in a package of its own, as an installed extension brings it; gives the file of its preset."""
    for package in ("theirs", "theirs/methods"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    code = (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    rate: float\n    steps: int = 1\n"
    )
    (tmp_path / "theirs/methods/mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    EDITS.names()
    from theirs.methods.mine import Mine

    monkeypatch.setitem(EDITS._items, "mine", Mine)
    yield tmp_path / "theirs"
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]


@pytest.mark.parametrize("folder", ["presets", "methods/presets"])
def test_a_third_party_brings_its_presets(third_party, handle_of, folder):
    (third_party / folder).mkdir()
    (third_party / folder / "mine.toml").write_text(PRESET)
    operator, source = configured("mine", handle_of("gpt2"))
    assert (operator.rate, operator.steps) == (0.25, 5) and source == "measured by its author, 2025"
    operator, source = configured("mine", handle_of("llama"), {"steps": 7})
    assert (operator.rate, operator.steps) == (0.125, 7) and source == "measured on llama by its author"


def test_a_preset_may_be_like_anothers(third_party, handle_of):
    """Its tables, but for what the operator is without, with the file's own settings on top; the source says so."""
    (third_party / "presets").mkdir()
    (third_party / "presets" / "mine.toml").write_text(
        'like = "ft_l"\nwithout = ["layer", "bound", "learning_rate"]\nsource = "rate: a guess"\nsettings = {rate = 0.5}'
    )
    operator, source = configured("mine", handle_of("llama"))
    assert (operator.rate, operator.steps) == (0.5, 25)
    assert source.startswith("as ft_l (") and source.endswith("; rate: a guess")
    own = '\n[[preset]]\nsource = "measured on llama"\nmatch = {model_type = "llama"}\nsettings = {rate = 2.0}'
    (third_party / "presets" / "mine.toml").write_text('like = "ft_l"\nwithout = ["layer"]' + own)
    assert configured("mine", handle_of("llama"))[0].rate == 2.0


def test_depths_that_fall_on_one_layer_are_one(third_party, handle_of):
    (third_party / "presets").mkdir()
    (third_party / "presets" / "mine.toml").write_text(
        '[[preset]]\nsource = "by depth"\nsettings = {rate = ["depth:0.1", "depth:0.2", "depth:0.9"], steps = 2}'
    )
    assert preset_for("mine", handle_of("llama")).settings["rate"] == [0, 2]


def test_a_width_is_that_of_what_mlp_out_reads(third_party, handle_of):
    (third_party / "presets").mkdir()
    (third_party / "presets" / "mine.toml").write_text(
        'auto.rate = ["d_in:1", 3.0]\n[[preset]]\nsource = "by width"\nsettings = {rate = "d_in:0.5"}'
    )
    handle = handle_of("llama")
    assert preset_for("mine", handle).settings["rate"] == 24.0
    assert candidates("mine", handle) == {"rate": [48.0, 3.0]}


def test_what_is_guessed_for_a_model_says_that_it_can_be_searched(third_party, handle_of):
    (third_party / "presets").mkdir()
    own = '[[preset]]\nsource = "measured"\nmatch = {model_type = "llama"}\nsettings = {rate = 2.0}'
    guess = 'auto.rate = [1.0, 3.0]\n[[preset]]\nsource = "a thought"\nsettings = {rate = 0.5}\n'
    (third_party / "presets" / "mine.toml").write_text(guess + own)
    told = "a thought; for this model a guess: --preset auto searches rate"
    assert configured("mine", handle_of("gpt2"))[1] == told
    assert configured("mine", handle_of("gpt2"), {"rate": 1.0})[1] == "a thought"
    assert configured("mine", handle_of("llama"))[1] == "measured"


def test_an_operator_without_presets_has_its_defaults(third_party, handle):
    assert preset_for("mine", handle).settings == {}
    with pytest.raises(InputError, match="Mine needs rate; no preset gives it for this model"):
        configured("mine", handle)


@pytest.mark.parametrize("text", ["preset = [", "rate = 3", "[[preset]]\nsettings = {rate = 1}", "preset = [1]"])
def test_a_broken_preset_is_named(third_party, handle, text):
    (third_party / "presets").mkdir()
    (third_party / "presets" / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=r"^theirs: presets/mine.toml"):
        preset_for("mine", handle)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tiny_layout_has_its_parts(handle_of, layout):
    handle = handle_of(layout)
    out, inner = handle.matrix(handle.weight_name("mlp_out", 0)).shape
    assert out == 32 and handle.module("mlp_out", 0) is not handle.module("mlp_out", 1)
    assert handle.layers == 3 and handle.backbone is not handle.model
    assert inner in (32, 48, 128)


def test_an_unknown_layout_gives_the_recipe():
    config = transformers.MixtralConfig(**COMMON, vocab_size=64, intermediate_size=48, num_local_experts=2)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnknownLayout, match="fused 3-D parameters.*known: .*llama.*add a layout: one file"):
        architecture_of(model)


def test_a_layout_that_does_not_fit_says_which_part(handle):
    wrong = Architecture(
        "wrong", ("llama",), *["model.embed_tokens"], *["model.layers.{}"] * 3, "model.layers.{}.nope", "model.norm"
    )
    with pytest.raises(UnknownLayout, match="expects the mlp_out at 'model.layers.0.nope'"):
        wrong.check(handle.model)


def test_no_model_type_has_two_layouts():
    types = [t for _, a in ARCHITECTURES.items() for t in a.model_types]
    assert len(types) == len(set(types)) and all(len(t) > 1 for t in types)


def test_files_appear_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "b") as temporary:
        (temporary / "x").write_text("half")
        raise RuntimeError
    assert sorted(os.listdir(tmp_path)) == ["a.txt"]
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "b") as temporary:
            (temporary / "x").write_text(text)
    assert (tmp_path / "b" / "x").read_text() == "two" and sorted(os.listdir(tmp_path)) == ["a.txt", "b"]


@dataclass(frozen=True, slots=True)
class Inner:
    rate: float = 0.5
    steps: int = 3


@dataclass(frozen=True, slots=True)
class Outer:
    layers: tuple[int, ...] = (1,)
    inner: Inner = field(default_factory=Inner)
    name: str | None = None


def test_settings_go_round():
    made = build(Outer, {"layers": [4, 5], "inner": {"rate": 1}, "name": "x"})
    assert made == Outer((4, 5), Inner(1.0), "x")
    assert build(Outer, settings_of(made)) == made


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": {"rates": 1}}, "no setting 'inner.rates'|no setting inner.'rates'; there is rate"),
        ({"layer": [1]}, "there is layers"),
        ({"inner": {"steps": "many"}}, "'inner.steps' is 'many', expected int"),
        ({"inner": {"steps": True}}, "expected int"),
        ({"layers": 3}, "'layers' is 3, expected a list"),
        ({"layers": ["x"]}, "'layers' is 'x', expected int"),
        ({"inner": 3}, "'inner' is 3, expected Inner"),
        ({"inner": {"rate": float("nan")}}, "'inner.rate' is nan, expected a finite number"),
        ({"inner": {"rate": float("inf")}}, "'inner.rate' is inf, expected a finite number"),
    ],
)
def test_settings_that_are_wrong_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        build(Outer, settings)
