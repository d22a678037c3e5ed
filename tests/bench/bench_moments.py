"""Which text second moments are measured on, and how much of it: does it show in the edits? Run by hand:

    python tests/bench/bench_moments.py [--corpus TEXT.txt] [--facts 40] [--tokens 0.5 1 2 4 8 16]

ROME's values do not depend on C, so they are searched once; then each C gives its own update of the same edits. Tokens
are for each input of the matrix. Shares of prompts at which every token of the answer is the most likely one, 95 %,
clustered by fact: `specificity` over neighbours that the unchanged model had right, `beside the corpus` its difference
to that with as many tokens of the corpus, paired. `direction`: mean cosine of C⁻¹k, the direction of the update, with
that of the largest sample of the same text.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from bench_sequential import known_records
from measured_model import ask_for_model, load_model
from rich.console import Console
from rich.table import Table

from editkit.edit._search import find_targets
from editkit.edit.rome import ROME
from editkit.facts import EditRecord, fill
from editkit.handle import ModelHandle
from editkit.linalg import cholesky, whitened
from editkit.moments import second_moments
from editkit.operators import configured
from editkit.patch import LowRankDelta, Patch, WeightPatch
from editkit.scoring import score_pairs
from probes.estimate import Estimate, mean, proportion

TOKENS = (0.5, 1, 2, 4, 8, 16)  # for each input of the matrix
Asked = list[tuple[str, str]]
Hits = list[tuple[float, int]]  # right or not, and of which fact


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--corpus", default="")
    options.add_argument("--facts", type=int, default=40)
    options.add_argument("--tokens", type=float, nargs="+", default=TOKENS)
    ask_for_model(options)
    given = options.parse_args()
    handle = load_model(given)
    operator: ROME = configured("rome", handle)[0]
    records = known_records(handle, given.facts)
    edits = [record.edit for record in records]
    before = operator.contexts.before(handle, 0)
    targets = find_targets(handle, edits, operator.layer, before, operator.target, seed=0)
    asked = [asked_of(handle, record) for record in records]
    inputs = len(targets[0].key)
    texts, shares = list(dict.fromkeys((given.corpus, ""))), sorted(given.tokens)
    factors = {
        (text, share): cholesky(_moment(handle, operator, text, round(share * inputs)))[0]
        for text in texts
        for share in shares
    }
    table = Table("text", "tokens", "efficacy", "generalization", "specificity", "beside the corpus", "direction")
    of_corpus: dict[float, Hits] = {}
    for (text, share), factor in factors.items():
        hits = hits_of(handle, _patches(handle, operator, targets, factor), asked)
        of_corpus.setdefault(share, hits[2])
        beside = told(mean(*_difference(hits[2], of_corpus[share]))) if text != texts[0] else ""
        direction = _direction(targets, factor, factors[text, shares[-1]])
        shown = [told(proportion(*zip(*own, strict=True))) for own in hits]
        row = (text.split("/")[-1] or "its own", f"{share:g}", *shown, beside, f"{direction:.3f}")
        print(*row, sep=" | ", flush=True)
        table.add_row(*row)
    Console(width=140).print(table)
    print(f"{inputs} inputs; {len(records)} facts; layer {operator.layer}")


def _moment(handle: ModelHandle, operator: ROME, corpus: str, tokens: int) -> torch.Tensor:
    settings = dataclasses.replace(operator.moments, tokens=tokens, corpus=corpus)
    return second_moments(handle, [operator.layer], settings)[operator.layer].matrix


def asked_of(handle: ModelHandle, record: EditRecord) -> tuple[Asked, Asked, Asked]:
    fact, new = record.fact, record.edit.target_new
    near = [(question.prompt, question.answer) for question in record.held_out.neighborhood]
    right = [score.argmax for score in score_pairs(handle, near)] if near else []
    return (
        [(fact.text, new)],
        [(fill(template, fact.subject), new) for template in record.held_out.paraphrases],
        [pair for pair, known in zip(near, right, strict=True) if known],
    )


def _patches(
    handle: ModelHandle, operator: ROME, targets: Sequence[Any], factor: torch.Tensor
) -> Iterator[WeightPatch]:
    name = handle.weight_name("mlp_out", operator.layer)
    for target in targets:
        left, right = operator.update(target, factor)
        yield WeightPatch({name: LowRankDelta(left.float(), right.float())})


def hits_of(handle: ModelHandle, patches: Iterable[Patch], asked: Sequence[Sequence[Asked]]) -> list[Hits]:
    """For each kind of question what is right with each fact's patch on."""
    hits: list[Hits] = [[], [], []]
    for fact, (patch, parts) in enumerate(zip(patches, asked, strict=True)):
        with handle.patched(patch):
            for kind, pairs in enumerate(parts):
                hits[kind] += [(float(score.argmax), fact) for score in score_pairs(handle, pairs)] if pairs else []
    return hits


def _difference(hits: Hits, others: Hits) -> tuple[list[float], list[int]]:
    pairs = zip(hits, others, strict=True)
    return [one - other for (one, _), (other, _) in pairs], [fact for _, fact in hits]


def told(found: Estimate) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _direction(targets: Sequence[Any], factor: torch.Tensor, best: torch.Tensor) -> float:
    keys = torch.stack([target.key for target in targets], 1).cpu()
    one, other = (whitened(keys, each)[0] for each in (factor, best))
    return float(torch.cosine_similarity(one, other, dim=0).mean())


if __name__ == "__main__":
    main()
