"""Probes: what is asked about one changed fact. One file each.

A probe is a generator: it yields questions, is sent the answers of the unchanged and of the changed model, and at last
gives verdicts. It is seeded and never holds a model, so it can be tested with plain lists. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from editkit.attribute import WordScore
from editkit.facts import Question, Record
from editkit.registry import Registry
from probes.verdict import Answer, Case, Verdict

Attribution = Callable[[str, str], tuple[WordScore, ...]]
"""(prompt, answer) -> what each word of the prompt adds to the answer, on the unchanged model."""


def no_attribution(prompt: str, answer: str) -> tuple[WordScore, ...]:
    """Finds no key words."""
    return ()


@dataclass(frozen=True, slots=True)
class Context:
    """What a probe may use besides the record: the seed of all its choices, and who finds key words for it.

    `changed_too` are the other facts that the same model has had changed, by relation and subject: what they answer now
    is their own affair, and no neighbour that must stay.
    """

    seed: int = 0
    attribution: Attribution = no_attribution
    changed_too: frozenset[tuple[str, str]] = frozenset()

    def stays(self, question: Question) -> bool:
        """Whether nobody meant to change what a question asks."""
        return (question.relation, question.subject) not in self.changed_too


Rounds = Generator[list[Case], list[Answer], list[Verdict]]
"""Yields the questions of a round, is sent one answer each in the same order, returns the verdicts."""

Probe = Callable[[Record, Context], Rounds]

PROBES: Registry[Probe] = Registry("probe", "probes.kinds")
