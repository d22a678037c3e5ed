"""What an answer is and whether it is what the case demands: by rule, never by a judge model. No torch here.

The classes follow methods.md 1.5. Only the first sentence of an answer counts, since a small model wanders off after
it. Where something must be said, the first entity that the answer stands by is the answer; what it dismisses itself
("not Paris but Rome") is none, as in Ma et al. 2024 (arXiv:2402.05827). Where something must not be said, any mention
gives it away.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence

from editkit.facts import normalise
from probes.names import ANOTHER, LARGER, NEW, OLD, Index, Match, Word, find, index_of, name_of, names, words_of
from probes.verdict import Answer, Case, Class, Expect, Marks, Reply, Verdict

__all__ = ["class_of", "classify", "first_sentence", "judge", "margin_of", "mark", "names", "said_enough"]

REPEATED = 0.6  # above this share of repeated words a text is babble: any phrase said three times
BABBLE = 12  # letters from which a single word is looked into for repetition
KNIFE_EDGE = 1e-4  # nats; another batch shape may move a mean log-probability by some 1e-6
ABBREVIATED = r"(?<!\b\w)(?<!\bst)(?<!\bste)(?<!\bmt)(?<!\bft)(?<!\bdr)(?<!\bmr)(?<!\bms)(?<!\bmrs)(?<!\bjr)(?<!\bno)"
DENIAL = r"(?:no|nope|not|wrong|never)\b"
# A question that is denied at once ("Paris? No, Rome.") is one sentence with what follows.
SENTENCE_END = re.compile(rf"{ABBREVIATED}\.(?=\s|$)|!(?=\W|$)|\?(?=\W|$)(?!\W*{DENIAL})|[。！？\n]", re.IGNORECASE)
FILLERS = frozenset(
    ["yes", "sure", "of course", "certainly", "ok", "okay", "well", "hello", "hi", "answer", "the answer",
     "good question", "great question"]
)  # fmt: skip
# The patterns below read words as they are compared, with "," for each break of a clause and "?" for each question.
BREAK = re.compile(r"[,;:()\[\]!—–、]|\.\.|\s-+\s|--")
ONLY = r"(?! (?:only|just|merely|simply)\b)"
CANNOT_BE = r"(?:cannot|cant|couldnt|wont|wouldnt|shouldnt) (?:be|have been)"
# From here on a clause dismisses what it names, up to its end or to where it takes up again.
OPENINGS = (
    rf"(?:not|isnt|wasnt|arent|never|no longer|{CANNOT_BE})\b{ONLY}",
    r"(?:(?:dont|do not|didnt|did not) (?:think|believe)|(?:i|we) doubt)\b(?: that\b)?(?: its?\b)?(?: is\b| was\b)?",
    r"(?:instead of|rather than|as opposed to|other than|unlike|(?:any|every)thing but|all but)\b",
    r"(?:neither\b.*? nor|neither|nor|formerly|previously|once(?! again)|used to be)\b",
)
ASIDE = r"(?: , (?:as|contrary|despite|however|of course)\b[^,?]* ,)?"
DISMISSED = re.compile(
    rf"\b(?P<opening>{'|'.join(OPENINGS)}){ASIDE}[^,?]*?(?=$| [,?]| (?:but|is|its?|was|now)\b)"
    rf"|^.*(?= (?:\? {DENIAL}|, (?:no|nope|wait|sorry) ,))"  # "Paris? No", "Paris, no, Rome"
)
DENIED_AFTER = re.compile(
    rf" (?:(?:(?:is|was|are) (?:not|never|no longer)|isnt|wasnt|arent|{CANNOT_BE})\b{ONLY}"
    r"|(?:is|was|would be) (?:the |an? )?(?:wrong|incorrect|false|mistaken|untrue|former|previous)\b"
    r"|(?:(?:was )?(?:formerly|previously|once)|used to be) (?:the|its|their)\b|until\b)"
)
REFUSALS = re.compile(
    r"\b(i (do not|dont|cant|cannot|can not|could not|couldnt|wont|will not) (really |actually )?"
    r"(know|say|tell|answer|recall|remember|help|provide|find|share|disclose|reveal|comment|discuss)"
    r"|(nobody|no one|noone) (really )?knows|unknown|undisclosed|not ((yet|publicly|been) )*(known|disclosed)"
    r"|(i am|im) (not sure|sorry|unable|unsure)|(prefer|rather) not"
    r"|(its|it is|remains) (not ((yet|entirely|fully) )?clear|unclear)|there(s| is| was| are) no(?! (doubt|question)\b)"
    r"|i have no (idea|information|knowledge)|(dont|do not) have (any |enough )?(information|knowledge|data)"
    r"|no (information|idea|answer|comment)|as an ai|not (allowed|able) to)\b|^n a\b"
)


# Sentences -----------------------------------------------------------------------------------------------------


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

    A text that begins to repeat itself is let go on, so that babble is seen as such; after a question one whole word is
    waited for, which may deny it.
    """
    first = first_sentence(text)
    rest = normalise(text.strip()[len(first) :]).split()
    if len(rest) < (2 if first.endswith("?") else 1) or not text.strip().startswith(first):
        return False
    said = (*normalise(first).split(), *rest[:-1])
    return not any(word.startswith(rest[-1]) for word in said)  # the last word may still be growing


