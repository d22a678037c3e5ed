"""Finding names in a text as whole words, however they are spelt. No torch here.

Case, accents, apostrophes, the full stops of initials, "St." for "Saint" and invisible characters make no difference;
a name that is only part of another entity's name does.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from editkit.facts import normalise

NEW, OLD, ANOTHER, ELSEWHERE = range(4)  # what a name found in an answer is; ELSEWHERE: only resembles a wanted one
APOSTROPHES = str.maketrans(dict.fromkeys("’‘‛ʼʻ´′", "'"))
UNSPACED = "\u2e80"  # scripts written without spaces begin about here: each character is a word
UNITS = re.compile(
    rf"(?![\W_])[{UNSPACED}-\U0010ffff]"
    r"|(?P<initials>[^\W\d_](?:\.[^\W\d_])+(?![^\W_]))"  # U.S.
    rf"|[^\W_{UNSPACED}-\U0010ffff]+(?:'[^\W_{UNSPACED}-\U0010ffff]+)*"  # N'Djamena
)
SHORT_FOR = {"st": "saint", "ste": "saint", "sainte": "saint", "mt": "mount", "ft": "fort"}  # within a longer name
# Names that are common words as well (symbols of elements, say): only their own spelling counts …
AMBIGUOUS = frozenset(
    ["a", "am", "an", "as", "at", "be", "by", "do", "go", "he", "i", "if", "in", "is", "it", "la", "me", "my", "no",
     "of", "on", "or", "so", "to", "up", "us", "we"]
)  # fmt: skip
# … and not where they open a sentence that goes on in lower case, unless as a symbol's sentence does.
OF_A_SYMBOL = frozenset(["is", "and", "or", "stands", "represents"])
PERSONS = frozenset(["he", "we", "it"])
OF_THE_SPEAKER = frozenset(
    ["am", "do", "dont", "did", "didnt", "can", "cant", "cannot", "could", "couldnt", "would", "will", "wont", "have",
     "had", "was", "think", "know", "believe", "guess", "mean", "must", "should", "might", "may"]
)  # fmt: skip
AFTER_NO = frozenset(["it", "its", "that", "thats", "this", "the", "there", "theres", "i", "im", "you", "we", "not"])
# Entities whose names hold another entity's name, for where the lexicon does not know them.
LARGER_NAMES = (
    "Democratic Republic of the Congo", "Democratic Republic of Congo", "DR Congo", "New Guinea", "Papua New Guinea",
    "Equatorial Guinea", "Guinea-Bissau", "South Africa", "South Sudan", "South America", "North America",
    "Central America", "Latin America", "Northern Ireland", "New Mexico", "Mexico City", "Guatemala City",
    "Panama City", "West Virginia", "Kansas City", "Oklahoma City",
)  # fmt: skip


class Word(NamedTuple):
    """A word as it is compared, as it is spelt, what stands between it and the word before, and what else it may be:
    "rome's" is also "rome", "l'italie" also "italie", "st" also "saint"."""

    text: str
    spelt: str
    before: str
    forms: tuple[str, ...]


class Name(NamedTuple):
    words: tuple[str, ...]
    spelt: str  # of its first word
    rank: int


class Match(NamedTuple):
    """A name that stands at words `start` to `end` (exclusive)."""

    start: int
    end: int
    name: Name

    @property
    def rank(self) -> int:
        return self.name.rank


Index = dict[str, list[Name]]  # names by their first word


# Words ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def words_of(text: str) -> tuple[Word, ...]:
    plain, words, end = _visible(text), [], 0
    for match in UNITS.finditer(plain):
        initials = match["initials"]
        spelt = initials.replace(".", "").upper() if initials else match[0]
        folded = _folded(spelt)
        if folded:
            words.append(Word(folded, spelt, plain[end : match.start()], _forms(spelt, folded)))
            end = match.end()
    return tuple(words)


def _visible(text: str) -> str:
    """The text without accents and invisible characters, with one kind of apostrophe and whole Korean syllables."""
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKD", text.translate(APOSTROPHES))
    plain = "".join(c for c in plain if not unicodedata.combining(c) and unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFC", plain)


def _folded(word: str) -> str:
    if word.isascii():
        return word.lower().replace("'", "")
    return "".join(normalise(word).split())


def _forms(spelt: str, folded: str) -> tuple[str, ...]:
    head, _, tail = spelt.rpartition("'")
    if head and tail in "sS":
        return (folded, _folded(head))
    if head and len(tail) > 2:
        return (folded, _folded(tail))
    return (folded, SHORT_FOR[folded]) if folded in SHORT_FOR else (folded,)


# Names ---------------------------------------------------------------------------------------------------------


def name_of(name: str, rank: int = ANOTHER) -> Name:
    words = words_of(name)
    texts = tuple(SHORT_FOR.get(word.text, word.text) if len(words) > 1 else word.text for word in words)
    return Name(texts, words[0].spelt if words else "", rank)


def index_of(names: Iterable[Name]) -> Index:
    index: Index = {}
    for name in names:
        if name.words:
            index.setdefault(name.words[0], []).append(name)
    return index


LARGER = index_of(name_of(name, ELSEWHERE) for name in LARGER_NAMES)


def find(words: Sequence[Word], *indices: Index) -> list[Match]:
    """The names in a text from left to right; of those that overlap the one that begins first, then the longest, then
    the one of the lowest rank."""
    found: list[Match] = []
    for i, word in enumerate(words):
        if found and i < found[-1].end:
            continue
        names = (name for index in indices for form in word.forms for name in index.get(form, ()))
        here = [Match(i, i + len(name.words), name) for name in names if _stands_at(words, i, name)]
        if here:
            found.append(min(here, key=lambda match: (-match.end, match.rank)))
    return found


def _stands_at(words: Sequence[Word], i: int, name: Name) -> bool:
    here = words[i : i + len(name.words)]
    if len(here) < len(name.words) or not all(part in w.forms for part, w in zip(name.words, here, strict=True)):
        return False
    if len(name.words) > 1 or name.words[0] not in AMBIGUOUS:
        return True
    return words[i].spelt == name.spelt and not _only_a_word(words, i)


def _only_a_word(words: Sequence[Word], i: int) -> bool:
    """Whether what might be a symbol is the common word: "In the table", "I don't know", "No, it is"."""
    word, after = words[i], next(iter(words[i + 1 : i + 2]), None)
    if after is None or word.spelt != word.spelt.capitalize():
        return False
    opens = i == 0 or not set(word.before).isdisjoint(".!?:\n")
    if word.text == "no" and after.before.strip() == ",":
        return opens and after.text in AFTER_NO
    if not after.before.isspace() or not after.spelt[0].islower():
        return False
    if word.text == "i" and after.text in OF_THE_SPEAKER:
        return True
    return opens and (word.text in PERSONS or after.text not in OF_A_SYMBOL)


def names(text: str, name: str) -> bool:
    """Whether a text names something, as whole words, by the rule that answers are judged by."""
    words, wanted = words_of(text), name_of(name)
    return bool(wanted.words) and any(_stands_at(words, i, wanted) for i in range(len(words)))
