"""Where a search adds its residuals: to what `mlp_out` gives, or to what attention gives as well.

A place is made ready for a batch of rows, whose suffixes begin at the subject's last token, and run once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor, nn

from editkit.blocks import lower
from editkit.blocks import upper as blocks_above
from editkit.edit._upper import Row, Upper, prepare
from editkit.forward import copied, run
from editkit.fused import Fused
from editkit.handle import ModelHandle
from editkit.hooks import Rewrite, rewritten, traced

Changes = Float[Tensor, "rows places length d"]


class Place(Protocol):
    """The modules of one layer whose output is changed, `mlp_out` the last of them, and a batch that reads them."""

    @property
    def upper(self) -> Upper:
        """The batch in the unchanged model."""
        ...

    @property
    def outputs(self) -> tuple[Float[Tensor, "rows length d"], ...]:
        """What each of the modules gives in the unchanged model."""
        ...

    def run(self, changes: Changes, fused: Fused | None = None) -> Float[Tensor, "rows length d"]:
        """Hidden states after the final norm with `changes` added to what the modules give; differentiable. `fused` are
        the blocks above the layer, for a place that can use them."""
        ...

    def rows(self, rows: Int[Tensor, " n"], width: int) -> Place:
        """The same for some of the rows, whose suffixes have at most `width` tokens."""
        ...


Prepare = Callable[[ModelHandle, int, Sequence[Row]], Place]
"""(handle, layer, rows) -> the place, with all that a step cannot change computed."""


@dataclass(frozen=True, slots=True, eq=False)
class AtMLP:
    """`mlp_out` alone: its block gives what it gave and the change, so only the blocks above it are run."""

    upper: Upper

    @classmethod
    def prepare(cls, handle: ModelHandle, layer: int, rows: Sequence[Row]) -> AtMLP:
        return cls(prepare(handle, layer, rows))

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return (self.upper.values,)

    def run(self, changes: Changes, fused: Fused | None = None) -> Tensor:
        return self.upper.run(changes[:, 0], fused)

    def rows(self, rows: Tensor, width: int) -> AtMLP:
        return AtMLP(self.upper.rows(rows, width))


@dataclass(frozen=True, slots=True, eq=False)
class AtAttentionAndMLP:
    """Attention and `mlp_out`. Where the MLP follows attention, what attention gives moves what the MLP reads: so the
    block itself is run too. `below` is what the block reads, None where it is the first."""

    upper: Upper
    attention: Float[Tensor, "rows length d"]
    below: Float[Tensor, "rows length d"] | None

    @classmethod
    def prepare(cls, handle: ModelHandle, layer: int, rows: Sequence[Row]) -> AtAttentionAndMLP:
        names = [handle.arch.path("attention", layer)]
        names += [handle.arch.path("block", layer - 1)] if layer else []
        with traced(handle.model, names) as seen:  # of the passes in there the rows' own is the last
            upper = prepare(handle, layer, rows)
        attention, *below = (seen[name].output for name in names)
        assert attention is not None
        return cls(upper, attention, below[0] if below else None)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return self.attention, self.upper.values

    def run(self, changes: Changes, fused: Fused | None = None) -> Tensor:
        upper = self.upper
        if fused is None or not fused.reaches(upper.mask.shape[1]):
            return self._run(changes, None)
        block = upper.handle.arch.path("block", upper.layer)
        with traced(upper.handle.model, [block]) as seen:
            self._run(changes, upper.layer)
        moved = seen[block].output
        assert moved is not None
        return fused.run(moved, upper.positions, upper.mask, upper.cache)

    def rows(self, rows: Tensor, width: int) -> AtAttentionAndMLP:
        below = None if self.below is None else self.below[rows, :width]
        return AtAttentionAndMLP(self.upper.rows(rows, width), self.attention[rows, :width], below)

    def _run(self, changes: Changes, last: int | None) -> Tensor:
        upper = self.upper
        with rewritten(upper.handle.model, self._rewrites(changes)):
            return run(self._blocks(last), upper.ids, upper.mask, upper.positions, copied(upper.cache))

    def _blocks(self, last: int | None) -> nn.Module:
        """The layer's block and those above it, up to `last`."""
        handle = self.upper.handle
        if self.below is None:
            return handle.backbone if last is None else lower(handle, last)
        return blocks_above(handle, self.upper.layer - 1, self.below, last)

    def _rewrites(self, changes: Changes) -> dict[str, Rewrite]:
        handle, layer = self.upper.handle, self.upper.layer
        names = [handle.arch.path(part, layer) for part in ("attention", "mlp_out")]
        return {name: _adder(change) for name, change in zip(names, changes.unbind(1), strict=True)}


def _adder(change: Tensor) -> Rewrite:
    return lambda output: output + change.to(output.dtype)
