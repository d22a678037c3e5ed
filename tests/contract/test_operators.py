"""What every registered operator keeps, on every layout; a new operator is tested here without being named.

Its tiny settings may stand in `tables.QUICK`; without them its preset is used.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import tomllib
import typing
from importlib import resources

import pytest
import torch
from conftest import LAYOUTS, make_handle
from edit_examples import EDITS as PROMPTS
from edit_examples import ENDING, private_cache
from tables import QUICK
from training_examples import REQUEST

from editkit.facts import Edit, ForgetRequest
from editkit.operators import EDITS, UNLEARNERS, build, configured, each, operator_class, preset_for, settings_of
from editkit.patch import WeightPatch
from editkit.scope import Scope
from editkit.scoring import score_pairs

OPERATORS = (*EDITS.names(), *UNLEARNERS.names())
CASES = pytest.mark.parametrize(("name", "layout"), [(name, layout) for name in OPERATORS for layout in LAYOUTS])
EACH = pytest.mark.parametrize("name", OPERATORS)
FEW = ("llama", "gpt2_square", "gemma2")


class Interruption(BaseException):
    """Neither an Exception nor expected: as Ctrl-C."""


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with private_cache(str(tmp_path_factory.mktemp("cache"))):
        yield


@functools.cache
def handle_for(layout):
    return make_handle(layout)


def operator_for(name, layout):
    return configured(name, handle_for(layout), QUICK.get(name))[0]


def call(name, layout, seed=0, request=None):
    what = request or (ENDING[:1] if name in EDITS else REQUEST)
    return operator_for(name, layout)(handle_for(layout), what, seed=seed)


@functools.cache
def patch_of(name, layout):
    """The patch of the usual request, and the model's fingerprint before and after it was made."""
    handle = handle_for(layout)
    before = handle.fingerprint()
    patch = call(name, layout)
    return patch, before, handle.fingerprint()


def asked(name):
    """Pairs of prompt and text whose probability shall rise (edits) or fall (unlearners)."""
    if name in EDITS:
        return [(edit.fact.text, edit.target_new) for edit in ENDING[:1]]
    return [(example.prompt, example.completion) for example in REQUEST.forget]


@CASES
def test_calling_leaves_the_model_as_it_was(name, layout):
    _, before, after = patch_of(name, layout)
    assert before == after


@CASES
def test_apply_and_rollback_restore_it_to_the_bit(name, layout):
    patch, before, _ = patch_of(name, layout)
    handle = handle_for(layout)
    with handle.patched(patch):
        assert handle.fingerprint() != before
    assert handle.fingerprint() == before


@CASES
def test_the_target_moves_the_right_way_and_nothing_is_nan(name, layout):
    patch, *_ = patch_of(name, layout)
    handle = handle_for(layout)
    before = score_pairs(handle, asked(name))
    with handle.patched(patch):
        after = score_pairs(handle, asked(name))
    change = sum(score.logprob for score in after) - sum(score.logprob for score in before)
    assert abs(change) > 1e-3  # NaN fails here too
    assert (change > 0) == (name in EDITS)


@pytest.mark.parametrize("name", EDITS.names())
@pytest.mark.parametrize("layout", FEW)
def test_edits_found_together_are_those_found_alone(name, layout):
    handle, operator = handle_for(layout), operator_for(name, layout)
    before = handle.fingerprint()
    together = each(operator, handle, ENDING, seed=3)
    assert handle.fingerprint() == before
    for edit, patch in zip(ENDING, together, strict=True):
        alone = operator(handle, [edit], seed=3)
        assert patch.provenance.request == alone.provenance.request
        assert set(patch.deltas) == set(alone.deltas)
        for parameter, delta in patch.deltas.items():
            wanted = alone.deltas[parameter].dense()
            assert torch.linalg.vector_norm(delta.dense() - wanted) <= 1e-2 * torch.linalg.vector_norm(wanted)


@CASES
def test_only_parameters_in_scope_are_touched(name, layout):
    patch, *_ = patch_of(name, layout)
    if not isinstance(patch, WeightPatch):
        pytest.skip("no patch of weights")
    handle, operator = handle_for(layout), operator_for(name, layout)
    settings = settings_of(operator)
    if "scope" in settings:
        allowed = build(Scope, settings["scope"]).parameters(handle)
    else:
        layers = settings["layers"] if "layers" in settings else [settings["layer"]]
        allowed = [handle.weight_name("mlp_out", layer) for layer in layers]
    assert patch.deltas
    assert set(patch.deltas) <= set(allowed)


