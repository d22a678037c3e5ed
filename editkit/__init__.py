"""editkit: change what a language model knows, then try hard to break the change."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Lazily loaded, so that `import editkit` (and pytest's plugin scan) costs no torch.
_HOMES = {
    "Edit": "facts", "EditRecord": "facts", "Example": "facts", "Fact": "facts", "ForgetRecord": "facts",
    "ForgetRequest": "facts", "HeldOut": "facts", "Question": "facts", "ModelHandle": "handle", "Patch": "patch",
    "WeightPatch": "patch", "EDITS": "operators", "UNLEARNERS": "operators", "load": "data",
}  # fmt: skip
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
