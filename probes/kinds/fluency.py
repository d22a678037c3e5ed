"""Does the model still write language after the change?

Texts of fifty tokens go on from the fact's own prompt and from another wording, each token drawn among the five
likeliest, as the authors of ROME draw theirs (Meng et al. 2022, arXiv:2202.05262, section 3.3: a hundred tokens, from
prompts about the subject's properties). What the text says first is judged like any answer; how varied it is, is told
by the metric `fluency`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from editkit.facts import Record, fill
from probes.framing import framed
from probes.kinds import PROBES, Context, Rounds
from probes.kinds._cases import about_fact, leaks, one_round

PROBE = "fluency"
TOKENS = 50


@PROBES.register(PROBE)
def fluency(record: Record, context: Context) -> Rounds:
    """At most two cases, variants "plain" and "paraphrase"; the seed of the context draws the texts."""
    return one_round(
        [
            replace(about_fact(record, context, probe=PROBE, variant=variant, prompt=prompt), free=TOKENS)
            for variant, prompt in _prompts(record)
        ]
    )


def _prompts(record: Record) -> Iterator[tuple[str, str]]:
    own = record.fact.text
    yield "plain", own
    others = (framed(fill(template, record.fact.subject)) for template in record.held_out.paraphrases)
    usable = (text for text in others if text != own and not leaks(record, text))
    yield from (("paraphrase", text) for text in [next(usable, "")] if text)
