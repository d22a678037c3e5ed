"""What MEMIT and its kin share: a residual for the highest of several layers, spread over all of them.

The search finds what the block of the last layer shall give at the subject's last token (or what its MLP shall add
there). Then, from the lowest layer on, each `mlp_out` is moved so that a part of what is still lacking there comes
about; a method says how much of it (`share`) and by which update (`solve`). Keys are means over the contexts, what is
lacking is measured on the prompt alone.

Edits are solved for in groups: those of a group share one update, and different groups know nothing of each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.edit._front import Front, Read, fronts
from editkit.edit._locate_then_edit import Contexts
from editkit.edit._places import AtMLP, Prepare
from editkit.edit._search import Progress, TargetSearch, find_targets, rows_of_edit
from editkit.errors import InputError
from editkit.facts import Edit
from editkit.handle import ModelHandle
from editkit.linalg import SolveError
from editkit.patch import LowRankDelta, WeightPatch
from editkit.products import exact, using

LEAST_GAIN = 1e-3  # of a norm: a coordinate that it takes away cannot be brought about through it
LEAST_LENGTH = 0.1  # of a value under a norm, beside what it was
Keys = Float[Tensor, "d_in n"]
Solve = Callable[[int, Keys, Float[Tensor, "d_out n"], Sequence[Keys]], tuple[Tensor, Tensor]]
"""(layer, keys, residuals, keys of earlier edits that must keep what they bring forth) -> factors (d_out, n), (n, d_in)
of the change."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a method edits, and how: layers from low to high, the search at the highest, the update of each, by what
    the lacking part is divided where so many layers are left, and where the search adds its residuals. `of_block`: it
    is the block that lacks; else its MLP."""

    layers: tuple[int, ...]
    search: TargetSearch
    contexts: Contexts
    solve: Solve
    share: Callable[[int], float] = float
    place: Prepare = AtMLP.prepare
    of_block: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The change of each layer, the keys that it was made for, and notes on each edit's search."""

    deltas: dict[int, LowRankDelta]
    keys: dict[int, Keys]
    searches: list[dict[str, Any]] = field(default_factory=list)


def check_layers(layers: Sequence[int]) -> None:
    """Raises InputError unless the layers rise."""
    if not layers or list(layers) != sorted(set(layers)):
        raise InputError(f"layers {list(layers)} are not from low to high, each once")


def in_batches(
    handle: ModelHandle,
    edits: Sequence[Edit],
    plan: Plan,
    size: int,
    past: Mapping[int, Sequence[Keys]],
    *,
    seed: int,
    progress: Progress | None = None,
) -> Found:
    """The edits, `size` in one update (0: all), each batch on the model with those before it; the whole change.

    `past` are the keys of earlier edits by layer. Raises SolveError, which names subject or layer.
    """
    step, made = size or len(edits), []
    before = plan.contexts.before(handle, seed)
    with ExitStack() as stack:
        for begin in range(0, len(edits), step):
            part = edits[begin : begin + step]
            if progress and step < len(edits):
                progress("editing", begin, len(edits))
            [found] = spread(handle, part, plan, before, [len(part)], past, seed=seed, progress=progress)
            made.append(found)
            past = {layer: [*past[layer], keys] for layer, keys in found.keys.items()}
            if begin + step < len(edits):
                stack.enter_context(handle.patched(as_patch(handle, found.deltas)))
    if progress and step < len(edits):
        progress("editing", len(edits), len(edits))
    return _joined(made)


def each_by_itself(
    handle: ModelHandle,
    edits: Sequence[Edit],
    plan: Plan,
    past: Mapping[int, Sequence[Keys]],
    *,
    seed: int,
    progress: Progress | None = None,
) -> list[Found]:
    """The change for each edit on the model as it is, as `in_batches` finds it for that edit alone, found together."""
    before = plan.contexts.before(handle, seed)
    return spread(handle, edits, plan, before, [1] * len(edits), past, seed=seed, progress=progress)


def as_patch(handle: ModelHandle, deltas: Mapping[int, LowRankDelta]) -> WeightPatch:
    return WeightPatch({handle.weight_name("mlp_out", layer): delta for layer, delta in deltas.items()})


def _joined(made: Sequence[Found]) -> Found:
    if len(made) == 1:
        return made[0]
    layers = made[0].deltas
    return Found(
        {
            layer: LowRankDelta(
                torch.cat([each.deltas[layer].left for each in made], 1),
                torch.cat([each.deltas[layer].right for each in made], 0),
            )
            for layer in layers
        },
        {layer: torch.cat([each.keys[layer] for each in made], 1) for layer in layers},
        [note for each in made for note in each.searches],
    )


