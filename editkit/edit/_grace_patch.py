"""GRACE's codebook, how it grows, and the patch that keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editkit.errors import PatchError
from editkit.patch import KINDS, Provenance
from editkit.token_patch import Rewrite, TokenPatch, parts_of

KIND = "grace/1"


def distances(keys: Float[Tensor, "n d_in"], states: Float[Tensor, "... d_in"]) -> Float[Tensor, "... n"]:
    """Euclidean, in float32 and by differences: by products of matrices, equal ones would not be 0 apart."""
    apart = torch.cdist(states.detach().float().flatten(0, -2), keys, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.unflatten(0, states.shape[:-1])


def nearest(
    keys: Float[Tensor, "n d_in"], radii: Float[Tensor, " n"], states: Float[Tensor, "... d_in"]
) -> tuple[Int[Tensor, "..."], Bool[Tensor, "..."]]:
    """The number of the nearest key of each state, and whether the state lies within that key's radius."""
    distance, number = distances(keys, states).min(-1)
    return number, distance <= radii[number]


@dataclass(slots=True)
class Growing:
    """A codebook while keys are added, without values. `labels` tell which keys want the same object; `fixed` are
    keys of patches below: a new radius ends halfway to the nearest of them.

    `query` says for each key which of the states that were added it is.
    """

    radius: float
    fixed: Float[Tensor, "m d_in"]
    keys: Float[Tensor, "n d_in"]
    radii: Float[Tensor, " n"]
    labels: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, state: Float[Tensor, " d_in"], label: tuple[int, ...]) -> None:
        """The paper's algorithm 1: a new key far from all others, a wider radius at one that wants the same, halves of
        the way between at one that wants something else."""
        if not self.labels:
            self.place(state, label, self.radius)
            return
        distance, number = (float(each) for each in distances(self.keys, state[None])[0].min(0))
        near = int(number)
        if distance > self.radius + float(self.radii[near]):
            self.place(state, label, self.radius)
        elif self.labels[near] == label:
            self.radii[near] = max(float(self.radii[near]), self.allowed(self.keys[near], distance))
        else:
            self.split(near, distance)
            self.place(state, label, distance / 2)

    def settle(self, states: Float[Tensor, "edits d_in"], labels: Sequence[tuple[int, ...]]) -> None:
        """Give a key of its own to each state that, after all were added, does not find its label."""
        for _ in states:
            number, inside = nearest(self.keys, self.radii, states)
            lost = [i for i, label in enumerate(labels) if not inside[i] or self.labels[int(number[i])] != label]
            if not lost:
                return
            state = states[lost[0]]
            near = int(number[lost[0]])
            distance = float(distances(self.keys, state[None])[0, near])
            self.place(state, labels[lost[0]], min(self.radius, distance / 2))

    def split(self, near: int, distance: float) -> None:
        """A radius that ends short of halfway to a key that wants something else."""
        halfway = torch.nextafter(torch.tensor(distance / 2), torch.tensor(0.0))
        self.radii[near] = min(float(self.radii[near]), float(halfway))

    def place(self, key: Float[Tensor, " d_in"], label: tuple[int, ...], radius: float) -> None:
        self.keys = torch.cat([self.keys, key[None].float()])
        self.radii = torch.cat([self.radii, self.radii.new_tensor([self.allowed(key, radius)])])
        self.labels.append(label)

    def allowed(self, key: Float[Tensor, " d_in"], radius: float) -> float:
        """As much of a radius as leaves the keys of patches below alone."""
        if not len(self.fixed):
            return radius
        return min(radius, float(distances(self.fixed, key[None]).min()) / 2)


@KINDS.register(KIND)
@dataclass(frozen=True, eq=False)
class GracePatch(TokenPatch):
    """Where what a layer reads lies within the radius of the nearest key, it gives that key's value.

    `keys` (n, d_in), `values` (n, d_out) and `radii` (n,) are float32; a radius below 0 is never met.
    """

    kind: ClassVar[str] = KIND

    keys: Float[Tensor, "n d_in"]
    values: Float[Tensor, "n d_out"]
    radii: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        if not len(self.keys) == len(self.values) == len(self.radii) > 0:
            raise PatchError(f"it has {len(self.keys)} keys, {len(self.values)} values and {len(self.radii)} radii")

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"keys": self.keys, "values": self.values, "radii": self.radii}

    @property
    def widths(self) -> tuple[int, int]:
        return self.values.shape[1], self.keys.shape[1]

    def norm(self) -> float | None:
        return None

    def rewrite(self, device: torch.device) -> Rewrite:
        keys, values, radii = (tensor.to(device) for tensor in (self.keys, self.values, self.radii))

        def retrieve(states: Tensor, given: Tensor) -> Tensor:
            number, inside = nearest(keys, radii, states)
            return torch.where(inside[..., None], values[number].to(given.dtype), given)

        return retrieve

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], provenance: Provenance) -> GracePatch:
        module, parts = parts_of(tensors, provenance, {"keys": 2, "values": 2, "radii": 1})
        return cls(module, provenance, **parts)
