"""Second moments C = E[k kᵀ] of what a matrix reads: the metric in which locate-then-edit methods keep old keys.

Measured once per model, layer and text on the unpatched weights, accumulated in float64 and kept on disk under a key
that holds everything it depends on. By default the text is the model's own (`editkit.sampling`): no download.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editkit.blocks import lower, without_patches
from editkit.corpora import texts_of
from editkit.errors import InputError
from editkit.files import atomic_path
from editkit.forward import run
from editkit.handle import ModelHandle
from editkit.hooks import traced
from editkit.linalg import cholesky
from editkit.models import cache_folder
from editkit.sampling import NAMED, TextPlan, sampled_texts
from editkit.tokens import encode, pad, pad_id_of
from editkit.wide import in_float32, working_dtype

VERSION = 1  # raise when another matrix comes out for the same key
ROWS = 48  # sequences read at once
PART = "mlp_out"
KEEP_EVERY = 60.0  # seconds between two copies of what a long measurement has so far
EACH_INPUT = 4  # tokens for each input of the matrix
TOP_K = 50  # from which the model draws the words of its own text: from all, much of it is no language
FACTORS = "factors of C"  # in a handle's memo

Progress = Callable[[str, int, int], None]  # what is done, how much, of how much


@dataclass(frozen=True, slots=True)
class MomentSettings:
    """What is measured: `tokens` tokens (0: four times as many as the matrix has inputs, for fewer than one an input
    leave C without full rank) in pieces of `length`, of `corpus` (a text file or a data set of the hub, see
    editkit/corpora.py), or of text that the model writes from `seed` where that is "". `dtype` is how the matrix is
    kept."""

    tokens: int = 0
    length: int = 64
    seed: int = 0
    corpus: str = ""
    dtype: str = "float64"

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.length < 1:
            raise InputError(f"{self} needs tokens >= 0 and length >= 1")
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"moments are kept as float32 or float64, not {self.dtype!r}")


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """C of `inputs` (d_in) inputs, the mean over `tokens` tokens. `key` names how it came about. `load` gives it, read
    when it is wanted: that of a large model is a gigabyte."""

    inputs: int
    tokens: int
    key: str
    load: Callable[[], Float[Tensor, "d_in d_in"]]

    @property
    def matrix(self) -> Float[Tensor, "d_in d_in"]:
        """C, float64 on the CPU."""
        return self.load()


def second_moments(
    handle: ModelHandle,
    layers: Sequence[int],
    settings: MomentSettings | None = None,
    *,
    texts: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> dict[int, Moment]:
    """C of `mlp_out`'s input in each layer, from the cache folder where it was measured before.

    `texts` are read as far as `settings.tokens` tokens go, instead of the settings' own corpus. All missing layers are
    measured in one pass. Raises ValueError where there is no layer or no text.
    """
    settings = _with_tokens(handle, layers, settings or MomentSettings())
    corpus = _corpus(handle, settings, texts, progress)
    places = {layer: _Place(handle, layer, settings, corpus.digest) for layer in layers}
    found = {layer: moment for layer, place in places.items() if (moment := place.read())}
    missing = [layer for layer in places if layer not in found]
    if missing:
        pieces = corpus.pieces()
        with in_float32(handle), without_patches(handle), torch.inference_mode():
            partial = _Partial([places[layer].key for layer in missing], missing)
            sums = _measure(handle, missing, pieces, partial, progress)
        tokens = sum(map(len, pieces))
        found |= {layer: places[layer].write(sums.pop(layer) / tokens, tokens) for layer in missing}
        partial.drop()
    for layer, moment in found.items():
        if moment.tokens < moment.inputs:
            warnings.warn(
                f"layer {layer}: {moment.tokens} tokens say little of {moment.inputs} inputs; neighbours of an "
                "edit suffer. Give more text, or raise moments.tokens",
                stacklevel=2,
            )
    return found


def kept(handle: ModelHandle, layers: Sequence[int], settings: MomentSettings | None = None) -> dict[int, bool]:
    """Of each layer, whether `second_moments` would find C in the cache folder; else it has to be measured."""
    settings = _with_tokens(handle, layers, settings or MomentSettings())
    digest = _corpus(handle, settings, None, None).digest
    return {layer: _Place(handle, layer, settings, digest).file.is_file() for layer in layers}


def factors(moments: Mapping[int, Moment], memo: dict[str, Any]) -> dict[int, tuple[Float[Tensor, "d d"], float]]:
    """Lower Cholesky factors of C by layer, each with the jitter that it took (see `linalg.cholesky`). Those of the
    last call are kept in a handle's `memo`: for a large model to take one can last longer than an edit."""
    there = memo.get(FACTORS, {})
    kept = memo[FACTORS] = {each.key: there.get(each.key) or cholesky(each.matrix) for each in moments.values()}
    return {layer: kept[moment.key] for layer, moment in moments.items()}


