"""A model in use: its parts by name, and the stack of patches that are on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from editkit.arch import Architecture, UnknownLayout, architecture_of
from editkit.errors import InputError
from editkit.files import atomic_folder
from editkit.identity import setup_digest_of, weights_digest
from editkit.models import DEFAULT_MODEL, LoadOptions, ModelError, load_model, save_model
from editkit.patch import Patch, PatchError, WeightPatch, bytes_of
from editkit.stacked import Stacked
from editkit.undo import Block, Undo

SHOWN = 12  # characters of a digest in messages: enough to name it by


@dataclass(slots=True)
class _Layer:
    """A patch that is on, how it is taken off, and the height of the weights' stack below it."""

    patch: Patch
    undo: Undo
    mark: int


@dataclass(eq=False)
class ModelHandle:
    """A causal language model, its tokenizer, its layout, and the patches on it, newest last.

    A patch changes the model in place; `rollback` and the end of `patched` restore it to the bit, in any nesting and
    also after an exception or Ctrl-C. Not to be shared between threads.

    `memo` is what operators, by their names, would rather not compute again in their next call. It is no state: all in
    it must be found by what it depends on, and to empty it changes no result.
    """

    model: nn.Module
    tokenizer: Any
    arch: Architecture
    name: str = "model"
    options: LoadOptions = field(default_factory=LoadOptions)
    prompt_rewrites: list[Callable[[str], str]] = field(default_factory=list)
    memo: dict[str, Any] = field(init=False, repr=False, default_factory=dict)
    weights: Stacked = field(init=False, repr=False, default_factory=Stacked)  # what patches have added to parameters
    _layers: list[_Layer] = field(default_factory=list)
    _base: str = ""
    _setup: str = ""
    _waived: set[str] = field(init=False, repr=False, default_factory=set)
    # By their names in the base model: a patch that wraps a module moves what is inside to other names.
    _parameters: dict[str, nn.Parameter] = field(init=False, repr=False)
    _transposed: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._parameters = dict(self.model.named_parameters(remove_duplicate=False))
        conv1d = (name for name, module in self.model.named_modules() if isinstance(module, Conv1D))
        self._transposed = frozenset(f"{name}.weight" for name in conv1d)

    @classmethod
    def load(cls, name: str = DEFAULT_MODEL, options: LoadOptions | None = None) -> ModelHandle:
        """Load by name: an embedded model, a folder, a .gguf file or a hub id. Raises ModelError with the ways out."""
        options = options or LoadOptions()
        model, tokenizer = load_model(name, options)
        try:
            return cls(model, tokenizer, architecture_of(model), name, options)
        except UnknownLayout as error:
            raise ModelError(f"{name!r}: {error}") from None

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any, name: str = "model") -> ModelHandle:
        """Wrap a model that is already in memory; it is put in eval mode."""
        return cls(model.eval(), tokenizer, architecture_of(model), name)

    # -- the model's parts --

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.model.get_submodule(self.arch.blocks))

    @property
    def context(self) -> int:
        """Longest sequence the model takes, in tokens. ModelError where its config does not say."""
        try:
            return int(self.model.config.max_position_embeddings)
        except (AttributeError, TypeError):
            raise ModelError(
                f"the config of {self.name!r} states no context length; write max_position_embeddings into it"
            ) from None

    @property
    def attention_implementation(self) -> str:
        """The name of how attention is computed now, as transformers has it: "sdpa", "eager"."""
        return str(self.model.config._attn_implementation)

    @property
    def backbone(self) -> nn.Module:
        """The model without its unembedding: gives the hidden states after the final norm."""
        return self.model.base_model

    def module(self, part: str, layer: int | None = None) -> nn.Module:
        """A canonical part ("mlp_out"), of one layer where it has one."""
        return self.model.get_submodule(self.arch.path(part, layer))

    def weight_name(self, part: str, layer: int | None = None) -> str:
        """Parameter name of a part's weight matrix."""
        if layer is not None and not 0 <= layer < self.layers:
            raise InputError(f"no layer {layer} in {self.name!r}; it has layers 0 to {self.layers - 1}")
        return f"{self.arch.path(part, layer)}.weight"

    def parameter(self, name: str) -> nn.Parameter:
        try:
            return self._parameters[name]
        except KeyError:
            raise PatchError(f"{self.name!r} has no parameter {name!r}; the patch is of another model") from None

    def is_transposed(self, name: str) -> bool:
        """Whether a weight is stored (in, out): told by the type of its module, never by its shape."""
        return name in self._transposed

    def matrix(self, name: str) -> torch.Tensor:
        """A linear layer's weight as (out, in), a view."""
        weight = self.parameter(name).detach()
        return weight.T if self.is_transposed(name) else weight

    def unpatched(self, name: str) -> torch.Tensor:
        """`matrix(name)` without what patches have added to it."""
        weight = self.weights.first(name, self.parameter(name))
        return weight.T if self.is_transposed(name) else weight

    # -- patches --

    @property
    def patches(self) -> tuple[Patch, ...]:
        """What is on, oldest first."""
        return tuple(layer.patch for layer in self._layers)

    def apply(self, patch: Patch) -> None:
        """Put a patch on. Raises PatchError, and leaves the model as it was, where it does not fit: it is of other
        weights or shapes, or was made on top of patches that are neither on nor waived (`waive`)."""
        self._check_base(patch)
        self._put_on(patch)

    def waive(self, *digests: str) -> None:
        """From now on let patches go on without these, though they were made on top of them: so a stack that `remove`
        took one out of can be put on again. A digest's beginning will do, as messages give it (`SHOWN` characters)."""
        self._waived.update(digests)

    def _put_on(self, patch: Patch) -> None:
        depth, layer = len(self._layers), _Layer(patch, Undo(), self.weights.mark)
        try:
            self._layers.append(layer)  # before attaching: whatever strikes, it is known what to take back
            patch.attach(self, layer.undo)
        except BaseException:
            self._take_off(depth)
            raise

    def rollback(self, depth: int = 0) -> None:
        """Take patches off, newest first, until `depth` are left."""
        if not 0 <= depth <= len(self._layers):
            raise ValueError(f"cannot roll back to depth {depth}; {len(self._layers)} patches are on")
        try:
            self._take_off(depth)
        except BaseException:  # Ctrl-C in between: once more, then on with it
            self._take_off(depth)
            raise

    def patched(self, *patches: Patch) -> Block[ModelHandle]:
        """The patches are on within the block, in the order given."""

        def open(undo: Undo) -> ModelHandle:
            undo.callback(self._take_off, len(self._layers))
            for patch in patches:
                self.apply(patch)
            return self

        return Block(open)

    def remove(self, place: int) -> Patch:
        """Take out patch number `place` (0: the oldest) from below others, which stay in their order; gives it back.

        The others are as they were made, those above it on a model that had it: `editkit.interference` tells what
        that does to them. They stay on without it; once off, `apply` takes those above it only where its digest is
        waived. Raises PatchError, and leaves all on, where one above does not go on without it.
        """
        if not 0 <= place < len(self._layers):
            raise InputError(f"no patch number {place}; {len(self._layers)} patches are on, counted from 0")
        whole = self.patches
        try:
            self.restack(place, whole[place + 1 :])
        except BaseException:
            self.restack(place, whole[place:])
            raise
        return whole[place]

    def without(self, place: int) -> Block[ModelHandle]:
        """Patch number `place` is out within the block, as `remove` takes it, and back in its place after it."""

        def open(undo: Undo) -> ModelHandle:
            undo.callback(self.restack, place, self.patches[place:])
            self.remove(place)
            return self

        return Block(open)

    def restack(self, depth: int, patches: Sequence[Patch]) -> None:
        """Take all off above `depth`, and put these on, whatever they were made on top of."""
        self.rollback(depth)
        for patch in patches:
            self._put_on(patch)

    def _take_off(self, depth: int) -> None:
        if len(self._layers) > depth:
            self.weights.back_to(self._layers[depth].mark)  # at once: one by one a stack would be made again each time
        while len(self._layers) > depth:
            self._layers[-1].undo.close()
            self._layers.pop()

    def _check_base(self, patch: Patch) -> None:
        own, base = self.base_digest, patch.provenance.base  # own: read before the first patch is on
        if base and base != own:
            raise PatchError(
                f"the patch was made for weights {base[:SHOWN]}, {self.name!r} has {own[:SHOWN]}; "
                "load the model it was made for, or make the patch again"
            )
        on = {below.digest for below in self.patches}
        below = [str(digest) for digest in patch.provenance.notes.get("on_top_of", ())]
        lacking = [digest[:SHOWN] for digest in below if digest not in on and not self._is_waived(digest)]
        if lacking:
            raise PatchError(
                f"the patch was made on top of other patches, and {', '.join(lacking)} is not on {self.name!r}; put "
                "those on first, or make the patch again; where they were taken out and shall stay off, say so: "
                f"waive({', '.join(map(repr, lacking))}), on the command line --without {' --without '.join(lacking)}"
            )

    def _is_waived(self, digest: str) -> bool:
        return any(digest == each or (len(each) >= SHOWN and digest.startswith(each)) for each in self._waived)

    # -- identity --

    @property
    def base_digest(self) -> str:
        """sha256 of the weights without patches, taken once: at the latest when the first patch is put on."""
        if not self._base:
            self._base, self._setup = weights_digest(self.model), setup_digest_of(self.model, self.tokenizer)
        return self._base

    @property
    def setup_digest(self) -> str:
        """sha256 of what an answer depends on beside the weights and the patches: config, buffers, tokenizer. Taken
        together with `base_digest`."""
        _ = self.base_digest
        return self._setup

    @property
    def state(self) -> str:
        """A cheap name of the present state: the base weights, config and tokenizer, and the patches that are on."""
        parts = [self.base_digest, self.setup_digest, *(p.digest for p in self.patches)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def fingerprint(self) -> str:
        """sha256 over all that a careless method could leave changed: slow, for tests and records.

        Parameters and buffers (bytes, requires_grad, whether a gradient is kept), training modes, hooks, module types,
        padding side, attention implementation, prompt rewrites.
        """
        state = hashlib.sha256(weights_digest(self.model).encode())
        for name, parameter in self.model.named_parameters():
            state.update(f"{name} {parameter.requires_grad} {parameter.grad is None};".encode())
        for name, buffer in self.model.named_buffers():
            state.update(f"{name};".encode())
            state.update(bytes_of(buffer))
        for name, module in self.model.named_modules():
            hooks = (
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                len(module._backward_hooks),
            )
            state.update(f"{name} {type(module).__name__} {module.training} {hooks};".encode())
        state.update(f"{self.tokenizer.padding_side} {self.attention_implementation} {self.prompt_rewrites}".encode())
        return state.hexdigest()

    @property
    def only_weights(self) -> bool:
        """Whether all that is on the model is a change of its weights, so that a checkpoint holds it."""
        return not self.prompt_rewrites and all(isinstance(patch, WeightPatch) for patch in self.patches)

    def save(self, folder: Path) -> None:
        """Write the model as it is now as a normal transformers checkpoint (safetensors), whole or not at all.

        An older checkpoint in `folder` is replaced; a folder that holds anything else is refused (InputError).
        """
        if not self.only_weights:
            raise PatchError(
                "a patch on this model is no change of weights and cannot be saved as a checkpoint; save the patches "
                "themselves, and apply them to the model where it is used"
            )
        with atomic_folder(Path(folder), mark="config.json") as temporary:
            save_model(self.model, self.tokenizer, temporary)
