"""What a long run will do and what will stop it, before it begins.

`plan` says what will be changed, tries the first edits to say how long all will take and how far they will move the
weights, and looks at the keys of all others.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from editkit.drift import drift
from editkit.errors import MethodError
from editkit.facts import Edit
from editkit.handle import ModelHandle
from editkit.moments import MomentSettings, kept
from editkit.operators import EDITS, Aside, Confined, Guarding, candidates, each_that_can, lost
from editkit.patch import Patch
from editkit.problems import Problem, problems
from editkit.scope import Scope
from editkit.scoring import score_pairs

TRIED = 2  # edits: the first one pays for what is made once, the second one tells what each more takes
MOST = 6  # edits that are tried until as many are made

# Of a change, beside the norm of the weights it is added to. From docs/truth/sequential, of methods that search
# values: where the first edit's norm times the number of edits is above it (10 of ROME, 30 of MEMIT, 100 of AlphaEdit),
# 28 % and more of the known facts about other subjects were lost, below it 18 % at the most (but 29 % by 10 of PMET, at
# .58). Of methods that train weights the norm says little (10 of FT-L, .19 together, lost 31 %): see `_costly`. Edits
# that share an update go their own ways: MEMIT's first 1, 10 and 30 in one moved SmolLM2 by .029, .091 and .155.
LARGE_CHANGE = 0.8

Progress = Callable[[str, int, int], None]


@runtime_checkable
class Measuring(Protocol):
    """An operator that reads second moments of the matrices that it changes."""

    moments: MomentSettings


@runtime_checkable
class Searching(Protocol):
    """An operator that searches a value for each edit; `target` holds the search's settings, its `steps` among them."""

    target: Any


@runtime_checkable
class Batched(Protocol):
    """An operator that finds one change for `batch` edits of a call (0: for all), and the next one on top of it."""

    batch: int


