"""Text that a model writes by itself: contexts for edits, and a corpus where there is no other.

Drawn from the unpatched model with a seed, and kept on disk under a key that holds everything it depends on, batch by
batch: what was interrupted goes on, and comes to the same text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from editkit.blocks import without_patches
from editkit.files import write_text
from editkit.forward import run, unembed
from editkit.handle import ModelHandle
from editkit.models import cache_folder
from editkit.tokens import encode, pad, pad_id_of
from editkit.wide import in_float32, working_dtype

VERSION = 1  # raise when other text comes out for the same plan
ROWS = 64
OPENERS = (
    "The history of", "In the city", "A group of", "When she was", "It is a", "According to the", "He was born",
    "How do you", "What is the", "My favourite", "The company has", "Once upon a", "Many people think",
    "For example, a", "There are three", "If you want", "After the war", "This is an", "Today we will", "Our team of",
    "Scientists have found", "They went to", "To make a", "One of the",
)  # fmt: skip
# Begin texts about things that have names, as an encyclopedia does. For second moments: edits are of such things, and
# what is to be kept are the keys of such things (measured with tests/bench/bench_moments.py; see docs/moments.md).
NAMED = (
    "The city of", "The river", "The novel by", "The American actor", "The footballer", "The Battle of",
    "The University of", "The album by", "The species", "The film was directed by", "King", "President",
    "He was born in", "The town is located in", "The company was founded in", "The language is spoken in",
    "The painter", "The composer", "The island of", "The mountain", "The war between", "The professor of",
    "The newspaper", "The band from", "The politician", "The scientist", "The airport in", "The museum of",
    "The church of", "The football club", "The kingdom of", "The philosopher", "The writer", "The singer",
    "The actress", "The king of", "The queen of", "The capital of", "The province of", "The region of", "The lake",
    "The sea", "The chemical element", "The plant", "The animal", "The bird", "The god", "The saint",
    "The bishop of", "The general", "The ship", "The aircraft", "The car", "The bridge", "The castle",
    "The station", "The school in", "The bank", "The book", "The song", "The play by", "The television series",
    "The award", "The festival in", "The theorem of",
)  # fmt: skip

Progress = Callable[[int, int], None]  # how many are done, of how many


@dataclass(frozen=True, slots=True)
class TextPlan:
    """`count` texts of `length` tokens each, begun by the openers in turn (openers are several words: a model that
    is given one word only, without a BOS token, often goes on with markup).

    Drawn from the `top_k` most likely tokens (0: from all) at temperature 1; special tokens are never drawn.
    """

    count: int
    length: int
    seed: int
    top_k: int = 0
    openers: tuple[str, ...] = OPENERS

    def key(self, handle: ModelHandle) -> str:
        """sha256 of all that the texts depend on."""
        parts = {
            "version": VERSION,
            "base": handle.base_digest,
            "setup": handle.setup_digest,
            "dtype": str(working_dtype(handle)),
            **asdict(self),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sampled_texts(handle: ModelHandle, plan: TextPlan, progress: Progress | None = None) -> list[str]:
    """The texts of a plan, from the cache folder where they have been drawn before. `progress` hears of texts."""
    file = cache_folder() / "texts" / f"{plan.key(handle)}.json"
    kept: list[str] | None = _read(file, lambda given: _texts(given, [plan.count]))
    if kept is not None:
        return kept
    partial = _Partial(file.with_suffix(".partial.json"), plan.count)
    with in_float32(handle), without_patches(handle), torch.inference_mode():
        texts = _draw(handle, plan, progress, partial)
    _keep(file, texts)
    partial.drop()
    return texts


def _draw(handle: ModelHandle, plan: TextPlan, progress: Progress | None, partial: _Partial | None = None) -> list[str]:
    generator = torch.Generator().manual_seed(plan.seed)
    begun = [encode(handle.tokenizer, plan.openers[i % len(plan.openers)]) for i in range(plan.count)]
    length = min(plan.length, handle.context)
    texts = partial.read(generator) if partial else []
    for start in range(len(texts), plan.count, ROWS):
        rows = begun[start : start + ROWS]

        def tell(steps: int, before: int = start, rows: int = len(rows)) -> None:
            if progress:
                progress(min(before + rows * steps // length, plan.count), plan.count)

        texts += _continue(handle, rows, length, plan.top_k, generator, tell)
        if partial and len(texts) < plan.count:
            partial.keep(texts, generator)
    return texts


def _continue(
    handle: ModelHandle,
    begun: Sequence[list[int]],
    length: int,
    top_k: int,
    generator: torch.Generator,
    tell: Callable[[int], None],
) -> list[str]:
    """One batch of texts of at most `length` tokens, token by token with cached keys and values."""
    start = pad(begun, side="left", pad_id=pad_id_of(handle.tokenizer), device=handle.device)
    banned = torch.tensor(handle.tokenizer.all_special_ids, dtype=torch.long, device=handle.device)
    cache, mask, positions, fed = DynamicCache(), start.mask, start.positions, start.ids
    drawn: list[Tensor] = []
    for step in range(length - min(map(len, begun))):
        hidden = run(handle.backbone, fed, mask, positions, cache)[:, -1]
        logits = unembed(handle, hidden).index_fill(-1, banned, -torch.inf)
        drawn.append(_pick(logits, top_k, generator))
        fed, positions = drawn[-1][:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        tell(step + 1)
    written = torch.stack(drawn, 1).tolist() if drawn else [[] for _ in begun]
    texts = ([*head, *tail][:length] for head, tail in zip(begun, written, strict=True))
    return [handle.tokenizer.decode(ids, skip_special_tokens=True) for ids in texts]


def _pick(logits: Tensor, top_k: int, generator: torch.Generator) -> Tensor:
    """One token a row, by inverting the cumulative distribution: one random number a row, the same on every device."""
    values, ids = logits.topk(min(top_k, logits.shape[-1])) if top_k else (logits, None)
    cumulative = values.softmax(-1).cumsum(-1)
    wanted = torch.rand(len(logits), 1, generator=generator).to(logits.device) * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, wanted, right=True).clamp(max=values.shape[-1] - 1)
    return (place if ids is None else ids.gather(-1, place)).squeeze(-1)


# -- where it is kept --


def _read(file: Path, takes: Callable[[Any], Any]) -> Any:
    """What `takes` makes of a file's JSON; None where there is no file, or one that is broken."""
    if not file.is_file():
        return None
    try:
        return takes(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        warnings.warn(f"{file} cannot be read ({error}); writing the text anew", stacklevel=2)
        return None


def _keep(file: Path, what: Any) -> None:
    """Write to the cache folder; where that cannot be done the work goes on."""
    try:
        write_text(file, json.dumps(what, ensure_ascii=False))
    except OSError as error:
        warnings.warn(f"cannot keep sampled text in {file.parent} ({error}); set EDITKIT_CACHE elsewhere", stacklevel=2)


def _texts(given: Any, counts: Container[int]) -> list[str]:
    """What a file holds, where that is texts and as many as may be."""
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise ValueError("no list of texts")
    if len(given) not in counts:
        raise ValueError(f"it holds {len(given)} texts")
    return given


class _Partial:
    """The texts of the first batches of `count`, and where the generator stood after them."""

    def __init__(self, file: Path, count: int) -> None:
        self.file, self.count = file, count

    def read(self, generator: torch.Generator) -> list[str]:
        """The texts, and the generator is put where it stood; none, and it stays, where none were kept."""

        def takes(given: Any) -> list[str]:
            texts = _texts(given["texts"], range(ROWS, self.count, ROWS))
            place = bytearray.fromhex(given["generator"])
            generator.set_state(torch.frombuffer(place, dtype=torch.uint8))
            return texts

        return _read(self.file, takes) or []

    def keep(self, texts: Sequence[str], generator: torch.Generator) -> None:
        place = bytes(generator.get_state().tolist()).hex()
        _keep(self.file, {"texts": texts, "generator": place})

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            self.file.unlink()
