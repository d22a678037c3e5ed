"""MEND's networks, which turn the factors of a gradient into those of an edit, and the file that keeps them.

Matrices of one shape share a network of two layers; each matrix has its own scale, shift and step length:

    z = norm(concat(u, δ)),   h = z + σ(s₀ ⊙ (U₀ V₀ z + b₀) + o₀),   (ũ, δ̃) = h + σ(s₁ ⊙ (U₁ V₁ h + b₁) + o₁)

U starts at zero: an untrained network gives z.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editkit.deltas import bytes_of
from editkit.errors import InputError
from editkit.files import atomic_path
from editkit.handle import ModelHandle
from editkit.tensor_files import disk_errors

KIND = "editkit_mend"
VERSION = "1"
LAYERS = (0, 1)
TINY = 1e-7  # a spread that is no spread
FIXED = ("mean", "spread")  # what is measured, not trained
SHARED, OWN = ("up", "down", "bias"), ("scale", "shift")


@dataclass(frozen=True, eq=False)  # no slots: the digest is kept in the instance
class Network:
    """The networks of some matrices of one model.

    `shapes` are (d_out, d_in) by the name of the matrix. `tensors` are named "<d_out>x<d_in>:<part>" where matrices
    share them, "<matrix>:<part>" where not. `base` is the digest of the weights they were trained for, `record` tells
    how the training went.
    """

    base: str
    shapes: Mapping[str, tuple[int, int]]
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]

    def __call__(
        self, name: str, u: Float[Tensor, "*n d_in"], delta: Float[Tensor, "*n d_out"]
    ) -> tuple[Float[Tensor, "*n d_in"], Float[Tensor, "*n d_out"]]:
        """ũ and δ̃ of one matrix, differentiable in the tensors."""
        own, shared = functools.partial(self._part, name), functools.partial(self._part, self._shape(name))
        z = (torch.cat([u, delta], -1) - own("mean")) / own("spread")
        for layer in LAYERS:
            inner = z @ shared(f"down{layer}").T @ shared(f"up{layer}").T + shared(f"bias{layer}")
            # clamp, unlike relu, has a gradient at 0, where an untrained network stands
            z = z + (own(f"scale{layer}") * inner + own(f"shift{layer}")).clamp(min=0)
        return z.split([u.shape[-1], delta.shape[-1]], -1)  # type: ignore[return-value]

    def step(self, name: str) -> Tensor:
        """The step length of one matrix, a scalar."""
        return self._part(name, "step")

    @property
    def trained(self) -> list[str]:
        """Names of the tensors that are trained."""
        return [name for name in self.tensors if not name.endswith(FIXED)]

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Network:
        return Network(self.base, self.shapes, {**self.tensors, **tensors}, self.record)

    def with_record(self, record: Mapping[str, Any]) -> Network:
        return Network(self.base, self.shapes, self.tensors, record)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over names, shapes and bytes of all tensors."""
        state = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            state.update(f"{name} {tuple(tensor.shape)};".encode())
            state.update(bytes_of(tensor))
        return state.hexdigest()

    def save(self, path: Path) -> None:
        """Write it to one safetensors file, whole or not at all."""
        about = {"base": self.base, "shapes": self.shapes, "record": self.record}
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        metadata = {KIND: VERSION, "about": json.dumps(about)}
        with atomic_path(Path(path)) as temporary, disk_errors(Path(path)):
            save_file(kept, str(temporary), metadata=metadata)

    def _shape(self, name: str) -> str:
        return shape_name(self.shapes[name])

    def _part(self, where: str, part: str) -> Tensor:
        return self.tensors[f"{where}:{part}"]


def shape_name(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def untrained(handle: ModelHandle, names: Sequence[str], rank: int, step: float, seed: int) -> Network:
    """Networks that give what they get, each with inner width `rank` at most, and step length `step`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: (int(out), int(into)) for name in names for out, into in [handle.matrix(name).shape]}
    tensors: dict[str, Tensor] = {}
    for shape in dict.fromkeys(shapes.values()):
        width = sum(shape)
        for layer in LAYERS:
            inner = min(rank, width)
            parts = {
                "up": torch.zeros(width, inner),
                "down": torch.randn(inner, width, generator=generator),
                "bias": torch.zeros(width),
            }
            tensors |= {f"{shape_name(shape)}:{part}{layer}": parts[part] for part in SHARED}
    for name, shape in shapes.items():
        ones, zeros = torch.ones(sum(shape)), torch.zeros(sum(shape))
        own = {f"{part}{layer}": ones if part == "scale" else zeros for layer in LAYERS for part in OWN}
        own |= {"mean": zeros, "spread": ones, "step": torch.tensor(step)}
        tensors |= {f"{name}:{part}": value.clone() for part, value in own.items()}
    on_device = {name: tensor.to(handle.device) for name, tensor in tensors.items()}
    return Network(handle.base_digest, shapes, on_device, {})


def load_network(path: Path, handle: ModelHandle, names: Sequence[str]) -> Network:
    """Read what `save` wrote. Raises InputError for anything else, for another model's and for other matrices'."""
    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {key: stream.get_tensor(key).to(handle.device) for key in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"mend cannot read weights {str(path)!r} ({error}); name a file that `MEND.fit` gave"
        ) from None
    if metadata.get(KIND) != VERSION:
        raise InputError(f"{str(path)!r} holds no network of mend; name a file that `MEND.fit` gave")
    try:
        about = json.loads(metadata["about"])
        shapes = {name: (int(out), int(into)) for name, (out, into) in about["shapes"].items()}
        network = Network(str(about["base"]), shapes, tensors, dict(about["record"]))
        _check_parts(network)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is damaged ({error}); fit mend again") from None
    _check_fits(network, path, handle, names)
    return network


def _check_parts(network: Network) -> None:
    """Raises ValueError or KeyError where a tensor is missing or has another shape than it must have."""
    for name, shape in network.shapes.items():
        width, shared = sum(shape), shape_name(shape)
        wanted = {f"{shared}:bias{layer}": (width,) for layer in LAYERS} | {f"{name}:step": ()}
        wanted |= {f"{name}:{part}{layer}": (width,) for part in OWN for layer in LAYERS}
        wanted |= {f"{name}:{part}": (width,) for part in FIXED}
        for layer in LAYERS:
            inner = network.tensors[f"{shared}:down{layer}"].shape[0]
            wanted |= {f"{shared}:down{layer}": (inner, width), f"{shared}:up{layer}": (width, inner)}
        for part, size in wanted.items():
            if tuple(network.tensors[part].shape) != size:
                raise ValueError(f"{part} has shape {tuple(network.tensors[part].shape)}, not {size}")


def _check_fits(network: Network, path: Path, handle: ModelHandle, names: Sequence[str]) -> None:
    if network.base != handle.base_digest:
        raise InputError(
            f"{str(path)!r} was trained for weights {network.base[:12]}, {handle.name!r} has "
            f"{handle.base_digest[:12]}; load that model, or fit mend for this one"
        )
    if set(network.shapes) != set(names):
        odd = sorted(set(network.shapes) ^ set(names))[0]
        raise InputError(
            f"{str(path)!r} was trained for {len(network.shapes)} matrices, the settings `layers` and `modules` name "
            f"{len(names)}: {odd!r} stands in one of them only; set both as they were when it was fitted"
        )
