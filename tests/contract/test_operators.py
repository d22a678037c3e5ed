"""What every registered operator keeps, on every layout; a new operator is tested here without being named.

Nothing is asked of how it goes about it: it may make no pass through the model, and give a patch of any kind. Its
preset is used, under the settings of `quick/<operator>.toml` where there is such a file.
"""

from __future__ import annotations

import copy
import functools
import itertools
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import LAYOUTS, make_handle
from edit_examples import EDITS as PROMPTS
from edit_examples import ENDING, private_cache
from operator_calls import asked, call_on, changes, moves_the_right_way
from tables import QUICK
from training_examples import FORGET, REQUEST, RETAIN

from editkit.errors import InputError, MethodError, UnableError
from editkit.facts import Edit, Fact, ForgetRequest
from editkit.handle import ModelHandle
from editkit.operators import EDITS, UNLEARNERS, Aside, Confined, configured, each
from editkit.patch import PromptPatch, WeightPatch
from editkit.scope import Scope
from editkit.settings import build, settings_of

OPERATORS = (*EDITS.names(), *UNLEARNERS.names())
CASES = pytest.mark.parametrize(("name", "layout"), [(name, layout) for name in OPERATORS for layout in LAYOUTS])
EACH = pytest.mark.parametrize("name", OPERATORS)
FEW = ("llama", "gpt2_square", "gpt_neox", "gemma2")


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
    return call_on(name, handle_for(layout), seed, request)


@functools.cache
def patch_of(name, layout):
    """The patch of the usual request, and the model's fingerprint before and after it was made."""
    handle = handle_for(layout)
    before = handle.fingerprint()
    patch = call(name, layout)
    return patch, before, handle.fingerprint()


def weights_of(patch):
    if not isinstance(patch, WeightPatch):
        pytest.skip(f"{type(patch).__name__} changes no weights")
    return patch


@contextmanager
def on_each_pass(handle, do):
    """`do()` whenever the model's last block has run."""

    def after(*_):
        do()  # a hook's own value would take the place of the block's

    hook = handle.module("block", handle.layers - 1).register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()


@functools.cache
def passes_of(name, layout):
    """How many passes through the model a call makes, once all is cached that can be."""
    patch_of(name, layout)
    passes = itertools.count()
    with on_each_pass(handle_for(layout), lambda: next(passes)):
        call(name, layout)
    return next(passes)


@pytest.fixture(autouse=True)
def able(request):
    """Skips, with its reason, what cannot run on this machine even on the plainest model: a package may be missing."""
    name = request.node.callspec.params["name"]
    try:
        patch_of(name, "llama")
    except MethodError:
        pass  # the test's own business
    except UnableError as error:
        pytest.skip(str(error))


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
    assert moves_the_right_way(name, patch, changes(handle_for(layout), patch, asked(name)))


@pytest.mark.parametrize("name", EDITS.names())
@pytest.mark.parametrize("layout", FEW)
def test_edits_found_together_are_those_found_alone(name, layout):
    handle, operator = handle_for(layout), operator_for(name, layout)
    before = handle.fingerprint()
    together = each(operator, handle, ENDING, seed=3)
    assert handle.fingerprint() == before
    for edit, patch in zip(ENDING, together, strict=True):
        alone = operator(handle, [edit], seed=3)
        assert type(patch) is type(alone)
        assert patch.provenance.request == alone.provenance.request
        pairs = asked(name, ENDING)
        assert changes(handle, patch, pairs) == pytest.approx(changes(handle, alone, pairs), rel=5e-2, abs=1e-2)
        if isinstance(patch, WeightPatch):
            assert set(patch.deltas) == set(alone.deltas)
            for parameter, delta in patch.deltas.items():
                wanted = alone.deltas[parameter].dense()
                assert torch.linalg.vector_norm(delta.dense() - wanted) <= 1e-2 * torch.linalg.vector_norm(wanted)


def may_touch(operator, handle):
    """What the operator says that it may change."""
    if isinstance(operator, Confined):
        return operator.touches(handle)
    scope = settings_of(operator).get("scope")
    assert scope, "say which parameters it may change: a setting `scope: Scope`, or a method `touches(handle)`"
    return build(Scope, scope).parameters(handle)


@CASES
def test_only_parameters_in_scope_are_touched(name, layout):
    patch = weights_of(patch_of(name, layout)[0])
    assert patch.deltas
    assert set(patch.deltas) <= set(may_touch(operator_for(name, layout), handle_for(layout)))


@CASES
def test_a_plan_can_say_what_is_changed_or_added(name, layout):
    operator, patch = operator_for(name, layout), patch_of(name, layout)[0]
    assert isinstance(operator, Aside) == (not isinstance(patch, WeightPatch))
    if isinstance(operator, Aside):
        assert operator.adds(handle_for(layout)).startswith("no weights: ")


@CASES
def test_the_patch_tells_how_it_was_made(name, layout):
    told = patch_of(name, layout)[0].provenance
    assert (told.operator, told.seed, told.base) == (name, 0, handle_for(layout).base_digest)
    assert told.settings == settings_of(operator_for(name, layout))
    assert told.request and told.versions


@CASES
def test_what_is_saved_and_loaded_answers_alike(name, layout, tmp_path):
    patch = weights_of(patch_of(name, layout)[0])
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
    assert loaded.provenance == patch.provenance


@pytest.mark.parametrize("layout", FEW)
@EACH
def test_the_same_seed_gives_the_same_patch(name, layout):
    patch, *_ = patch_of(name, layout)
    again, handle = call(name, layout), handle_for(layout)
    assert again.digest == patch.digest
    assert changes(handle, again, asked(name)) == changes(handle, patch, asked(name))