def spread(
    handle: ModelHandle,
    edits: Sequence[Edit],
    plan: Plan,
    before: Sequence[str],
    sizes: Sequence[int],
    past: Mapping[int, Sequence[Keys]],
    *,
    seed: int,
    progress: Progress | None = None,
) -> list[Found]:
    """The change for each group of edits; `sizes` are the groups', in the order of the edits."""
    targets = find_targets(
        handle,
        edits,
        plan.layers[-1],
        before,
        plan.search,
        seed=seed,
        of_block=plan.of_block,
        place=plan.place,
        progress=progress,
    )
    wanted = torch.stack([target.state for target in targets])
    groups = [slice(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
    found: list[Found] = [Found({}, {}, [target.notes for target in targets[group]]) for group in groups]
    with torch.no_grad(), using(exact(handle)):
        climb = _Climb(handle, edits, before, plan.layers[-1], plan.of_block)
        for place, layer in enumerate(plan.layers):
            if progress:
                progress("spreading over layers", place, len(plan.layers))
            seen = climb.look(layer)
            share = plan.share(len(plan.layers) - place)
            residuals = before_norm(handle, layer, seen.values, (wanted - seen.states) / share)
            for group, each in zip(groups, found, strict=True):
                keys = seen.keys[group].T.cpu().clone()  # a view would keep those of all edits
                each.keys[layer] = keys
                each.deltas[layer] = _solved(plan, layer, keys, residuals[group].T.cpu().double(), past[layer])
            climb.rise([each.deltas[layer] for each, size in zip(found, sizes, strict=True) for _ in range(size)])
    if progress:
        progress("spreading over layers", len(plan.layers), len(plan.layers))
    return found


def _solved(plan: Plan, layer: int, keys: Keys, residuals: Tensor, past: Sequence[Keys]) -> LowRankDelta:
    try:
        left, right = plan.solve(layer, keys, residuals, past)
    except SolveError as error:
        raise SolveError(f"cannot edit layer {layer}: {error}") from None
    return LowRankDelta(left.float(), right.float())


def before_norm(
    handle: ModelHandle, layer: int, values: Float[Tensor, "n d_out"], lacking: Float[Tensor, "n d_out"]
) -> Float[Tensor, "n d_out"]:
    """What must be added to `mlp_out`'s values for the block to give `lacking` more.

    That is `lacking` itself, but where a norm stands between the two: it forgets the length of what it gets, so the
    direction is chosen that comes out as the old output and `lacking` together, and the length that makes the least
    change. It is exact where such an output can be had at all.
    """
    if not handle.arch.mlp_norm:
        return lacking
    norm = handle.module("mlp_norm", layer)
    gain = norm(torch.ones_like(values)).float()
    wanted = (norm(values).float() + lacking) / torch.where(gain.abs() > LEAST_GAIN, gain, torch.inf)
    values, squares = values.float(), wanted.square().sum(1, keepdim=True)
    length = (wanted * values).sum(1, keepdim=True) / squares
    shortest = LEAST_LENGTH * values.norm(dim=1, keepdim=True) / squares.sqrt()  # the sign and the scale must not go
    return wanted * torch.maximum(length, shortest) - values


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Of each edit: its key in a layer, and after the prompt alone what `mlp_out` gives there and what block `last`, or
    its MLP, gives."""

    keys: Float[Tensor, "n d_in"]
    values: Float[Tensor, "n d_out"]
    states: Float[Tensor, "n d_out"]


class _Climb:
    """The texts of all edits, up to the subject's last token, passing layer after layer: after each context for the
    keys, and alone for what is still lacking."""

    def __init__(
        self, handle: ModelHandle, edits: Sequence[Edit], before: Sequence[str], last: int, of_block: bool
    ) -> None:
        rows = [row for edit in edits for row in rows_of_edit(handle, edit, before)[:-1]]
        texts = [[*row.prefix, row.suffix[0]] for row in rows]
        self._contexts, self._last = len(before), last
        of_mlp = "mlp_norm" if handle.arch.mlp_norm else "mlp_out"
        self._part = "block" if of_block else of_mlp
        self._whole, self._alone = [*fronts(handle, texts)], [*fronts(handle, texts[:: len(before)])]
        self._reads: list[Read] = []

    def look(self, layer: int) -> _Seen:
        """What the edits find in `layer`, with what was changed below."""
        self._layer = layer
        self._reads = [front.read(layer, layer) for front in self._whole]
        self._own = [front.read(layer, self._last, self._part) for front in self._alone]
        keys = _at_ends(self._whole, [each.keys for each in self._reads])
        return _Seen(
            keys.unflatten(0, (-1, self._contexts)).mean(1),
            _at_ends(self._alone, [each.values for each in self._own]),
            torch.cat([each.state for each in self._own]),
        )

    def rise(self, deltas: Sequence[LowRankDelta]) -> None:
        """Pass the layer that was looked at, with the change of each edit."""
        _rise(self._whole, self._reads, self._layer, [delta for delta in deltas for _ in range(self._contexts)])
        _rise(self._alone, self._own, self._layer, deltas)


def _at_ends(fronts: Sequence[Front], tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([front.last(tensor).float() for front, tensor in zip(fronts, tensors, strict=True)])


def _rise(fronts: Sequence[Front], reads: Sequence[Read], layer: int, deltas: Sequence[LowRankDelta]) -> None:
    """Let every text pass the layer, with the change that is its edit's own."""
    begin = 0
    for front, read in zip(fronts, reads, strict=True):
        change, own = torch.zeros_like(read.values, dtype=torch.float32), deltas[begin : begin + len(read.keys)]
        for _, run_of in itertools.groupby(range(len(own)), key=lambda row: id(own[row])):
            rows = [*run_of]
            left, right = (part.to(change.device) for part in (own[rows[0]].left, own[rows[0]].right))
            change[rows] = read.keys[rows].float() @ right.T @ left.T
        front.rise(layer, read, change)
        begin += len(own)
