"""MEND, editing by a trained transform of the gradient (Mitchell et al. 2022, "Fast Model Editing at Scale",
https://arxiv.org/abs/2110.11309).

    Δ_l = −α_l Σ δ̃ ũᵀ        (ũ, δ̃) = g_l(u, δ)        over all tokens of the edit

u is what a matrix reads at a token and δ the gradient, in what it gives there, of −log p(new object | prompt): the
gradient of a matrix is Σ δ uᵀ, a sum of as many outer products as there are tokens. Small networks g, shared by
matrices of one shape, make of each pair another one, by which an edit also holds in other wordings and leaves the rest
alone. They are trained for one model on edits of other facts:

    min  c_e · −log p'(new object | wording)  +  KL(p(· | other fact) ‖ p'(· | other fact))        p': with Δ

`MEND(...).fit(handle, records, seed=0)` trains on your own records and gives the operator with `weights` set to the
file. Without `weights` the networks are trained once by themselves, on built-in facts about other subjects, and kept in
the cache folder, and in memory as long as the handle lives.

Differs from the authors' code:
- each edit of a call has its own loss and what comes out is summed, as in the paper: an edit among others
  is the edit alone (theirs: one mean loss of all, so that δ shrinks with their number);
- a step goes down the gradient (theirs is added, and its length may learn to be negative);
- mean and spread of u and δ are taken beforehand, for each matrix (theirs: while training, for each shape);
- the wording that is edited and another one count alike in the loss (EasyEdit's trainer: the edited one alone);
- KL is taken where the other fact's answer is predicted, and half of the other facts are of the edit's own relation;
- the model stays in eval mode and is trained on as it is (no `train_base`);
- what stands below the edited blocks is read once for each text; Δ is never built in training.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from editkit.blocks import frozen
from editkit.completions import encode_examples, gradient_attention
from editkit.deltas import LowRankDelta
from editkit.edit._linear import linear_layers
from editkit.edit._mend_facts import Course, course_for, records_of
from editkit.edit._mend_fit import TOGETHER, Fitting, Lesson, Progress, changes_of, fit_network, key_of, lessons_of
from editkit.edit._mend_network import Network, load_network
from editkit.edit._mend_texts import Factors, Texts
from editkit.errors import InputError
from editkit.facts import Edit, EditRecord, Example, check_edits
from editkit.handle import ModelHandle
from editkit.models import cache_folder
from editkit.operators import EDITS, provenance_of
from editkit.patch import WeightPatch
from editkit.products import exact, using
from editkit.scope import IN_BLOCKS, Scope
from editkit.wide import computed_in_float32


@EDITS.register("mend")
@dataclass(frozen=True, slots=True)
class MEND:
    """`layers`, `modules`: which blocks' linear layers are edited; `strength`: what every step length is multiplied by
    (1: as trained; more makes edits surer and costs more neighbours); `weights`: a file that `fit` gave ("": trained by
    itself, as `fitting` says)."""

    name: ClassVar[str] = "mend"

    layers: tuple[int, ...]
    modules: tuple[str, ...] = ("mlp",)
    strength: float = 1.0
    weights: str = ""
    fitting: Fitting = field(default_factory=Fitting)

    def __post_init__(self) -> None:
        if not self.layers:
            raise InputError("mend edits no layer; name some in `layers`, the last three by the paper")
        outside = [module for module in self.modules if module not in IN_BLOCKS]
        if outside:
            raise InputError(f"mend edits matrices of blocks, and {outside[0]!r} is none; leave it out of `modules`")

    @computed_in_float32
    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> WeightPatch:
        """A patch of low-rank factors, one rank a token. Nothing is random: the seed is only recorded (that of the
        training without `weights` is `fitting.seed`).

        Raises InputError where there is no edit, no such layer, nothing to edit in it or no token in a prompt or
        object, and where the file `weights` is not there, damaged or of another model; PromptTooLong where an edit does
        not fit the model's context; TrainingError where networks have to be trained and their loss is not finite."""
        check_edits(edits)
        networks = self._networks(handle, edits, progress)
        made = [*self._made(handle, edits, networks, progress)]
        deltas = {name: _joined([own[name] for own in made]) for name in made[0]}
        return self._patch(handle, edits, deltas, networks, seed)

    @computed_in_float32
    def each(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> list[WeightPatch]:
        """A patch for each edit by itself, found together."""
        networks = self._networks(handle, edits, progress)
        made = self._made(handle, edits, networks, progress)
        found = zip(edits, made, networks, strict=True)
        return [self._patch(handle, [edit], deltas, [network], seed) for edit, deltas, network in found]

    def touches(self, handle: ModelHandle) -> tuple[str, ...]:
        """Names of the matrices that it changes: linear layers within `layers` and `modules` that no patch wraps."""
        scope, linear = Scope(self.layers, self.modules), linear_layers(handle)
        names = tuple(name for name in scope.parameters(handle) if name in linear)
        if not names:
            raise InputError(f"{scope} holds no linear layer of {handle.name!r} to edit; widen it")
        return names

    @computed_in_float32
    def fit(
        self,
        handle: ModelHandle,
        records: Sequence[EditRecord],
        *,
        seed: int,
        save: Path | None = None,
        progress: Progress | None = None,
    ) -> MEND:
        """This operator with networks trained on the records' edits, paraphrases and neighborhoods (of the model
        without its patches), written to `save` or to the cache folder. Records of the facts that are edited later must
        not be among them: their probes would ask what was trained. Raises InputError, TrainingError, OSError."""
        lessons = lessons_of(handle, records)
        key = key_of(handle, self.touches(handle), lessons, self.fitting, seed)
        network = self._fitted(handle, lessons, seed, progress)
        path = Path(save or _file(key))
        network.save(path)
        return replace(self, weights=str(path))

    def _fitted(self, handle: ModelHandle, lessons: Sequence[Lesson], seed: int, progress: Progress | None) -> Network:
        names, first = self.touches(handle), min(self.layers)
        return fit_network(handle, names, first, lessons, self.fitting, seed=seed, progress=progress)

    def lacks(self, handle: ModelHandle, edits: Sequence[Edit]) -> str:
        """What must be made first, once for a model, and takes long; "" where it is there."""
        courses = [] if self.weights else dict.fromkeys(course_for(edit.fact.subject) for edit in edits)
        missing = sum(not self._kept_in(handle, course)[1].is_file() for course in courses)
        if not missing:
            return ""
        times = f", {missing} times" if missing > 1 else ""
        return f"mend's networks for this model are trained first{times}, on {self.fitting.facts} built-in facts"

    def _networks(self, handle: ModelHandle, edits: Sequence[Edit], progress: Progress | None) -> list[Network]:
        """For each edit the networks that make it."""
        if self.weights:
            return [load_network(Path(self.weights), handle, self.touches(handle))] * len(edits)
        courses = [course_for(edit.fact.subject) for edit in edits]
        found = {course: self._of_course(handle, course, progress) for course in dict.fromkeys(courses)}
        return [found[course] for course in courses]

    def _of_course(self, handle: ModelHandle, course: Course, progress: Progress | None) -> Network:
        """Networks trained on built-in facts: those at hand, else from the cache folder, else trained now."""
        at_hand: dict[Hashable, Network] = handle.memo.setdefault(self.name, {})
        # names the same lessons as their digest does, but without reading them and without taking patches off
        where = (handle.base_digest, handle.setup_digest, handle.dtype, handle.device, cache_folder())
        what = (where, self.touches(handle), self.fitting, course)
        if what not in at_hand:
            at_hand[what] = self._kept(handle, course, progress)
        return at_hand[what]

    def _kept(self, handle: ModelHandle, course: Course, progress: Progress | None) -> Network:
        lessons, file = self._kept_in(handle, course)
        if file.is_file():
            try:
                return load_network(file, handle, self.touches(handle))
            except InputError as error:
                warnings.warn(f"{error}; training anew", stacklevel=6)
        network = self._fitted(handle, lessons, self.fitting.seed, progress)
        try:
            network.save(file)
        except OSError as error:
            warnings.warn(f"cannot keep mend's networks in {file.parent} ({error}); set EDITKIT_CACHE", stacklevel=6)
        return network

    def _kept_in(self, handle: ModelHandle, course: Course) -> tuple[list[Lesson], Path]:
        """What networks are trained on, and the file that keeps them."""
        lessons = lessons_of(handle, records_of(course, self.fitting.facts, self.fitting.seed))
        return lessons, _file(key_of(handle, self.touches(handle), lessons, self.fitting, self.fitting.seed))

    def _made(
        self, handle: ModelHandle, edits: Sequence[Edit], networks: Sequence[Network], progress: Progress | None
    ) -> Iterator[dict[str, LowRankDelta]]:
        """What each edit adds to each matrix."""
        rows = encode_examples(handle, [Example(edit.fact.text, edit.target_new) for edit in edits])
        texts = Texts(handle, self.touches(handle), min(self.layers))
        for begin in range(0, len(rows), TOGETHER):
            part = slice(begin, begin + TOGETHER)
            with (
                gradient_attention(handle),
                frozen(handle.model),
                using(exact(handle)),
                torch.inference_mode(False),
                torch.enable_grad(),
            ):
                factors = texts.gradients(rows[part])
            made = [*_deltas(factors, networks[part], self.strength)]
            if progress:
                progress("editing", begin + len(made), len(rows))
            yield from made

    def _patch(
        self,
        handle: ModelHandle,
        edits: Sequence[Edit],
        deltas: Mapping[str, LowRankDelta],
        networks: Sequence[Network],
        seed: int,
    ) -> WeightPatch:
        distinct = {network.digest: network.record for network in networks}
        notes: dict[str, Any] = {"networks": [*distinct], "fitted": [*distinct.values()]}
        return WeightPatch(deltas, provenance_of(self.name, self, handle, edits, seed, **notes))


def _file(key: str) -> Path:
    return cache_folder() / "mend" / f"{key}.safetensors"


@torch.no_grad()
def _deltas(
    factors: Mapping[str, Factors], networks: Sequence[Network], strength: float
) -> Iterator[dict[str, LowRankDelta]]:
    """What each edit adds to each matrix: one rank for every token that its gradient reaches."""
    for edit, network in enumerate(networks):
        own = {name: Factors(each.u[[edit]], each.delta[[edit]], each.used[[edit]]) for name, each in factors.items()}
        changes = changes_of(network, own)
        yield {
            name: LowRankDelta(
                (strength * change.left[own[name].used]).T.contiguous(), change.right[own[name].used].contiguous()
            )
            for name, change in changes.items()
        }


def _joined(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
    """The sum of several, as factors side by side."""
    return LowRankDelta(torch.cat([d.left for d in deltas], 1), torch.cat([d.right for d in deltas], 0))
