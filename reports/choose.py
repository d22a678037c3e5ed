"""Which facts an audit changes: those the base model knows, spread over relations and popularity strata."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import TypeVar

from editkit.data import DataError, FactBase
from editkit.entries import Entry
from editkit.handle import ModelHandle
from probes.ask import ReplyStore, replies_to
from probes.judge import classify
from probes.verdict import Class
from reports.spec import AuditSpec, FactsPart
from reports.watch import Watch
from reports.wording import named

T = TypeVar("T")
SAMPLE = 24  # facts asked of each relation that may be changed
SAMPLE_OTHERS = 3  # and of each other relation
UNRANKED_AFTER = 2  # facts that each stratum is given before the facts without a stratum have their turn
NOT_KNOWN = "asked, and the base model does not answer it right"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The facts to change, the ids of all facts the base model answers right, and how many were passed over why.

    Passed over are the facts that were asked, might have been changed, and are not known. A known fact that was not
    needed is not passed over, nor is a fact that was not asked.
    """

    entries: tuple[Entry, ...]
    known: frozenset[str]
    passed_over: dict[str, int]


def known_ids(
    handle: ModelHandle, base: FactBase, entries: Sequence[Entry], spec: AuditSpec, store: ReplyStore, watch: Watch
) -> frozenset[str]:
    """Ids of those entries whose direct prompt the base model completes with the right object. The replies go into the
    store, where probes find them and do not ask again; what those compare an answer with depends on which facts are
    known, so its scores are read later, without another word being said."""
    watch.phase("What the base model knows", len(entries))
    prompts = [entry.fact.text for entry in entries]
    replies = replies_to(handle, prompts, store=store, max_new_tokens=spec.max_new_tokens, progress=watch.at)
    right = (e for e in entries if is_right(e, replies[e.fact.text].text, base.range_of(e.relation)))
    return frozenset(entry.id for entry in right)


def select(handle: ModelHandle, base: FactBase, spec: AuditSpec, store: ReplyStore, watch: Watch) -> Chosen:
    """The facts that the spec wants changed. Of a large data set no more facts are asked than are needed: first
    `SAMPLE` of each relation (they serve as neighbours too), then more until enough are known. A stratum of which none
    of those asked is known has no changed fact: no more are asked for its sake, and the report shows the gap."""
    part, n, order = spec.facts, spec.most, in_order(base, spec)
    taken = set(order)
    others = spread([entry for entry in base.table.entries if entry not in taken], spec.seed)
    relations = len({entry.relation for entry in order})
    asked = len(order) if n is None else min(len(order), max(SAMPLE * relations, n))
    beside = [entry for group in _by_relation(others).values() for entry in group[:SAMPLE_OTHERS]]
    while True:
        known = known_ids(handle, base, [*order[:asked], *beside], spec, store, watch)
        if asked == len(order) or not part.known_only or sum(entry.id in known for entry in order[:asked]) >= (n or 0):
            return choose(base, part, order[:asked], n, known)
        asked = min(len(order), 2 * asked)


def in_order(base: FactBase, spec: AuditSpec) -> list[Entry]:
    """The facts that may be changed, in the order in which they are taken. Raises DataError for an unknown relation."""
    wanted = spec.facts.relations
    unknown = set(wanted) - set(base.relations)
    if unknown:
        raise DataError(f"no relation {min(unknown)!r} in {base.name!r}; there is {', '.join(sorted(base.relations))}")
    return spread([e for e in base.editable if not wanted or e.relation in wanted], spec.seed)


def _by_relation(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.relation, []).append(entry)
    return groups


def is_right(entry: Entry, text: str, lexicon: Sequence[str]) -> bool:
    """Whether a greedy answer gives the object of the fact."""
    return classify(text, old=entry.names, new=(), lexicon=lexicon, prompt=entry.fact.text) is Class.OLD


def choose(base: FactBase, part: FactsPart, asked: Sequence[Entry], n: int | None, known: frozenset[str]) -> Chosen:
    """`n` usable facts of those asked, or all, taken `evenly`. Raises DataError, which names what there is, where that
    is fewer, or none."""
    usable = [e for e in asked if e.id in known] if part.known_only else list(asked)
    unknown = [e for e in asked if e.id not in known] if part.known_only else []
    wanted = len(usable) or 1 if n is None else n
    if wanted > len(usable):
        which = "the base model answers right" if part.known_only else "there are"
        way_out = f"use --n {len(usable)}" if usable else "name other facts"
        more = ", or --all-facts to change facts it does not know too" if part.known_only else ""
        more += f". Right: {named(usable)}; not: {named(unknown)}" if usable and unknown else ""
        raise DataError(
            f"asked for {wanted} facts of {base.name!r}, {which} {len(usable)} of {len(asked)}; {way_out}{more}"
        )
    return Chosen(tuple(islice(evenly(usable), wanted)), known, {NOT_KNOWN: len(unknown)} if unknown else {})


def evenly(entries: Sequence[Entry]) -> Iterator[Entry]:
    """All entries, each next one chosen by what came before it: first of the stratum that has fewest so far, then of
    the relation that has fewest, then in the order given.

    So every beginning is as even over strata as the entries allow. Those without a stratum, which show nothing about
    popularity, wait until each stratum has `UNRANKED_AFTER` or no more to give; then they count as one stratum more.
    """
    groups: dict[tuple[str | None, str], list[tuple[int, Entry]]] = {}
    for place, entry in reversed(list(enumerate(entries))):
        groups.setdefault((entry.stratum, entry.relation), []).append((place, entry))
    strata: Counter[str | None] = Counter({None: UNRANKED_AFTER})
    relations: Counter[str] = Counter()
    while groups:
        key = min(groups, key=lambda group: (strata[group[0]], relations[group[1]], groups[group][-1][0]))
        yield groups[key].pop()[1]
        strata[key[0]] += 1
        relations[key[1]] += 1
        if not groups[key]:
            del groups[key]


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
