"""The upper blocks of a model in few operators, for searches on a CPU.

A search runs the same frozen blocks on some hundred tokens, forth and back, thousands of times. Of the time that the
model's own modules take for it on a CPU up to half goes into small operators between the products: copies to bfloat16
and back for each of seven matrices, keys repeated for each head, norms and rotations in a dozen steps each, and
autograd's notes on all of them. Here a block is one function with its own backward pass: queries, keys and values are
one product, gate and up another, norm weights are part of the matrices behind them, grouped heads share their keys, and
padding goes through attention alone.

It serves blocks that are laid out as Llama's (Mistral's and Qwen 2's are). Whether one is, is not read off its name: it
must say what the block's own modules say (`Fused.of`); where it does not, the search runs the modules.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import DynamicCache

from editkit.handle import ModelHandle
from editkit.matrices import Matrix
from editkit.products import BFLOAT16, resolved, small_enough_to_lay_out

TRIAL_TOKENS, TRIAL_NEAR = 5, 1e-4  # what a block is tried on, and how near, beside the largest entry, it must come
CHILDREN = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True, slots=True, eq=False)
class _Weights:
    """One block: matrices (out, in) with the weight of the norm before them taken in, and biases."""

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    qkv_bias: Tensor | None
    heads: int
    groups: int  # heads that share keys and values
    width: int
    scale: float
    eps: float
    dtype: torch.dtype

    @property
    def shared(self) -> int:
        return self.heads // self.groups


@dataclass(frozen=True, slots=True, eq=False)
class Around:
    """What all blocks share in a pass: where the tokens stand among all places of the rows (None: they fill them),
    rotations, and what is added to the scores."""

    rows: int
    length: int
    places: Int[Tensor, " tokens"] | None
    cos: Float[Tensor, "tokens 1 half"]
    sin: Float[Tensor, "tokens 1 half"]
    mask: Float[Tensor, "rows 1 1 length both"]

    def tokens(self, x: Float[Tensor, "rows length ..."]) -> Float[Tensor, "tokens ..."]:
        """What stands at tokens."""
        flat = x.flatten(0, 1)
        return flat if self.places is None else flat[self.places]

    def padded(self, x: Float[Tensor, "tokens ..."]) -> Float[Tensor, "rows length ..."]:
        """Zeros at padding."""
        if self.places is not None:
            x = x.new_zeros(self.rows * self.length, *x.shape[1:]).index_copy(0, self.places, x)
        return x.unflatten(0, (self.rows, self.length))


class Fused:
    """Some blocks, in their order, and the final norm. Their weights are copied at the first run: until it is thrown
    away the model's must stay as they are."""

    def __init__(self, handle: ModelHandle, layers: Sequence[int], dtype: torch.dtype) -> None:
        self._handle, self._layers, self._dtype = handle, layers, dtype

    @functools.cached_property
    def _blocks(self) -> list[tuple[int, _Weights]]:
        made = [(layer, _weights(self._handle.module("block", layer), self._dtype)) for layer in self._layers]
        return [(layer, weights) for layer, weights in made if weights is not None]

    @classmethod
    def of(cls, handle: ModelHandle, layers: Sequence[int], products: str) -> Fused | None:
        """These blocks, with products as `products` (see `editkit.products`) says; None where one of them is another
        kind of block, where something looks at what its modules do, on other devices, and where the copy would take
        much memory."""
        if handle.device.type != "cpu" or handle.dtype != torch.float32 or not small_enough_to_lay_out(handle):
            return None
        blocks = [handle.module("block", layer) for layer in layers]
        if any(_watched(module) for block in blocks for module in block.modules()):
            return None
        if not all(_is_one(handle, block) for block in blocks):
            return None
        rounded = resolved(handle, products) == BFLOAT16
        return cls(handle, layers, torch.bfloat16 if rounded else torch.float32)

    def reaches(self, tokens: int) -> bool:
        """Whether attention over so many tokens is over all of them."""
        return tokens <= (self._handle.model.config.to_dict().get("sliding_window") or tokens)

    def run(
        self,
        hidden: Float[Tensor, "rows length d"],
        positions: Int[Tensor, "rows length"],
        mask: Bool[Tensor, "rows both"],
        cache: DynamicCache | None,
    ) -> Float[Tensor, "rows length d"]:
        """Hidden states after the final norm, from those below the first block; differentiable in them. `cache` holds
        keys and values of the tokens before, and `mask` is true where a token is, those before and these."""
        around = _around(self._handle, hidden, positions, mask)
        nothing = hidden.new_zeros(())
        x = around.tokens(hidden)
        for layer, weights in self._blocks:
            before = (nothing, nothing) if cache is None else (cache.layers[layer].keys, cache.layers[layer].values)
            x = _Block.apply(x, *before, weights, around)
        return around.padded(self._handle.module("final_norm")(x))


