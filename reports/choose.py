"""Which facts an audit changes: those the base model knows, spread over relations and popularity strata."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TypeVar

from editkit.data import DataError, FactBase
from editkit.entries import Entry
from editkit.handle import ModelHandle
from editkit.scoring import Ask, tell_in_parts
from probes.judge import classify
from probes.verdict import Class
from reports.record import Journal
from reports.spec import FactsPart
from reports.watch import Watch

T = TypeVar("T")
KNOWS_WITHIN = 8  # tokens of greedy text in which the object must come


@dataclass(frozen=True, slots=True)
class Chosen:
    """The facts to change, the ids of all facts the base model answers right, and how many were passed over why."""

    entries: tuple[Entry, ...]
    known: frozenset[str]
    passed_over: dict[str, int]


def known_ids(handle: ModelHandle, base: FactBase, journal: Journal, watch: Watch) -> frozenset[str]:
    """Ids of the entries whose direct prompt the base model completes with the right object; asked once a run."""
    told = {entry["id"]: entry["right"] for entry in journal.entries("known")}
    todo = [entry for entry in base.table.entries if entry.id not in told]
    watch.phase("What the base model knows", len(base.table.entries))
    watch.step(len(told))
    asks = [Ask(entry.fact.text) for entry in todo]
    for places, answers in tell_in_parts(handle, asks, max_new_tokens=KNOWS_WITHIN):
        for place, answer in zip(places, answers, strict=True):
            entry = todo[place]
            told[entry.id] = is_right(entry, answer.text, base.range_of(entry.relation))
            journal.append("known", id=entry.id, text=answer.text, right=told[entry.id])
        watch.step(len(places))
    return frozenset(name for name, right in told.items() if right)


def is_right(entry: Entry, text: str, lexicon: Sequence[str]) -> bool:
    """Whether a greedy answer gives the object of the fact."""
    return classify(text, old=entry.names, new=(), lexicon=lexicon, prompt=entry.fact.text) is Class.OLD


def choose(base: FactBase, part: FactsPart, n: int, known: frozenset[str], seed: int) -> Chosen:
    """`n` facts by seed. Raises DataError, with the number there is, where there are not enough."""
    unknown = set(part.relations) - set(base.relations)
    if unknown:
        raise DataError(f"no relation {min(unknown)!r} in {base.name!r}; there is {', '.join(sorted(base.relations))}")
    candidates = [e for e in base.editable if not part.relations or e.relation in part.relations]
    usable = [e for e in candidates if e.id in known] if part.known_only else candidates
    passed_over = {"the base model does not answer it right": len(candidates) - len(usable)}
    if n > len(usable):
        which = "the base model answers right" if part.known_only else "there are"
        out = " or --all-facts to change facts it does not know" if part.known_only else ""
        raise DataError(
            f"asked for {n} facts of {base.name!r}, {which} {len(usable)} of {len(candidates)}; use --n {len(usable)}{out}"
        )
    return Chosen(tuple(spread(usable, seed)[:n]), known, {k: v for k, v in passed_over.items() if v})


def spread(entries: Sequence[Entry], seed: int) -> list[Entry]:
    """All entries in an order whose every beginning is even over relations and strata."""
    source = random.Random(f"{seed}/spread")
    by_relation: dict[str, dict[str | None, list[Entry]]] = {}
    for entry in sorted(entries, key=lambda e: e.id):
        by_relation.setdefault(entry.relation, {}).setdefault(entry.stratum, []).append(entry)
    columns = []
    for strata in by_relation.values():
        for members in strata.values():
            source.shuffle(members)
        columns.append(_interleaved(strata.values()))
    source.shuffle(columns)
    return _interleaved(columns)


def _interleaved(lists: Iterable[Sequence[T]]) -> list[T]:
    gap = object()
    turns = chain.from_iterable(zip_longest(*lists, fillvalue=gap))
    return [item for item in turns if item is not gap]  # type: ignore[misc]
