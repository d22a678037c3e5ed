"""Demonstrations for in-context editing: what it looks like when a new fact holds and everything else stays.

The store below is written for editkit: common sense without a proper name, so that no demonstration gives away the
answer of a held-out question. An operator sees no paraphrase and no neighbor of its own edits, so none of these can
come from them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from editkit.errors import InputError
from editkit.facts import Example, check_filled
from editkit.tokens import join

FACT, PROMPT, GAP = "New Fact: ", "Prompt: ", "\n\n"
# 1 copy : 3 updates : 4 retained, the paper's shares, also of fewer than eight
CYCLE = ("retain", "update", "retain", "update", "retain", "update", "retain", "copy")


@dataclass(frozen=True, slots=True)
class Lesson:
    """A new fact (`target_new` is what follows `prompt`), other prompts for the same (`rewordings`), and facts of other
    subjects that stay (`others`)."""

    prompt: str
    target_new: str
    rewordings: tuple[str, ...]
    others: tuple[Example, ...]

    def __post_init__(self) -> None:
        for text in (self.prompt, self.target_new, *self.rewordings):
            check_filled(text, "a text of a lesson")

    def shown(self, kind: str) -> list[str]:
        """Its demonstrations of one kind: "copy", "update" or "retain"."""
        new = line(self.prompt, self.target_new)
        if kind == "copy":
            return [block(new, new)]
        if kind == "update":
            return [block(new, line(prompt, self.target_new)) for prompt in self.rewordings]
        return [block(new, line(other.prompt, other.completion)) for other in self.others]


def line(prompt: str, answer: str) -> str:
    """A prompt and its answer in one line: a line break would end the demonstration."""
    return " ".join(join(prompt, answer).split())


def block(new: str, told: str) -> str:
    """One demonstration: a new fact, and what is then said."""
    return f"{FACT}{new}\n{PROMPT}{told}{GAP}"


def drawn(lessons: Sequence[Lesson], number: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`number` different demonstrations in the order of a seed: (updates and retained ones, copies).

    Raises InputError where the lessons do not give so many.
    """
    rng = random.Random(seed)
    kinds = [CYCLE[place % len(CYCLE)] for place in range(number)]
    chosen: dict[str, list[str]] = {}
    for kind in ("copy", "update", "retain"):
        there = [shown for lesson in lessons for shown in lesson.shown(kind)]
        if kinds.count(kind) > len(there):
            raise InputError(
                f"{number} demonstrations need {kinds.count(kind)} of kind {kind!r} and the lessons give {len(there)}; "
                "ask for fewer, or give more lessons"
            )
        chosen[kind] = rng.sample(there, kinds.count(kind))
    rest = [*chosen["update"], *chosen["retain"]]
    rng.shuffle(rest)
    return tuple(rest), tuple(chosen["copy"])


def _lesson(prompt: str, target_new: str, rewordings: tuple[str, ...], *others: tuple[str, str]) -> Lesson:
    return Lesson(prompt, target_new, rewordings, tuple(Example(*other) for other in others))


LESSONS = (
    _lesson(
        "A ripe banana has the colour",
        "blue",
        ("The colour of a ripe banana is", "Look at the skin of a ripe banana: it is"),
        ("Fresh snow has the colour", "white"),
        ("The colour of grass is", "green"),
    ),
    _lesson(
        "A baby cat is called a",
        "calf",
        ("The word for a young cat is", "When a cat has young, each of them is a"),
        ("A baby dog is called a", "puppy"),
        ("The word for a young sheep is", "lamb"),
    ),
    _lesson(
        "The number of legs of a spider is",
        "twelve",
        ("How many legs does a spider have? It has", "Count the legs of a spider and you get"),
        ("The number of legs of a horse is", "four"),
        ("How many legs does an ant have? It has", "six"),
    ),
    _lesson(
        "A carpenter works with",
        "glass",
        ("The material of a carpenter is", "What does a carpenter work with?"),
        ("A baker works with", "flour"),
        ("What does a tailor work with?", "cloth"),
    ),
    _lesson(
        "The day after Monday is",
        "Friday",
        ("Monday is followed by", "If today is Monday, then tomorrow is"),
        ("The day after Saturday is", "Sunday"),
        ("January is followed by", "February"),
    ),
    _lesson(
        "The opposite of hot is",
        "loud",
        ("The word that means the reverse of hot is", "What is the opposite of hot?"),
        ("The opposite of tall is", "short"),
        ("What is the opposite of early?", "late"),
    ),
    _lesson(
        "Bees make",
        "silk",
        ("What bees make is", "What do bees make?"),
        ("Hens lay", "eggs"),
        ("What do cows give?", "milk"),
    ),
    _lesson(
        "A violin is played with a",
        "hammer",
        ("To play the violin you need a", "What a violinist holds in one hand is a"),
        ("A nail is cut with a", "pair of scissors"),
        ("To eat soup you need a", "spoon"),
    ),
)
