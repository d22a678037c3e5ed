"""Settings for a model that nobody has tuned: a short search on facts that the model knows.

The values that an operator's presets name in their table [auto] are tried one setting after the other, the first ones
left at the best, by editing a few of the built-in facts and asking for them in other wordings and for their neighbours.
Nothing of the user's own edits is used, and no fact about their subjects. What was found is kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from editkit.data import FactBase, load
from editkit.entries import Entry
from editkit.errors import EditkitError, InputError, MethodError
from editkit.facts import EditRecord, fill, normalise
from editkit.files import write_text
from editkit.handle import ModelHandle
from editkit.held_out import dice, spread
from editkit.models import cache_folder
from editkit.operators import Guarding, Preset, candidates, each, operator_class, preset_for, with_what_ends
from editkit.patch import Patch
from editkit.scoring import score_pairs
from editkit.settings import build, merged
from editkit.wide import working_dtype

VERSION = 2  # raise when another choice comes out for the same key
FACTS = 6
LEAST_KNOWN = 3  # facts: of a model that knows fewer all are taken
ASKED = 120  # facts that are asked for, at the most
FLOOR = 0.01  # of a share in the harmonic mean, so that settings under which edits take can still be compared

Progress = Callable[[str, int, int], None]
Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Tried:
    """Settings, and the shares of prompts at which each token of the wanted text was the most likely one: the new
    object at the edits' own prompts and in other wordings, the old one at neighbours that had it before (None where
    there are none). `score` is their harmonic mean, higher is better; it is 0 where no edit took, for a model that was
    left alone keeps all its neighbours."""

    settings: dict[str, Any]
    efficacy: float
    generalization: float
    specificity: float | None

    @property
    def takes(self) -> bool:
        """Whether any edit came about at its own prompt."""
        return self.efficacy > 0

    @property
    def score(self) -> float:
        if not self.takes:
            return 0.0
        shares = [self.efficacy, self.generalization, *([] if self.specificity is None else [self.specificity])]
        return harmonic_mean([max(share, FLOOR) for share in shares])


def auto_preset(
    name: str,
    handle: ModelHandle,
    *,
    fixed: Mapping[str, Any] | None = None,
    avoid: Collection[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Preset:
    """The settings of operator `name` that serve this model best, and as their source what was tried.

    `fixed` are settings that stay as they are given, `avoid` the subjects of the edits that are to come. Raises
    InputError where nothing of the operator can be searched, MethodError where under no candidate an edit takes. Of a
    guard the settings of the operator within are searched.
    """
    start, grid = _start(name, handle, fixed or {})
    open_to = {setting: values for setting, values in grid.items() if len(values) > 1}
    if not grid:
        raise InputError(f"{name!r} has no settings that are searched by --preset auto; use its preset, {start.source}")
    facts, known = _facts(handle, avoid, seed)
    search = _Search(name, handle, facts, start.settings, seed, progress)
    return search.preset(open_to, known, start.source)


def _start(name: str, handle: ModelHandle, fixed: Mapping[str, Any]) -> tuple[Preset, dict[str, list[Any]]]:
    """The preset with what is given on top, and the values to be tried, those of a guarded operator among them; none
    for a setting that is given."""
    _, kind = operator_class(name)
    fixed = with_what_ends(kind, fixed)
    preset, every = preset_for(name, handle), candidates(name, handle)
    grid = {setting: [] if _stands_in(fixed, setting) else values for setting, values in every.items()}
    settings = merged(preset.settings, fixed)
    if not issubclass(kind, Guarding):
        return Preset(settings, preset.source), grid
    of = build(kind, settings).of
    inner, within = _start(of.name, handle, of.settings)
    settings = merged(settings, {"of": {"name": of.name, "settings": dict(inner.settings)}})
    found = grid | {f"of.settings.{setting}": values for setting, values in within.items()}
    return Preset(settings, f"{preset.source}; {of.name} within: {inner.source}"), found


def _stands_in(settings: Mapping[str, Any], dotted: str) -> bool:
    head, _, rest = dotted.partition(".")
    return head in settings and (not rest or (isinstance(settings[head], Mapping) and _stands_in(settings[head], rest)))


def _with(settings: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    head, _, rest = dotted.partition(".")
    return merged(settings, {head: _with({}, rest, value) if rest else value})


# -- the facts it is judged by --


def _facts(handle: ModelHandle, avoid: Collection[str], seed: int) -> tuple[list[EditRecord], int]:
    """Built-in facts about other subjects, those that the model knows; and how many it knows of those."""
    base, gone = load("world"), {normalise(subject) for subject in avoid}
    usable = [entry for entry in base.editable if normalise(entry.fact.subject) not in gone]
    order = [*spread(usable, dice(seed, "auto"), None)][:ASKED]
    known = _known(handle, order)
    chosen = known[:FACTS] if len(known) >= LEAST_KNOWN else order[:FACTS]
    ids = frozenset(entry.id for entry in known)
    return [*_records(base, chosen, ids)], min(len(known), FACTS)


def _records(base: FactBase, entries: Sequence[Entry], known: frozenset[str]) -> Iterator[EditRecord]:
    for entry in entries:
        yield base.edit_record(entry, seed=0, known=known)


def _known(handle: ModelHandle, entries: Sequence[Entry]) -> list[Entry]:
    scores = score_pairs(handle, [(entry.fact.text, entry.fact.object) for entry in entries])
    return [entry for entry, score in zip(entries, scores, strict=True) if score.argmax]


# -- the search --


class _Search:
    """One operator's settings, judged by the same facts, whose neighbours are read once."""

    def __init__(
        self,
        name: str,
        handle: ModelHandle,
        facts: Sequence[EditRecord],
        base: Mapping[str, Any],
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.name, self.handle, self.facts, self.base = name, handle, facts, base
        self.seed, self.progress = seed, progress
        self.tried: list[Tried] = []

    def preset(self, grid: Mapping[str, Sequence[Any]], known: int, start: str) -> Preset:
        """The best settings, from the cache folder where this search was made before."""
        file = cache_folder() / "auto" / f"{self._key(grid)}.json"
        if (kept := _read(file)) is not None:
            return kept
        self.near = [_neighbours(self.handle, record) for record in self.facts]
        settings: dict[str, Any] = {}
        for setting, values in grid.items():
            settings = self._best(settings, setting, values)
        found = Preset(merged(self.base, settings), self._source(grid, settings, known, start))
        _keep(file, found, self.tried)
        return found

    def _key(self, grid: Mapping[str, Sequence[Any]]) -> str:
        parts = [
            VERSION,
            self.handle.state,
            f"{self.handle.dtype} {working_dtype(self.handle)}",
            self.name,
            self.seed,
            self.base,
            grid,
            [record.id for record in self.facts],
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _best(self, settings: Mapping[str, Any], setting: str, values: Sequence[Any]) -> dict[str, Any]:
        """The settings with that value of one of them which scores best; of equals the one that stands first."""
        results = []
        for place, value in enumerate(values):
            if self.progress:
                self.progress(f"trying {setting} = {value}", place, len(values))
            results.append(self._try(_with(settings, setting, value)))
        best = max(results, key=lambda tried: tried.score)
        if not best.takes:
            raise MethodError(
                f"no value of {setting} makes an edit of {self.name!r} take on {self.handle.name!r} (tried: "
                f"{', '.join(map(str, values))}); set it by hand, or use another operator"
            )
        return best.settings

    def _try(self, settings: Mapping[str, Any]) -> Tried:
        _, kind = operator_class(self.name)
        try:
            operator = build(kind, merged(self.base, settings))
            patches = each(operator, self.handle, [record.edit for record in self.facts], seed=self.seed)
            tried = Tried(dict(settings), *self._shares(patches))
        except EditkitError:  # too large a step, nothing that can be changed there: not the settings to use
            tried = Tried(dict(settings), 0.0, 0.0, 0.0)
        self.tried.append(tried)
        return tried

    def _shares(self, patches: Sequence[Patch]) -> tuple[float, float, float | None]:
        own, other, near = [], [], []
        for patch, record, neighbours in zip(patches, self.facts, self.near, strict=True):
            fact, new = record.edit.fact, record.edit.target_new
            reworded = [(fill(each, fact.subject), new) for each in record.held_out.paraphrases]
            with self.handle.patched(patch):
                right = [score.argmax for score in score_pairs(self.handle, [(fact.text, new), *reworded, *neighbours])]
            own.append(right[0])
            other += right[1 : 1 + len(reworded)]
            near += right[1 + len(reworded) :]
        return _share(own), _share(other), _share(near) if near else None

    def _source(self, grid: Mapping[str, Sequence[Any]], settings: Mapping[str, Any], known: int, start: str) -> str:
        told = "; ".join(f"{_plain(tried.settings)} {tried.score:.2f}" for tried in self.tried)
        facts = f"{len(self.facts)} built-in facts, {known} of them known to the model"
        chosen = _plain(settings) or "nothing, for all is given"
        return f"auto: {chosen}, searched on {facts} (edit score of each: {told or 'none'}); the rest: {start}"


def _neighbours(handle: ModelHandle, record: EditRecord) -> Pairs:
    """Questions on neighbours whose answer is the most likely one before any edit."""
    pairs = [(question.prompt, question.answer) for question in record.held_out.neighborhood]
    return (
        [pair for pair, score in zip(pairs, score_pairs(handle, pairs), strict=True) if score.argmax] if pairs else []
    )


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right) if right else 0.0


def _plain(settings: Mapping[str, Any], within: str = "") -> str:
    parts = [
        _plain(value, f"{within}{key}.") if isinstance(value, Mapping) else f"{within}{key} {value}"
        for key, value in settings.items()
    ]
    return ", ".join(parts)


def _read(file: Path) -> Preset | None:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return Preset(kept["settings"], kept["source"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{file} cannot be read ({error}); searching anew", stacklevel=2)
        return None


def _keep(file: Path, found: Preset, tried: Sequence[Tried]) -> None:
    kept = {"settings": found.settings, "source": found.source, "tried": [asdict(each) for each in tried]}
    try:
        write_text(file, json.dumps(kept, indent=1))
    except OSError as error:
        warnings.warn(f"cannot keep the settings found in {file.parent} ({error}); set EDITKIT_CACHE", stacklevel=2)
