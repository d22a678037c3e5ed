"""One call of each registered operator on a tiny model, and what its patch does there."""

from __future__ import annotations

import math

from edit_examples import ENDING
from tables import QUICK
from training_examples import REQUEST

from editkit.operators import EDITS, configured
from editkit.patch import PromptPatch
from editkit.scoring import score_pairs


def call_on(name, handle, seed=0, request=None):
    what = request or (ENDING[:1] if name in EDITS else REQUEST)
    return configured(name, handle, QUICK.get(name))[0](handle, what, seed=seed)


def asked(name, edits=tuple(ENDING[:1])):
    """Pairs of prompt and text whose probability shall rise (edits) or fall (unlearners)."""
    if name in EDITS:
        return [(edit.fact.text, edit.target_new) for edit in edits]
    return [(example.prompt, example.completion) for example in REQUEST.forget]


def changes(handle, patch, pairs):
    """By how much the patch moves the log-probability of each text, in nats."""
    before = score_pairs(handle, pairs)
    with handle.patched(patch):
        after = score_pairs(handle, pairs)
    return [one.logprob - other.logprob for one, other in zip(after, before, strict=True)]


def moves_the_right_way(name, patch, moved):
    """A random model cannot read, so of a changed prompt only that it changes something can be asked."""
    assert all(map(math.isfinite, moved))
    assert abs(sum(moved)) > 1e-3
    return isinstance(patch, PromptPatch) or (sum(moved) > 0) == (name in EDITS)
