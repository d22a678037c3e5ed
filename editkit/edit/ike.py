"""IKE, in-context knowledge editing (Zheng et al. 2023, https://arxiv.org/abs/2305.12740).

    p(y | x, f, C)        C = (c₁ … c_k): demonstrations, f: the new fact, x: the prompt; no weight changes

    New Fact: {another fact}                     k times: a copy (x = f), an update (x rewords f) or a retained fact
    Prompt: {its prompt, and its answer}         (x is about something else and keeps its answer), 1 : 3 : 4

    New Fact: {f}
    Prompt: {f}

    New Fact: {f}
    Prompt: {x}

The patch rewrites prompts, so it is no checkpoint; a file keeps it. Of many edits a prompt gets those whose subject it
names. One that names none gets the nearest edit as well, as in the paper, or stays as it is (`scoped`).

Differs from the authors' code:
- demonstrations are lessons of common sense that editkit brings or the settings give, the same for each prompt; theirs
  are the 32 nearest CounterFact records outside the test set, with their paraphrases and neighbors, by a sentence
  encoder. An operator sees no held-out question, and its demonstrations must not answer one;
- the preset for models that nobody measured has no demonstrations: on SmolLM2-135M (5 capitals) ours make the model
  keep its old answers, and the new fact alone works best;
- other edits of the patch, nearest first, take the places of copies (by letters in common: no encoder);
- one text serves many edits: theirs is told which one edit each test prompt belongs to, ours has to find it;
- patches on top of one another make one text, the newest facts last; one that does not know the subject adds nothing
  where one below has given the prompt a fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from editkit.edit._demonstrations import LESSONS, Lesson, drawn
from editkit.edit._ike_patch import InContext, InContextPatch, NewFact
from editkit.edit._search import Progress
from editkit.errors import InputError
from editkit.facts import Edit, check_edits
from editkit.handle import ModelHandle
from editkit.operators import EDITS, provenance_of
from editkit.tokens import PromptTooLong, encode_pair


@EDITS.register("ike")
@dataclass(frozen=True, slots=True)
class IKE:
    """`demonstrations`: how many stand before a prompt, beside the edit as its own (0: the new fact alone);
    `most_facts`: the most edits that one prompt gets; `scoped`: whether a prompt that names no subject stays as it is;
    `lessons`: what demonstrations are made of."""

    name: ClassVar[str] = "ike"

    demonstrations: int = 32
    most_facts: int = 4
    scoped: bool = False
    lessons: tuple[Lesson, ...] = LESSONS

    def __post_init__(self) -> None:
        if self.demonstrations < 0:
            raise InputError(f"demonstrations is {self.demonstrations}; it is at least 0")
        if self.most_facts < 1:
            raise InputError(f"most_facts is {self.most_facts}; it is at least 1")
        drawn(self.lessons, self.demonstrations, 0)

    def adds(self, handle: ModelHandle) -> str:
        """What it adds instead of changing weights, for a plan."""
        return "no weights: the new fact is put before prompts"

    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> InContextPatch:
        """The rewriting of prompts; the seed orders its demonstrations. Raises PromptTooLong where the context cannot
        hold an edit's own prompt with what is put before it."""
        check_edits(edits)
        facts = tuple(NewFact(edit.fact.subject, edit.fact.text, edit.target_new) for edit in edits)
        shown, copies = drawn(self.lessons, self.demonstrations, seed)
        rewrite = InContext(facts, shown, copies, self.most_facts, self.scoped)
        longest = max(self._tokens(handle, rewrite, fact) for fact in facts)
        return InContextPatch.of(
            rewrite, provenance_of(self.name, self, handle, edits, seed, longest_prompt_tokens=longest)
        )

    def _tokens(self, handle: ModelHandle, rewrite: InContext, fact: NewFact) -> int:
        prompt = fact.prompt
        for each in (*handle.prompt_rewrites, rewrite):
            prompt = each(prompt)
        tokens = sum(map(len, encode_pair(handle.tokenizer, prompt, fact.target_new)))
        if tokens > handle.context:
            raise PromptTooLong(
                f"prompt {fact.prompt[:60]!r} needs {tokens} tokens with {self.demonstrations} demonstrations, "
                f"{handle.name!r} takes {handle.context}; ask for fewer demonstrations"
            )
        return tokens