def spectrum(moment: Moment) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Eigenvalues of C, rising, and its eigenvectors as columns; from the cache folder where they were found before:
    for a large matrix they take minutes."""
    file = cache_folder() / "moments" / f"{moment.key}.spectrum.safetensors"
    if kept := _read_spectrum(file):
        return kept
    matrix = moment.matrix
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    _keep(file, {"values": values, "vectors": vectors.contiguous()}, {"key": moment.key})
    return values, vectors


def _read_spectrum(file: Path) -> tuple[Tensor, Tensor] | None:
    if not file.is_file():
        return None
    try:
        with safe_open(str(file), "pt") as opened:
            return opened.get_tensor("values"), opened.get_tensor("vectors")
    except (SafetensorError, OSError) as error:
        warnings.warn(f"{file} cannot be read ({error}); taking it anew", stacklevel=2)
        return None


def _keep(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write to the cache folder; where that cannot be done the work goes on."""
    try:
        with atomic_path(file) as temporary:
            save_file(tensors, str(temporary), metadata=metadata)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"cannot keep moments in {file.parent} ({error}); set EDITKIT_CACHE", stacklevel=2)


def _with_tokens(handle: ModelHandle, layers: Sequence[int], settings: MomentSettings) -> MomentSettings:
    """The settings with the number of tokens said."""
    if settings.tokens or not layers:
        return settings
    inputs = max(handle.matrix(handle.weight_name(PART, layer)).shape[1] for layer in layers)
    return replace(settings, tokens=EACH_INPUT * inputs)


def _measure(
    handle: ModelHandle,
    layers: Sequence[int],
    pieces: Sequence[list[int]],
    partial: _Partial,
    progress: Progress | None,
) -> dict[int, Tensor]:
    """Sums of k kᵀ over all tokens; nothing above the last of the layers is computed."""
    names = {layer: handle.arch.path(PART, layer) for layer in layers}
    begin, sums = partial.read()
    model, last = lower(handle, max(layers)), time.monotonic()
    for start in range(begin, len(pieces), ROWS):
        batch = pieces[start : start + ROWS]
        padded = pad(batch, side="right", pad_id=pad_id_of(handle.tokenizer), device=handle.device)
        with traced(handle.model, names.values()) as seen:
            run(model, padded.ids, padded.mask, padded.positions)
        for layer, name in names.items():
            read = seen[name].input
            assert read is not None
            sums[layer] = _gram(read[padded.mask]) + sums.get(layer, 0)
        if progress:
            progress("reading text", start + len(batch), len(pieces))
        if time.monotonic() - last >= KEEP_EVERY:
            partial.keep(start + len(batch), sums)
            last = time.monotonic()
    return sums


