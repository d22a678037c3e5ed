"""Text of models, prompts and users made safe to look at. It is hostile until it went through here.

Escaping for a format (HTML, Markdown) is the renderer's; this makes visible what would be invisible or would disturb
the text around it: control characters, direction marks, zero-width characters, lone surrogates.
"""

from __future__ import annotations

import re
import unicodedata

_SIGNS = {"\n": "⏎", "\t": "⇥", "\u2028": "⏎", "\u2029": "⏎"}
_HIDDEN = {"Cc", "Cf", "Cs"}  # controls, format characters (bidi, zero-width, tags), surrogates
_PLAIN = re.compile(r"[ -~]*\Z")
_MARKS = 4  # combining marks on one letter; more of them climb over the lines around
EMPTY = "(empty)"


def clean(text: str) -> str:
    """`text` in one line, with visible escapes (`\\u202e`, `\\x1b`) for what cannot be seen; nothing is cut off."""
    if _PLAIN.match(text):
        return text
    marks = 0
    pieces = []
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        pieces.append(_escaped(character) if marks > _MARKS else _visible(character))
    return "".join(pieces)


def present(text: str, limit: int = 400) -> str:
    """What a model or a prompt says: cleaned, at most `limit` characters and an "…", and never invisible."""
    if not text:
        return EMPTY
    if not text.strip(" "):
        text = "␣" * len(text)
    shown = clean(text[: limit + 1])
    return shown if len(text) <= limit and len(shown) <= limit else shown[:limit] + "…"


def encodable(text: str) -> str:
    """`text` with lone surrogates written out, so that it can be stored as UTF-8; the rest as it is."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _visible(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    return _escaped(character) if unicodedata.category(character) in _HIDDEN else character


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