def _watched(module: nn.Module) -> bool:
    """Whether somebody looks at, or does, what the module itself should."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _around(handle: ModelHandle, hidden: Tensor, positions: Tensor, mask: Tensor) -> Around:
    cos, sin = handle.backbone.rotary_emb(hidden, positions)
    half, (length, both) = cos.shape[-1] // 2, (hidden.shape[1], mask.shape[1])
    there = mask[:, both - length :].flatten()
    places = None if there.all() else there.nonzero().squeeze(1)
    seen = torch.ones(length, both, dtype=torch.bool, device=mask.device).tril(both - length) & mask[:, None]
    lowest = torch.finfo(hidden.dtype).min
    added = torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(~seen, lowest)
    turns = (each.flatten(0, 1)[:, None, :half] for each in (cos, sin))
    cos, sin = (each if places is None else each[places] for each in turns)
    return Around(len(hidden), length, places, cos, sin, added[:, None, None])


@torch.no_grad()
def _weights(block: nn.Module, dtype: torch.dtype, *, lay_out: bool = True) -> _Weights | None:
    """None for a block that lacks a part of Llama's, or has one more."""
    try:
        attention, mlp = block.self_attn, block.mlp
        first, second = block.input_layernorm, block.post_attention_layernorm
        queries, keys, values, out = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        width, eps = int(attention.head_dim), float(first.variance_epsilon)
    except AttributeError:
        return None
    linear = (queries, keys, values, out, gate, up, down)
    if {*dict(block.named_children())} - {*CHILDREN} or any(type(each) is not nn.Linear for each in linear):
        return None
    if any(each.bias is not None for each in (out, gate, up, down)) or second.variance_epsilon != eps:
        return None
    biases = [each.bias for each in (queries, keys, values)]
    if any(bias is None for bias in biases) and any(bias is not None for bias in biases):
        return None

    def matrix(parts: Sequence[nn.Linear], norm: Tensor | None = None) -> Matrix:
        weight = torch.cat([part.weight for part in parts]) if len(parts) > 1 else parts[0].weight
        return Matrix((weight if norm is None else weight * norm).to(dtype), dtype, lay_out=lay_out)

    return _Weights(
        matrix((queries, keys, values), first.weight),
        matrix((out,)),
        matrix((gate, up), second.weight),
        matrix((down,)),
        None if biases[0] is None else torch.cat(biases).detach(),
        queries.out_features // width,
        keys.out_features // width,
        width,
        float(attention.scaling),
        eps,
        dtype,
    )


_KNOWN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _is_one(handle: ModelHandle, block: nn.Module) -> bool:
    """Whether a block is of this kind; once found out, it stays."""
    if block not in _KNOWN:
        weights = _weights(block, torch.float32, lay_out=False)
        _KNOWN[block] = weights is not None and _says_the_same(handle, block, weights)
    return _KNOWN[block]


@torch.no_grad()
def _says_the_same(handle: ModelHandle, block: nn.Module, weights: _Weights) -> bool:
    """Whether we give, for a row made up here, what a block's modules give."""
    size = block.input_layernorm.weight.shape[0]
    hidden = torch.linspace(-9, 9, TRIAL_TOKENS * size).sin().view(1, TRIAL_TOKENS, size)
    positions = torch.arange(TRIAL_TOKENS)[None]
    around = _around(handle, hidden, positions, torch.ones(1, TRIAL_TOKENS, dtype=torch.bool))
    try:
        own = block(
            hidden,
            attention_mask=around.mask[:, 0],
            position_ids=positions,
            position_embeddings=handle.backbone.rotary_emb(hidden, positions),
        )
        ours = _Block.apply(hidden[0], hidden.new_zeros(()), hidden.new_zeros(()), weights, around)
    except (TypeError, RuntimeError, AttributeError):
        return False
    given = (own[0] if isinstance(own, tuple) else own)[0]
    moved = given - hidden[0]
    return bool((ours - given).abs().max() <= TRIAL_NEAR * moved.abs().max())


