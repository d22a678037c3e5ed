"""What FT-L and FT-M train on: the new object's tokens, each after the tokens before it; the prompt never counts."""

from __future__ import annotations

from editkit.edit._upper import Row
from editkit.facts import Edit
from editkit.handle import ModelHandle
from editkit.tokens import encode_pair


def answer_row(handle: ModelHandle, edit: Edit) -> Row:
    """The prompt and the new object as one sequence, the object's tokens wanted."""
    ids, target = encode_pair(handle.tokenizer, edit.fact.text, edit.target_new)
    return Row((), (*ids, *target[:-1]), tuple(target))
