"""Does the change hold when the same thing is asked in another way?

Held-out paraphrases and questions, and the prompt itself as a cloze, politely, after some context, after an unrelated
sentence, in other letters and with slips of the pen (attack groups of Ma et al. 2024,
arXiv:2402.05827, by rule and seeded). A fact that brings no paraphrases is asked in the wrappers alone. No prompt names
the old or the new object, unless the fact's own prompt does.
"""

from __future__ import annotations

from collections.abc import Iterator

from editkit.facts import Record, fill
from probes.framing import framed
from probes.kinds import PROBES, Context, Rounds
from probes.kinds._cases import about_fact, dice, each_prompt_once, leaks, one_round
from probes.kinds._variants import WRAPPERS, cased, mistyped, wrapped

PROBE = "rephrase"
TYPOS = 1  # prompts with a slip
TRIES = 8


@PROBES.register(PROBE)
def rephrase(record: Record, context: Context) -> Rounds:
    """One case a wording; variants "paraphrase", "question", "polite", "context", "distractor", "cloze", "casing",
    "typo"."""
    cases = [
        about_fact(record, context, probe=PROBE, variant=variant, prompt=framed(text))
        for variant, text in _wordings(record, context)
        if text != record.fact.text and not leaks(record, text)
    ]
    return one_round(each_prompt_once(cases))


def _wordings(record: Record, context: Context) -> Iterator[tuple[str, str]]:
    fact, held_out = record.fact, record.held_out
    for variant, templates in (("paraphrase", held_out.paraphrases), ("question", held_out.questions)):
        yield from ((variant, fill(template, fact.subject)) for template in templates)
    for variant in WRAPPERS:
        yield from ((variant, text) for text in wrapped(variant, fact.text))
    yield from (("casing", text) for text in cased(fact.text))
    yield from (("typo", text) for text in _typos(record, context))


def _typos(record: Record, context: Context) -> list[str]:
    source = dice(context, record, "typos")
    tries = (mistyped(record.fact.prompt, record.fact.subject, source) for _ in range(TRIES))
    return list(dict.fromkeys(text for text in tries if text is not None))[:TYPOS]
