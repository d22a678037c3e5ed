"""Seconds a step and peak memory of NPO against a plain loop with a frozen reference copy. Run by hand:

    python tests/bench/bench_unlearn.py [--model NAME] [--device auto] [--dtype float32] [--steps N] [--threads N]

Both take the same model, examples, loss and number of steps, all parameters moving; each runs in its own process. The
plain loop is what a Hugging Face `Trainer` does: labels of -100, logits of whole sequences, torch's AdamW, and a
deep copy of the model that is read again at every step. Ours is timed from the first look at the forget examples to
the last: all the steps and one such look, without the one pass that reads the reference log-probabilities.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import time

import torch
from measured_model import ask_for_model, load_model
from torch.nn.functional import cross_entropy, logsigmoid

from editkit.completions import collate, encode_examples
from editkit.facts import Example, ForgetRequest
from editkit.handle import ModelHandle
from editkit.scope import EVERYTHING, Scope
from editkit.training import Schedule, Stopping
from editkit.unlearn.npo import NPO

WORDINGS = ("The capital of {} is", "The capital city of {} is", "In {}, the capital city is called")
FORGET = {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo", "Cuba": "Havana", "Syria": "Damascus",
          "Austria": "Vienna", "Canada": "Ottawa", "Egypt": "Cairo", "Greece": "Athens", "Latvia": "Riga", "Iraq": "Baghdad"}  # fmt: skip
RETAIN = {"Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Portugal": "Lisbon", "Sweden": "Stockholm",
          "Denmark": "Copenhagen", "Ireland": "Dublin", "China": "Beijing", "Mexico": "Mexico City", "Thailand": "Bangkok",
          "Vietnam": "Hanoi", "Chile": "Santiago", "Romania": "Bucharest", "Hungary": "Budapest", "Bulgaria": "Sofia",
          "Russia": "Moscow", "Uganda": "Kampala", "Indonesia": "Jakarta", "Pakistan": "Islamabad", "Czechia": "Prague"}  # fmt: skip
BETA, RATE, WEIGHT = 0.1, 1e-5, 3.0


def request() -> ForgetRequest:
    forget = tuple(Example(w.format(country), city) for country, city in FORGET.items() for w in WORDINGS)
    return ForgetRequest(forget, tuple(Example(WORDINGS[0].format(c), city) for c, city in RETAIN.items()))


def ours(handle: ModelHandle, steps: int, scope: Scope) -> float:
    schedule = Schedule(RATE, steps, check_every=max(1, steps))
    stopping = Stopping(forget=None, floor=0.0, watch=0.0)
    operator = NPO(beta=BETA, retain_weight=WEIGHT, schedule=schedule, stopping=stopping, scope=scope)
    looks: list[float] = []
    operator(handle, request(), seed=0, progress=lambda _: looks.append(time.perf_counter()))
    return (looks[-1] - looks[0]) / steps


def plain(handle: ModelHandle, steps: int) -> float:
    model, reference = handle.model, copy.deepcopy(handle.model).requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    sides = []
    for examples in (request().forget, request().retain):
        encoded = encode_examples(handle, examples)
        padded = collate(handle, encoded, range(len(encoded))).padded
        labels = padded.ids.masked_fill(~padded.mask, -100)
        for row, example in enumerate(encoded):
            labels[row, : example.start] = -100
        sides.append({"input_ids": padded.ids, "attention_mask": padded.mask.long(), "labels": labels})
    forget, retain = sides

    def summed(network: torch.nn.Module) -> torch.Tensor:
        logits = network(input_ids=forget["input_ids"], attention_mask=forget["attention_mask"]).logits[:, :-1]
        return cross_entropy(logits.transpose(1, 2), forget["labels"][:, 1:], reduction="none").sum(-1)

    start = time.perf_counter()
    for _ in range(steps):
        with torch.no_grad():
            before = summed(reference)
        loss = -(2 / BETA) * logsigmoid(BETA * (summed(model) - before)).mean() + WEIGHT * model(**retain).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return (time.perf_counter() - start) / steps


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(arguments.threads)
    handle = load_model(arguments)
    if arguments.one == "plain":
        seconds = plain(handle, arguments.steps)
    else:
        scope = (
            EVERYTHING
            if arguments.one == "ours"
            else Scope(tuple(range(handle.layers // 6, handle.layers // 2)), ("mlp_out",))
        )
        seconds = ours(handle, arguments.steps, scope)
    return {"seconds": seconds, "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    ask_for_model(parser)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=("ours", "mlp_out", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments)))
        return
    results = {}
    for name in ("plain", "ours", "mlp_out"):
        command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[name] = json.loads(output.splitlines()[-1])
    for name, seen in results.items():
        ratio, memory = (results["plain"][key] / seen[key] for key in ("seconds", "gigabytes"))
        print(
            f"{name:8} {seen['seconds']:6.2f} s a step ({ratio:.2f}x)  {seen['gigabytes']:.2f} GB peak ({memory:.2f}x)"
        )


if __name__ == "__main__":
    main()
