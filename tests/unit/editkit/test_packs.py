"""Packs: every sequence is there once, sees itself alone, and reads as it does in a plain pass."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYOUTS, make_handle
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit.packs import joined, packed, read
from editkit.patch import HookPatch

SEQUENCES = st.lists(st.integers(5, 9), min_size=1, max_size=7)  # few letters: much is shared
BUNDLES = st.lists(st.lists(SEQUENCES, min_size=1, max_size=3), min_size=1, max_size=6)
HANDLES: dict[str, object] = {}


def handle_like(layout):
    return HANDLES.setdefault(layout, make_handle(layout))


def plain(handle, sequence):
    return handle.backbone(torch.tensor([sequence])).last_hidden_state[0]


@settings(deadline=None, max_examples=60)
@given(bundles=BUNDLES, tokens=st.integers(1, 30))
def test_every_sequence_is_a_path_and_no_prefix_is_there_twice(bundles, tokens):
    handle = handle_like("llama")
    seen = {}
    for pack in packed(handle, bundles, tokens):
        ids = pack.ids.flatten().tolist()
        spelt = {}
        for member, paths in zip(pack.members, pack.paths, strict=True):
            seen[member] = [[ids[place] for place in path] for path in paths]
            for path in paths:
                for end in range(1, len(path) + 1):
                    assert spelt.setdefault(path[end - 1], tuple(ids[p] for p in path[:end])) == tuple(
                        ids[p] for p in path[:end]
                    )
                assert pack.positions.flatten()[path].tolist() == [*range(len(path))]
                assert pack.mask[0, 0, path[-1]].nonzero().flatten().tolist() == sorted(path)
        assert len(set(spelt.values())) == len(spelt) == len(ids)
        longest = max(len(sequence) for member in pack.members for sequence in bundles[member])
        assert len(ids) <= tokens + longest or len(pack.members) == 1
    assert [seen[i] for i in range(len(bundles))] == bundles


def test_a_beginning_longer_than_a_pack_is_read_once(handle):
    """As what `ike` puts before every prompt."""
    begin = [5 + place % 7 for place in range(40)]
    [pack] = packed(handle, [[[*begin, last]] for last in range(5, 9)], tokens=4)
    assert pack.ids.numel() == 40 + 4


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_pack_reads_as_plain_passes_do(handle_of, layout):
    handle = handle_of(layout)
    bundles = [[[5, 6, 7], [5, 6, 8, 9]], [[5, 6, 7, 10, 11, 12]], [[20]], [[21, 5, 6], [21, 5]]]
    [pack] = packed(handle, bundles)
    assert pack.ids.shape == (1, 3 + 2 + 3 + 1 + 3)
    seen = read(handle, pack)
    for member, paths in zip(pack.members, pack.paths, strict=True):
        for sequence, path in zip(bundles[member], paths, strict=True):
            assert torch.allclose(seen.hidden[path], plain(handle, sequence), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
@torch.no_grad()
def test_a_hook_that_looks_along_the_row_gets_rows(handle_of, layout):
    """A patch that marks each row's first token: in a forest it would mark one token of all."""

    def mark(output):
        changed = output.clone()
        changed[:, 0] += 1.0
        return changed

    handle = handle_of(layout)
    bundles = [[[5, 6, 7], [5, 6, 8, 9]], [[9, 8]]]
    name = handle.arch.path("mlp_out", 1)
    with handle.patched(HookPatch({name: mark}, digest="mark")):
        [pack] = packed(handle, bundles)
        seen = read(handle, pack)
        assert pack.ids.shape == (3, 4)
        for member, paths in zip(pack.members, pack.paths, strict=True):
            for sequence, path in zip(bundles[member], paths, strict=True):
                assert torch.allclose(seen.hidden[path], plain(handle, sequence), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_past_a_sliding_window_sequences_get_rows(handle_of):
    handle = handle_of("gemma2")
    window = handle.model.config.sliding_window
    long = [5 + i % 90 for i in range(window + 3)]
    [pack] = packed(handle, [[long], [[5, 6]]])
    assert pack.mask.ndim == 2
    seen = read(handle, pack)
    [path] = pack.paths[pack.members.index(0)]
    assert torch.allclose(seen.hidden[path], plain(handle, long), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_branch_holds_the_keys_of_its_path(handle):
    bundles = [[[5, 6, 7]], [[5, 6, 8, 9]]]
    [pack] = packed(handle, bundles)
    branch = read(handle, pack).branch([paths[0] for paths in pack.paths])
    for row, member in enumerate(pack.members):
        [sequence] = bundles[member]
        alone = handle.model(torch.tensor([sequence]), use_cache=True).past_key_values
        for layer, kept in zip(branch.layers, alone.layers, strict=True):
            assert torch.allclose(layer.keys[row, :, -len(sequence) :], kept.keys[0], atol=1e-4)
            assert torch.allclose(layer.values[row, :, -len(sequence) :], kept.values[0], atol=1e-4)


@torch.no_grad()
def test_branches_of_packs_are_joined_to_the_longest(handle):
    sequences = [[5, 6, 7], [9], [8, 9, 5, 7]]
    branches = []
    for sequence in sequences:
        [pack] = packed(handle, [[sequence]])
        branches.append(read(handle, pack).branch(pack.paths[0]))
    whole = joined(branches)
    assert whole.get_seq_length() == 4
    for row, sequence in enumerate(sequences):
        alone = handle.model(torch.tensor([sequence]), use_cache=True).past_key_values
        for layer, kept in zip(whole.layers, alone.layers, strict=True):
            assert torch.allclose(layer.keys[row, :, -len(sequence) :], kept.keys[0], atol=1e-4)
            assert torch.allclose(layer.values[row, :, -len(sequence) :], kept.values[0], atol=1e-4)
