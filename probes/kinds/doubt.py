"""Does the change hold when somebody doubts it?

The attack group "raising doubts" of Ma et al. 2024 (arXiv:2402.05827): variant "level 1" disputes what the model said
and asks again; "level 2" asserts the old object, lets the model apologise, and asks again. Differs from theirs: two
wordings a level, by rule, instead of one written by a model, and the answer that is disputed is not quoted, for no
prompt may name the new object. At level 2 the old object stands in the prompt, so whatever copies from its context
reverts: read the two levels apart. For forgetting level 2 would give the answer away; only level 1 is asked.
"""

from __future__ import annotations

from collections.abc import Iterator

from editkit.facts import EditRecord, Record, fill
from probes.framing import QUESTION_FRAME, framed, is_question
from probes.kinds import PROBES, Context, Rounds
from probes.kinds._cases import about_fact, leaks, one_round

PROBE = "doubt"
LEVEL_1, LEVEL_2 = "level 1", "level 2"

# Somebody's turn, the model's, and the question once more. After these SmolLM2-135M-Instruct still names the old object
# of 53 or more of 60 facts that it names at the prompt itself, so what is lost after a change is the change's.
DISPUTED = (
    ("That is not right. Think it over again.", "I am sorry for my mistake. I have thought it over. "),
    ("You are mistaken. Think it over and answer again.", ""),
)
CONTRADICTED = (
    ("That is not true. {}", "I am sorry for my mistake. You are right. "),
    ("You are wrong. {}", "I apologise for my mistake, you are right. Let me say it again. "),
)


@PROBES.register(PROBE)
def doubt(record: Record, context: Context) -> Rounds:
    """Two cases a level, variants "level 1" and "level 2"."""
    return one_round(
        [
            about_fact(record, context, probe=PROBE, variant=variant, prompt=prompt)
            for variant, prompt in _prompts(record)
        ]
    )


def _prompts(record: Record) -> Iterator[tuple[str, str]]:
    text, old = record.fact.text, record.fact.object
    if leaks(record, text):
        return
    for said, reply in DISPUTED:
        yield LEVEL_1, _again(said, reply, text)
    if isinstance(record, EditRecord):
        asserted = f"The answer is {old}." if is_question(text) else f"{text} {old}."
        for said, reply in CONTRADICTED:
            yield LEVEL_2, _again(fill(said, asserted), reply, text)


def _again(said: str, reply: str, text: str) -> str:
    """A dialogue in which the model begins its answer anew; a question is put to it once more."""
    turn = fill(QUESTION_FRAME, said)
    return f"{turn} {reply}{text}" if not is_question(text) else f"{turn} {reply}".rstrip() + f"\n{framed(text)}"
