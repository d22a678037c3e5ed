"""What the tests that run over every operator need of each: settings that work on a tiny random model in a moment."""

from __future__ import annotations

from typing import Any

# Overrides of an operator's settings, as `editkit.operators.configured` takes them. A random model answers nothing
# right, so unlearners may not stop at a share of answered examples.
QUICK: dict[str, dict[str, Any]] = {
    "npo": {"schedule": {"learning_rate": 3e-3, "steps": 4}, "stopping": {"forget": None, "floor": 0.0}},
    "grad_diff": {"schedule": {"learning_rate": 3e-3, "steps": 4}, "stopping": {"forget": None, "floor": 0.0}},
    "rome": {
        "layer": 1,
        "target": {"steps": 8, "learning_rate": 0.5, "clamp": 30.0, "kl_weight": 0.0, "weight_decay": 0.0},
        "contexts": {"lengths": [9], "each": 1},
        "moments": {"tokens": 400, "length": 20},
    },
    "ft_l": {"layer": 1, "bound": 0.05, "learning_rate": 0.02, "steps": 6},
}