@runtime_checkable
class Bounded(Protocol):
    """An operator whose changes, all together, never move a matrix further than `most` times its norm."""

    most: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be changed, and what it takes. Times in seconds, sizes in bytes; None where nothing was tried.

    `changed` of `parameters` numbers of the model lie in the matrices `touches`, none for an operator that does not
    say; `adds` is what one adds that leaves the weights as they are, or "". `moments`: layers whose second moment is
    needed, and whether it is kept. `once` is what the first edit took more than one of two together, `each` what that
    took; many edits in one change take less. `memory` is the most on the model's device: the peak of this process so
    far, the trial among it, and what the other edits add to the patch and to the copies it needs. On a GPU, where many
    edits are searched at once, it can be more. `moved` is the norm of the sum, with the patches that are on the model,
    beside that of the weights without any: at the least as if each edit went its own way, at the most as if all
    updates, one on top of the other, went the same.
    """

    edits: int
    touches: tuple[str, ...]
    adds: str
    changed: int
    parameters: int
    moments: dict[int, bool]
    once: float | None
    each: float | None
    memory: int | None
    moved: tuple[float, float] | None
    problems: tuple[Problem, ...]

    @property
    def seconds(self) -> float | None:
        """An upper estimate for all edits."""
        return None if self.each is None or self.once is None else self.once + self.each * self.edits


def plan(
    handle: ModelHandle,
    operator: Any,
    edits: Sequence[Edit],
    *,
    seed: int,
    trial: bool = True,
    together: bool = True,
    progress: Progress | None = None,
) -> Plan:
    """What `operator` will do to the model for these edits in one call; with `trial` it makes the first one, and the
    first two together, and throws them away. The handle stays as it is. Each edit that it refuses is a problem; where
    it refuses the first ones all alike, what it raises is raised. Without `together` each edit is made by itself and
    rolled back: nothing is said of what all of them do. Of an operator that unlearns, which takes no edits, it is said
    what it may change."""
    found = problems(handle, edits, one_by_one=not together)
    names = touched(handle, operator)
    bad = {problem.place for problem in found if problem.fatal}
    good = [place for place in range(len(edits)) if place not in bad] if trial else []
    once, each, patches, refused = _tried(handle, operator, edits, good, seed, progress)
    found += [Problem(place, text, True) for place, text in refused.items()]
    moved = _moved(handle, operator, patches, len(edits)) if together else None
    memory = _memory(handle, patches, names, len(edits) if together else 0)
    rest = [place for place in good if place not in refused][TRIED:]
    for place, text in _refused(handle, operator, [edits[place] for place in rest], seed, progress):
        found.append(Problem(rest[place], text, True))
    if patches:
        made = [edits[place] for place in good if place not in refused][: len(patches)]
        found += _in_vain(handle, operator, patches[-1], made)
    if moved is not None and moved[1] > LARGE_CHANGE:
        found.append(Problem(None, _too_far(handle, len(edits), *moved), False))
    elif together and (told := _costly(handle, operator, len(edits))):
        found.append(Problem(None, told, False))
    return Plan(
        len(edits),
        names,
        operator.adds(handle) if isinstance(operator, Aside) else "",
        sum(handle.parameter(name).numel() for name in names),
        sum(parameter.numel() for parameter in handle.model.parameters()),
        _moments(handle, operator, names),
        once,
        each,
        memory,
        moved,
        tuple(found),
    )


def touched(handle: ModelHandle, operator: Any) -> tuple[str, ...]:
    """The parameters that an operator may change; none where it does not say."""
    if isinstance(operator, Confined):
        return tuple(operator.touches(handle))
    scope = getattr(operator, "scope", None)
    return tuple(scope.parameters(handle)) if isinstance(scope, Scope) else ()


def _tried(
    handle: ModelHandle,
    operator: Any,
    edits: Sequence[Edit],
    places: Sequence[int],
    seed: int,
    progress: Progress | None,
) -> tuple[float | None, float | None, list[Patch], dict[int, str]]:
    """Seconds that are paid once, seconds of each edit, the patches of the first edit and of the first ones together,
    and those that it refuses. Raises MethodError where it refuses the first `MOST`."""
    seconds: list[float] = []
    patches: list[Patch] = []
    refused: dict[int, str] = {}
    taken: list[Edit] = []
    for place in places[:MOST]:
        if len(taken) == TRIED:
            break
        start = time.perf_counter()
        try:
            patches.append(operator(handle, [*taken, edits[place]], seed=seed, progress=progress))
        except MethodError as error:
            refused[place] = str(error)
            if len(refused) == len(places[:MOST]):
                raise
            continue
        taken.append(edits[place])
        seconds.append(time.perf_counter() - start)
    if not seconds:
        return None, None, [], refused
    each = seconds[-1] / len(seconds)
    return max(0.0, seconds[0] - each), each, patches, refused


def _moved(handle: ModelHandle, operator: Any, patches: Sequence[Patch], edits: int) -> tuple[float, float] | None:
    found = [drift(handle, patch) for patch in patches]
    each = [one.own / math.sqrt(number) for number, one in enumerate(found, 1) if one is not None]
    if not each:
        return None
    parts, changes = _parts(handle, operator), _changes(handle, operator, edits)
    bound = min((part.most for part in parts if isinstance(part, Bounded)), default=math.inf)
    below = max(one.below for one in found if one is not None)
    least = max(each) * math.sqrt(edits)
    most = below + least * math.sqrt(changes)
    return min(math.hypot(below, least), bound), min(most, bound)


def _changes(handle: ModelHandle, operator: Any, edits: int) -> int:
    """How many changes, one on top of the other, so many edits of one call are."""
    inner = _parts(handle, operator)[-1]
    return math.ceil(edits / (inner.batch or edits)) if isinstance(inner, Batched) and edits else edits


def _costly(handle: ModelHandle, operator: Any, edits: int) -> str:
    """What so many edits of this operator have been seen to cost; "" where they are fewer, or that is not known."""
    parts, changes = _parts(handle, operator), len(handle.patches) + _changes(handle, operator, edits)
    name = getattr(parts[-1], "name", "")
    if name not in EDITS or any(isinstance(part, Bounded) for part in parts):
        return ""
    seen, how, these = lost(name, at_once=False), "one on top of the other", changes
    if changes == 1 < edits:
        seen, how, these = lost(name, at_once=True), "in one change", edits
    if seen is None or these < seen.edits:
        return ""
    return (
        f"{seen.edits} edit{'s' * (seen.edits > 1)} of {name} {how} lost {seen.lost:.0%} of what else SmolLM2-135M "
        f"knew; with these it is {these}. Ask what else must stay (the probe neighborhood), make fewer, or use a "
        "memory beside the weights (serac, grace, wise)"
    )


def _in_vain(handle: ModelHandle, operator: Any, patch: Patch, edits: Sequence[Edit]) -> Iterator[Problem]:
    """A trial that brought the new object at none of its edits' own prompts."""
    pairs = [(edit.fact.text, edit.target_new) for edit in edits]
    before = score_pairs(handle, pairs)
    with handle.patched(patch):
        after = score_pairs(handle, pairs)
    if not any(score.argmax for score in after):
        old, new = (math.exp(scores[0].mean) for scores in (before, after))
        search = "search some with --preset auto, or " if searched(handle, operator) else ""
        yield Problem(
            None,
            f"the trial did not take: p({edits[0].target_new!r}) at {edits[0].fact.text!r} went from {old:.2g} to "
            f"{new:.2g} a token, and the model says something else. The settings may not suit this model: {search}let "
            "the operator change more",
            False,
        )


