"""Text that a model writes by itself: contexts for edits, and a corpus where there is no other.

Drawn from the unpatched model with a seed, and kept on disk under a key that holds everything it depends on.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from editkit.blocks import without_patches
from editkit.files import write_text
from editkit.forward import run, unembed
from editkit.handle import ModelHandle
from editkit.models import cache_folder
from editkit.tokens import encode, pad, pad_id_of

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
        parts = {"version": VERSION, "base": handle.base_digest, "dtype": str(handle.dtype), **asdict(self)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sampled_texts(handle: ModelHandle, plan: TextPlan, progress: Progress | None = None) -> list[str]:
    """The texts of a plan, from the cache folder where they have been drawn before. `progress` hears of texts."""
    file = cache_folder() / "texts" / f"{plan.key(handle)}.json"
    if file.is_file():
        kept: list[str] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    with without_patches(handle), torch.inference_mode():
        texts = _draw(handle, plan, progress)
    try:
        write_text(file, json.dumps(texts, ensure_ascii=False))
    except OSError as error:
        warnings.warn(f"cannot keep sampled text in {file.parent} ({error}); set EDITKIT_CACHE elsewhere", stacklevel=2)
    return texts


def _draw(handle: ModelHandle, plan: TextPlan, progress: Progress | None) -> list[str]:
    generator = torch.Generator().manual_seed(plan.seed)
    begun = [encode(handle.tokenizer, plan.openers[i % len(plan.openers)]) for i in range(plan.count)]
    length = min(plan.length, handle.context)
    texts = []
    for start in range(0, plan.count, ROWS):
        rows = begun[start : start + ROWS]

        def tell(steps: int, before: int = start, rows: int = len(rows)) -> None:
            if progress:
                progress(min(before + rows * steps // length, plan.count), plan.count)

        texts += _continue(handle, rows, length, plan.top_k, generator, tell)
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
