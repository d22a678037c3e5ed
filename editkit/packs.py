"""Token sequences read together, so that no padding is read and what they share is read once.

A pack is a forest laid out in one row: a token sees its ancestors and itself, and its position is its depth. Questions
about one fact share much ("The capital of Peru is", "The capital of Peru is … In short:"), and so do the answers to be
scored after one prompt. Where something on the model looks along the row (a hook, a sliding window), the sequences are
put one to a row instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from editkit.forward import rows_of, run
from editkit.handle import ModelHandle
from editkit.patch import PromptPatch, WeightPatch
from editkit.token_patch import TokenPatch
from editkit.tokens import pad, pad_id_of

Bundle = Sequence[Sequence[int]]
"""Sequences that are read in one pack."""
# Attention over a pack costs its square; below this it is a small part of the whole. As many tokens as the longest
# sequence has come on top, or a long beginning that all share (an edit's demonstrations) were read for each anew.
PACK_TOKENS = 512


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Tokens to read at once. `paths[i][j]` are the places, in `ids.flatten()`, of the tokens of sequence j of bundle
    `members[i]`."""

    members: list[int]
    paths: list[list[list[int]]]
    ids: Int[Tensor, "rows length"]
    positions: Int[Tensor, "rows length"]
    mask: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A pack after it was read: hidden states after the final norm, and keys and values."""

    hidden: Float[Tensor, "places d"]
    cache: DynamicCache

    def branch(self, paths: Sequence[Sequence[int]]) -> DynamicCache:
        """Keys and values of some paths as rows, padded on the left with what is to be masked."""
        length = max(map(len, paths))
        filled = [[0] * (length - len(path)) + [*path] for path in paths]
        index = torch.tensor(filled, device=self.hidden.device)
        branch = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            both = (kept.transpose(0, 1).flatten(1, 2)[:, index].transpose(0, 1) for kept in (layer.keys, layer.values))
            branch.update(*both, number)
        return branch


def packed(handle: ModelHandle, bundles: Sequence[Bundle], tokens: int = PACK_TOKENS) -> Iterator[Pack]:
    """All bundles in packs of at most `tokens` tokens beside the longest sequence's (or one bundle). Neighbours in the
    order of their tokens share a pack."""
    order = sorted(range(len(bundles)), key=lambda i: [list(sequence) for sequence in bundles[i]])
    if _looks_along_the_row(handle, bundles):
        yield from _rows(handle, bundles, order, tokens)
    else:
        yield from _forests(handle, bundles, order, tokens)


def read(handle: ModelHandle, pack: Pack) -> Seen:
    """The pack in one forward pass."""
    cache = DynamicCache()
    mask = pack.mask if pack.mask.ndim == 2 else _added(pack.mask, handle.dtype)
    hidden = run(handle.backbone, pack.ids, mask, pack.positions, cache)
    return Seen(hidden.flatten(0, 1), cache)


def prefixes(
    handle: ModelHandle, sequences: Sequence[Sequence[int]]
) -> tuple[DynamicCache, Bool[Tensor, "rows length"]]:
    """Keys and values of the sequences, padded on the left to the longest, and where they are no padding. Equal
    sequences, and what begins alike, are read once; a sequence may be empty."""
    places: dict[tuple[int, ...], int] = {}
    for sequence in sequences:
        places.setdefault(tuple(sequence), len(places))
    length = max(map(len, places))
    order: list[int] = []
    caches = []
    distinct = [[sequence] for sequence in places if sequence]
    for pack in packed(handle, distinct):
        paths = [paths[0] for paths in pack.paths]
        order += [places[tuple(distinct[member][0])] for member in pack.members]
        caches.append(read(handle, pack).branch(paths))
    if () in places:
        order.append(places[()])
        caches.append(rows_of(caches[0], torch.zeros(1, dtype=torch.long, device=handle.device)))  # masked: any will do
    rows = [order.index(places[tuple(sequence)]) for sequence in sequences]
    held = torch.tensor([len(sequence) for sequence in sequences], device=handle.device)
    mask = torch.arange(length, device=handle.device)[None] >= (length - held)[:, None]
    return rows_of(joined(caches), torch.tensor(rows, device=handle.device)), mask


def joined(caches: Sequence[DynamicCache]) -> DynamicCache:
    """All rows in one cache, padded on the left to the longest; each of the others is given up as it is copied."""
    whole = DynamicCache()
    for number in range(len(caches[0].layers)):
        layers = [cache.layers[number] for cache in caches]
        whole.update(*(_stacked([getattr(each, part) for each in layers]) for part in ("keys", "values")), number)
        for layer in layers:
            layer.keys = layer.values = None
    return whole


def _stacked(parts: Sequence[Float[Tensor, "rows heads tokens d"]]) -> Float[Tensor, "all heads longest d"]:
    """Rows of all parts, with zeros before the shorter ones."""
    longest = max(part.shape[2] for part in parts)
    if all(part.shape[2] == longest for part in parts):
        return torch.cat([*parts])
    first, rows = parts[0], [len(part) for part in parts]
    whole = first.new_zeros(sum(rows), first.shape[1], longest, first.shape[3])
    for own, part in zip(whole.split(rows), parts, strict=True):
        own[:, :, longest - part.shape[2] :] = part
    return whole


def _looks_along_the_row(handle: ModelHandle, bundles: Sequence[Bundle]) -> bool:
    """Whether a forest could be read wrongly: by a patch that sees more than one token, or past a sliding window."""
    config = handle.model.config.to_dict()
    window = config.get("sliding_window") or handle.context
    longest = max((len(sequence) for bundle in bundles for sequence in bundle), default=0)
    by_token = WeightPatch | PromptPatch | TokenPatch
    return longest > window or not all(isinstance(patch, by_token) for patch in handle.patches)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to be added to attention scores, which every implementation takes."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


# Forests --


@dataclass(slots=True)
class _Forest:
    """Nodes in an order in which parents come first; -1 is the parent of a root."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    members: list[int] = field(default_factory=list)
    paths: list[list[list[int]]] = field(default_factory=list)

    def missing(self, bundle: Bundle) -> int:
        """At most so many nodes are to be added for a bundle."""
        return sum(len(sequence) - len(self.walk(sequence)) for sequence in bundle)

    def walk(self, sequence: Sequence[int]) -> list[int]:
        """The nodes of as much of a sequence as is there."""
        path: list[int] = []
        for token in sequence:
            node = self.children.get((path[-1] if path else -1, token))
            if node is None:
                break
            path.append(node)
        return path

    def add(self, member: int, bundle: Bundle) -> None:
        self.members.append(member)
        self.paths.append([self.grown(sequence) for sequence in bundle])

    def grown(self, sequence: Sequence[int]) -> list[int]:
        path = self.walk(sequence)
        for token in sequence[len(path) :]:
            parent = path[-1] if path else -1
            self.children[parent, token] = len(self.ids)
            path.append(len(self.ids))
            self.ids.append(token)
            self.parents.append(parent)
            self.depths.append(len(path) - 1)
        return path

    def pack(self, device: torch.device) -> Pack:
        mask = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        ids, positions = (torch.tensor([each], device=device) for each in (self.ids, self.depths))
        return Pack(self.members, self.paths, ids, positions, mask[None, None].to(device))


