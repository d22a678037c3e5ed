"""The model is back to the bit after any failure: Ctrl-C at every single line of what puts patches on and off."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import make_handle
from torch import nn

from editkit import blocks, forward, hooks, patch, products, undo
from editkit import handle as handle_module
from editkit.hooks import rewritten, traced
from editkit.patch import DenseDelta, HookPatch, ModulePatch, PromptPatch, WeightPatch
from editkit.undo import Block, Undo

FILES = {str(Path(module.__file__)) for module in (handle_module, hooks, patch, undo)}


class Struck(KeyboardInterrupt):
    """Ctrl-C at a line of our choice."""


def strike(at, act):
    """Run `act` with Struck raised at the `at`-th line of the files; gives (whether it struck, the frame's place)."""
    seen, place = 0, None

    def trace(frame, event, _):
        nonlocal seen, place
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            seen += 1
            if seen == at:
                sys.settrace(None)
                place = (frame.f_code, frame.f_lineno, frame.f_back.f_code)
                raise Struck
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except Struck as error:
        kept = error  # the traceback lives on while the model is looked at, as it does in a debugger
        sys.settrace(before)
        return kept, place
    finally:
        sys.settrace(before)
    return None, None


def state_of(handle):
    hooked = [(name, len(m._forward_hooks), type(m)) for name, m in handle.model.named_modules()]
    return handle_module.weights_digest(handle.model), hooked, list(handle.prompt_rewrites), handle.patches


def patches_of(handle):
    name, other = handle.weight_name("mlp_out", 0), handle.weight_name("mlp_out", 1)
    one = {name: DenseDelta(torch.ones(handle.matrix(name).shape)), other: DenseDelta(torch.ones(handle.matrix(other).shape))}  # fmt: skip
    return (
        WeightPatch(one),
        WeightPatch({name: DenseDelta(torch.full(handle.matrix(name).shape, 0.3))}),
        HookPatch({"model.layers.1.mlp": lambda output: output * 2}, digest="twice"),
        ModulePatch({"model.layers.0.mlp": nn.Sequential}, digest="wrapped"),
        PromptPatch(str.upper, digest="upper"),
    )


def first_line_of_exit(place, act):
    """The one moment that no Python code can guard: the outermost `__exit__` has begun and not reached its `try`."""
    code, line, caller = place
    return code is Block.__exit__.__code__ and line == code.co_firstlineno + 1 and caller is act.__code__


def check(handle, act, least):
    """`act` struck at each of its lines leaves the handle's model as it was."""
    handle.base_digest  # noqa: B018 (taken before the first strike, as `apply` does)
    before, at, open_moments = state_of(handle), 0, 0
    while True:
        at += 1
        error, place = strike(at, act)
        if error is None:
            break
        if first_line_of_exit(place, act) and handle.patches:
            open_moments += 1
            handle.rollback()  # even then nothing is lost
        assert state_of(handle) == before, f"not back after a strike at line {place[1]} of {place[0].co_qualname}"
    assert state_of(handle) == before
    assert at > least, "the strikes did not reach the code"
    return open_moments


def test_patches_come_off_whatever_line_is_struck():
    handle = make_handle("llama")
    one, two, hook, module, prompt = patches_of(handle)

    def nested():
        with handle.patched(one, hook):
            with handle.patched(module, two, prompt):
                with handle.patched(one):
                    pass
            handle.apply(two)
            handle.rollback(1)

    assert check(handle, nested, least=150) == 1


def test_hooks_come_off_whatever_line_is_struck():
    handle = make_handle("llama")
    names = ["model.layers.0", "model.layers.1.mlp"]

    def nested():
        with traced(handle.model, names) as seen:
            with rewritten(handle.model, dict.fromkeys(names, torch.clone)):
                pass
        return seen

    before = state_of(handle)
    at = struck_at_exit = 0
    while True:
        at += 1
        error, place = strike(at, nested)
        if error is None:
            break
        if first_line_of_exit(place, nested):
            struck_at_exit += 1
            for each in handle.model.modules():
                each._forward_hooks.clear()
        assert state_of(handle) == before, f"hooks left after a strike at line {place[1]} of {place[0].co_qualname}"
    assert at > 40 and struck_at_exit == 2


def test_what_a_computation_sets_aside_is_put_back_whatever_line_is_struck(monkeypatch):
    """Gradient flags, the attention, products in place of layers, patches that are off for a while."""
    handle = make_handle("llama")
    one, two, *_ = patches_of(handle)
    handle.apply(one)
    handle.apply(two)
    layer = handle.model.get_submodule("model.layers.0.mlp.down_proj")
    more = {str(Path(module.__file__)) for module in (blocks, forward, products)}
    monkeypatch.setattr(sys.modules[__name__], "FILES", FILES | more)

    def state():
        flags = [parameter.requires_grad for parameter in handle.model.parameters()]
        return state_of(handle), flags, handle.attention_implementation, "forward" in vars(layer)

    def nested():
        with blocks.frozen(handle.model), forward.attention(handle, "eager"):
            with products.Products([(layer, torch.neg)]).on(), blocks.without_patches(handle):
                pass

    before, at, open_moments = state(), 0, 0
    while True:
        at += 1
        error, place = strike(at, nested)
        if error is None:
            break
        if first_line_of_exit(place, nested) and state() != before:
            open_moments += 1
            put_right(handle, before, (one, two), layer)
        assert state() == before, f"not back after a strike at line {place[1]} of {place[0].co_qualname}"
    assert at > 100 and open_moments <= 4


def put_right(handle, before, patches, layer):
    """By hand, what the one open moment of each of the blocks leaves."""
    handle.rollback()
    for each in patches:
        handle.apply(each)
    for parameter, flag in zip(handle.model.parameters(), before[1], strict=True):
        parameter.requires_grad_(flag)
    handle.model.set_attn_implementation(before[2])
    vars(layer).pop("forward", None)


def test_a_patch_that_does_not_fit_leaves_those_before_it_off(handle):
    one, *_ = patches_of(handle)
    bad = WeightPatch({handle.weight_name("mlp_out", 2): DenseDelta(torch.ones(1, 1))})
    before = state_of(handle)
    with pytest.raises(patch.PatchError, match="shape"), handle.patched(one, bad):
        pytest.fail("the block was entered")
    assert state_of(handle) == before


def test_a_step_that_is_struck_is_taken_again():
    done, struck = [], []

    def step(name):
        done.append(name)
        if name == "b" and not struck:
            struck.append(name)
            raise Struck

    def open(undo):
        for name in "abc":
            undo.callback(step, name)

    with pytest.raises(Struck), Block(open):
        pass
    assert done == ["c", "b", "b", "a"]


def test_what_a_strike_leaves_can_be_taken_back_later():
    undo, done, failing = Undo(), [], [Struck(), Struck()]

    def step():
        if failing:
            raise failing.pop()
        done.append("last")

    undo.callback(done.append, "first")
    undo.callback(step)
    for _ in range(2):
        with pytest.raises(Struck):
            undo.close()
    undo.close()
    undo.close()
    assert done == ["last", "first"]


def test_a_kept_traceback_does_not_undo_under_other_patches(handle):
    """What was left by an error is off when the block ends, not when its traceback is thrown away."""
    one, two, *_ = patches_of(handle)
    before = state_of(handle)
    try:
        with handle.patched(one):
            raise RuntimeError
    except RuntimeError as error:
        kept = error
    assert state_of(handle) == before
    with handle.patched(two):
        changed = state_of(handle)
        del kept
        assert state_of(handle) == changed
    assert state_of(handle) == before
