"""WISE's side memory as data, how it is routed, and how several are merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.errors import PatchError
from editkit.patch import KINDS, Provenance
from editkit.token_patch import Rewrite, TokenPatch, parts_of

KIND = "wise/1"


def merged(deltas: Sequence[Float[Tensor, "d_out d_in"]], density: float) -> Float[Tensor, "d_out d_in"]:
    """TIES (Yadav et al. 2023, https://arxiv.org/abs/2306.01708): of each the share `density` of largest entries; of
    those at one place, the mean of all that have the sign of their sum."""
    kept = torch.stack([_largest(delta, density) for delta in deltas])
    agree = kept.sign() == torch.where(kept.sum(0) >= 0, 1.0, -1.0)
    return (kept * agree).sum(0) / agree.sum(0).clamp(min=1)


def _largest(delta: Tensor, density: float) -> Tensor:
    kept = max(1, int(density * delta.numel()))
    bar = delta.abs().flatten().kthvalue(delta.numel() - kept + 1).values
    return torch.where(delta.abs() >= bar, delta, 0)


@KINDS.register(KIND)
@dataclass(frozen=True, eq=False)
class WisePatch(TokenPatch):
    """Adds Δ a to what a layer gives where that is longer than the threshold; both float32, Δ as (d_out, d_in)."""

    kind: ClassVar[str] = KIND

    delta: Float[Tensor, "d_out d_in"]
    threshold: Float[Tensor, ""]

    def __post_init__(self) -> None:
        if not torch.isfinite(self.delta).all():
            raise PatchError("its delta holds values that are not finite")

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"delta": self.delta, "threshold": self.threshold}

    @property
    def widths(self) -> tuple[int, int]:
        return self.delta.shape[0], self.delta.shape[1]

    def norm(self) -> float | None:
        return float(torch.linalg.vector_norm(self.delta, dtype=torch.float64))

    def rewrite(self, device: torch.device) -> Rewrite:
        delta, threshold = self.delta.to(device), self.threshold.to(device)

        def route(states: Tensor, given: Tensor) -> Tensor:
            change = states.float() @ delta.T
            inside = torch.linalg.vector_norm(change.detach(), dim=-1, keepdim=True) > threshold
            return torch.where(inside, (given.float() + change).to(given.dtype), given)

        return route

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], provenance: Provenance) -> WisePatch:
        module, parts = parts_of(tensors, provenance, {"delta": 2, "threshold": 0})
        return cls(module, provenance, **parts)
