"""PMET: residuals in two places against full passes with hooks, the freezing of one, and the update by hand."""

from __future__ import annotations

import dataclasses
import math
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from conftest import LAYOUTS
from edit_examples import BEFORE, EDITS, ENDING, distance, private_cache, read_by

from editkit.edit._locate_then_edit import Contexts
from editkit.edit._places import AtAttentionAndMLP, AtMLP
from editkit.edit._search import TargetSearch, find_targets, rows_of_edit
from editkit.edit.memit import MEMIT
from editkit.edit.pmet import PMET
from editkit.forward import unembed
from editkit.hooks import first_tensor, with_first_tensor
from editkit.moments import MomentSettings, second_moments
from editkit.patch import DenseDelta, WeightPatch

SEARCH = TargetSearch(steps=6, learning_rate=0.05, clamp=100.0, weight_decay=0.0, stop_below=0.0)
ALONE, SOME = Contexts(each=0), Contexts((3,), 2)
MOMENTS = MomentSettings(tokens=1000, length=20)  # of fewer C has not full rank in every layout
PLAIN = [each for each in LAYOUTS if not each.startswith("gemma")]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with private_cache(str(tmp_path_factory.mktemp("cache"))):
        yield


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """A place whose changes are looked at, and those of attention taken away where `frozen`."""

    inner: AtAttentionAndMLP
    frozen: bool
    changes: list

    upper = property(lambda self: self.inner.upper)
    outputs = property(lambda self: self.inner.outputs)

    def run(self, changes, fused=None):
        self.changes.append(changes.detach())
        return self.inner.run(changes * torch.tensor([0.0 if self.frozen else 1.0, 1.0])[:, None, None], fused)

    def rows(self, rows, width):
        return Seen(self.inner.rows(rows, width), self.frozen, self.changes)


def seen(frozen=False):
    changes = []
    return lambda *what: Seen(AtAttentionAndMLP.prepare(*what), frozen, changes), changes


def logits_by_hooks(handle, layer, row, changes):
    """A full pass over one sequence, with the changes added at its subject's last token."""

    def add(change):
        def hook(module, inputs, output):
            changed = first_tensor(output).clone()
            changed[0, len(row.prefix)] += change
            return with_first_tensor(output, changed)

        return hook

    with ExitStack() as stack:
        for part, change in zip(("attention", "mlp_out"), changes, strict=True):
            stack.callback(handle.module(part, layer).register_forward_hook(add(change)).remove)
        return handle.model(torch.tensor([[*row.prefix, *row.suffix]])).logits[0, len(row.prefix) :].float()


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_residuals_do_what_hooks_in_a_full_pass_do(handle_of, layout, layer):
    handle, generator = handle_of(layout), torch.Generator().manual_seed(0)
    rows = rows_of_edit(handle, EDITS[0], BEFORE)
    place = AtAttentionAndMLP.prepare(handle, layer, rows)
    width = place.upper.values.shape[-1]
    first = torch.randn(len(rows), 2, 1, width, generator=generator)
    later = place.upper.ids.shape[1] - 1
    with torch.no_grad():
        found = unembed(handle, place.run(torch.nn.functional.pad(first, (0, 0, 0, later))))
        for number, row in enumerate(rows):
            expected = logits_by_hooks(handle, layer, row, first[number, :, 0])
            assert distance(found[number, : len(expected)], expected) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_attention_frozen_it_is_the_search_at_the_mlp(handle_of, layout):
    handle, search = handle_of(layout), dataclasses.replace(SEARCH, weight_decay=0.5, kl_weight=0.1)
    place, _ = seen(frozen=True)
    found = find_targets(handle, EDITS, 1, BEFORE, search, seed=0, place=place)
    both = find_targets(handle, EDITS, 1, BEFORE, search, seed=0, place=AtAttentionAndMLP.prepare)
    for one, other, free in zip(found, find_targets(handle, EDITS, 1, BEFORE, search, seed=0), both, strict=True):
        assert distance(one.residual, other.residual) < 1e-3 and distance(one.state, other.state) < 1e-4
        assert one.notes["loss"] == pytest.approx(other.notes["loss"], abs=1e-4)
        assert abs(free.notes["loss"] - other.notes["loss"]) > 1e-3


