"""What is changed, and what may be asked about it. No torch here.

An operator sees an `Edit` or a `ForgetRequest`; a probe sees an `EditRecord` or a `ForgetRecord`. The held-out
questions live only in the records, so they cannot leak into a method: the type forbids it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from editkit.errors import InputError

SLOT = "{}"


def normalise(text: str) -> str:
    """Lower-case letters and digits, single spaces, no accents or punctuation: how answers are compared. Idempotent."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    plain = unicodedata.normalize("NFKD", plain.casefold())  # some letters only fold after decomposition
    return " ".join(re.sub(r"[^\w]+|_", " ", plain).split())


def fill(template: str, subject: str) -> str:
    """The template with the subject in its one slot (a subject may itself hold braces)."""
    return template.replace(SLOT, subject, 1)


def check_template(template: str, what: str = "prompt") -> None:
    """Refuse a template without exactly one slot for the subject."""
    slots = template.count(SLOT)
    if slots == 0:
        raise InputError(f"no '{{}}' in {what} {template!r}; put it where the subject goes")
    if slots > 1:
        raise InputError(f"{slots} '{{}}' in {what} {template!r}; the subject goes in exactly one place")


def check_filled(value: str, what: str) -> None:
    """Refuse an empty or blank text."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{what} is empty; give it some text")


@dataclass(frozen=True, slots=True)
class Fact:
    """A triple and the sentence that asks for its object.

    `prompt` holds one "{}" where the subject goes and ends where the object is expected:
    Fact("France", "capital", "Paris", "The capital of {} is").
    """

    subject: str
    relation: str
    object: str
    prompt: str

    def __post_init__(self) -> None:
        check_filled(self.subject, "subject")
        check_filled(self.relation, "relation")
        check_filled(self.object, "object")
        check_template(self.prompt)

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return fill(self.prompt, self.subject)


@dataclass(frozen=True, slots=True)
class Edit:
    """The wish that `fact` shall have the object `target_new`: all that an edit operator may see."""

    fact: Fact
    target_new: str

    def __post_init__(self) -> None:
        check_filled(self.target_new, "target_new")
        if normalise(self.target_new) == normalise(self.fact.object):
            raise InputError(
                f"target_new {self.target_new!r} is the object that {self.fact.subject!r} already has; "
                "an edit must ask for another one"
            )

    @property
    def target_true(self) -> str:
        """The old object."""
        return self.fact.object

    @property
    def asked(self) -> str:
        """The prompt by which edits are told apart: with single spaces."""
        return " ".join(self.fact.text.split())

    def contradicts(self, other: Edit) -> bool:
        """Whether the two want different objects; of one prompt that cannot be."""
        return normalise(self.target_new) != normalise(other.target_new)


def check_edits(edits: Sequence[Any]) -> None:
    """Refuse what no operator can make in one call: anything but a sequence of edits, none at all, and edits that give
    one prompt two objects."""
    if isinstance(edits, Edit):
        raise InputError("edits is one Edit; give a list, [edit]")
    others = [each for each in edits if not isinstance(each, Edit)]
    if others:
        raise InputError(f"edits holds {others[0]!r:.80}, a {type(others[0]).__name__}; it must hold Edit only")
    if not edits:
        raise InputError("no edits; give at least one")
    first: dict[str, Edit] = {}
    for edit in edits:
        other = first.setdefault(edit.asked, edit)
        if edit.contradicts(other):
            raise InputError(contradiction(other, edit))


def contradiction(one: Edit, other: Edit) -> str:
    """What to say of two edits that give one prompt two objects, in one call."""
    ways = "keep one of them, or make the later one in a call of its own, on top of the other's patch"
    return f"{other.asked!r} cannot be given both {one.target_new!r} and {other.target_new!r}; {ways}"


@dataclass(frozen=True, slots=True)
class Question:
    """A complete prompt and its right answer in the unchanged world, with what may count as that answer.

    `subject` is the entity the question is about, as it is spelt in `prompt`. `stratum` names the popularity stratum
    of the subject within its relation ("q1" least popular … "q4" most popular), None where it has none.
    """

    prompt: str
    answer: str
    subject: str
    relation: str
    aliases: tuple[str, ...] = ()
    popularity: float | None = None
    stratum: str | None = None

    def __post_init__(self) -> None:
        check_filled(self.prompt, "prompt")
        check_filled(self.answer, "answer")


@dataclass(frozen=True, slots=True)
class Hop:
    """A question that can only be answered through the fact that was changed.

    For an edit, `question.answer` is what follows from the old object and `answer_new` what follows from the new one
    (equal answers are left out when hops are built). For forgetting, `answer_new` is None: the question leads back to
    the forgotten fact, or on to what follows from it. `premises` are the single hops; the probe first checks that the
    base model can answer them.
    """

    question: Question
    premises: tuple[Question, ...]
    kind: str  # "composition", "inverse", "neighbour" …
    answer_new: str | None = None
    aliases_new: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Everything about one fact that probes may ask and operators never see.

    `paraphrases` and `questions` are templates with one "{}"; paraphrases end where the object is expected,
    questions end in a question mark. `range` lists the typed objects of the relation: the distractors, and the lexicon
    that tells a wrong entity from gibberish. `neighborhood` are facts of other subjects that must stay as they are.
    """

    paraphrases: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    neighborhood: tuple[Question, ...] = ()
    hops: tuple[Hop, ...] = ()
    range: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()  # other spellings of the old object
    aliases_new: tuple[str, ...] = ()  # other spellings of target_new
    popularity: float | None = None
    stratum: str | None = None

    def __post_init__(self) -> None:
        for template in self.paraphrases:
            check_template(template, "paraphrase")
        for template in self.questions:
            check_template(template, "question")


@dataclass(frozen=True, slots=True)
class EditRecord:
    """An edit and the held-out questions about it."""

    id: str
    edit: Edit
    held_out: HeldOut = field(default_factory=HeldOut)

    @property
    def fact(self) -> Fact:
        return self.edit.fact


@dataclass(frozen=True, slots=True)
class Example:
    """A `prompt` and the text that follows it, the `completion`, without the space between."""

    prompt: str
    completion: str

    def __post_init__(self) -> None:
        check_filled(self.prompt, "prompt")
        check_filled(self.completion, "completion")


@dataclass(frozen=True, slots=True)
class ForgetRequest:
    """What shall be forgotten and what shall be kept: all that an unlearning operator may see."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        if not self.forget:
            raise InputError("nothing to forget; give at least one example in `forget`")
        both = set(self.forget) & set(self.retain)
        if both:
            raise InputError(f"{len(both)} examples stand in forget and in retain, such as {next(iter(both))}")


@dataclass(frozen=True, slots=True)
class ForgetRecord:
    """One fact that shall be forgotten, the examples a forget request holds for it, and its held-out questions."""

    id: str
    fact: Fact
    examples: tuple[Example, ...]
    held_out: HeldOut = field(default_factory=HeldOut)


Record = EditRecord | ForgetRecord
