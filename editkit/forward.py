"""One forward pass of a backbone, its keys and values, and the unembedding: what everything above is made of."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from editkit.handle import ModelHandle
from editkit.undo import Block, Undo


def run(backbone: nn.Module, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache | None = None) -> Tensor:
    """Hidden states after the final norm. `mask`: (rows, length), true where a token is, or (rows, 1, length, length),
    what is added to the attention scores. A cache that is given grows by what is read (see `copied`)."""
    keyword = {cache_keyword(backbone): cache} if cache is not None else {}
    given = mask.long() if mask.ndim == 2 else mask
    output = backbone(
        input_ids=ids, attention_mask=given, position_ids=positions, use_cache=cache is not None, **keyword
    )
    return output.last_hidden_state


def unembed(handle: ModelHandle, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... vocabulary"]:
    """Logits of hidden states that have passed the final norm, in float32, soft-capped where the model does so."""
    logits = handle.model.get_output_embeddings()(hidden).float()
    cap = handle.model.config.to_dict().get("final_logit_softcapping")
    return cap * torch.tanh(logits / cap) if cap else logits


@functools.cache
def _names_cache(forward: Callable[..., object]) -> bool:
    return "cache" in inspect.signature(forward).parameters


def cache_keyword(backbone: nn.Module) -> str:
    """How this version of transformers calls the key-value cache (renamed on the way to 5.40)."""
    return "cache" if _names_cache(type(backbone).forward) else "past_key_values"


def copied(cache: DynamicCache | None) -> DynamicCache | None:
    """A cache that can grow while the first one stays; no keys or values are copied."""
    if cache is None:
        return None
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def rows_of(cache: DynamicCache | None, rows: Tensor) -> DynamicCache | None:
    """The cache of some rows of the batch."""
    if cache is None:
        return None
    other = DynamicCache()
    for layer, kept in enumerate(cache.layers):
        other.update(kept.keys[rows], kept.values[rows], layer)  # type: ignore[index, union-attr]
    return other


def attention(handle: ModelHandle, implementation: str) -> Block[None]:
    """Another attention implementation within the block: "eager" is faster than "sdpa" for gradients on a CPU."""

    def open(undo: Undo) -> None:
        undo.callback(handle.model.set_attn_implementation, handle.attention_implementation)
        handle.model.set_attn_implementation(implementation)

    return Block(open)