@EACH
def test_the_digest_tells_patches_apart(name):
    """The model's replies are kept under it: with one digest for two patches, the one would answer for the other."""
    patch, *_ = patch_of(name, "llama")
    other = call(name, "llama", request=ENDING[1:2] if name in EDITS else ForgetRequest(FORGET[1:], RETAIN))
    assert patch.digest and other.digest and patch.digest != other.digest


@pytest.mark.parametrize("layout", FEW)
@pytest.mark.parametrize("which", ["first", "last"])
@EACH
def test_an_error_in_its_midst_leaves_the_model_as_it_was(name, layout, which):
    handle, passes = handle_for(layout), passes_of(name, layout)
    if passes < (2 if which == "last" else 1):
        pytest.skip(f"makes {passes} passes through the model")
    before = handle.fingerprint()
    left = itertools.count(passes if which == "last" else 1, -1)

    def strike():
        if next(left) == 1:
            raise Interruption

    with on_each_pass(handle, strike), pytest.raises(Interruption):
        call(name, layout)
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


@pytest.mark.parametrize("name", EDITS.names())
def test_several_edits_go_into_one_patch(name):
    handle = handle_for("llama")
    patch = call(name, "llama", request=ENDING)
    moved = changes(handle, patch, asked(name, ENDING))
    assert moves_the_right_way(name, patch, moved)
    assert isinstance(patch, PromptPatch) or min(moved) > 0, "an edit was lost"


WRONG = {
    "one edit in no list": (ENDING[0], "give a list"),
    "none": ([], "at least one"),
    "something else": ([ENDING[0].fact], "a Fact; it must hold Edit only"),
    "two objects for one prompt": ([*ENDING, replace(ENDING[0], target_new="Oslo")], "cannot be given both"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", EDITS.names())
def test_what_no_operator_can_make_is_refused_before_any_work(name, what):
    edits, told = WRONG[what]
    handle, passes = handle_for("llama"), itertools.count()
    with on_each_pass(handle, lambda: next(passes)), pytest.raises(InputError, match=told):
        operator_for(name, "llama")(handle, edits, seed=0)
    assert not next(passes)


@pytest.mark.parametrize("name", EDITS.names())
def test_progress_rises_and_comes_to_its_end(name):
    heard = []
    operator_for(name, "llama")(handle_for("llama"), ENDING, seed=0, progress=lambda *what: heard.append(what))
    if not heard and not passes_of(name, "llama"):
        pytest.skip("makes no pass through the model: there is nothing to wait for")
    what, done, of = heard[-1]
    assert done == of
    last = [n for w, n, _ in heard if w == what]
    assert last == sorted(last)


@pytest.mark.parametrize(
    ("layout", "bos", "pad"), [("llama", True, False), ("gpt2", True, True), ("gptj", False, False)]
)
@EACH
def test_tokenizers_with_bos_and_without_pad_serve(name, layout, bos, pad):
    handle = make_handle(layout, bos=bos, pad=pad)
    before = handle.fingerprint()
    operator, _ = configured(name, handle, QUICK.get(name))
    patch = operator(handle, ENDING[:1] if name in EDITS else REQUEST, seed=0)
    assert handle.fingerprint() == before
    assert moves_the_right_way(name, patch, changes(handle, patch, asked(name)))


@functools.cache
def narrow_handle(layout):
    return make_handle(layout, dtype=torch.bfloat16)


@pytest.mark.parametrize(("name", "layout"), [(name, layout) for name in OPERATORS for layout in FEW])
def test_on_bfloat16_weights_a_patch_is_that_of_the_same_weights_in_float32(name, layout):
    """It is computed in float32 and the sum is rounded once; it moves the model that is in bfloat16 the right way."""
    handle, request = narrow_handle(layout), ENDING[:1] if name in EDITS else REQUEST
    wide = ModelHandle.of(copy.deepcopy(handle.model).float(), handle.tokenizer, handle.name)
    before = handle.fingerprint()
    patch, wanted = (configured(name, h, QUICK.get(name))[0](h, request, seed=0) for h in (handle, wide))
    assert handle.fingerprint() == before
    assert patch.digest == wanted.digest
    assert moves_the_right_way(name, patch, changes(handle, patch, asked(name)))


@EACH
def test_the_tokenizers_padding_side_does_not_matter(name):
    patch, *_ = patch_of(name, "llama")
    handle = handle_for("llama")
    side = handle.tokenizer.padding_side
    try:
        handle.tokenizer.padding_side = "left" if side == "right" else "right"
        assert call(name, "llama").digest == patch.digest
    finally:
        handle.tokenizer.padding_side = side


ODD = {
    "that occurs twice": ("France", "Think of France. The capital of {}"),
    "in another script": ("東京タワー", "Where is {}"),
    "with accents and marks": ("Saint-Denis d’Órán", "The city of {}"),
    "at the very beginning": ("Nina Okafor", "{}"),
}


@pytest.mark.parametrize("subject", ODD)
@pytest.mark.parametrize("layout", ["llama", "gpt2"])
@pytest.mark.parametrize("name", EDITS.names())
def test_a_subject_takes(name, layout, subject):
    words, prompt = ODD[subject]
    edit = Edit(Fact(words, "home", "Paris", prompt), "Rome")
    handle = handle_for(layout)
    patch = call(name, layout, request=[edit])
    assert moves_the_right_way(name, patch, changes(handle, patch, [(edit.fact.text, edit.target_new)]))
