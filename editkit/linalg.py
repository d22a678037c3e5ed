"""The closed-form solves of locate-then-edit methods, in float64: tensors in, tensors out, no model.

    keys (d_in, n)   residual (d_out, n)   moment C = E[k kᵀ] (d_in, d_in)

A solve gives the two factors (left, right) of its update; `left @ right` has shape (d_out, d_in).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.errors import MethodError

FIRST_JITTER = 1e-10  # relative to the mean of the diagonal
LAST_JITTER = 1e-4
LEAST_LEVERAGE = 1e-6  # relative to d_in, which is the mean of kᵀ C⁻¹ k over the keys that C was measured on


class SolveError(MethodError, ArithmeticError):
    """A system that has no trustworthy solution; says which quantity is at fault."""


def cholesky(moment: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d d"], float]:
    """Lower factor of the moment in float64, and the jitter that it took.

    A moment measured on few tokens, or rounded, may have no factor; then a multiple of the identity is added, a
    thousand times more each try: `jitter` times the mean of the diagonal. Raises SolveError past `LAST_JITTER`.
    """
    wide = moment.double()
    wide = (wide + wide.T) / 2
    scale = float(wide.diagonal().mean())
    if not scale > 0 or not torch.isfinite(wide).all():
        raise SolveError("the moment is zero or not finite; measure it again on more text")
    jitter = 0.0
    while jitter <= LAST_JITTER:
        factor, failed = torch.linalg.cholesky_ex(wide + jitter * scale * torch.eye(len(wide), dtype=torch.float64))
        if not failed:
            return factor, jitter
        jitter = jitter * 1e3 if jitter else FIRST_JITTER
    raise SolveError(f"the moment has no Cholesky factor with jitter {LAST_JITTER}; measure it on more tokens")


def whitened(
    keys: Float[Tensor, "d_in n"], factor: Float[Tensor, "d_in d_in"]
) -> tuple[Float[Tensor, "d_in n"], Float[Tensor, "n n"]]:
    """C⁻¹ K and Kᵀ C⁻¹ K from the lower factor of C."""
    solved = torch.cholesky_solve(keys.double(), factor)
    return solved, keys.double().T @ solved


def rank_one(
    key: Float[Tensor, "d_in 1"], residual: Float[Tensor, "d_out 1"], factor: Float[Tensor, "d_in d_in"]
) -> tuple[Float[Tensor, "d_out 1"], Float[Tensor, "1 d_in"]]:
    """ROME's update Δ = r (C⁻¹ k)ᵀ / (kᵀ C⁻¹ k): of all Δ with Δ k = r the one with the least ‖Δ C^½‖.

    `factor` is the lower Cholesky factor of C. Raises SolveError where kᵀ C⁻¹ k is so small that the update would
    disable the model (Meng et al. 2022, arXiv:2202.05262, equation 2).
    """
    solved, gram = whitened(key, factor)
    leverage = float(gram)
    if not leverage > LEAST_LEVERAGE * len(key):
        raise SolveError(
            f"the key is almost nothing beside the layer's usual keys: k' C^-1 k = {leverage:.1e}, "
            f"usual is {len(key)}; dividing by it would disable the model. Edit at another layer"
        )
    return residual.double(), solved.T / leverage
