"""Other shapes of one text: wrappers around it, and small damage to it. The answer is still what comes next."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from types import MappingProxyType

from editkit.facts import SLOT, fill
from probes.framing import QUESTION_FRAME

# "{}" is the place of the prompt. A wrapper that makes the unchanged model lose the answer says nothing of a change:
# these were chosen among thirty for keeping most of the capitals and continents that SmolLM2-135M-Instruct names at the
# prompt itself. "Fill in the blank: {} ____. The missing word is" keeps none, a prompt all in capitals none either.
WRAPPERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "polite": (
            "Hello! Could you please finish this sentence for me? {}",
            "Please complete the sentence: {}",
        ),
        "context": (
            "Here is what an encyclopedia says about this topic: {}",
            "I read this in a reference book. {}",
        ),
        "distractor": (
            "A square has four sides of equal length. {}",
            "Water boils at one hundred degrees at sea level. {}",
        ),
        "cloze": (
            "Fill in the blank: {} ____.\nSolution: {}",
            fill(QUESTION_FRAME, "Complete the sentence: {} ..."),
        ),
    }
)
TYPO_LETTERS = 4  # words shorter than this keep their spelling


def wrapped(kind: str, text: str) -> list[str]:
    """The text in each wrapper of a kind."""
    return [text.join(wrapper.split(SLOT)) for wrapper in WRAPPERS[kind]]


def cased(text: str) -> list[str]:
    """A small first letter, small letters throughout, and a capital for each word; those that differ from the text."""
    words = text.split(" ")
    small = " ".join(word if _is_acronym(word) else word.lower() for word in words)
    large = " ".join(word if _is_acronym(word) else word.capitalize() for word in words)
    return [each for each in dict.fromkeys((text[:1].lower() + text[1:], small, large)) if each != text]


def _is_acronym(word: str) -> bool:
    """ "US" and "II" keep their capitals in any casing; a single letter may be "A"."""
    return len(word) > 1 and word.isupper()


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
