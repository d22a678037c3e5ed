"""What may be asked about one changed fact: neighbours that must stay, chains that must follow, targets to choose.

Everything is chosen by a seed from a table of facts. `known` are the ids that the base model answers right; they are
preferred wherever there is a choice, for a question that was wrong before the change says little about it.
"""

from __future__ import annotations

import random
import zlib
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

from editkit.entries import Composition, Entry, FactTable, Inverse, Relation, mentions, overlap
from editkit.facts import Hop, Question, fill, normalise

NEIGHBORS = 8  # of the same relation
UNRELATED = 3  # of other relations
CHAINS_EACH = 2  # subjects asked through one chain
CONSEQUENCES = 3  # questions about what follows from a forgotten object
TARGETS_CONSIDERED = 0.5  # the better known half of the range
INVERSE = "inverse"  # the kind of a chain whose second step may lead from the object back to the subject
CONSEQUENCE = "consequence"  # the kind of a hop that asks for what follows from a forgotten object


def dice(seed: int, name: str) -> random.Random:
    """The random source of one choice; another name, another source, the same on every machine."""
    return random.Random(f"{seed}/{name}")


def is_probe_side(entry: Entry) -> bool:
    """Whether a fact that comes along serves as a question; the other half serves as retain examples, never both."""
    return zlib.crc32(entry.id.encode()) % 2 == 0


@dataclass(frozen=True, slots=True)
class Change:
    """A fact under change, seen from the questions about it: what they must not name."""

    entry: Entry
    target_new: str | None = None

    @property
    def objects(self) -> tuple[str, ...]:
        """The old object and the new one."""
        return (self.entry.fact.object, *((self.target_new,) if self.target_new else ()))

    def gives_away(self, prompt: str) -> bool:
        """Whether a prompt names the old or the new object."""
        answers = (*self.entry.names, *((self.target_new,) if self.target_new else ()))
        return any(mentions(prompt, name) for name in answers)

    def shares_entity(self, entry: Entry) -> bool:
        """Whether another fact is about the same subject, or has one of the objects as its object or subject."""
        mine = (self.entry.fact.subject, *self.entry.subject_aliases, *self.objects)
        theirs = (entry.fact.subject, entry.fact.object)
        return any(overlap(one, other) for one in mine for other in theirs)


# Targets --------------------------------------------------------------------------------------------------------


def target_for(
    table: FactTable, entry: Entry, prompts: Sequence[str], *, seed: int, known: Container[str] | None = None
) -> str | None:
    """Another object of the relation's range, from its well-known half; None if no object will do.

    It is no spelling of the true object, contains it or stands in it, and none of `prompts` names it. An object
    counts as well known if a fact with it is in `known`; among those, and where there are none, the most popular half
    (all of them in a relation without popularity).
    """
    fame: dict[str, tuple[bool, float, str]] = {}
    for other in table.entries_of(entry.relation):
        name = other.fact.object
        score = (known is not None and other.id in known, other.popularity or 0.0, name)
        fame[name] = max(fame.get(name, score), score)
    usable = [
        name
        for name in fame
        if not any(overlap(name, spelling) for spelling in entry.names)
        and not any(mentions(prompt, name) for prompt in prompts)
        and normalise(name)
    ]
    ranked = sorted(usable, key=lambda name: fame[name], reverse=True)
    best = [name for name in ranked if fame[name][0]] if known is not None else []
    considered = TARGETS_CONSIDERED if any(fame[name][1] for name in ranked) else 1
    pool = best if len(best) > 1 else ranked[: max(1, round(len(ranked) * considered))]
    return dice(seed, f"target/{entry.id}").choice(pool) if pool else None


# Neighbours -----------------------------------------------------------------------------------------------------


def spread(entries: Iterable[Entry], source: random.Random, known: Container[str] | None) -> Iterator[Entry]:
    """The entries in random order, known ones first, the strata taking turns."""
    shuffled = list(entries)
    source.shuffle(shuffled)
    ranks = [shuffled]
    if known is not None:
        ranks = [[e for e in shuffled if e.id in known], [e for e in shuffled if e.id not in known]]
    for rank in ranks:
        turns: dict[str, list[Entry]] = defaultdict(list)
        for entry in rank:
            turns[entry.stratum or ""].append(entry)
        for turn in zip_longest(*(turns[name] for name in sorted(turns))):
            yield from (entry for entry in turn if entry is not None)


