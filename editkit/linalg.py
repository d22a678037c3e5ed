"""The closed-form solves of locate-then-edit methods, in float64: tensors in, tensors out, no model.

    keys (d_in, n)   residual (d_out, n)   moment C = E[k kᵀ] (d_in, d_in)

A solve gives the two factors (left, right) of its update; `left @ right` has shape (d_out, d_in).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from editkit.errors import MethodError

FIRST_JITTER = 1e-10  # relative to the mean of the diagonal
LAST_JITTER = 1e-4
LEAST_INSIDE = 1e-3  # share of a key's length that must lie in a null space for anything to be written for it
LEAST_SHARE = 0.05  # of kᵀ C⁻¹ k that a divisor with another key must have: below, the update is twenty times as large
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
    key: Float[Tensor, " d_in"],
    residual: Float[Tensor, " d_out"],
    factor: Float[Tensor, "d_in d_in"],
    *,
    at: Float[Tensor, " d_in"] | None = None,
) -> tuple[Float[Tensor, "d_out 1"], Float[Tensor, "1 d_in"]]:
    """ROME's update Δ = r (C⁻¹ k)ᵀ / (kᵀ C⁻¹ k): of all Δ with Δ k = r the one with the least ‖Δ C^½‖.

    `factor` is the lower Cholesky factor of C. With `at` the divisor is atᵀ C⁻¹ k instead, so that Δ at = r. Raises
    SolveError where the divisor is so small that the update would disable the model (Meng et al. 2022,
    arXiv:2202.05262, equation 2).
    """
    solved, gram = whitened(key.cpu()[:, None], factor)
    own, usual = float(gram), len(key)
    if not own > LEAST_LEVERAGE * usual:
        raise SolveError(
            f"the key is almost nothing beside the layer's usual keys: k' C^-1 k = {own:.1e}, "
            f"usual is {usual}; dividing by it would disable the model. Edit at another layer"
        )
    divisor = own if at is None else float(at.cpu().double() @ solved[:, 0])
    if not divisor > LEAST_SHARE * own:
        raise SolveError(
            f"the prompt's own key is almost at right angles to the mean over the contexts: {divisor:.1e} beside "
            f"{own:.1e}; dividing by it would disable the model. Use r_rome, which has one key"
        )
    return residual.cpu().double()[:, None], solved.T / divisor


def least_change(
    keys: Float[Tensor, "d_in n"],
    residual: Float[Tensor, "d_out n"],
    factor: Float[Tensor, "d_in d_in"],
    *,
    weight: float,
) -> tuple[Float[Tensor, "d_out n"], Float[Tensor, "n d_in"]]:
    """MEMIT's update Δ = R Kᵀ (λ C + K Kᵀ)⁻¹, the one with the least ‖Δ K − R‖² + λ ‖Δ C^½‖².

    `factor` is the lower Cholesky factor of C, `weight` is λ > 0. By Woodbury's identity it is
    R (λ I + Kᵀ C⁻¹ K)⁻¹ (C⁻¹ K)ᵀ: a system of as many rows as there are facts instead of d_in, and two thin factors
    (Meng et al. 2022b, arXiv:2210.07229, equation 14).
    """
    solved, gram = whitened(keys, factor)
    return _through(gram + weight * torch.eye(len(gram), dtype=torch.float64), residual), solved.T


def ridge_regression(
    keys: Float[Tensor, "d_in n"], residual: Float[Tensor, "d_out n"], *, weight: float
) -> tuple[Float[Tensor, "d_out n"], Float[Tensor, "n d_in"]]:
    """Δ = R Kᵀ (λ I + K Kᵀ)⁻¹, the one with the least ‖Δ K − R‖² + λ ‖Δ‖², as
    R (λ I + Kᵀ K)⁻¹ Kᵀ: a system of as many rows as there are keys. `weight` is λ > 0."""
    wide = keys.double()
    return _through(wide.T @ wide + weight * torch.eye(wide.shape[1], dtype=torch.float64), residual), wide.T


def equality_constrained(
    keys: Float[Tensor, "d_in n"],
    residual: Float[Tensor, "d_out n"],
    factor: Float[Tensor, "d_in d_in"],
    *,
    ridge: float,
) -> tuple[Float[Tensor, "d_out n"], Float[Tensor, "n d_in"]]:
    """EMMET's update Δ = R (Kᵀ C⁻¹ K)⁻¹ (C⁻¹ K)ᵀ: every key to its residual with the least ‖Δ C^½‖.

    `ridge`, as a share of the mean of its diagonal, is added to the diagonal of Kᵀ C⁻¹ K, so that keys that nearly
    coincide can be solved for (Gupta et al. 2024, arXiv:2403.14236, equation 9). Raises SolveError where that matrix
    is singular: with `ridge` 0, two facts of one key.
    """
    solved, gram = whitened(keys, factor)
    return _through(
        gram + float(ridge * gram.diagonal().mean()) * torch.eye(len(gram), dtype=torch.float64), residual
    ), solved.T


def null_space(values: Float[Tensor, " d"], vectors: Float[Tensor, "d d"], *, threshold: float) -> Float[Tensor, "d m"]:
    """An orthonormal basis of the directions in which the layer's keys have a second moment below `threshold`, from
    the eigenvalues of C (rising) and its eigenvectors (columns).

    Raises SolveError where there is none, for an edit confined to it would change nothing.
    """
    basis = vectors[:, values < threshold]
    if not basis.shape[1]:
        raise SolveError(
            f"no direction of this layer's keys has a second moment below {threshold:g} (the least is "
            f"{float(values[0]):.2g}), so the edit would change nothing; raise the threshold"
        )
    return basis


def _through(gram: Float[Tensor, "n n"], residual: Float[Tensor, "d_out n"]) -> Float[Tensor, "d_out n"]:
    """R G⁻¹ of a symmetric positive G. Raises SolveError where it has no factor."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        raise SolveError("keys of two facts coincide; take one of them out, or raise the ridge")
    return torch.cholesky_solve(residual.double().T, factor).T


