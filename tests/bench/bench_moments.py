"""Which text second moments are measured on, and how much of it: does it show in the edits? Run by hand:

    python tests/bench/bench_moments.py [--corpus TEXT.txt] [--facts 40]

ROME's values do not depend on C, so they are searched once; then each C gives its own update of the same edits. Shares
of prompts at which every token of the answer is the most likely one, 95 %, clustered by fact: `specificity` over
neighbours that the unchanged model had right. `direction`: mean cosine of C⁻¹k, the direction of the update, with that
of the largest sample of the model's own text.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from bench_sequential import known_records
from rich.console import Console
from rich.table import Table

from editkit.edit._search import find_targets
from editkit.edit.rome import ROME
from editkit.facts import EditRecord, fill
from editkit.handle import ModelHandle
from editkit.linalg import cholesky, whitened
from editkit.models import DEFAULT_MODEL
from editkit.moments import second_moments
from editkit.operators import configured
from editkit.patch import LowRankDelta, WeightPatch
from editkit.scoring import score_pairs
from probes.estimate import proportion

SHARES = (0.25, 0.5, 1, 2, 4, 8, 16)  # tokens for each input of the matrix
Asked = list[tuple[str, str]]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--corpus", default="")
    options.add_argument("--facts", type=int, default=40)
    options.add_argument("--model", default=DEFAULT_MODEL)
    given = options.parse_args()
    handle = ModelHandle.load(given.model)
    operator: ROME = configured("rome", handle)[0]
    records = known_records(handle, given.facts)
    edits = [record.edit for record in records]
    before = operator.contexts.before(handle, 0)
    targets = find_targets(handle, edits, operator.layer, before, operator.target, seed=0)
    asked = [asked_of(handle, record) for record in records]
    inputs = len(targets[0].key)
    factors = {
        (corpus or "its own", share): cholesky(_moment(handle, operator, corpus, round(share * inputs)))[0]
        for corpus in dict.fromkeys(("", given.corpus))
        for share in SHARES
    }
    best = factors["its own", SHARES[-1]]
    table = Table("text", "tokens / inputs", "efficacy", "generalization", "specificity", "direction")
    for (text, share), factor in factors.items():
        table.add_row(text.split("/")[-1], f"{share:g}", *_figures(handle, operator, targets, asked, factor), f"{_direction(targets, factor, best):.3f}")  # fmt: skip
    Console(width=120).print(table)
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


def _figures(handle: ModelHandle, operator: ROME, targets: Sequence[Any], asked: Any, factor: Any) -> list[str]:
    hits: list[list[tuple[float, int]]] = [[], [], []]
    name = handle.weight_name("mlp_out", operator.layer)
    for fact, (target, parts) in enumerate(zip(targets, asked, strict=True)):
        left, right = operator.update(target, factor)
        with handle.patched(WeightPatch({name: LowRankDelta(left.float(), right.float())})):
            for kind, pairs in enumerate(parts):
                hits[kind] += [(float(score.argmax), fact) for score in score_pairs(handle, pairs)] if pairs else []
    found = [proportion([hit for hit, _ in own], [fact for _, fact in own]) for own in hits]
    return [f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in found]


def _direction(targets: Sequence[Any], factor: torch.Tensor, best: torch.Tensor) -> float:
    keys = torch.stack([target.key for target in targets], 1).cpu()
    one, other = (whitened(keys, each)[0] for each in (factor, best))
    return float(torch.cosine_similarity(one, other, dim=0).mean())


if __name__ == "__main__":
    main()