def neighborhood(
    table: FactTable, change: Change, own: Sequence[Entry], *, seed: int, known: Container[str] | None = None
) -> tuple[Question, ...]:
    """Facts that must stay: a user's own questions, others of the same relation, and a few of other relations.

    `own` are the facts of the user's file: all of them serve. Of the facts that come along the probe side does. None
    shares an entity with the change.
    """
    mine = {entry.id for entry in own}
    usable = [
        entry
        for entry in table.entries
        if (entry.id in mine or is_probe_side(entry))
        and not table.relations[entry.relation].hop_only
        and entry.id != change.entry.id
        and not change.shares_entity(entry)
        and not change.gives_away(entry.fact.text)
    ]
    source = dice(seed, f"neighborhood/{change.entry.id}")
    related = [entry for entry in usable if entry.relation == change.entry.relation]
    same = list(islice(spread(related, source, known), NEIGHBORS))
    others = [entry for entry in usable if entry.relation != change.entry.relation]
    missing = NEIGHBORS - len(same)  # a relation of few facts is filled up with others, the user's own first
    near = list(spread((entry for entry in others if entry.id in mine), source, known))
    far = spread((entry for entry in others if entry.id not in mine), source, known)
    chosen = [*same, *islice([*near, *far], UNRELATED + missing)]
    found = [*change.entry.neighborhood, *(entry.question for entry in chosen)]
    return tuple({question.prompt: question for question in found}.values())


# Chains ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One link x -> y of a chain, as a fact that can be asked."""

    x: str
    y: str
    question: Question
    entry: Entry


def hops(table: FactTable, change: Change, *, seed: int, known: Container[str] | None = None) -> tuple[Hop, ...]:
    """The questions that follow from the fact by the declared chains, and for forgetting its inverse.

    For an edit: chains that end in the changed fact (the answer moves with it) and chains that begin with it (the
    answer follows from the new object); hops whose two answers are equal are left out. For forgetting: chains that end
    in the fact, its inverses, and what follows from the forgotten object (see `_consequences` for what that shows).
    No hop names the old object or the new one, but for an inverse, which asks from it.
    """
    source = dice(seed, f"hops/{change.entry.id}")
    found: list[Hop] = []
    chains = [chain for chain in table.compositions if chain.kind != INVERSE]
    for chain in chains:
        if chain.second == change.entry.relation:
            found += _ending(table, chain, change, source, known)
        if chain.first == change.entry.relation and change.target_new is not None:
            found += _beginning(table, chain, change, source)
    if change.target_new is None:
        found += [*_inverse(table, change, source), *_back(table, change, source)]
        found += _consequences(table, change, source, known)
    return tuple({hop.question.prompt: hop for hop in found}.values())


def _ending(
    table: FactTable, chain: Composition, change: Change, source: random.Random, known: Container[str] | None
) -> Iterator[Hop]:
    """x -> (subject of the change) -> old or new object."""
    steps = [step for step in _steps_to(table, chain.first, change.entry) if not change.gives_away(step.x)]
    source.shuffle(steps)
    steps.sort(
        key=lambda step: (known is not None and step.entry.id in known, step.entry.popularity or 0), reverse=True
    )
    for step in steps[:CHAINS_EACH]:
        template = source.choice((*chain.templates, *chain.questions))
        prompt = fill(template, step.x)
        if change.gives_away(prompt) or mentions(prompt, change.entry.fact.subject):
            continue
        yield Hop(
            question=_asked(prompt, step.x, change.entry.question, step.question),
            premises=(step.question, change.entry.question),
            kind=chain.kind,
            answer_new=change.target_new,
            aliases_new=_aliases(table, change.entry.relation, change.target_new),
        )


def _beginning(table: FactTable, chain: Composition, change: Change, source: random.Random) -> Iterator[Hop]:
    """subject -> old or new object -> what follows from each."""
    fact, target = change.entry.fact, change.target_new or ""
    old, new = table.find(chain.second, fact.object), table.find(chain.second, target)
    if old is None or new is None or any(overlap(one, other) for one in old.names for other in new.names):
        return
    prompt = fill(source.choice((*chain.templates, *chain.questions)), fact.subject)
    if change.gives_away(prompt) or any(mentions(prompt, name) for name in (*old.names, *new.names)):
        return
    yield Hop(
        question=_asked(prompt, fact.subject, old.question, change.entry.question),
        premises=(change.entry.question, old.question, new.question),
        kind=chain.kind,
        answer_new=new.fact.object,
        aliases_new=new.aliases,
    )


def _consequences(table: FactTable, change: Change, source: random.Random, known: Container[str] | None) -> list[Hop]:
    """subject -> forgotten object -> what follows from it, for forgetting; the answer is what follows.

    At most `CONSEQUENCES`: known steps first, then those that fewest objects share. Where the model still gives the
    answer, something that fits the forgotten object is still said of the subject; that the object itself is reached
    is not shown. The capital of a city's country points to that country alone, but the euro or Europe may be guessed,
    or be known of the city by itself.
    """
    subject = change.entry.fact.subject
    found: list[tuple[tuple[bool, int], Hop]] = []
    for chain in table.compositions:
        if chain.kind == INVERSE or chain.first != change.entry.relation:
            continue
        step = table.find(chain.second, change.entry.fact.object)
        prompt = fill(source.choice((*chain.templates, *chain.questions)), subject)
        if step is None or change.gives_away(prompt) or any(mentions(prompt, name) for name in step.names):
            continue
        hop = Hop(
            question=_asked(prompt, subject, step.question, change.entry.question),
            premises=(change.entry.question, step.question),
            kind=CONSEQUENCE,
        )
        unknown = known is not None and step.id not in known
        found.append(((unknown, _sharing(table, step)), hop))
    return [hop for _, hop in sorted(found, key=lambda each: each[0])[:CONSEQUENCES]]


