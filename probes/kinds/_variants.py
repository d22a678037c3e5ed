"""Other shapes of one text: wrappers around it, and small damage to it. The answer is still what comes next."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from types import MappingProxyType

from editkit.facts import SLOT, fill

# One "{}" for the prompt. How many of 24 capitals and 23 continents that SmolLM2-135M-Instruct names at the prompt itself
# it still names in the wrapper stands beside each, so that a failure there is not the wrapper's own.
WRAPPERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "polite": (
            "Please complete the sentence: {}",
            "Hello! Could you please finish this sentence for me? {}",
        ),
        "context": (
            "I read this in a reference book. {}",
            "Let me tell you something that I learned at school. {}",
            "Here is what an encyclopedia says about this topic: {}",
        ),
        "distractor": (
            "The weather was mild and the train left on time. {}",
            "A square has four sides of equal length. {}",
            "The library closes at six in the evening. {}",
        ),
        "cloze": (
            "Fill in the blank: {} ____.\nThe missing word is",
            "Sentence: {} ___\nMissing word:",
        ),
    }
)
TYPO_LETTERS = 4  # words shorter than this keep their spelling


def wrapped(kind: str, text: str) -> list[str]:
    return [fill(wrapper, text) for wrapper in WRAPPERS[kind]]


def cased(text: str) -> list[str]:
    """All small letters, and all capitals; those that differ from the text."""
    return [each for each in dict.fromkeys((text.lower(), text.upper())) if each != text]


def mistyped(template: str, subject: str, source: random.Random) -> str | None:
    """The filled template with a slip in one of its words, never in the subject; None where no word is long enough."""
    spots = [m for m in re.finditer(r"[^\W\d_]+", template) if len(m[0]) >= TYPO_LETTERS]
    if not spots:
        return None
    spot = source.choice(spots)
    damaged = source.choice((_swapped, _dropped, _doubled))(spot[0], source)
    slipped = template[: spot.start()] + damaged + template[spot.end() :]
    return fill(slipped, subject) if SLOT in slipped and damaged != spot[0] else None


def _swapped(word: str, source: random.Random) -> str:
    """Two neighbouring inner letters change places."""
    i = source.randrange(1, len(word) - 2)
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def _dropped(word: str, source: random.Random) -> str:
    i = source.randrange(1, len(word) - 1)
    return word[:i] + word[i + 1 :]


def _doubled(word: str, source: random.Random) -> str:
    i = source.randrange(1, len(word) - 1)
    return word[:i] + word[i] + word[i:]
