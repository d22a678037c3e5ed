"""Which model it is: digests of its weights, and of all else that an answer depends on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from editkit.deltas import bytes_of

# Of a config, what no forward pass depends on: it tells the same model apart by where and by what it was saved.
_NO_MATTER = frozenset(
    {
        "architectures", "dtype", "id2label", "initializer_range", "label2id", "output_attentions",
        "output_hidden_states", "problem_type", "return_dict", "torch_dtype", "transformers_version", "use_cache",
    }
)  # fmt: skip
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_OPTIONS = ("split_special_tokens", "clean_up_tokenization_spaces")  # of a tokenizer, that its own JSON does not hold
_PROBE = "Zoë's 2nd café in São Paulo:\n  12.50 €, 日本語 and\ttabs <s>!"  # what tokenizers take differently


def weights_digest(model: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of all parameters (tied ones once)."""
    state = hashlib.sha256()
    for name, parameter in model.named_parameters():
        _add(state, name, parameter)
    return state.hexdigest()


def _add(state: Any, name: str, tensor: torch.Tensor) -> None:
    state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
    state.update(bytes_of(tensor))


def setup_digest_of(model: nn.Module, tokenizer: Any) -> str:
    """sha256 of all that answers depend on and that is in no parameter: the config without names, paths and versions,
    the buffers that a checkpoint holds, where the model stops, and the tokenizer."""
    state = hashlib.sha256()
    parts = {"config": _config_of(model), "stops": _stops_of(model), "tokenizer": _described(tokenizer)}
    state.update(json.dumps(parts, sort_keys=True).encode())
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in model.state_dict().items():
        if name not in parameters and isinstance(value, torch.Tensor):
            _add(state, name, value)
    return state.hexdigest()


def _config_of(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    return None if config is None else _plain(config.to_dict())


def _stops_of(model: nn.Module) -> Any:
    return _plain(getattr(getattr(model, "generation_config", None), "eos_token_id", None))


def _plain(value: Any) -> Any:
    """As JSON has it, the same in every process: no order of sets, no address of an object."""
    if isinstance(value, Mapping):
        kept = {str(key): each for key, each in value.items()}
        return {key: _plain(each) for key, each in kept.items() if _matters(key)}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return value if value is None or isinstance(value, str | int | float) else _ADDRESS.sub("", str(value))


def _matters(key: str) -> bool:
    return key not in _NO_MATTER and not key.endswith("name_or_path")


def _described(tokenizer: Any) -> Any:
    """All that ids and texts depend on. The probe is read first, without padding or truncation, as all prompts are: a
    fast tokenizer keeps what it was last asked for, and would write it down."""
    probe = tokenizer(_PROBE).input_ids
    return _plain(
        {
            "probe": [probe, tokenizer.decode(probe), tokenizer.decode(probe, skip_special_tokens=True)],
            "special": [tokenizer.all_special_ids, tokenizer.eos_token_id, tokenizer.eos_token],
            "options": [getattr(tokenizer, name, None) for name in _OPTIONS],
            "rules": _rules_of(tokenizer),
        }
    )


def _rules_of(tokenizer: Any) -> Any:
    """The tokenizer's own JSON: vocabulary, merges, what it puts before and after; the vocabulary where there is none,
    as with parts that are written in Python."""
    try:
        return tokenizer.backend_tokenizer.to_str()
    except Exception:  # of tokenizers, whose errors have no class of their own
        return sorted(tokenizer.get_vocab().items())
