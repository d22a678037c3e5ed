"""A folder that shall hold a model: what is wrong with it, said before transformers says something longer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from editkit.errors import UnableError

# What a tokenizer is read from, or made into a fast one from; without any transformers may make up an empty one.
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


class ModelError(UnableError, RuntimeError):
    """A model that cannot be had or used; the message says why and what to do."""


def check_folder(path: Path, *, allow_pickle: bool, trust_remote_code: bool) -> None:
    """Say what is wrong with a model folder before transformers says something longer."""
    config = path / "config.json"
    if not config.is_file():
        raise ModelError(f"{path} has no config.json; it is no transformers model folder; name one that is")
    described = _json_object(config)
    if described.get("auto_map") and not trust_remote_code:
        raise ModelError(
            f"{config} wants to run the author's code (auto_map); pass --trust-remote-code if you do trust it"
        )
    _check_weights(path, allow_pickle)
    if not any((path / file).is_file() for file in VOCABULARIES):
        raise ModelError(f"{path} has no tokenizer.json; copy it there from the model's source")


def _json_object(path: Path) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}); restore it from the model's source") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; check its rights") from None
    if not isinstance(given, dict):
        raise ModelError(f"{path} holds no JSON object; restore it from the model's source")
    return given


def _check_weights(path: Path, allow_pickle: bool) -> None:
    """Say why the weights of a folder cannot be taken."""
    weights = sorted(path.glob("*.safetensors"))
    pickles = [file for ending in ("bin", "pt", "pth") for file in sorted(path.glob(f"*.{ending}"))]
    if not weights and any(path.glob("*.gguf")):
        raise ModelError(f"{path} holds GGUF weights; name the .gguf file itself")
    if not weights and not pickles:
        raise ModelError(f"{path} has no weights (*.safetensors); copy them there or name another model")
    if not weights and not allow_pickle:
        raise ModelError(
            f"{path} holds pickle weights only, which can run code when they are read; convert them to safetensors, "
            "or pass --allow-pickle if you trust their source"
        )
    for file in weights or pickles:
        check_readable(file)


def check_readable(file: Path) -> None:
    """Loaders do not say why they cannot read a file, or say that it is not there."""
    try:
        with file.open("rb"):
            return
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}; check the file and its rights") from None
