"""Checks of single fields of a user's row; each raises `FieldError` with the way out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

from editkit.entries import mentions, occurrences
from editkit.errors import InputError
from editkit.facts import SLOT, Question, normalise

REQUIRED = ("subject", "relation", "object")
OPTIONAL = ("target_new", "prompt", "id", "aliases", "paraphrases", "questions", "popularity", "neighborhood", "note")
PART = "|"  # parts the items of a list in one cell of a CSV file
ARROW = "=>"  # parts prompt and answer of a neighborhood question there


class FieldError(InputError):
    """What is wrong with one field, and the way out."""


def near(name: str, names: Iterable[str]) -> str:
    """A hint at the nearest name, empty if none comes near."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def missing(names: Iterable[str]) -> list[str]:
    """What to say of required fields that a row lacks and of names that no field has."""
    given = [name for name in names if not str(name).startswith("_")]
    unknown = [name for name in given if name not in (*REQUIRED, *OPTIONAL)]
    said = []
    for name in REQUIRED:
        if name in given:
            continue
        close = difflib.get_close_matches(name, unknown, n=1, cutoff=0.6)
        unknown = [other for other in unknown if other not in close]
        said.append(f"no field {name!r}; " + (f"there is {close[0]!r}: rename it" if close else "add it"))
    for name in unknown:
        hint = near(name, (*REQUIRED, *OPTIONAL))
        said.append(f"unknown field {name!r}{hint or '; remove it, or begin its name with _ to have it skipped'}")
    return said


def text(value: Any, what: str) -> str:
    """A text with something in it, its outer blanks taken off."""
    if not isinstance(value, str):
        raise FieldError(f"{what} must be text, not {_kind(value)}" + ("; put it in quotes" if _number(value) else ""))
    stripped = value.strip()
    if not stripped:
        raise FieldError(f"{what} is empty; give it some text")
    if any("\ud800" <= letter <= "\udfff" for letter in stripped):
        raise FieldError(f"{what} holds half of a surrogate pair, which is no character; write the character itself")
    return stripped


def name(value: Any, what: str) -> str:
    """A text that names something: it holds a letter or a digit, and no slot."""
    given = text(value, what)
    if SLOT in given:
        raise FieldError(f"{what} {given!r} holds '{{}}', which marks the subject's place in a prompt; take it out")
    if not normalise(given):
        raise FieldError(f"{what} {given!r} has no letter or digit, so answers cannot be compared with it")
    return given


def texts(value: Any, what: str, parts: bool) -> tuple[str, ...]:
    """A list of texts; in a CSV cell (`parts`) they are parted by "|"."""
    if isinstance(value, str):
        value = [item for item in value.split(PART) if item.strip()] if parts else [value]
    if not isinstance(value, list):
        raise FieldError(f"{what} must be a list of texts, not {_kind(value)}")
    return tuple(dict.fromkeys(text(item, f"{what} [{place}]") for place, item in enumerate(value, 1)))


def slotted(template: str, subject: str, what: str) -> str:
    """`template` with one "{}": its own, wherever else the subject is written, or the one place where it is."""
    slots, written = template.count(SLOT), occurrences(template, subject)
    if slots == 1:
        return template
    if not slots and len(written) == 1:
        return template[: written[0]] + SLOT + template[written[0] + len(subject) :]
    if slots:
        raise FieldError(f"{what} {template!r} has {slots} '{{}}'; it must have one, the place that counts")
    if written:
        raise FieldError(
            f"subject {subject!r} stands {len(written)} times in {what} {template!r}; write '{{}}' where it counts"
        )
    raise FieldError(f"subject {subject!r} does not stand in {what} {template!r}; write it there once, or '{{}}'")


def number(value: Any, what: str) -> float:
    """A finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise FieldError(f"{what} must be a number, not {_kind(value)}")
    try:
        given = float(value)
    except (ValueError, OverflowError):
        raise FieldError(
            f"{what} {str(value)[:40]!r} is not a number that can be used; write it like 1200000"
        ) from None
    if not math.isfinite(given) or given < 0:
        raise FieldError(f"{what} must be a finite number, 0 or more, not {value}")
    return given


def neighborhood(value: Any, relation: str, parts: bool) -> tuple[Question, ...]:
    """Questions whose answers must stay: objects with `prompt` and `answer`, in a CSV cell "prompt => answer | …"."""
    if isinstance(value, str) and parts:
        value = [_arrow(item) for item in value.split(PART) if item.strip()]
    if not isinstance(value, list):
        raise FieldError(f"neighborhood must be a list of objects with 'prompt' and 'answer', not {_kind(value)}")
    return tuple(_neighbor(item, relation, f"neighborhood [{place}]") for place, item in enumerate(value, 1))


def _arrow(item: str) -> dict[str, str]:
    prompt, arrow, answer = item.partition(ARROW)
    if not arrow:
        raise FieldError(f"neighborhood {item.strip()!r} has no '{ARROW}'; write 'prompt {ARROW} answer'")
    return {"prompt": prompt, "answer": answer}


def _neighbor(item: Any, relation: str, what: str) -> Question:
    if not isinstance(item, dict):
        raise FieldError(f"{what} must be an object with 'prompt' and 'answer', not {_kind(item)}")
    unknown = set(item) - {"prompt", "answer", "aliases", "subject"}
    if unknown or not {"prompt", "answer"} <= set(item):
        raise FieldError(
            f"{what} has fields {sorted(item)}; it takes 'prompt', 'answer' and optionally 'aliases', 'subject'"
        )
    return Question(
        prompt=text(item["prompt"], f"{what}.prompt"),
        answer=name(item["answer"], f"{what}.answer"),
        subject=name(item["subject"], f"{what}.subject") if "subject" in item else "",
        relation=relation,
        aliases=texts(item.get("aliases", []), f"{what}.aliases", parts=False),
    )


def gather(check: Callable[[], Any], into: list[str]) -> Any:
    """What `check` gives; what it refuses is noted and gives None, so that all fields of a row are looked at."""
    try:
        return check()
    except FieldError as error:
        into.append(str(error))
        return None


def given_away(target: str, prompts: Iterable[str]) -> str | None:
    """The first prompt that already says the target."""
    return next((prompt for prompt in prompts if mentions(prompt, target)), None)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a text",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
