"""log p(target | prompt), the most likely tokens, greedy text: the only place where logits become numbers.

One prompt is read once: its last hidden state scores the first token of every target and begins the greedy text, and
its keys and values serve the other target tokens and the rest of the text. Prompts go in batches of like length.
The unembedding is applied only at positions that are read, never to a whole prompt.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from editkit.handle import ModelHandle
from editkit.tokens import Padded, PromptTooLong, encode, encode_pair, pad, pad_id_of

MAX_NEW_TOKENS = 16
ROWS = 48  # prompts a batch: past this a CPU gains nothing and memory grows
MIN_SHARED = 6  # a shared prefix shorter than this is cheaper to read again


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt, the continuations whose probability is wanted, and whether to let the model speak."""

    prompt: str
    targets: tuple[str, ...] = ()
    generate: bool = True


@dataclass(frozen=True, slots=True)
class TargetScore:
    """Log-probability (nats, sum over the tokens), number of tokens, and whether each token is the most likely one."""

    logprob: float
    tokens: int
    argmax: bool

    @property
    def mean(self) -> float:
        """Length-normalised log-probability, nats per token."""
        return self.logprob / self.tokens


@dataclass(frozen=True, slots=True)
class Told:
    """What the model says to one `Ask`."""

    text: str
    targets: dict[str, TargetScore]