class _Block(torch.autograd.Function):
    """(tokens, d) -> (tokens, d). Saved are the few states from which the backward pass makes the rest again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keys: Tensor, values: Tensor, w: _Weights, around: Around) -> Tensor:
        first = _inverse_norm(x, w.eps)
        qkv = w.qkv((x * first).to(w.dtype)).to(x.dtype)
        if w.qkv_bias is not None:
            qkv = qkv + w.qkv_bias
        turned, v = qkv.view(len(x), -1, w.width).split([w.heads + w.groups, w.groups], 1)
        turned = around.padded(_turned(turned, around.cos, around.sin))
        q, k = turned.split([w.heads, w.groups], 2)
        q, k, v = _by_group(q, w), k.transpose(1, 2), around.padded(v).transpose(1, 2)
        if keys.ndim:
            k, v = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        scores = (q @ k.transpose(-1, -2)).mul_(w.scale).view(len(q), w.groups, w.shared, around.length, -1)
        shares = scores.add_(around.mask).softmax(-1).view(len(q), w.groups, w.shared * around.length, -1)
        seen = around.tokens(_by_head(shares @ v, w).flatten(2))
        y = x + w.out(seen.to(w.dtype))
        second = _inverse_norm(y, w.eps)
        gate_up = w.gate_up((y * second).to(w.dtype))
        gate, up = gate_up.chunk(2, -1)
        ctx.save_for_backward(x, first, q, k, v, shares, y, second, gate_up)
        ctx.weights, ctx.around = w, around
        return y + w.down(silu(gate).mul_(up))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, first, q, k, v, shares, y, second, gate_up = ctx.saved_tensors
        w, around, [grad] = ctx.weights, ctx.around, grads
        grad = grad + _through_norm(w.gate_up.back(_of_gate_up(w.down.back(grad.to(w.dtype)), gate_up)), y, second)
        seen = w.out.back(grad.to(w.dtype)).to(x.dtype).view(len(x), -1, w.width)
        given = _by_group(around.padded(seen), w)
        scores = _through_softmax(given @ v.transpose(-1, -2), shares).mul_(w.scale)
        to_own = scores[..., -around.length :].transpose(-1, -2), shares[..., -around.length :].transpose(-1, -2)
        of_k, of_v = ((to @ what).transpose(1, 2) for to, what in zip(to_own, (q, given), strict=True))
        padded = torch.cat([_by_head(scores @ k, w), of_k, of_v], 2)
        turned, of_v = around.tokens(padded).split([w.heads + w.groups, w.groups], 1)
        qkv = torch.cat([_turned(turned, around.cos, -around.sin), of_v], 1).flatten(1)
        return grad + _through_norm(w.qkv.back(qkv.to(w.dtype)), x, first), None, None, None, None


def _inverse_norm(x: Tensor, eps: float) -> Tensor:
    return x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()


def _through_norm(grad: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
    """The gradient of what x * inverse is given, as that of x."""
    normed, grad = x * inverse, grad.to(x.dtype)
    along = (grad * normed).mean(-1, keepdim=True)
    return torch.addcmul(grad, normed, along, value=-1).mul_(inverse)


def _through_softmax(grad: Tensor, shares: Tensor) -> Tensor:
    """The gradient of what shares are given, as that of the scores."""
    grad = grad * shares
    return torch.addcmul(grad, shares, grad.sum(-1, keepdim=True), value=-1)


def _of_gate_up(grad: Tensor, gate_up: Tensor) -> Tensor:
    """The gradient of silu(gate) * up, as that of both."""
    gate, up = gate_up.chunk(2, -1)
    both = torch.empty_like(gate_up)
    of_gate, of_up = both.chunk(2, -1)
    torch.mul(grad, silu(gate), out=of_up)
    torch.ops.aten.silu_backward.grad_input(grad.mul_(up), gate, grad_input=of_gate)
    return both


def _turned(x: Float[Tensor, "tokens heads width"], cos: Tensor, sin: Tensor) -> Tensor:
    """Each head turned by its position; by -sin it is turned back."""
    a, b = x.chunk(2, -1)
    turned = torch.empty_like(x)
    first, second = turned.chunk(2, -1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return turned


def _by_group(x: Float[Tensor, "rows length heads width"], w: _Weights) -> Float[Tensor, "rows groups both width"]:
    """The heads that share keys, one after the other, as if they were more tokens."""
    rows, length, _, width = x.shape
    return x.reshape(rows, length, w.groups, w.shared, width).permute(0, 2, 3, 1, 4).reshape(rows, w.groups, -1, width)


def _by_head(x: Float[Tensor, "rows groups both width"], w: _Weights) -> Float[Tensor, "rows length heads width"]:
    """Back again."""
    return x.unflatten(2, (w.shared, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)
