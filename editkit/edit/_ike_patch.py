"""A rewrite of prompts that is data, not code: what `ike` gives, and how a file keeps it."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from editkit.edit._demonstrations import FACT, GAP, PROMPT, block, line
from editkit.errors import PatchError
from editkit.facts import normalise
from editkit.patch import KINDS, PromptPatch, Provenance, write
from editkit.settings import build

KIND = "ike/1"
# Scripts that put no space between words (Thai to Khmer, Chinese, Japanese) or hang endings on names (Korean)
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\ud7ff\uf900-\ufaff]")
# What an earlier patch of this kind made of a prompt: demonstrations, new facts, prompt
MADE = re.compile(rf"\A((?:.*?{GAP})?)((?:{FACT}[^\n]*\n)+){PROMPT}(?!.*{GAP}{FACT}[^\n]*\n{PROMPT})(.*)\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class NewFact:
    """A fact that shall hold: its subject, the complete prompt, and the new object."""

    subject: str
    prompt: str
    target_new: str

    @property
    def line(self) -> str:
        return line(self.prompt, self.target_new)

    @property
    def shown(self) -> str:
        """The fact as a demonstration of itself."""
        return block(self.line, self.line)


@dataclass(frozen=True)  # no slots: what is compared with every prompt is kept in the instance
class InContext:
    """Puts demonstrations and the new facts that a prompt is about before it.

    `shown` stand before every prompt; `copies` too, but as many other new facts as are nearest take their places.
    `scoped`: a prompt that names no subject stays as it is, to the letter; else it gets the nearest fact, unless a
    patch below has given it one: of a stack, whoever knows the subject speaks.
    """

    facts: tuple[NewFact, ...]
    shown: tuple[str, ...]
    copies: tuple[str, ...]
    most_facts: int
    scoped: bool

    def __call__(self, prompt: str) -> str:
        _, earlier, question = parted(prompt)
        return prompt if (self.scoped or earlier) and not self.named(question) else self.told(prompt)

    def told(self, prompt: str) -> str:
        """The prompt after the facts that it is about, or after the nearest one."""
        before, earlier, question = parted(prompt)
        near, named = self.nearest(question), self.named(question)
        about = [place for place in near if place in named][-self.most_facts :] or near[-1:]
        others = [place for place in near if place not in about][-len(self.copies) :] if self.copies else []
        copies = [*self.copies[len(others) :], *(self.facts[place].shown for place in others)]
        own = [self.facts[place] for place in about]
        shown = [*self.shown, *copies, before, *(fact.shown for fact in own), earlier]
        return "".join([*shown, *(f"{FACT}{fact.line}\n" for fact in own), PROMPT, question])

    def named(self, prompt: str) -> set[int]:
        """Places of the facts whose subject the prompt names: whole words, and of a name within a longer one only the
        longer ("Guinea" is not named by "Equatorial Guinea")."""
        text, there = f" {normalise(prompt)} ", set()
        for subject in self._subjects:
            wanted = subject if UNSPACED.search(subject) else f" {subject} "
            if wanted in text:
                there.add(subject)
                text = text.replace(wanted, " \0 ")
        return {place for place, fact in enumerate(self.facts) if name_of(fact.subject) in there}

    def nearest(self, prompt: str) -> list[int]:
        """Places of all facts, the nearest last (of equals the later): the cosine of their sets of three letters."""
        own = letters(prompt)
        likeness = [len(own & each) / math.sqrt(len(own) * len(each)) for each in self._kept_letters]
        return sorted(range(len(self.facts)), key=lambda place: (likeness[place], place))

    @functools.cached_property
    def _subjects(self) -> list[str]:
        return sorted({name_of(fact.subject) for fact in self.facts} - {""}, key=lambda name: (-len(name), name))

    @functools.cached_property
    def _kept_letters(self) -> list[frozenset[str]]:
        return [letters(fact.prompt) for fact in self.facts]

    @functools.cached_property
    def written(self) -> bytes:
        """All that the rewriting depends on, as JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode()


def name_of(subject: str) -> str:
    """A subject as it is looked for: "the Eiffel Tower" is also named without its article."""
    name = normalise(subject)
    return name.removeprefix("the ")


def letters(text: str) -> frozenset[str]:
    spaced = f"  {normalise(text)} "
    return frozenset(spaced[place : place + 3] for place in range(len(spaced) - 2))


def parted(prompt: str) -> tuple[str, str, str]:
    """(demonstrations, lines of new facts, question) of a prompt that a patch below has rewritten; else it is all
    question. A stack of patches is one text, the newest facts last, and each looks at the question alone."""
    made = MADE.match(prompt) if prompt.startswith(FACT) else None
    return (made[1], made[2], made[3]) if made else ("", "", prompt)


@KINDS.register(KIND)
@dataclass(frozen=True, slots=True, eq=False)
class InContextPatch(PromptPatch):
    """A `PromptPatch` that a file can hold, for its rewrite is data."""

    savable: ClassVar[bool] = True
    rewrite: InContext

    @classmethod
    def of(cls, rewrite: InContext, provenance: Provenance) -> InContextPatch:
        return cls(rewrite, provenance, digest=hashlib.sha256(KIND.encode() + rewrite.written).hexdigest())

    def save(self, path: Path) -> None:
        """Write the rewriting and its provenance to one safetensors file, whole or not at all."""
        write(path, KIND, tensors_of(self.rewrite.written), self.provenance)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], provenance: Provenance) -> InContextPatch:
        return cls.of(build(InContext, plain_of(tensors)), provenance)


def tensors_of(written: bytes) -> dict[str, Tensor]:
    """A rewriting that is written as JSON, as what a patch file holds."""
    return {"rewrite": torch.frombuffer(bytearray(written), dtype=torch.uint8)}


def plain_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The JSON object in a patch file. Raises PatchError, KeyError or ValueError for anything else."""
    stored = tensors["rewrite"]
    if stored.dtype != torch.uint8:
        raise PatchError(f"its rewrite is of {stored.dtype}, no bytes")
    given = json.loads(bytes(stored.tolist()))
    if not isinstance(given, dict):
        raise PatchError("its rewrite is no JSON object")
    return given
