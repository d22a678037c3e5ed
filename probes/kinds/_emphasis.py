"""Wordings that stress words of a prompt. Each ends with the prompt itself, so that the answer comes next.

Given no words, a wording is its bare template: everything that it says but the words themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from editkit.attribute import Word, WordScore

# Words that carry nothing, for a control where the prompt has too few words that are not key words.
NEUTRAL = (
    "table",
    "letter",
    "often",
    "window",
    "seven",
    "music",
    "paper",
    "green",
    "morning",
    "chair",
    "softly",
    "basket",
)

# Never key words: a cloze that loses its last "of" or "is" breaks, so these would count highest.
FUNCTION_WORDS = frozenset(
    ["a", "an", "the", "this", "that", "it", "its", "and", "or", "but", "of", "in", "on", "at", "by", "to", "from",
     "with", "for", "as", "into", "is", "are", "was", "were", "be", "been", "has", "have", "had", "do", "does", "did",
     "which", "what", "who", "whose", "where", "when", "how", "there", "here", "you", "he", "she", "they", "we", "i"]
)  # fmt: skip


def content_words(scores: Sequence[WordScore]) -> tuple[WordScore, ...]:
    """The scores without those of function words; all of them where nothing helpful would be left."""
    kept = tuple(each for each in scores if each.word.text.casefold() not in FUNCTION_WORDS)
    return kept if any(each.score > 0 for each in kept) else tuple(scores)


def _listed(words: Sequence[Word], *, times: int = 1) -> str:
    """A colon and the words, each word once, the list as many times as asked for; nothing for no words."""
    once = ", ".join(dict.fromkeys(word.text for word in words))
    return ": " + "; ".join([once] * times) if once else ""


def _marked(prompt: str, words: Sequence[Word], mark: Callable[[str], str]) -> str:
    """The prompt with the words changed where they stand; words that stand nowhere in it are left out."""
    for word in sorted(words, key=lambda each: each.start, reverse=True):
        if word.stop > word.start:
            piece = prompt[word.start : word.stop].replace(word.text, mark(word.text), 1)
            prompt = prompt[: word.start] + piece + prompt[word.stop :]
    return prompt


def leading(prompt: str, words: Sequence[Word]) -> str:
    return f"Pay close attention to these words{_listed(words)}.\n{prompt}"


def reminder(prompt: str, words: Sequence[Word]) -> str:
    return f"{prompt} ...\nReminder: mind the words that matter{_listed(words)}.\n{prompt}"


def repeated(prompt: str, words: Sequence[Word]) -> str:
    return f"Think hard about this{_listed(words, times=3)}.\n{prompt}"


def topic(prompt: str, words: Sequence[Word]) -> str:
    return f"Topic{_listed(words)}.\n{prompt}"


# Capitals, bold marks and brackets were tried as well: on SmolLM2-135M-Instruct they spoil the subject itself (capitals
# keep 7 % of the capital cities that the unchanged model knows, brackets 14 %, bold 36 %, quotation marks 64 %).
def _quoted(text: str) -> str:
    return f'"{text}"'


def quotes(prompt: str, words: Sequence[Word]) -> str:
    return f"Mind the words in quotation marks. {_marked(prompt, words, _quoted)}"


def summary(prompt: str, words: Sequence[Word]) -> str:
    return f"{prompt} ...\nIn short{_listed(words).replace(',', '')}.\n{prompt}"


IN_PLACE = frozenset({"quotes"})  # wordings that mark words where they stand in the prompt
WORDINGS: Mapping[str, Callable[[str, Sequence[Word]], str]] = MappingProxyType(
    {each.__name__: each for each in (leading, reminder, repeated, topic, quotes, summary)}
)