@CASES
def test_what_is_saved_and_loaded_answers_alike(name, layout, tmp_path):
    patch, *_ = patch_of(name, layout)
    if not isinstance(patch, WeightPatch):
        pytest.skip("no patch of weights")
    patch.save(tmp_path / "patch.safetensors")
    loaded = WeightPatch.load(tmp_path / "patch.safetensors")
    handle = handle_for(layout)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        with handle.patched(patch):
            first = handle.model(ids).logits
        with handle.patched(loaded):
            assert torch.equal(handle.model(ids).logits, first)
    assert loaded.digest == patch.digest
    assert loaded.provenance.operator == name
    assert loaded.provenance.base == handle.base_digest
    assert loaded.provenance.settings == settings_of(operator_for(name, layout))


@pytest.mark.parametrize("layout", FEW)
@EACH
def test_the_same_seed_gives_the_same_patch(name, layout):
    patch, *_ = patch_of(name, layout)
    assert call(name, layout).digest == patch.digest


@pytest.mark.parametrize("layout", FEW)
@pytest.mark.parametrize("calls", [1, 4])
@EACH
def test_an_error_in_its_midst_leaves_the_model_as_it_was(name, layout, calls):
    patch_of(name, layout)  # whatever is cached, is
    handle = handle_for(layout)
    before = handle.fingerprint()
    count = 0

    def strike(*_):
        nonlocal count
        count += 1
        if count == calls:
            raise Interruption

    hook = handle.module("block", handle.layers - 1).register_forward_hook(strike)
    try:
        with pytest.raises(Interruption):
            call(name, layout)
    finally:
        hook.remove()
    assert handle.fingerprint() == before


@pytest.mark.parametrize("layout", FEW)
@EACH
def test_it_works_on_a_patched_model_and_leaves_the_patch_on(name, layout):
    handle = handle_for(layout)
    below, *_ = patch_of(name, layout)
    request = PROMPTS[1:2] if name in EDITS else REQUEST
    with handle.patched(below):
        before = handle.fingerprint()
        above = call(name, layout, request=request)
        assert handle.fingerprint() == before
        assert handle.patches == (below,)
        assert above.provenance.notes["on_top_of"] == [below.digest]
        with handle.patched(above):
            assert handle.fingerprint() != before


@EACH
def test_gradients_may_be_off_where_it_is_called(name):
    patch, *_ = patch_of(name, "llama")
    with torch.no_grad():
        assert call(name, "llama").digest == patch.digest


@CASES
def test_settings_are_plain_and_round_trip(name, layout):
    operator = operator_for(name, layout)
    plain = settings_of(operator)
    assert build(type(operator), json.loads(json.dumps(plain))) == operator
    with pytest.raises(ValueError, match="no setting 'no_such'"):
        build(type(operator), {**plain, "no_such": 1})


@CASES
def test_there_is_a_preset_with_a_source(name, layout):
    handle = handle_for(layout)
    operator, source = configured(name, handle)
    assert isinstance(operator, operator_class(name)[1])
    assert len(source) > 10
    assert preset_for(name, handle).source == source


def tables():
    folder = resources.files("editkit").joinpath("presets")
    files = {name: folder.joinpath(f"{name}.toml") for name in OPERATORS}
    read = {name: tomllib.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    return [(name, table) for name, content in read.items() for table in content["preset"]]


@pytest.mark.parametrize(("name", "table"), tables())
def test_every_preset_builds_its_operator_and_names_its_source(name, table):
    assert set(table) <= {"match", "settings", "source"}
    settings = {k: 0 if str(v).startswith("depth:") else v for k, v in table.get("settings", {}).items()}
    build(operator_class(name)[1], settings)
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


@pytest.mark.parametrize("name", EDITS.names())
def test_several_edits_go_into_one_patch(name):
    handle = handle_for("llama")
    patch = call(name, "llama", request=ENDING)
    pairs = [(edit.fact.text, edit.target_new) for edit in ENDING]
    before = score_pairs(handle, pairs)
    with handle.patched(patch):
        after = score_pairs(handle, pairs)
    assert sum(score.mean for score in after) > sum(score.mean for score in before) + 0.5


@pytest.mark.parametrize("name", EDITS.names())
def test_progress_rises_and_comes_to_its_end(name):
    heard = []
    operator_for(name, "llama")(handle_for("llama"), ENDING, seed=0, progress=lambda *what: heard.append(what))
    what, done, of = heard[-1]
    assert done == of
    last = [n for w, n, _ in heard if w == what]
    assert last == sorted(last)


@EACH
def test_a_tokenizer_without_pad_and_with_bos_serves(name):
    handle = make_handle("llama", bos=True, pad=False)
    before = handle.fingerprint()
    operator, _ = configured(name, handle, QUICK.get(name))
    patch = operator(handle, ENDING[:1] if name in EDITS else REQUEST, seed=0)
    assert handle.fingerprint() == before
    scores = score_pairs(handle, asked(name))
    with handle.patched(patch):
        moved = score_pairs(handle, asked(name))
    assert (sum(s.logprob for s in moved) > sum(s.logprob for s in scores)) == (name in EDITS)
