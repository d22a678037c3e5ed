"""Models with the very same weights that differ in what no weight tells."""

from __future__ import annotations

import copy
from typing import Any

from conftest import make_tokenizer
from transformers import AutoModelForCausalLM

from editkit.handle import ModelHandle


def twin(handle: ModelHandle, *, bos: bool = False, **config: Any) -> ModelHandle:
    """The same weights under another config; with `bos` under a tokenizer of the same vocabulary that puts one."""
    changed = copy.deepcopy(handle.model.config)
    for name, value in config.items():
        setattr(changed, name, value)
    model = AutoModelForCausalLM.from_config(changed)
    model.load_state_dict(handle.model.state_dict())
    return ModelHandle.of(model, make_tokenizer(bos=True) if bos else handle.tokenizer, handle.name)
