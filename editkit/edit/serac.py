"""SERAC-like, a memory of edits shown to the prompts in their learned scope (Mitchell et al. 2022,
https://arxiv.org/abs/2206.06520).

    p(y | x) = p_base(y | x)                 where  max_e g(x, e) ≤ threshold, to the bit
             = p_base(y | e*, x)             else   e* = argmax_e g(x, e);  g: scope classifier

    New Fact: {e*}
    Prompt: {e*}

    New Fact: {e*}
    Prompt: {x}

No weight changes: the patch rewrites the prompts that are in scope of an edit. It is `ike` without demonstrations but
for whom it serves: `ike` (scoped) shows an edit to all that names its subject, also to what asks something else of it.

Differs from the authors' code, so that it is no SERAC but like one:
- g is a logistic regression of six numbers that are seen in the letters of prompt and edit (whether the subject is
  named, how alike the rest of both is, by letters and by words); theirs is a fine-tuned DistilBERT. What names the
  subject by another name, or follows from the edit over another subject, it takes to be out of scope;
- g is trained in the call, by a seed, on facts that editkit brings about other subjects and wordings that operators may
  see; theirs on the edits, paraphrases and neighbors of a training set;
- the counterfactual model is the model itself with the edit before the prompt; theirs is a small T5 or BERT-like model
  of its own that was trained to answer so;
- patches on top of one another make one text, the newest edit last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from editkit.data import DEFAULT, load
from editkit.edit._ike_patch import NewFact
from editkit.edit._scope_training import Stock, accuracy, fitted
from editkit.edit._search import Progress
from editkit.edit._serac_patch import InScope, InScopePatch
from editkit.errors import InputError
from editkit.facts import Edit, check_edits
from editkit.handle import ModelHandle
from editkit.operators import EDITS, provenance_of
from editkit.tokens import PromptTooLong, encode_pair


@EDITS.register("serac")
@dataclass(frozen=True, slots=True)
class SERAC:
    """`threshold`: a prompt is in scope above it (1: none is, 0: nearly all); `pairs`: facts from which the classifier
    learns, up to three pairs of each."""

    name: ClassVar[str] = "serac"

    threshold: float = 0.5
    pairs: int = 400

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold is {self.threshold}; it is from 0 to 1")
        if self.pairs < 1:
            raise InputError(f"pairs is {self.pairs}; it is at least 1")

    def adds(self, handle: ModelHandle) -> str:
        """What it adds instead of changing weights, for a plan."""
        return "no weights: the new fact is put before prompts in its learned scope"

    def __call__(
        self, handle: ModelHandle, edits: Sequence[Edit], *, seed: int, progress: Progress | None = None
    ) -> InScopePatch:
        """The rewriting of prompts; the seed draws the pairs, and `accuracy` in the notes is that on as many others.
        Raises PromptTooLong where the context cannot hold an edit's own prompt with what is put before it."""
        check_edits(edits)
        facts = tuple(NewFact(edit.fact.subject, edit.fact.text, edit.target_new) for edit in edits)
        stock = in_stock().without([fact.subject for fact in facts])
        likeness = stock.likeness()
        coefficients = fitted(stock.pairs(self.pairs, seed), likeness)
        rewrite = InScope(facts, likeness, coefficients, self.threshold)
        notes = {
            "accuracy": accuracy(stock.pairs(self.pairs, seed + 1), likeness, coefficients),
            "longest_prompt_tokens": max(_tokens(handle, rewrite, fact) for fact in facts),
        }
        return InScopePatch.of(rewrite, provenance_of(self.name, self, handle, edits, seed, **notes))


def in_stock() -> Stock:
    """The facts that editkit brings, of the relations that are worded in more than one way."""
    base = load(DEFAULT)
    relations = [relation for relation in base.relations.values() if len(relation.seen) > 1 and not relation.hop_only]
    names = {relation.name for relation in relations}
    return Stock(relations, [entry for entry in base.entries if entry.relation in names])


def _tokens(handle: ModelHandle, rewrite: InScope, fact: NewFact) -> int:
    prompt = fact.prompt
    for each in (*handle.prompt_rewrites, rewrite):
        prompt = each(prompt)
    tokens = sum(map(len, encode_pair(handle.tokenizer, prompt, fact.target_new)))
    if tokens > handle.context:
        raise PromptTooLong(
            f"prompt {fact.prompt[:60]!r} needs {tokens} tokens with its edit before it, {handle.name!r} takes "
            f"{handle.context}; shorten it"
        )
    return tokens
