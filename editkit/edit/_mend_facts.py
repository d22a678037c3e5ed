"""Facts to train MEND on where a user gives none: half of the built-in ones, none about the subject that is edited.

Only what operators may see is used: facts that never serve as a question of a probe, in the wordings that are not held
out. They are parted by subject into two courses, so that every subject is foreign to one of them and two trainings
serve all edits.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from editkit.data import FactBase, load
from editkit.entries import Entry, mentions
from editkit.facts import Edit, EditRecord, Fact, HeldOut, Question, fill, normalise
from editkit.held_out import Change, dice, is_probe_side

COURSES = 2
NEIGHBORS = 6  # of each fact, half of them of its own relation


@dataclass(frozen=True, slots=True)
class Course:
    """Which facts are trained on: those of one half, but for those about `without` (normalised)."""

    number: int
    without: str = ""


def course_for(subject: str) -> Course:
    """The course for edits of a subject: the first that has no fact about it, else the first without those."""
    name, facts = normalise(subject), load()
    for number in range(COURSES):
        if not any(name in _names(entry) for entry in _entries(facts, Course(number))):
            return Course(number)
    return Course(0, name)


def records_of(course: Course, count: int, seed: int) -> list[EditRecord]:
    """`count` made-up edits of a course, each with other wordings and with facts that must stay."""
    facts = load()
    there = _entries(facts, course)
    source = dice(seed, f"mend/{course.number}/{course.without}")
    chosen = source.sample(there, min(count, len(there)))
    return [record for entry in chosen if (record := _record(facts, entry, chosen, source))]


def _entries(facts: FactBase, course: Course) -> list[Entry]:
    return [
        entry
        for entry in facts.editable
        if not is_probe_side(entry)
        and zlib.crc32(normalise(entry.fact.subject).encode()) // 2 % COURSES == course.number
        and not (course.without and course.without in _names(entry))
    ]


def _names(entry: Entry) -> set[str]:
    return {normalise(name) for name in (entry.fact.subject, *entry.subject_aliases)}


def _record(facts: FactBase, entry: Entry, among: Sequence[Entry], source: random.Random) -> EditRecord | None:
    """The edit of an entry to another object of its relation, in one of the wordings; None where no object will do."""
    seen = facts.relations[entry.relation].seen
    asked = [fill(template, entry.fact.subject) for template in seen]
    objects = [
        name
        for name in facts.range_of(entry.relation)
        if name not in entry.names
        and not Change(entry, name).gives_away(entry.fact.subject)
        and not any(mentions(name, own) for own in entry.names)
        and not any(mentions(prompt, name) for prompt in asked)
    ]
    if not objects:
        return None
    change = Change(entry, source.choice(objects))
    prompt, *others = source.sample(seen, len(seen))
    fact = Fact(entry.fact.subject, entry.relation, entry.fact.object, prompt)
    told = HeldOut(paraphrases=tuple(others), neighborhood=_neighbors(facts, change, among, source))
    return EditRecord(entry.id, Edit(fact, change.target_new or ""), told)


def _neighbors(facts: FactBase, change: Change, among: Sequence[Entry], source: random.Random) -> tuple[Question, ...]:
    """Facts of the course that share no entity with the change, half of them of its relation."""
    shuffled, relation = source.sample(among, len(among)), change.entry.relation
    related = (entry for entry in shuffled if entry.relation == relation and not change.shares_entity(entry))
    same = [*islice(related, NEIGHBORS // 2)]
    others = (entry for entry in shuffled if entry.relation != relation and not change.shares_entity(entry))
    other = [*islice(others, NEIGHBORS - len(same))]
    return tuple(entry.ask(source.choice(facts.relations[entry.relation].seen)) for entry in (*same, *other))
