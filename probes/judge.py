"""What an answer is and whether it is what the case demands: by rule, never by a judge model. No torch here.

The classes follow methods.md 1.5. Only the first sentence of an answer counts, since a small model wanders off after
it; what the answer itself dismisses ("not Paris but Rome") is no answer, as in Ma et al. 2024 (arXiv:2402.05827).
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from editkit.facts import normalise
from probes.verdict import Answer, Case, Class, Expect, Marks, Reply, Verdict

REPEATED = 0.6  # above this share of repeated words a text is babble: any phrase said three times
BABBLE = 12  # letters from which a single word is looked into for repetition
KNIFE_EDGE = 1e-4  # nats; another batch shape may move a mean log-probability by some 1e-6
UNSPACED = "\u2e80"  # scripts written without spaces begin about here: names are looked for inside words
# Names (of chemical elements, say) that are common words in lower case: only their own spelling counts.
AMBIGUOUS = frozenset(
    ["a", "am", "an", "as", "at", "be", "by", "do", "go", "he", "i", "if", "in", "is", "it", "la", "me", "my", "no",
     "of", "on", "or", "so", "to", "up", "us", "we"]
)  # fmt: skip
ABBREVIATED = r"(?<!\b\w)(?<!\bst)(?<!\bmt)(?<!\bft)(?<!\bdr)(?<!\bmr)(?<!\bms)(?<!\bmrs)(?<!\bjr)(?<!\bno)"
SENTENCE_END = re.compile(rf"{ABBREVIATED}\.(?=\s|$)|[!?](?=\W|$)|[。！？\n]", re.IGNORECASE)
FILLERS = frozenset(
    ["yes", "sure", "of course", "certainly", "ok", "okay", "well", "hello", "hi", "answer", "the answer",
     "good question", "great question"]
)  # fmt: skip
DISMISSALS = tuple(
    tuple(phrase.split())
    for phrase in ("not", "isn t", "wasn t", "never", "no longer", "instead of", "rather than", "unlike")
)
RESUMPTIONS = frozenset(("but", "is", "was", "it"))
DENIED_AFTER = tuple(tuple(phrase.split()) for phrase in ("is not", "isn t", "was not", "wasn t", "is no longer"))
REFUSALS = re.compile(
    r"\b(i (do not|don t|can t|cannot|could not|couldn t) (really |actually )?"
    r"(know|say|tell|answer|recall|remember|help|provide|find)"
    r"|(nobody|no one|noone) (really )?knows|not (yet )?known|unknown|i (am|m) (not sure|sorry|unable|unsure)"
    r"|i have no (idea|information|knowledge)|(don t|do not) have (any |enough )?(information|knowledge|data)"
    r"|no (information|idea|answer)|as an ai|not (allowed|able) to)\b"
)


class _Word(NamedTuple):
    """A word of an answer as it is compared, as it is spelt, and whether a clause ends before it."""

    text: str
    spelt: str
    after_break: bool


# Sentences and words -------------------------------------------------------------------------------------------


def first_sentence(text: str) -> str:
    """The first sentence or line that says something; "St.", initials and "D.C." end no sentence."""
    begin = 0
    for end in (*(match.end() for match in SENTENCE_END.finditer(text)), len(text)):
        sentence = text[begin:end].strip()
        if normalise(sentence) and normalise(sentence) not in FILLERS:
            return sentence
        begin = end
    return text.strip()


def said_enough(text: str) -> bool:
    """Whether more text cannot change the class: the first sentence is over, and what follows begins a new thought.

    A text that begins to repeat itself is let go on, so that babble is seen as such.
    """
    first = first_sentence(text)
    rest = normalise(text.strip()[len(first) :]).split()
    if not rest or not text.strip().startswith(first):
        return False
    said = (*normalise(first).split(), *rest[:-1])
    return not any(word.startswith(rest[-1]) for word in said)  # the last word may still be growing


def _words(text: str) -> list[_Word]:
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    words: list[_Word] = []
    after_break = False
    for match in re.finditer(r"[^\W_]+|[,;:]", plain):
        parts = normalise(match[0]).split()
        words += [_Word(part, match[0], after_break and i == 0) for i, part in enumerate(parts)]
        after_break = not parts
    return words


def _key(name: str) -> tuple[str, ...]:
    """A name's words, split and folded just as an answer's are."""
    return tuple(word.text for word in _words(name))


def repeats_itself(text: str) -> bool:
    """Whether more than 60 % of the words, or of the letter triples of one long word, were said before."""
    words = normalise(text).split()
    long = [word for word in words if len(word) >= BABBLE]
    triples = ([word[i : i + 3] for i in range(len(word) - 2)] for word in long)
    return any(_repeated(units) > REPEATED for units in (words, *triples))


def _repeated(units: Sequence[str]) -> float:
    return 1 - len(set(units)) / len(units) if units else 0.0


# Names in an answer --------------------------------------------------------------------------------------------


class _Name(NamedTuple):
    words: tuple[str, ...]
    spelt: str
    rank: int  # 0 new, 1 old, 2 another entity


class _Match(NamedTuple):
    start: int
    length: int
    rank: int
    name: _Name


@functools.lru_cache(maxsize=256)
def _entities(names: tuple[str, ...]) -> dict[str, list[_Name]]:
    return _by_first_word(_Name(_key(name), name, 2) for name in names)


def _by_first_word(names: Iterable[_Name]) -> dict[str, list[_Name]]:
    index: dict[str, list[_Name]] = {}
    for name in names:
        if name.words:
            index.setdefault("" if name.spelt[0] >= UNSPACED else name.words[0], []).append(name)
    return index


def _at(words: Sequence[_Word], i: int, name: _Name) -> bool:
    """Whether the name stands at word `i`, whole; inside the word for scripts that put no spaces."""
    if name.spelt[0] >= UNSPACED:
        return all(any(part in w.text for w in words[i : i + len(name.words)]) for part in name.words)
    if tuple(word.text for word in words[i : i + len(name.words)]) != name.words:
        return False
    return len(name.words) > 1 or name.words[0] not in AMBIGUOUS or words[i].spelt == name.spelt


def _matches(words: Sequence[_Word], indices: Sequence[dict[str, list[_Name]]]) -> list[_Match]:
    """The names of an answer from left to right; of those that overlap the one that begins first, then the longest."""
    found: list[_Match] = []
    free = 0
    for i, word in enumerate(words):
        here = [
            _Match(i, len(name.words), name.rank, name)
            for index in indices
            for key in (word.text, "")
            for name in index.get(key, ())
            if i >= free and _at(words, i, name)
        ]
        if here:
            found.append(min(here, key=lambda match: (-match.length, match.rank)))
            free = i + found[-1].length
    return found


def _dismissed(words: Sequence[_Word], *, to_clause_end: bool) -> list[bool]:
    """Per word whether it is dismissed: it follows "not", "instead of" … up to where the sentence takes up again."""
    flags, off = [], False
    for i, word in enumerate(words):
        if off and (word.text in RESUMPTIONS or (to_clause_end and word.after_break)):
            off = False
        off = off or _starts_with(words, i, DISMISSALS)
        flags.append(off)
    return flags


def _starts_with(words: Sequence[_Word], i: int, phrases: Iterable[tuple[str, ...]]) -> bool:
    return any(tuple(word.text for word in words[i : i + len(phrase)]) == phrase for phrase in phrases)


def _asserted(words: Sequence[_Word], matches: Iterable[_Match]) -> list[_Match]:
    """The names that the answer stands by. For the old answer all that follows a dismissal goes, else its clause."""
    widely, narrowly = _dismissed(words, to_clause_end=False), _dismissed(words, to_clause_end=True)
    return [
        match
        for match in matches
        if not (widely if match.rank == 1 else narrowly)[match.start]
        and not _starts_with(words, match.start + match.length, DENIED_AFTER)
    ]


def names(text: str, name: str) -> bool:
    """Whether a text names something, as whole words, by the rule that answers are judged by."""
    words, wanted = _words(text), _Name(_key(name), name, 2)
    return bool(wanted.words) and any(_at(words, i, wanted) for i in range(len(words)))


def classify(
    text: str, *, old: Sequence[str], new: Sequence[str] = (), lexicon: Sequence[str] = (), prompt: str = ""
) -> Class:
    """What a generated answer is. `old` and `new` are accepted spellings, `lexicon` the entities of the range.

    Degenerate text is that and nothing else, whatever it names. Of the new and the old answer the one that comes first
    counts; an entity that the prompt already names is no hallucination.
    """
    if not normalise(text) or repeats_itself(text):
        return Class.DEGENERATE
    sentence = first_sentence(text)
    words = _words(sentence)
    wanted = [_Name(_key(n), n, rank) for rank, names in enumerate((new, old)) for n in names]
    given = _asserted(words, _matches(words, (_by_first_word(wanted), _entities(tuple(lexicon)))))
    for match in given:
        if match.rank < 2:
            return (Class.NEW, Class.OLD)[match.rank]
    asked = _words(prompt)
    if any(not any(_at(asked, i, match.name) for i in range(len(asked))) for match in given):
        return Class.HALLUCINATION
    return Class.REFUSAL if REFUSALS.search(normalise(sentence)) else Class.OTHER


def class_of(case: Case, reply: Reply) -> Class:
    """The class of a reply to a case."""
    return classify(reply.text, old=case.old, new=case.new, lexicon=case.lexicon, prompt=case.prompt)


# Marks and verdicts --------------------------------------------------------------------------------------------


def margin_of(case: Case, reply: Reply) -> float | None:
    """How far the reply is ahead by probability, nats per token; higher is what the case demands.

    New minus old for an edit; best contrast minus old for forgetting; old minus best contrast for what must stay.
    None where there is nothing to compare with, or a log-probability is no number.
    """
    others = case.new[:1] or case.contrast
    if not others or case.old[0] not in reply.logprob or any(other not in reply.logprob for other in others):
        return None
    ahead = max(reply.logprob[other] for other in others) - reply.logprob[case.old[0]]
    if not math.isfinite(ahead):
        return None
    return -ahead if case.expect is Expect.UNCHANGED else ahead


def _argmax(case: Case, reply: Reply) -> bool | None:
    wanted = case.new[0] if case.new and case.expect is not Expect.UNCHANGED else case.old[0]
    hit = reply.argmax.get(wanted)
    if hit is None or case.new or case.expect is Expect.UNCHANGED:
        return hit
    return not hit


def _generation(case: Case, cls: Class) -> bool:
    if case.expect is Expect.UNCHANGED:
        return cls is Class.OLD
    if case.new:
        return cls is Class.NEW
    return cls not in (Class.OLD, Class.DEGENERATE)


def mark(case: Case, reply: Reply, cls: Class) -> Marks:
    """One reply under the three protocols. A `MOVES` case is marked like `HOLDS`: True is that the change stands.

    A knife-edge margin, which another batch shape might turn, is no mark.
    """
    margin = margin_of(case, reply)
    contrast = None if margin is None or abs(margin) < KNIFE_EDGE else margin > 0
    return Marks(contrast, _argmax(case, reply), _generation(case, cls))


def judge(case: Case, answer: Answer, *, applies: bool = True, note: str = "") -> Verdict:
    """The verdict on a case. What must stay but was not written rightly before does not apply."""
    before, after = class_of(case, answer.before), class_of(case, answer.after)
    margin = margin_of(case, answer.after)
    notes = [case.note, note]
    if case.expect is Expect.UNCHANGED and before is not Class.OLD:
        applies = False
        notes.append(f"not right before the change ({before.value})")
    if margin is not None and abs(margin) < KNIFE_EDGE:
        notes.append("knife-edge")
    return Verdict(
        case=case,
        answer=answer,
        before=mark(case, answer.before, before),
        after=mark(case, answer.after, after),
        class_before=before,
        class_after=after,
        margin_before=margin_of(case, answer.before),
        margin_after=margin,
        applies=applies,
        note="; ".join(dict.fromkeys(filter(None, notes))),
    )