def repeats_itself(text: str) -> bool:
    """Whether more than 60 % of the words, or of the letter triples of one long word, were said before."""
    words = normalise(text).split()
    long = [word for word in words if len(word) >= BABBLE]
    triples = ([word[i : i + 3] for i in range(len(word) - 2)] for word in long)
    return any(_repeated(units) > REPEATED for units in (words, *triples))


def _repeated(units: Sequence[str]) -> float:
    return 1 - len(set(units)) / len(units) if units else 0.0


# What an answer stands by --------------------------------------------------------------------------------------


def _asserted(words: Sequence[Word], found: Sequence[Match]) -> list[Match]:
    """The names that the answer neither dismisses nor denies."""
    line, starts = _line(words)
    spans = [(match.start("opening"), match.end()) for match in DISMISSED.finditer(line)]  # -1 without an opening
    return [
        match
        for match in found
        if not any(begin < starts[match.start] < end for begin, end in spans)
        and not DENIED_AFTER.match(line, starts[match.end - 1] + len(words[match.end - 1].text))
    ]


def _line(words: Sequence[Word]) -> tuple[str, list[int]]:
    """The words and their breaks as one text, and where in it each word begins."""
    line, starts = "", []
    for word in words:
        if line:
            line += " ? " if "?" in word.before else " , " if BREAK.search(word.before) else " "
        starts.append(len(line))
        line += word.text
    return line, starts


def _decisive(words: Sequence[Word], found: Sequence[Match], prompt: str) -> Match | None:
    """The first asserted name that does not merely come from the prompt; failing that, the first wanted one."""
    given = [match for match in _asserted(words, found) if match.rank <= ANOTHER]
    asked = words_of(prompt) if given else ()
    fresh = (match for match in given if not (_repeats if match.rank < ANOTHER else _named)(asked, words, match))
    return next(fresh, None) or next((match for match in given if match.rank < ANOTHER), None)


def _named(asked: Sequence[Word], _: Sequence[Word], match: Match) -> bool:
    return any(each.name is match.name for each in find(asked, index_of([match.name]), LARGER))


def _repeats(asked: Sequence[Word], words: Sequence[Word], match: Match) -> bool:
    """Whether a name comes in the prompt's own words: "the capital of Luxembourg" where that was asked for."""
    said = [word.text for word in words[max(0, match.start - 2) : match.end]]
    return match.start > 1 and any(
        [word.text for word in asked[i : i + len(said)]] == said for i in range(len(asked) - len(said) + 1)
    )


# Classes -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _wanted(new: tuple[str, ...], old: tuple[str, ...]) -> Index:
    return index_of(name_of(name, rank) for rank, names in ((NEW, new), (OLD, old)) for name in names)


@functools.lru_cache(maxsize=256)
def _entities(lexicon: tuple[str, ...]) -> Index:
    return index_of(name_of(name, ANOTHER) for name in lexicon)


def classify(
    text: str,
    *,
    old: Sequence[str],
    new: Sequence[str] = (),
    lexicon: Sequence[str] = (),
    prompt: str = "",
    forget: bool = False,
) -> Class:
    """What a generated answer is. `old` and `new` are accepted spellings, `lexicon` the entities of the range.

    Degenerate text is that and nothing else, whatever it names. Otherwise the first entity that the answer stands by,
    and that the prompt does not name already, counts: new, old, or another (a hallucination). To `forget` the old
    answer is stricter: any mention of it counts, dismissed or hedged as it may be.
    """
    if not normalise(text) or repeats_itself(text):
        return Class.DEGENERATE
    words = words_of(first_sentence(text))
    found = find(words, _wanted(tuple(new), tuple(old)), _entities(tuple(lexicon)), LARGER)
    if forget and any(match.rank == OLD for match in found):
        return Class.OLD
    decisive = _decisive(words, found, prompt) if found else None
    if decisive is not None:
        return (Class.NEW, Class.OLD, Class.HALLUCINATION)[decisive.rank]
    return Class.REFUSAL if REFUSALS.search(" ".join(word.text for word in words)) else Class.OTHER


def class_of(case: Case, reply: Reply) -> Class:
    """The class of a reply to a case; what has no new answer, and must not stay as it is, is to be forgotten."""
    forget = not case.new and case.expect is not Expect.UNCHANGED
    return classify(reply.text, old=case.old, new=case.new, lexicon=case.lexicon, prompt=case.prompt, forget=forget)


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
    """The verdict on a case. What must stay, or must go, but was not written before the change does not apply."""
    before, after = class_of(case, answer.before), class_of(case, answer.after)
    margin = margin_of(case, answer.after)
    notes = [case.note, note]
    if case.expect is Expect.UNCHANGED and before is not Class.OLD:
        applies = False
        notes.append(f"not right before the change ({before.value})")
    if case.forgotten and before is not Class.OLD:
        applies = False
        only_after = ", but after it" if after is Class.OLD else ""
        notes.append(f"the answer is not given before the change ({before.value}){only_after}")
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