def searched(handle: ModelHandle, operator: Any) -> bool:
    """Whether --preset auto has something to try for an operator, or for the one that it guards."""
    names = [getattr(part, "name", "") for part in _parts(handle, operator)]
    return any(name in EDITS and candidates(name, handle) for name in names)


def _too_far(handle: ModelHandle, edits: int, least: float, most: float) -> str:
    there = f" on top of the {len(handle.patches)} that are on the model" if handle.patches else ""
    return (
        f"{edits} edits{there} may move the weights by {least:.1f} (each its own way) to {most:.1f} (all one way) "
        f"times their own norm; above {LARGE_CHANGE} the model forgets much else that it knew. Make fewer, or all in "
        "one change (memit), or a method for long sequences (alphaedit, grace, serac) or a guard (norm_bound, prune)"
    )


def _parts(handle: ModelHandle, operator: Any) -> list[Any]:
    """The operator, what it guards, and what that guards."""
    parts = [operator]
    while isinstance(parts[-1], Guarding):
        parts.append(parts[-1].inner(handle))
    return parts


def _moments(handle: ModelHandle, operator: Any, touched: Sequence[str]) -> dict[int, bool]:
    """The layers whose second moments the operator, or the one that it guards, reads."""
    inner = _parts(handle, operator)[-1]
    if not isinstance(inner, Measuring):
        return {}
    layers = [layer for layer in range(handle.layers) if handle.weight_name("mlp_out", layer) in touched]
    return kept(handle, layers, inner.moments)


def _refused(
    handle: ModelHandle, operator: Any, edits: Sequence[Edit], seed: int, progress: Progress | None
) -> Iterator[tuple[int, str]]:
    """The edits that the operator finds no change for, whatever value it searches: it is told to search for one step,
    which is a pass forward, and then solves with their keys as it always does."""
    inner = _parts(handle, operator)[-1]
    search = inner.target if isinstance(inner, Searching) else None
    if not edits or not is_dataclass(search) or not hasattr(search, "steps"):
        return
    quick = replace(inner, target=replace(search, steps=1))  # type: ignore[type-var]
    for place, made in enumerate(each_that_can(quick, handle, edits, seed=seed, progress=progress)):
        if isinstance(made, MethodError):
            yield place, str(made)


def _memory(handle: ModelHandle, patches: Sequence[Patch], touched: Sequence[str], edits: int) -> int | None:
    """The peak so far, what the edits that were not tried will add to the patch, and a copy of what it changes."""
    peak = _peak_memory(handle) if patches else None
    if peak is None:
        return None
    sizes = [_held(patch, handle.device.type) for patch in patches]
    more = max(0, sizes[-1] - sizes[0]) * max(0, edits - len(patches))
    copies = [handle.parameter(name) for name in touched]
    return peak + more + sum(copy.numel() * copy.element_size() for copy in copies)


def _held(value: Any, device: str) -> int:
    """Bytes of all tensors in a patch that lie on a kind of device."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size() if value.device.type == device else 0
    if isinstance(value, Mapping):
        return sum(_held(each, device) for each in value.values())
    if isinstance(value, list | tuple):
        return sum(_held(each, device) for each in value)
    if is_dataclass(value):
        return sum(_held(getattr(value, field.name), device) for field in fields(value))
    return 0


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
