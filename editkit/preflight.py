"""What a long run will do and what will stop it, before it begins.

`problems` reads every edit without running the model. `plan` says what will be changed, and tries the first edits to
say how long all will take and how far they will move the weights.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from editkit.errors import InputError
from editkit.facts import SLOT, Edit, Fact, normalise
from editkit.handle import ModelHandle
from editkit.moments import MomentSettings, kept
from editkit.operators import Confined
from editkit.patch import Patch
from editkit.tokens import encode_pair, subject_span

TRIED = 2  # edits: the first one pays for what is made once
LARGE_CHANGE = 1.0  # beside the weights it is added to: what the matrix did before is then the lesser part
Progress = Callable[[str, int, int], None]


@runtime_checkable
class Measuring(Protocol):
    """An operator that reads second moments of the matrices that it changes."""

    moments: MomentSettings


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with edit number `place` (from 0), or with all (None); `fatal`: no operator can make it."""

    place: int | None
    text: str
    fatal: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be changed, and what it takes. Times in seconds, sizes in bytes; None where nothing was tried.

    `changed` of `parameters` numbers of the model lie in the matrices `touches`, none for an operator that does not
    say. `moments`: layers whose second moment is needed, and whether it is kept. `once` is what the first edit took
    more than the next one, `each` what that took; all edits of a batch together take less. `moved`, the norm of the
    sum beside that of the weights, is the tried edits' times the root of the number of edits: as if each went its own
    way. Edits that agree go further.
    """

    edits: int
    touches: tuple[str, ...]
    changed: int
    parameters: int
    moments: dict[int, bool]
    once: float | None
    each: float | None
    memory: int | None
    moved: float | None
    problems: tuple[Problem, ...]

    @property
    def seconds(self) -> float | None:
        """An upper estimate for all edits."""
        return None if self.each is None or self.once is None else self.once + self.each * self.edits


def problems(handle: ModelHandle, edits: Sequence[Edit]) -> list[Problem]:
    """All that can be seen of the edits without running the model, in their order."""
    found = [problem for place, edit in enumerate(edits) for problem in _of_one(handle, place, edit)]
    return [*found, *_contradictions(edits), *_of_model(handle)]


def _of_one(handle: ModelHandle, place: int, edit: Edit) -> Iterator[Problem]:
    fact = edit.fact
    try:
        ids, target = encode_pair(handle.tokenizer, fact.text, edit.target_new)
        span = subject_span(handle.tokenizer, fact.prompt, fact.subject)
    except InputError as error:
        yield Problem(place, str(error), True)
        return
    if len(ids) + len(target) > handle.context:
        needs = len(ids) + len(target)
        yield Problem(place, f"it needs {needs} tokens, the model takes {handle.context}; shorten the prompt", True)
    if _ends_elsewhere(handle, fact, span.last):
        text = f"the last token of {fact.subject!r} also holds what follows it in the prompt; put a space between"
        yield Problem(place, text, False)


def _ends_elsewhere(handle: ModelHandle, fact: Fact, last: int) -> bool:
    """Whether token number `last` of the prompt, the subject's last one, goes on after the subject."""
    offsets = handle.tokenizer(fact.text, return_offsets_mapping=True)["offset_mapping"]
    return bool(offsets[last][1] > fact.prompt.index(SLOT) + len(fact.subject))


def _contradictions(edits: Sequence[Edit]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for place, edit in enumerate(edits):
        there = first.setdefault(normalise(edit.fact.text), place)
        if normalise(edits[there].target_new) != normalise(edit.target_new):
            text = (
                f"its prompt is that of edit {there + 1}, which gives it {edits[there].target_new!r}; keep one of them"
            )
            yield Problem(place, text, False)


def _of_model(handle: ModelHandle) -> Iterator[Problem]:
    if handle.dtype == torch.float16:
        yield Problem(
            None,
            "float16 weights overflow above 65,504: gradients may, too; load the model in float32 or bfloat16",
            False,
        )


def plan(
    handle: ModelHandle,
    operator: Any,
    edits: Sequence[Edit],
    *,
    seed: int,
    trial: bool = True,
    progress: Progress | None = None,
) -> Plan:
    """What `operator` will do to the model for these edits; with `trial` it makes the first ones, each by itself, and
    throws them away. The handle stays as it is. Raises what the operator raises for them."""
    found = problems(handle, edits)
    names = tuple(operator.touches(handle)) if isinstance(operator, Confined) else ()
    tried = [edit for place, edit in enumerate(edits) if not any(p.fatal and p.place == place for p in found)][:TRIED]
    once, each, patches = _tried(handle, operator, tried if trial else [], seed, progress)
    moved = _moved(handle, patches, len(edits))
    if moved is not None and moved > LARGE_CHANGE:
        text = (
            f"{len(edits)} edits may move the weights by {moved:.1f} times their own norm; make fewer, or use a guard"
        )
        found.append(Problem(None, f"{text} (norm_bound, prune, rect)", False))
    return Plan(
        len(edits),
        names,
        sum(handle.parameter(name).numel() for name in names),
        sum(parameter.numel() for parameter in handle.model.parameters()),
        _moments(handle, operator, names),
        once,
        each,
        _peak_memory(handle) if patches else None,
        moved,
        tuple(found),
    )


def _tried(
    handle: ModelHandle, operator: Any, edits: Sequence[Edit], seed: int, progress: Progress | None
) -> tuple[float | None, float | None, list[Patch]]:
    """Seconds that are paid once, seconds of each edit, and the patches."""
    seconds, patches = [], []
    for edit in edits:
        start = time.perf_counter()
        patches.append(operator(handle, [edit], seed=seed, progress=progress))
        seconds.append(time.perf_counter() - start)
    if not seconds:
        return None, None, []
    return max(0.0, seconds[0] - seconds[-1]), seconds[-1], patches


def _moved(handle: ModelHandle, patches: Sequence[Patch], edits: int) -> float | None:
    norms = [norm for patch in patches if (norm := patch.relative_norm(handle)) is not None]
    return max(norms) * math.sqrt(edits) if norms else None


def _moments(handle: ModelHandle, operator: Any, touched: Sequence[str]) -> dict[int, bool]:
    """The layers whose second moments the operator reads."""
    if not isinstance(operator, Measuring):
        return {}
    layers = [layer for layer in range(handle.layers) if handle.weight_name("mlp_out", layer) in touched]
    return kept(handle, layers, operator.moments)


def _peak_memory(handle: ModelHandle) -> int | None:
    """The most bytes that this process has held so far, on the model's device; None where the system does not say."""
    if handle.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(handle.device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
