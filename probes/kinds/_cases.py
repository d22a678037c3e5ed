"""What probes share: cases about a record's own fact, and the verdicts of a single round."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from editkit import held_out
from editkit.entries import overlap
from editkit.facts import EditRecord, Question, Record
from probes.framing import framed
from probes.judge import judge, names
from probes.kinds import Context, Rounds
from probes.verdict import Case, Expect

CONTRASTS = 4  # objects of the same range that a forgotten or neighbouring object is compared with


def dice(context: Context, record: Record, name: str) -> random.Random:
    """The random source of one choice about one record; another name, another source, the same on every machine."""
    return held_out.dice(context.seed, f"{record.id}/{name}")


def old_names(record: Record) -> tuple[str, ...]:
    """Accepted spellings of the old object, the usual one first."""
    return tuple(dict.fromkeys((record.fact.object, *record.held_out.aliases)))


def new_names(record: Record) -> tuple[str, ...]:
    """Accepted spellings of the new object; none for forgetting."""
    if not isinstance(record, EditRecord):
        return ()
    return tuple(dict.fromkeys((record.edit.target_new, *record.held_out.aliases_new)))


def names_answer(record: Record, text: str) -> bool:
    """Whether a text names the old or the new object."""
    return any(names(text, name) for name in (*old_names(record), *new_names(record)))


def sample_of(pool: Iterable[str], but: Sequence[str], source: random.Random, size: int = CONTRASTS) -> tuple[str, ...]:
    """At most `size` objects that are no spelling of `but`, nor contain one or stand in one."""
    usable = [each for each in dict.fromkeys(pool) if not any(overlap(each, name) for name in but)]
    return tuple(source.sample(usable, min(size, len(usable))))


def contrast_of(record: Record, context: Context) -> tuple[str, ...]:
    """What the old object is compared with: an edit's new one; for forgetting, others of the range."""
    if isinstance(record, EditRecord):
        return (record.edit.target_new,)
    return sample_of(record.held_out.range, old_names(record), dice(context, record, "contrast"))


def lexicon_of(record: Record, relation: str | None = None) -> tuple[str, ...]:
    """The entities that an answer may name instead: the range of the fact's relation, or what is known of another's."""
    if relation in (None, record.fact.relation):
        return record.held_out.range
    asked = (*record.held_out.neighborhood, *(hop.question for hop in record.held_out.hops))
    return tuple(dict.fromkeys(question.answer for question in asked if question.relation == relation))


def about_fact(
    record: Record, context: Context, *, probe: str, variant: str, prompt: str, expect: Expect = Expect.HOLDS
) -> Case:
    """A case about the changed fact itself."""
    return Case(
        probe=probe,
        variant=variant,
        prompt=prompt,
        expect=expect,
        group=record.id,
        old=old_names(record),
        new=new_names(record),
        contrast=contrast_of(record, context),
        lexicon=lexicon_of(record),
        relation=record.fact.relation,
        stratum=record.held_out.stratum,
    )


def neighbor_case(record: Record, context: Context, question: Question, *, probe: str, variant: str) -> Case:
    """A case about another fact, which must stay as it is.

    It is compared with an edit's new object, which may leak into it; for forgetting, with other objects of its own
    relation as far as they are known.
    """
    old = (question.answer, *question.aliases)
    if isinstance(record, EditRecord):
        contrast = sample_of((record.edit.target_new,), old, random.Random(0))
    else:
        pool = (
            record.held_out.range if question.relation == record.fact.relation else _answers(record, question.relation)
        )
        contrast = sample_of(pool or record.held_out.range, old, dice(context, record, question.prompt))
    return Case(
        probe=probe,
        variant=variant,
        prompt=framed(question.prompt),
        expect=Expect.UNCHANGED,
        group=record.id,
        old=tuple(dict.fromkeys(old)),
        contrast=contrast,
        lexicon=lexicon_of(record, question.relation),
        relation=question.relation,
        stratum=question.stratum,
    )


def _answers(record: Record, relation: str) -> tuple[str, ...]:
    return tuple(q.answer for q in record.held_out.neighborhood if q.relation == relation)


def leaks(record: Record, prompt: str) -> bool:
    """Whether a prompt names the old or the new object where the record's own prompt does not."""
    answers = (*old_names(record), *new_names(record))
    return any(names(prompt, name) and not names(record.fact.text, name) for name in answers)


def each_prompt_once(cases: Iterable[Case]) -> list[Case]:
    """The cases in their order, of those with the same prompt the first."""
    kept: dict[str, Case] = {}
    for case in cases:
        kept.setdefault(case.prompt, case)
    return list(kept.values())


def one_round(cases: Sequence[Case]) -> Rounds:
    """Ask the cases and judge each by itself."""
    if not cases:
        return []
    answers = yield list(cases)
    return [judge(case, answer) for case, answer in zip(cases, answers, strict=True)]