def unembed(handle: ModelHandle, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... vocabulary"]:
    """Logits of hidden states that have passed the final norm, in float32, soft-capped where the model does so."""
    logits = handle.model.get_output_embeddings()(hidden).float()
    cap = handle.model.config.to_dict().get("final_logit_softcapping")
    return cap * torch.tanh(logits / cap) if cap else logits


def log_probs_of(
    handle: ModelHandle, hidden: Float[Tensor, "n d"], ids: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Tensor]:
    """log p of each id at its position, and whether it is the most likely one."""
    logits = unembed(handle, hidden)
    picked = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return picked - logits.logsumexp(-1), logits.argmax(-1) == ids


@torch.inference_mode()
def tell(
    handle: ModelHandle,
    asks: Sequence[Ask],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    rows: int = ROWS,
    enough: Callable[[str], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Told]:
    """Answer every ask, in the order given. `progress` is told how many more are done.

    A text ends at `max_new_tokens`, at EOS, at a line break, or when `enough` says of the text so far that no more is
    wanted.

    Raises PromptTooLong where prompt, target and text together pass the model's context.
    """
    answers: dict[int, Told] = {}
    for part, told in tell_in_parts(handle, asks, max_new_tokens=max_new_tokens, rows=rows, enough=enough):
        answers.update(zip(part, told, strict=True))
        if progress:
            progress(len(part))
    return [answers[i] for i in range(len(asks))]


def tell_in_parts(
    handle: ModelHandle,
    asks: Sequence[Ask],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    rows: int = ROWS,
    enough: Callable[[str], bool] | None = None,
) -> Iterator[tuple[list[int], list[Told]]]:
    """The same, batch by batch as it is done: (places in `asks`, answers), so that a caller can keep what is done."""
    ready = [_encode(handle, ask, max_new_tokens) for ask in asks]
    for part in _batches(ready, rows):
        with torch.inference_mode():
            yield part, _tell_batch(handle, [ready[i] for i in part], Speech(max_new_tokens, _stop_ids(handle), enough))


@dataclass(frozen=True, slots=True)
class _Encoded:
    ids: list[int]
    targets: dict[str, list[int]]
    generate: bool


def _encode(handle: ModelHandle, ask: Ask, max_new_tokens: int) -> _Encoded:
    prompt = ask.prompt
    for rewrite in handle.prompt_rewrites:
        prompt = rewrite(prompt)
    ids = encode(handle.tokenizer, prompt)
    targets = {}
    for target in ask.targets:
        own, targets[target] = encode_pair(handle.tokenizer, prompt, target)
        assert own == ids
    longest = len(ids) + max([max_new_tokens * ask.generate, *(len(t) for t in targets.values())])
    if longest > handle.context:
        raise PromptTooLong(
            f"prompt {ask.prompt[:60]!r}… needs {longest} tokens with its answer, {handle.name!r} takes "
            f"{handle.context}; shorten it"
        )
    return _Encoded(ids, targets, ask.generate)


def _batches(ready: Sequence[_Encoded], rows: int) -> list[list[int]]:
    """Places of asks, those of like length together, longest first (so that too little memory shows at once)."""
    order = sorted(range(len(ready)), key=lambda i: (-len(ready[i].ids), ready[i].ids))
    return [order[i : i + rows] for i in range(0, len(order), rows)]


@dataclass(frozen=True, slots=True)
class Speech:
    """When a greedy text ends."""

    max_new_tokens: int
    stops: frozenset[int]
    enough: Callable[[str], bool] | None

    def over(self, handle: ModelHandle, ids: Sequence[int]) -> bool:
        if ids[-1] in self.stops:
            return True
        text = handle.tokenizer.decode(ids)
        return bool(text.strip()) and ("\n" in text.lstrip() or (self.enough is not None and self.enough(text)))


def _tell_batch(handle: ModelHandle, batch: Sequence[_Encoded], speech: Speech) -> list[Told]:
    prompts, cache, last = _read_prompts(handle, [e.ids for e in batch])
    scores = _score_targets(handle, batch, prompts, cache, last)
    texts = [""] * len(batch)
    speaking = [i for i, e in enumerate(batch) if e.generate]
    if speaking:
        for i, text in zip(speaking, _speak(handle, prompts, cache, last, speaking, speech), strict=True):
            texts[i] = text
    return [Told(text, score) for text, score in zip(texts, scores, strict=True)]


def _read_prompts(handle: ModelHandle, prompts: list[list[int]]) -> tuple[Padded, DynamicCache, Tensor]:
    """Left-padded prompts, their keys and values, and the hidden state of each last token. A prefix that the whole
    batch shares is read once."""
    padded = pad(prompts, side="left", pad_id=pad_id_of(handle.tokenizer), device=handle.device)
    shared = _shared_prefix(prompts)
    if shared < MIN_SHARED or len(prompts) == 1:
        cache = DynamicCache()
        return padded, cache, _run(handle, padded.ids, padded.mask, padded.positions, cache)[:, -1]
    prefix = torch.tensor([prompts[0][:shared]], device=handle.device)
    cache = DynamicCache()
    _run(
        handle,
        prefix,
        torch.ones_like(prefix, dtype=torch.bool),
        torch.arange(shared, device=handle.device)[None],
        cache,
    )
    cache.batch_repeat_interleave(len(prompts))
    rest = pad([p[shared:] for p in prompts], side="left", pad_id=pad_id_of(handle.tokenizer), device=handle.device)
    ones = torch.ones((len(prompts), shared), dtype=torch.bool, device=handle.device)
    mask = torch.cat([ones, rest.mask], 1)
    positions = torch.cat([ones.long().cumsum(1) - 1, rest.positions + shared], 1)
    hidden = _run(handle, rest.ids, mask, rest.positions + shared, cache)
    return Padded(torch.cat([prefix.expand(len(prompts), -1), rest.ids], 1), mask, positions), cache, hidden[:, -1]


def _shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the prefix common to all prompts; at least one token of each is left to read."""
    first, last = min(prompts), max(prompts)  # the extremes of the lexical order share what all share
    shared = 0
    for a, b in zip(first, last, strict=False):
        if a != b:
            break
        shared += 1
    return min(shared, min(map(len, prompts)) - 1)


def _run(handle: ModelHandle, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Hidden states after the final norm; the cache grows by what is read."""
    keyword = cache_keyword(handle.backbone)
    output = handle.backbone(
        input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=True, **{keyword: cache}
    )
    return output.last_hidden_state


@functools.cache
def _names_cache(forward: Callable[..., object]) -> bool:
    return "cache" in inspect.signature(forward).parameters


def cache_keyword(backbone: nn.Module) -> str:
    """How this version of transformers calls the key-value cache (renamed on the way to 5.40)."""
    return "cache" if _names_cache(type(backbone).forward) else "past_key_values"


def _score_targets(
    handle: ModelHandle, batch: Sequence[_Encoded], prompts: Padded, cache: DynamicCache, last: Tensor
) -> list[dict[str, TargetScore]]:
    """Every target of every prompt: first tokens from the prompts' last hidden states, the others in one more run."""
    pairs = [(row, name, ids) for row, e in enumerate(batch) for name, ids in e.targets.items()]
    if not pairs:
        return [{} for _ in batch]
    rows = torch.tensor([row for row, _, _ in pairs], device=handle.device)
    hidden = [last[rows]]
    ids = [torch.tensor([t[0] for *_, t in pairs], device=handle.device)]
    owner = [torch.arange(len(pairs), device=handle.device)]
    long = [i for i, (*_, t) in enumerate(pairs) if len(t) > 1]
    if long:
        place = torch.tensor(long, device=handle.device)
        tails = [pairs[i][2] for i in long]
        fed = pad([t[:-1] for t in tails], side="right", pad_id=pad_id_of(handle.tokenizer), device=handle.device)
        wanted = pad([t[1:] for t in tails], side="right", pad_id=pad_id_of(handle.tokenizer), device=handle.device)
        states = _continue(handle, prompts, cache, rows[place], fed)
        hidden.append(states[fed.mask])
        ids.append(wanted.ids[wanted.mask])
        owner.append(place[:, None].expand_as(fed.ids)[fed.mask])
    log_probs, hits = log_probs_of(handle, torch.cat(hidden), torch.cat(ids))
    owners = torch.cat(owner)
    sums = torch.zeros(len(pairs), dtype=torch.float64, device="cpu").index_add_(
        0, owners.cpu(), log_probs.double().cpu()
    )
    misses = torch.zeros(len(pairs), dtype=torch.long).index_add_(0, owners.cpu(), (~hits).long().cpu())
    scores: list[dict[str, TargetScore]] = [{} for _ in batch]
    for i, (row, name, target) in enumerate(pairs):
        scores[row][name] = TargetScore(float(sums[i]), len(target), not misses[i])
    return scores


def _continue(handle: ModelHandle, prompts: Padded, cache: DynamicCache, rows: Tensor, fed: Padded) -> Tensor:
    """Hidden states of `fed` as continuations of the prompts `rows`; the prompts' cache is left alone."""
    branch = _branch(cache, rows)
    mask = torch.cat([prompts.mask[rows], fed.mask], 1)
    begin = prompts.positions[rows, -1:] + 1
    return _run(handle, fed.ids, mask, fed.positions + begin, branch)


def _branch(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A copy of the cache with the given rows."""
    branch = DynamicCache()
    for layer, kept in enumerate(cache.layers):
        branch.update(kept.keys[rows], kept.values[rows], layer)
    return branch


def _speak(
    handle: ModelHandle, prompts: Padded, cache: DynamicCache, last: Tensor, rows: list[int], speech: Speech
) -> list[str]:
    """Greedy continuations; finished rows leave the batch."""
    picked = torch.tensor(rows, device=handle.device)
    cache = _branch(cache, picked)
    mask, position, hidden = prompts.mask[picked], prompts.positions[picked, -1] + 1, last[picked]
    spoken: list[list[int]] = [[] for _ in rows]
    alive = list(range(len(rows)))
    for step in range(speech.max_new_tokens):
        chosen = unembed(handle, hidden).argmax(-1)
        for place, token in zip(alive, chosen.tolist(), strict=True):
            spoken[place].append(token)
        going = [i for i, place in enumerate(alive) if not speech.over(handle, spoken[place])]
        if not going or step == speech.max_new_tokens - 1:
            break
        keep = torch.tensor(going, device=handle.device)
        if len(going) < len(alive):
            cache.batch_select_indices(keep)
            alive = [alive[i] for i in going]
        mask = torch.cat([mask[keep], torch.ones((len(going), 1), dtype=torch.bool, device=handle.device)], 1)
        position = position[keep]
        hidden = _run(handle, chosen[keep, None], mask, position[:, None], cache)[:, -1]
        position = position + 1
    return [_text(handle, ids, speech.stops) for ids in spoken]


def _stop_ids(handle: ModelHandle) -> frozenset[int]:
    """Ids that end a text: EOS of tokenizer, config and generation config."""
    stops: set[int] = set()
    generation = handle.model.generation_config.eos_token_id if handle.model.can_generate() else None
    for ids in (handle.tokenizer.eos_token_id, handle.model.config.eos_token_id, generation):
        if ids is not None:
            stops.update(ids if isinstance(ids, list) else [ids])
    return frozenset(stops)


def _text(handle: ModelHandle, ids: list[int], stops: frozenset[int]) -> str:
    kept = [i for i in ids if i not in stops]
    return str(handle.tokenizer.decode(kept, skip_special_tokens=True)).strip()


@torch.inference_mode()
def score_pairs(handle: ModelHandle, pairs: Sequence[tuple[str, str]], *, rows: int = ROWS) -> list[TargetScore]:
    """log p(target | prompt) of each pair; pairs with the same prompt read it once."""
    prompts: dict[str, dict[str, None]] = {}
    for prompt, target in pairs:
        prompts.setdefault(prompt, {})[target] = None
    asks = [Ask(prompt, tuple(targets), generate=False) for prompt, targets in prompts.items()]
    told = dict(zip(prompts, tell(handle, asks, rows=rows), strict=True))
    return [told[prompt].targets[target] for prompt, target in pairs]


@contextlib.contextmanager
def attention(handle: ModelHandle, implementation: str) -> Iterator[None]:
    """Another attention implementation within the block: "eager" is faster than "sdpa" for gradients on a CPU."""
    before = handle.model.config._attn_implementation
    handle.model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        handle.model.set_attn_implementation(before)
