"""Where the parts of a model are: canonical names to module paths, one file a layout.

A new layout is one new file here:

    ARCHITECTURES.register("mine")(Architecture(
        name="mine", model_types=("my_model_type",), embedding="model.embed", block="model.layers.{}", …))
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import nn

from editkit.errors import UnableError
from editkit.registry import Registry


class UnknownLayout(UnableError, ValueError):
    """A model whose parts cannot be named."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Module paths of one layout; "{}" stands for the number of the block.

    `mlp_out` is the matrix that locate-then-edit methods rewrite: its input are the keys (d_in), its output, before
    any norm, the values (d_out). `mlp_norm` is the norm between `mlp_out` and the residual stream (sandwich norms), ""
    where there is none. The unembedding is not named: transformers' `get_output_embeddings` knows it.
    """

    name: str
    model_types: tuple[str, ...]
    embedding: str
    block: str
    attention: str
    mlp: str
    mlp_out: str
    final_norm: str
    mlp_norm: str = ""

    @property
    def blocks(self) -> str:
        """Path of the list of blocks."""
        return self.block.rpartition(".")[0]

    def path(self, part: str, layer: int | None = None) -> str:
        """The module path of a canonical part ("mlp_out"), of one layer where the part has a layer."""
        if part not in _PARTS:
            raise ValueError(f"no model part named {part!r}; there is {', '.join(sorted(_PARTS))}")
        template: str = {name: value for name, value in _pairs(self)}[part]
        return template.format(layer) if layer is not None else template

    def check(self, model: nn.Module) -> None:
        """Refuse a model that does not have the parts named here."""
        for part, template in _pairs(self):
            if not template:
                continue
            path = template.format(0)
            try:
                model.get_submodule(path)
            except AttributeError:
                raise UnknownLayout(
                    f"layout {self.name!r} expects the {part} at {path!r}, which this {type(model).__name__} has not; "
                    f"{RECIPE}"
                ) from None


RECIPE = (
    "add a layout: one file in editkit/arch/ that registers an Architecture with the module paths and the "
    "config.model_type it serves (editkit/arch/llama.py is an example), or an entry point in the group "
    "'editkit.architecture'"
)
_NOT_PARTS = {"name", "model_types"}
_PARTS = {field.name for field in fields(Architecture)} - _NOT_PARTS


def _pairs(architecture: Architecture) -> list[tuple[str, str]]:
    return [(name, getattr(architecture, name)) for name in sorted(_PARTS)]


ARCHITECTURES: Registry[Architecture] = Registry("architecture", "editkit.arch")


def architecture_of(model: nn.Module) -> Architecture:
    """The layout of a transformers model, found from its config; errors say what to do about an unknown one."""
    model_type = model.config.model_type
    for _, architecture in ARCHITECTURES.items():
        if model_type in architecture.model_types:
            architecture.check(model)
            return architecture
    known = ", ".join(sorted(t for _, a in ARCHITECTURES.items() for t in a.model_types))
    experts = any("expert" in key for key in model.config.to_dict())
    why = " (its experts are fused 3-D parameters, which no operator addresses yet)" if experts else ""
    raise UnknownLayout(f"no layout for model type {model_type!r}{why}; known: {known}; {RECIPE}")