def _gram(keys: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """Kᵀ K in float64, computed where the keys are if that device has it, on the CPU."""
    wide = keys.cpu().double() if keys.device.type == "mps" else keys.double()
    return (wide.T @ wide).cpu()


# -- what is read --


@dataclass(frozen=True, slots=True)
class _Corpus:
    """A text's name, and how its token sequences are had."""

    digest: str
    pieces: Callable[[], list[list[int]]]


def _corpus(
    handle: ModelHandle, settings: MomentSettings, texts: Iterable[str] | None, progress: Progress | None
) -> _Corpus:
    if texts is None and not settings.corpus:
        count = math.ceil(settings.tokens / settings.length)
        plan = TextPlan(count, settings.length, settings.seed, TOP_K, NAMED)

        def write() -> list[list[int]]:
            tell = functools.partial(progress, "writing text") if progress else None
            return _cut(handle, settings, sampled_texts(handle, plan, tell))

        return _Corpus(plan.key(handle), write)
    pieces = _cut(handle, settings, texts_of(settings.corpus) if texts is None else texts)
    return _Corpus(hashlib.sha256(json.dumps(pieces).encode()).hexdigest(), lambda: pieces)


def _cut(handle: ModelHandle, settings: MomentSettings, texts: Iterable[str]) -> list[list[int]]:
    """Token sequences of at most `length`, as many as the number of tokens asks for."""
    pieces: list[list[int]] = []
    left, length = settings.tokens, min(settings.length, handle.context)
    for text in filter(str.strip, texts):
        ids = encode(handle.tokenizer, text)[:left]
        pieces += [ids[i : i + length] for i in range(0, len(ids), length)]
        left -= len(ids)
        if left <= 0:
            break
    if not pieces:
        raise InputError("no text to measure moments on; give some lines of text, or leave `corpus` empty")
    return pieces


# -- where it is kept --


class _Place:
    """The file of one moment."""

    def __init__(self, handle: ModelHandle, layer: int, settings: MomentSettings, corpus: str) -> None:
        parts = {
            "version": VERSION,
            "base": handle.base_digest,
            "setup": handle.setup_digest,
            "weight": handle.weight_name(PART, layer),
            "corpus": corpus,
            "computed": str(working_dtype(handle)),
            **{name: value for name, value in asdict(settings).items() if name != "corpus"},  # its digest stands above
        }
        self.key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        self.dtype = torch.float64 if settings.dtype == "float64" else torch.float32
        self.file = cache_folder() / "moments" / f"{self.key}.safetensors"

    def read(self) -> Moment | None:
        """What was kept under this key; None where there is nothing, or a file that is broken."""
        if not self.file.is_file():
            return None
        try:
            with safe_open(str(self.file), "pt") as opened:
                inputs, tokens = opened.get_slice("moment").get_shape()[0], int(opened.metadata()["tokens"])
                return Moment(inputs, tokens, self.key, self._matrix)
        except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
            warnings.warn(f"{self.file} cannot be read ({error}); measuring anew", stacklevel=2)
            return None

    def write(self, matrix: Tensor, tokens: int) -> Moment:
        kept = matrix.to(self.dtype).clone().contiguous()
        _keep(self.file, {"moment": kept}, {"tokens": str(tokens), "key": self.key})
        return Moment(len(kept), tokens, self.key, kept.double)

    def _matrix(self) -> Tensor:
        with safe_open(str(self.file), "pt") as opened:
            return opened.get_tensor("moment").double()


class _Partial:
    """Sums over the first pieces of text, kept now and then: a measurement that was killed goes on from there."""

    def __init__(self, keys: Sequence[str], layers: Sequence[int]) -> None:
        self.name, self.layers = hashlib.sha256(" ".join(keys).encode()).hexdigest(), layers
        self.file = cache_folder() / "moments" / f"{self.name}.partial.safetensors"

    def read(self) -> tuple[int, dict[int, Tensor]]:
        """How many pieces were read, and the sums; nothing where none were kept or the file is broken."""
        if not self.file.is_file():
            return 0, {}
        try:
            with safe_open(str(self.file), "pt") as opened:
                return int(opened.metadata()["done"]), {layer: opened.get_tensor(str(layer)) for layer in self.layers}
        except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
            warnings.warn(f"{self.file} cannot be read ({error}); measuring anew", stacklevel=2)
            return 0, {}

    def keep(self, done: int, sums: dict[int, Tensor]) -> None:
        tensors = {str(layer): matrix.contiguous() for layer, matrix in sums.items()}
        _keep(self.file, tensors, {"done": str(done), "key": self.name})

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            self.file.unlink()