@pytest.mark.parametrize("layout", ["llama", "gpt2_square", "gptj"])
def test_each_residual_stays_within_its_own_bound(handle_of, layout):
    handle, (place, changes) = handle_of(layout), seen()
    search = dataclasses.replace(SEARCH, clamp=0.3, learning_rate=1.0)
    find_targets(handle, EDITS[:1], 1, [""], search, seed=0, place=place)
    inner = AtAttentionAndMLP.prepare(handle, 1, rows_of_edit(handle, EDITS[0], [""]))
    for number, output in enumerate(inner.outputs):
        reached = max(float(change[0, number, 0].norm()) for change in changes)
        assert reached == pytest.approx(0.3 * float(output[0, 0].norm()), rel=1e-3)


def lacking(handle, layer, edits, targets):
    rows = [rows_of_edit(handle, edit, [""])[0] for edit in edits]
    there = [read_by(handle, layer, [*row.prefix, *row.suffix], len(row.prefix))[1] for row in rows]
    return torch.stack([target.state - value for target, value in zip(targets, there, strict=True)], 1).double()


def mean_keys(handle, edits, layer, before):
    rows = [rows_of_edit(handle, edit, before)[:-1] for edit in edits]
    reads = [[read_by(handle, layer, [*r.prefix, *r.suffix], len(r.prefix))[0] for r in own] for own in rows]
    return torch.stack([torch.stack(own).mean(0) for own in reads], 1).double()


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
@pytest.mark.parametrize("layout", PLAIN)
def test_the_patch_equals_numpy_by_hand(handle_of, layout, layers):
    handle, method = handle_of(layout), PMET(layers, SEARCH, SOME, MOMENTS, moment_weight=1.0)
    patch, before = method(handle, ENDING, seed=0), SOME.before(handle, 0)
    place = AtAttentionAndMLP.prepare
    targets = find_targets(handle, ENDING, layers[-1], before, SEARCH, seed=0, place=place)
    moments, depth = second_moments(handle, layers, MOMENTS), len(handle.patches)
    try:
        for number, layer in enumerate(layers):
            keys = mean_keys(handle, ENDING, layer, before).numpy()
            rest = lacking(handle, layers[-1], ENDING, targets).numpy() / math.sqrt(len(layers) - number)
            by_hand = rest @ keys.T @ np.linalg.inv(moments[layer].matrix.numpy() + keys @ keys.T)
            name, expected = handle.weight_name("mlp_out", layer), torch.from_numpy(by_hand).float()
            assert distance(patch.deltas[name].dense(), expected) < 1e-3
            handle.apply(WeightPatch({name: DenseDelta(expected)}))
    finally:
        handle.rollback(depth)


@pytest.mark.parametrize("layout", PLAIN)
def test_with_old_keys_weighing_nothing_the_mlp_gives_what_was_searched_for(handle_of, layout):
    handle = handle_of(layout)
    targets = find_targets(handle, ENDING, 1, [""], SEARCH, seed=0, place=AtAttentionAndMLP.prepare)
    before = lacking(handle, 1, ENDING, targets)
    with handle.patched(PMET((1,), SEARCH, ALONE, MOMENTS, moment_weight=1e-9)(handle, ENDING, seed=0)):
        assert lacking(handle, 1, ENDING, targets).norm() < 2e-3 * before.norm()


def test_it_differs_from_memit_only_in_search_measure_and_share(handle):
    """In a single layer, measured alike and with attention frozen, it is MEMIT."""

    class Frozen(PMET):
        place = staticmethod(seen(frozen=True)[0])

    class AtTheMLP(MEMIT):
        of_block = False
        place = staticmethod(AtMLP.prepare)

    one, other, free = (
        kind((1,), SEARCH, SOME, MOMENTS)(handle, ENDING, seed=0).deltas[handle.weight_name("mlp_out", 1)].dense()
        for kind in (Frozen, AtTheMLP, PMET)
    )
    assert distance(one, other) < 1e-3 < distance(free, other)
