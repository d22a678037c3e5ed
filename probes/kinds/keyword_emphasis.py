"""Does stressing the key words of the prompt bring the old answer back?

After unPact (arXiv:2509.24675): the key words are those whose absence makes the answer less likely on the unchanged
model; a prompt that stresses them may recover what was thought forgotten. Their wordings are not public: these are our
own, function words are no key words here, and the subject is stressed as a whole. Two controls that the paper lacks are
asked in the same wordings: as many random words that are no key words ("control:random_words:topic" …), and the bare
template ("control:template_only:topic" …). The random words are content words of the prompt, then neutral ones, so that
the arms differ in what the words mean for the answer and not in whether they mean anything. The answer, old or new,
never enters a prompt: a wording that would name it is left out in all three arms; a record whose own prompt names it is
not asked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from editkit.attribute import Word, key_words, words_of
from editkit.facts import SLOT, Record
from probes.kinds import PROBES, Context, Rounds
from probes.kinds._cases import about_fact, dice, names_answer, one_round
from probes.kinds._emphasis import FUNCTION_WORDS, IN_PLACE, NEUTRAL, WORDINGS, content_words
from probes.verdict import Case, Expect

PROBE = "keyword_emphasis"


@PROBES.register(PROBE)
def keyword_emphasis(record: Record, context: Context) -> Rounds:
    """The plain prompt, six wordings around the key words, and as many of each control; `note` lists the words."""
    prompt = record.fact.text
    if names_answer(record, prompt):
        return []
    keys = _whole_subject(record, key_words(content_words(context.attribution(prompt, record.fact.object))))
    cases = [_case(record, context, "plain", prompt, keys)]
    if keys:
        cases += _stressed(record, context, keys)
    return (yield from one_round(cases))


def _stressed(record: Record, context: Context, keys: Sequence[Word]) -> Iterator[Case]:
    prompt = record.fact.text
    for name, wording in WORDINGS.items():
        source = dice(context, record, f"random words/{name}")
        others = _random_words(record, keys, source, in_place=name in IN_PLACE)
        prompts = [wording(prompt, words) for words in (keys, others, ())]
        if any(names_answer(record, each) for each in prompts):
            continue
        yield _case(record, context, f"key:{name}", prompts[0], keys)
        yield _case(record, context, f"control:random_words:{name}", prompts[1], others)
        yield _case(record, context, f"control:template_only:{name}", prompts[2], ())


def _whole_subject(record: Record, words: Sequence[Word]) -> tuple[Word, ...]:
    """The words, those within the subject taken together as the subject."""
    subject, start = record.fact.subject, record.fact.prompt.index(SLOT)
    whole = Word(subject, start, start + len(subject))
    return tuple(dict.fromkeys(whole if w.start < whole.stop and w.stop > start else w for w in words))


def _random_words(record: Record, keys: Sequence[Word], source: random.Random, *, in_place: bool) -> tuple[Word, ...]:
    """As many words that are no key words: content words of the prompt, in its order, then neutral ones.

    A wording that marks words where they stand has no place for neutral ones: function words come before them.
    """
    prompt = record.fact.text
    stressed = {word.text.casefold() for word in keys}
    others = [word for word in _whole_subject(record, words_of(prompt)) if word.text.casefold() not in stressed]
    wanted = len(stressed)
    content = [word for word in others if word.text.casefold() not in FUNCTION_WORDS]
    drawn = source.sample(content, min(wanted, len(content)))
    if in_place:
        rest = [word for word in others if word not in content]
        drawn += source.sample(rest, min(wanted - len(drawn), len(rest)))
    drawn.sort(key=lambda word: word.start)
    neutral = [each for each in NEUTRAL if each not in prompt.casefold() and not names_answer(record, each)]
    missing = source.sample(neutral, min(wanted - len(drawn), len(neutral)))
    return (*drawn, *(Word(each, len(prompt), len(prompt)) for each in missing))


def _case(record: Record, context: Context, variant: str, prompt: str, words: Sequence[Word]) -> Case:
    if names_answer(record, prompt):
        raise ValueError(f"the answer of {record.id!r} stands in {prompt!r}; a stressed prompt must not name it")
    stressed = ", ".join(dict.fromkeys(word.text for word in words))
    case = about_fact(record, context, probe=PROBE, variant=variant, prompt=prompt, expect=Expect.MOVES)
    return replace(case, note=f"words: {stressed}" if stressed else "")
