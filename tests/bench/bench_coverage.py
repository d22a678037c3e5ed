"""How often the 95 % interval of a share covers the truth, for few facts, unequal numbers of cases and alike cases.

    python tests/bench/bench_coverage.py [RUNS]

Prints, for each number of facts and each pattern of cases a fact, the worst and the mean coverage over shares of .1 to
.9 and intraclass correlations of .1 to .7 (beta-binomial facts). The standard error of a cell is about .01 at 400 runs.
"""

from __future__ import annotations

import sys
from itertools import product

import numpy as np

from probes.estimate import proportion

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
CORRELATIONS = (0.1, 0.3, 0.7)
SIZES = {
    "one case a fact": lambda rng, facts: np.ones(facts, int),
    "three each": lambda rng, facts: np.full(facts, 3),
    "twenty each": lambda rng, facts: np.full(facts, 20),
    "two to twenty": lambda rng, facts: rng.choice([2, 6, 6, 12, 16, 18, 19, 20], facts),
    "geometric, mean nine": lambda rng, facts: rng.geometric(1 / 9, facts),
}


def covered(rng: np.random.Generator, sizes: np.ndarray, share: float, correlation: float) -> bool:
    """Draw the facts' own shares, then their cases; does the interval hold the share of the population?"""
    scale = (1 - correlation) / correlation
    passed = rng.binomial(sizes, rng.beta(share * scale, (1 - share) * scale, len(sizes)))
    marks = [mark for size, good in zip(sizes, passed, strict=True) for mark in [1.0] * good + [0.0] * (size - good)]
    found = proportion(marks, np.repeat(np.arange(len(sizes)), sizes).astype(str).tolist())
    return found.low is not None and found.high is not None and found.low <= share <= found.high


def main(runs: int) -> None:
    for (name, draw), facts in product(SIZES.items(), (8, 12, 20, 40)):
        rng = np.random.default_rng(0)
        cells = [
            np.mean([covered(rng, draw(rng, facts), share, correlation) for _ in range(runs)])
            for share, correlation in product(SHARES, CORRELATIONS)
        ]
        print(f"{name:>21}, {facts:>2} facts: worst {min(cells):.3f}, mean {np.mean(cells):.3f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
