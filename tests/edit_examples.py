"""Edits that the tests of edit operators share, and the slow, plain way to do what the operators do fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from editkit.facts import Edit, Fact, fill
from editkit.handle import ModelHandle
from editkit.hooks import traced
from editkit.tokens import encode, encode_pair, subject_span

EDITS = [
    Edit(Fact("France", "capital", "Paris", "The capital of {} is"), "Rome"),
    Edit(Fact("Nina Okafor", "born in", "Reykjavík", "{} was born in"), "São Paulo"),
    Edit(Fact("the Eiffel Tower", "city", "Paris", "In which city is {}? It is in"), "Lima"),
]
ENDING = [  # in a random model what comes after a subject hides it: where edits shall take, the prompt ends with it
    Edit(Fact("France", "capital", "Paris", "The capital of {}"), "Rome"),
    Edit(Fact("Nina Okafor", "born in", "Reykjavík", "The city of {}"), "São Paulo"),
    Edit(Fact("the Eiffel Tower", "city", "Paris", "Where is {}"), "Lima"),
]
BEFORE = ["", "It is said that. ", "What is it? I do not know. "]


@contextmanager
def private_cache(folder: str) -> Iterator[None]:
    """Moments and sampled texts go to `folder` within the block."""
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDITKIT_CACHE", folder)
        yield


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far two tensors are apart, beside the length of the second."""
    return float((found - expected).norm() / expected.norm())


def ids_and_place(handle: ModelHandle, edit: Edit, context: str) -> tuple[list[int], int, list[int]]:
    """Token ids of prompt and target, where the subject's last token is, and the target's ids."""
    ids, target = encode_pair(handle.tokenizer, context + edit.fact.text, edit.target_new)
    at = subject_span(handle.tokenizer, context + edit.fact.prompt, edit.fact.subject).last
    return ids + target, at, target


def logits_with(handle: ModelHandle, layer: int, ids: Sequence[int], at: int, residual: torch.Tensor) -> torch.Tensor:
    """The model's logits for one sequence when `residual` is added to what `mlp_out` gives at `at`: a full run."""

    def add(module, inputs, output):
        changed = output.clone()
        changed[0, at] += residual.to(output.dtype)
        return changed

    hook = handle.module("mlp_out", layer).register_forward_hook(add)
    try:
        return handle.model(torch.tensor([list(ids)])).logits[0].float()
    finally:
        hook.remove()


def read_by(handle: ModelHandle, layer: int, ids: Sequence[int], at: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What `mlp_out` reads and gives at one place."""
    seen = {}
    hook = handle.module("mlp_out", layer).register_forward_hook(lambda m, i, o: seen.update(key=i[0], value=o))
    try:
        with torch.no_grad():
            handle.model(torch.tensor([list(ids)]))
    finally:
        hook.remove()
    return seen["key"][0, at].float(), seen["value"][0, at].float()


def block_output(handle: ModelHandle, layer: int, ids: Sequence[int], at: int) -> torch.Tensor:
    """What a block gives at one place."""
    with torch.no_grad(), traced(handle.model, [handle.arch.path("block", layer)]) as seen:
        handle.model(torch.tensor([list(ids)]))
    [block] = seen.values()
    return block.output[0, at].float()


def plain_search(handle, edit, layer, before, search, *, of_block=False):
    """ROME's key and residual by the book: full forward passes, one sequence at a time, torch's own Adam. `of_block`:
    clamp and weight decay go by the norm of what the block gives, as MEMIT's do."""
    sequences = [ids_and_place(handle, edit, context) for context in before]
    essence = encode(handle.tokenizer, fill("{} is a", edit.fact.subject))
    essence_at = subject_span(handle.tokenizer, "{} is a", edit.fact.subject).last
    reads = [read_by(handle, layer, ids, at) for ids, at, _ in sequences]
    norm = block_output(handle, layer, *sequences[0][:2]).norm() if of_block else reads[0][1].norm()
    residual = torch.zeros(len(reads[0][1]), requires_grad=True)
    adam = torch.optim.Adam([residual], lr=search.learning_rate)
    base = None
    for step in range(search.steps):
        losses = []
        for ids, at, target in sequences:
            log_probs = logits_with(handle, layer, ids[:-1], at, residual).log_softmax(-1)
            places = range(len(ids) - len(target) - 1, len(ids) - 1)
            losses.append(-torch.stack([log_probs[p, t] for p, t in zip(places, target, strict=True)]).mean())
        after = logits_with(handle, layer, essence, essence_at, residual)[-1].log_softmax(-1)
        base = after.detach() if base is None else base
        drift = (after.exp() * (after - base)).sum()  # equation 4 by hand: kl_div's order of arguments misleads
        loss = torch.stack(losses).mean() + search.kl_weight * drift
        loss = loss + search.weight_decay * residual.norm() / norm**2
        if loss < search.stop_below or step == search.steps - 1:
            break
        [residual.grad] = torch.autograd.grad(loss, residual)
        adam.step()
        with torch.no_grad():
            if residual.norm() > search.clamp * norm:
                residual *= search.clamp * norm / residual.norm()
    return torch.stack([key for key, _ in reads]).mean(0), residual.detach(), float(loss.detach()), step + 1