class NullSpace:
    """Updates that may only read the directions of an orthonormal `basis` (d, m), and the keys of earlier edits, whose
    values must stay. `weight` is L₂ > 0.

    Earlier keys are kept in the coordinates of the basis with the Cholesky factor of L₂ I + K̂_pᵀ K̂_p, which grows by
    what is new: of a thousand edits one after another none costs much more than the first.
    """

    __slots__ = ("_factor", "_inside", "_past", "basis", "weight")

    def __init__(self, basis: Float[Tensor, "d m"], weight: float) -> None:
        self.basis, self.weight = basis, weight
        self._forget()

    def _forget(self) -> None:
        self._past: list[Tensor] = []
        self._inside = _Growing(torch.zeros(self.basis.shape[1], 0, dtype=torch.float64))
        self._factor = torch.zeros(0, 0, dtype=torch.float64)

    def update(
        self, keys: Float[Tensor, "d n"], residual: Float[Tensor, "d_out n"], past: Sequence[Float[Tensor, "d p"]]
    ) -> tuple[Float[Tensor, "d_out n"], Float[Tensor, "n d"]]:
        """AlphaEdit's update Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + L₂ I)⁻¹ with P = U Uᵀ, U the basis.

        Of all Δ = Δ P the one with the least ‖Δ K − R‖² + ‖Δ K_p‖² + L₂ ‖Δ‖²: keys outside the null space keep what
        they bring forth to the bit of the basis, those of `past` nearly. In the coordinates of the basis the matrix is
        L₂ I + K̂_p K̂_pᵀ + K̂ K̂ᵀ; by Woodbury's identity only systems of as many rows as there are keys are solved (Fang
        et al. 2025, arXiv:2410.02355, equation 12). Raises SolveError for keys of which nothing lies in the null space.
        """
        inside = self.basis.T @ keys.double()
        if not (inside.norm(dim=0) > LEAST_INSIDE * keys.double().norm(dim=0)).all():
            raise SolveError(
                "the key of a fact lies outside the null space of the layer's usual keys, so nothing may be changed "
                "for it; let more directions be free (threshold or directions), or edit at another layer"
            )
        self._hold(past)
        before = self._inside.value  # (L₂ I + K̂_p K̂_pᵀ)⁻¹ K̂
        solved = (inside - before @ torch.cholesky_solve(before.T @ inside, self._factor)) / self.weight
        middle = torch.eye(inside.shape[1], dtype=torch.float64) + inside.T @ solved
        return _through((middle + middle.T) / 2, residual), (self.basis @ solved).T

    def _hold(self, past: Sequence[Float[Tensor, "d p"]]) -> None:
        """Have exactly the keys of `past` as those of earlier edits. What is held is told by the tensors themselves,
        which belong to patches and do not change: a copy of all keys would grow with the stack."""
        there = len(self._past)
        if there > len(past) or any(mine is not own for mine, own in zip(self._past, past, strict=False)):
            self._forget()
            there = 0
        if new := past[there:]:
            self._add(torch.cat([*new], 1))
            self._past += new

    def _add(self, keys: Float[Tensor, "d q"]) -> None:
        inside = self.basis.T @ keys.double()
        gram = inside.T @ inside + self.weight * torch.eye(inside.shape[1], dtype=torch.float64)
        across = torch.linalg.solve_triangular(self._factor, self._inside.value.T @ inside, upper=False)
        corner, failed = torch.linalg.cholesky_ex(gram - across.T @ across)
        if failed:
            raise SolveError("the keys of earlier edits are no longer independent in float64; raise the weight")
        above = torch.cat([self._factor, torch.zeros_like(across)], 1)
        self._factor = torch.cat([above, torch.cat([across.T, corner], 1)])
        self._inside.add(inside)


class _Growing:
    """A matrix that gets columns at its end, without being copied each time."""

    __slots__ = ("_columns", "_room")

    def __init__(self, value: Float[Tensor, "d n"]) -> None:
        self._room, self._columns = value.T.clone(), value.shape[1]

    @property
    def value(self) -> Float[Tensor, "d n"]:
        return self._room[: self._columns].T

    def add(self, columns: Float[Tensor, "d q"]) -> None:
        end = self._columns + columns.shape[1]
        if end > len(self._room):
            room = columns.new_empty(max(end, 2 * len(self._room)), len(columns))
            room[: self._columns] = self._room[: self._columns]
            self._room = room
        self._room[self._columns : end] = columns.T
        self._columns = end
