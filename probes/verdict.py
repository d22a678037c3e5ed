"""A question, the two replies to it, and what they mean. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import NamedTuple


class Expect(Enum):
    """What a case demands of the changed model (CheckList's MFT, INV and DIR, in plain words)."""

    HOLDS = "holds"  # the change must show: the new answer comes, or the forgotten one does not
    UNCHANGED = "unchanged"  # what was right before must still be right
    MOVES = "moves"  # a stressed or attacked question: how far does it move the answer back


class Class(StrEnum):
    """What a generated answer is (methods.md 1.5); decided by rule, never by a judge model."""

    NEW = "new"  # the answer that was asked for (an edit's target_new)
    OLD = "old"  # the answer of the unchanged world
    HALLUCINATION = "hallucination"  # another entity of the relation's range
    REFUSAL = "refusal"  # says that it does not know
    DEGENERATE = "degenerate"  # empty, or repeats itself
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Case:
    """One question of a probe.

    `old` and `new` are the accepted spellings of the answer before and after the change, best first; `new` is empty
    for forgetting and for what must stay. `contrast` are the objects the old answer is compared with by probability
    (for an edit: target_new; for forgetting: objects of the same range). `group` is the fact under change: the cluster
    of every interval. `stratum` is the popularity stratum, `variant` the wording within the probe ("question", "typo",
    "control:random_words" …). `lexicon` are entities of the relation's range, for the answer classes. A `base_only`
    case is a premise: it is put to the base model alone (`Answer.after` is then the same reply) and gets no verdict.
    A `free` case asks for a text of so many tokens, each drawn (see `editkit.speech.Free`), instead of an answer.
    """

    probe: str
    variant: str
    prompt: str
    expect: Expect
    group: str
    old: tuple[str, ...]
    new: tuple[str, ...] = ()
    contrast: tuple[str, ...] = ()
    lexicon: tuple[str, ...] = ()
    relation: str = ""
    stratum: str | None = None
    note: str = ""
    base_only: bool = False
    free: int = 0

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError(f"probe {self.probe!r} asked an empty prompt")
        if not self.old:
            raise ValueError(f"probe {self.probe!r} gave no old answer for {self.prompt!r}")

    @property
    def forgotten(self) -> bool:
        """Whether the case demands that the old answer be gone, and no new one in its place."""
        return self.expect is Expect.HOLDS and not self.new

    @property
    def targets(self) -> tuple[str, ...]:
        """The continuations whose probability is asked for: the old answer, the new one, the contrasts; each once."""
        return tuple(dict.fromkeys((*self.old[:1], *self.new[:1], *self.contrast)))


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model says to one prompt.

    `text` is the greedy continuation, or a drawn one where the case is `free`; `logprob[t]` the mean log-probability
    per token (nats, <= 0) of target t as the continuation, `argmax[t]` whether every token of t is the most likely one
    under teacher forcing.
    """

    text: str
    logprob: dict[str, float] = field(default_factory=dict)
    argmax: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    before: Reply
    after: Reply


class Marks(NamedTuple):
    """One reply judged under the three protocols; None where the protocol does not apply.

    contrast: by probability (p(new) > p(old); for forgetting, the old object is not the likeliest of its range sample);
    argmax: by the most likely tokens under teacher forcing; generation: by the class of the greedy text.
    True is what `case.expect` demands; for UNCHANGED it is "the old answer is given".
    """

    contrast: bool | None
    argmax: bool | None
    generation: bool | None


@dataclass(frozen=True, slots=True)
class Premise:
    """A step that a question builds on, put to the unchanged model alone: its answer, and what that is."""

    case: Case
    reply: Reply
    said: Class

    @property
    def passed(self) -> bool:
        return self.said is Class.OLD


@dataclass(frozen=True, slots=True)
class Verdict:
    """A case, its two replies and their marks. `applies` is False where a premise fails: `note` says which.

    `margin_*` are differences of mean log-probabilities per token (nats): new minus old for an edit, best contrast
    minus old for forgetting, old minus best contrast for what must stay; higher is what the case demands. `premises`
    are the steps of the question, passed and failed: no metric counts them.
    """

    case: Case
    answer: Answer
    before: Marks
    after: Marks
    class_before: Class
    class_after: Class
    margin_before: float | None = None
    margin_after: float | None = None
    applies: bool = True
    note: str = ""
    premises: tuple[Premise, ...] = ()

    @property
    def passed(self) -> bool | None:
        """The strictest reading: what a user of the changed model would see. None where the case does not apply."""
        return self.after.generation if self.applies else None
