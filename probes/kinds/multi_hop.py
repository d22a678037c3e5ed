"""Does what follows from the fact follow the change, and can what was forgotten be reached over other facts?

For an edit the new consequence is wanted (portability; MQuAKE, Zhong et al. 2023, arXiv:2305.14795); for forgetting the
answer must not be reached through neighbours, the inverse relation or two steps, nor what follows from it. The single
hops are asked first. Where the unchanged model gets one of them wrong, what should follow from an edit cannot be told
and the chain does not apply. A chain to a forgotten answer applies where the unchanged model reaches it, by whatever
way: a failed hop is only noted.
The inverse question of a forgotten fact names the old object; no other question names its own answer or the new object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from editkit.facts import EditRecord, Hop, Question, Record
from editkit.held_out import CONSEQUENCE
from probes.framing import framed
from probes.judge import class_of, judge, names
from probes.kinds import PROBES, Context, Rounds
from probes.kinds._cases import dice, lexicon_of, old_names, sample_of
from probes.verdict import Answer, Case, Expect, Premise, Verdict

PROBE = "multi_hop"


@PROBES.register(PROBE)
def multi_hop(record: Record, context: Context) -> Rounds:
    """One case a hop, variant = its kind ("composition", "inverse" …), after one round of premises."""
    hops = [hop for hop in _askable(record) if all(context.stays(premise) for premise in hop.premises)]
    if not hops:
        return []
    premises = {question.prompt: question for hop in hops for question in hop.premises}
    heard: dict[str, Premise] = {}
    if premises:
        cases = [_premise(record, question) for question in premises.values()]
        replies = yield cases
        heard = dict(zip(premises, map(_heard, cases, replies), strict=True))
    asked = [_case(record, context, hop) for hop in hops]
    answers = yield asked
    return [_verdict(*each, heard) for each in zip(hops, asked, answers, strict=True)]


def _askable(record: Record) -> list[Hop]:
    """The hops that do not name their own answer, each prompt once."""
    hops: dict[str, Hop] = {}
    for hop in record.held_out.hops:
        wanted = isinstance(record, EditRecord) and hop.answer_new is None
        if not wanted and not any(names(hop.question.prompt, name) for name in (*_old(hop), *_new(hop))):
            hops.setdefault(hop.question.prompt, hop)
    return list(hops.values())


def _old(hop: Hop) -> tuple[str, ...]:
    return tuple(dict.fromkeys((hop.question.answer, *hop.question.aliases)))


def _new(hop: Hop) -> tuple[str, ...]:
    return () if hop.answer_new is None else tuple(dict.fromkeys((hop.answer_new, *hop.aliases_new)))


def _premise(record: Record, question: Question) -> Case:
    return Case(
        probe=PROBE,
        variant="premise",
        prompt=framed(question.prompt),
        expect=Expect.UNCHANGED,
        group=record.id,
        old=tuple(dict.fromkeys((question.answer, *question.aliases))),
        lexicon=lexicon_of(record, question.relation),
        relation=question.relation,
        stratum=question.stratum,
        base_only=True,
    )


def _heard(case: Case, answer: Answer) -> Premise:
    return Premise(case, answer.before, class_of(case, answer.before))


def _case(record: Record, context: Context, hop: Hop) -> Case:
    new = _new(hop) if isinstance(record, EditRecord) else ()
    return Case(
        probe=PROBE,
        variant=hop.kind,
        prompt=framed(hop.question.prompt),
        expect=Expect.HOLDS,
        group=record.id,
        old=_old(hop),
        new=new,
        contrast=new[:1] or _contrast(record, context, hop),
        lexicon=lexicon_of(record, hop.question.relation),
        relation=hop.question.relation,
        stratum=record.held_out.stratum,
    )


def _contrast(record: Record, context: Context, hop: Hop) -> tuple[str, ...]:
    """Objects like the one that must not be reached: of the range; where a subject is asked for, other subjects; where
    a consequence is, what is known of its relation, which may be nothing."""
    if hop.kind == CONSEQUENCE:
        pool = lexicon_of(record, hop.question.relation)
    elif hop.question.answer in old_names(record):
        pool = record.held_out.range
    else:
        pool = tuple(q.subject for q in record.held_out.neighborhood if q.relation == record.fact.relation)
    return sample_of(pool, _old(hop), dice(context, record, "contrast"))


def _verdict(hop: Hop, case: Case, answer: Answer, heard: Mapping[str, Premise]) -> Verdict:
    premises = {question.prompt: (question, heard[question.prompt]) for question in hop.premises}.values()
    notes = [
        f"premise {question.prompt!r} fails: {premise.reply.text or 'nothing'!r} instead of {question.answer!r}"
        for question, premise in premises
        if not premise.passed
    ]
    excluded = bool(notes and case.new)
    verdict = judge(case, answer, applies=not excluded, note="; ".join(notes))
    return replace(verdict, premises=tuple(premise for _, premise in premises))