def _forests(handle: ModelHandle, bundles: Sequence[Bundle], order: Sequence[int], tokens: int) -> Iterator[Pack]:
    forest, longest = _Forest(), 0
    for place in order:
        longest = max(longest, _longest(bundles[place]))
        if forest.members and len(forest.ids) + forest.missing(bundles[place]) > tokens + longest:
            yield forest.pack(handle.device)
            forest, longest = _Forest(), _longest(bundles[place])
        forest.add(place, bundles[place])
    if forest.members:
        yield forest.pack(handle.device)


# Rows --


def _rows(handle: ModelHandle, bundles: Sequence[Bundle], order: Sequence[int], tokens: int) -> Iterator[Pack]:
    group: list[int] = []
    for place in sorted(order, key=lambda i: -_longest(bundles[i])):
        sequences = sum(len(bundles[i]) for i in (*group, place))
        if group and sequences * _longest(bundles[group[0]]) > tokens:
            yield _in_rows(handle, bundles, group)
            group = []
        group.append(place)
    if group:
        yield _in_rows(handle, bundles, group)


def _longest(bundle: Bundle) -> int:
    return max(map(len, bundle))


def _in_rows(handle: ModelHandle, bundles: Sequence[Bundle], members: list[int]) -> Pack:
    sequences = [sequence for member in members for sequence in bundles[member]]
    padded = pad(sequences, side="right", pad_id=pad_id_of(handle.tokenizer), device=handle.device)
    length = padded.ids.shape[1]
    places = iter([[*range(row * length, row * length + len(sequence))] for row, sequence in enumerate(sequences)])
    paths = [[next(places) for _ in bundles[member]] for member in members]
    return Pack(members, paths, padded.ids, padded.positions, padded.mask)