def _sharing(table: FactTable, entry: Entry) -> int:
    """How many facts of the relation have an object that would count as this one's."""
    return len({other.id for name in entry.names for other in table.with_object(entry.relation, name)})


def _inverse(table: FactTable, change: Change, source: random.Random) -> Iterator[Hop]:
    """object -> subject, where only one subject has the object."""
    relation = table.relations.get(change.entry.relation)
    if relation is None or relation.inverse is None or not _functional(table, change.entry):
        return
    inverse = relation.inverse
    direct = _inverse_question(inverse, inverse.prompt, change.entry)
    others = [*inverse.paraphrases, *inverse.questions]
    for template in (inverse.prompt, *source.sample(others, min(1, len(others)))):
        question = _inverse_question(inverse, template, change.entry)
        if not mentions(question.prompt, change.entry.fact.subject):
            yield Hop(question=question, premises=(direct, change.entry.question), kind=INVERSE)


def _back(table: FactTable, change: Change, source: random.Random) -> Iterator[Hop]:
    """object -> subject over a relation that a chain of kind "inverse" names, where it leads there: what is "the
    largest city in Germany" leads to Berlin, and so back to the fact that Berlin is in Germany."""
    fact = change.entry.fact
    for chain in table.compositions:
        if chain.kind != INVERSE or chain.first != fact.relation:
            continue
        entry = table.find(chain.second, fact.object)
        if entry is None or normalise(entry.fact.object) != normalise(fact.subject):
            continue
        relation = table.relations[chain.second]
        others = [*relation.paraphrases, *relation.questions]
        for template in (relation.prompt, *source.sample(others, min(1, len(others)))):
            question = entry.ask(template)
            if not mentions(question.prompt, fact.subject):
                yield Hop(question=question, premises=(entry.question, change.entry.question), kind=INVERSE)


def _steps_to(table: FactTable, first: str, goal: Entry) -> list[Step]:
    """The links x -> y of relation or inverse `first` whose y is the subject of `goal`."""
    names = {normalise(name) for name in (goal.fact.subject, *goal.subject_aliases)}
    inverted = table.inverse_of(first)
    if inverted is None:
        entries = {entry.id: entry for name in sorted(names) for entry in table.with_object(first, name)}
        return [Step(e.fact.subject, e.fact.object, e.question, e) for e in entries.values()]
    relation, inverse = inverted
    entry = next((e for name in sorted(names) if (e := table.find(relation.name, name)) is not None), None)
    if entry is None or not _functional(table, entry):
        return []
    question = _inverse_question(inverse, inverse.prompt, entry)
    return [Step(entry.fact.object, entry.fact.subject, question, entry)]


def _functional(table: FactTable, entry: Entry) -> bool:
    return len(table.with_object(entry.relation, entry.fact.object)) == 1


def _inverse_question(inverse: Inverse, template: str, entry: Entry) -> Question:
    return Question(
        prompt=fill(template, entry.fact.object),
        answer=entry.fact.subject,
        subject=entry.fact.object,
        relation=inverse.name,
        aliases=entry.subject_aliases,
        popularity=entry.popularity,
        stratum=entry.stratum,
    )


def _asked(prompt: str, subject: str, answered: Question, about: Question) -> Question:
    """A chain's question: the answer of its last link, the popularity of its first."""
    return Question(
        prompt, answered.answer, subject, answered.relation, answered.aliases, about.popularity, about.stratum
    )


def _aliases(table: FactTable, relation: str, name: str | None) -> tuple[str, ...]:
    return () if name is None else table.aliases_of(relation, name)


def held_out_templates(relation: Relation, entry: Entry, change: Change) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The held-out paraphrases and questions: the user's own first; none that operators see or that names an answer."""
    seen = {entry.fact.prompt, *relation.seen}

    def usable(templates: Iterable[str]) -> tuple[str, ...]:
        target = change.target_new
        return tuple(
            template
            for template in dict.fromkeys(templates)
            if template not in seen and not (target and mentions(fill(template, entry.fact.subject), target))
        )

    return usable((*entry.paraphrases, *relation.paraphrases)), usable((*entry.questions, *relation.questions))
