"""log p(target | prompt), the most likely tokens, text: the only place where logits become numbers.

One prompt is read once, with all its targets, in a pack with others that begin alike (see `packs`); its keys and values
then serve the text, which many prompts speak at once. The unembedding is applied only at positions that are
read, never to a whole prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from editkit.forward import unembed
from editkit.handle import ModelHandle
from editkit.packs import Pack, Seen, joined, packed
from editkit.packs import read as read_pack
from editkit.products import exact, using
from editkit.speech import Free, Speech, Voice, speak, stop_ids
from editkit.tokens import PromptTooLong, encode, encode_pair

MAX_NEW_TOKENS = 16
ROWS = 128  # prompts that speak at once
HELD = 4096  # tokens whose keys and values are held for them: with half as many it is a fifth slower


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt, the continuations whose probability is wanted, and whether to let the model speak.

    `echo` is what the text may say again before it says anything of its own ("The capital of Japan is …"): as many
    tokens come on top of `max_new_tokens`, so that no answer is cut off before it is reached. A `free` text is no
    answer: it is as long as that says, and drawn.
    """

    prompt: str
    targets: tuple[str, ...] = ()
    generate: bool = True
    echo: str = ""
    free: Free | None = None


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

    A text ends at `max_new_tokens` (more for an ask with an `echo`), at EOS, at a line break, or when `enough` says of
    the text so far that no more is wanted.

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
    parts = _answers(handle, ready, Speech(stop_ids(handle), enough), rows)
    products = exact(handle)
    while True:
        with torch.inference_mode(), using(products):  # not around a yield: both would leak into the caller
            part = next(parts, None)
        if part is None:
            return
        yield part


@dataclass(frozen=True, slots=True)
class _Encoded:
    """An ask in tokens: the prompt, and what is read for it: the prompt before each target, less the target's last
    token; or the prompt alone. `voice` gives the text, of 0 tokens where none is wanted."""

    ids: list[int]
    targets: dict[str, list[int]]
    voice: Voice

    @property
    def sequences(self) -> list[list[int]]:
        return [[*self.ids, *target[:-1]] for target in self.targets.values()] or [self.ids]


def _encode(handle: ModelHandle, ask: Ask, max_new_tokens: int) -> _Encoded:
    prompt = ask.prompt
    for rewrite in handle.prompt_rewrites:
        prompt = rewrite(prompt)
    ids = encode(handle.tokenizer, prompt)
    targets = {}
    for target in ask.targets:
        own, targets[target] = encode_pair(handle.tokenizer, prompt, target)
        assert own == ids
    most = _length(handle, ask, max_new_tokens)
    longest = len(ids) + max([most, *(len(t) for t in targets.values())])
    if longest > handle.context:
        rewritten = "" if prompt == ask.prompt else ", as the patches that are on rewrite it,"
        raise PromptTooLong(
            f"prompt {ask.prompt[:60]!r}…{rewritten} needs {longest} tokens with its answer, {handle.name!r} takes "
            f"{handle.context}; shorten it"
        )
    return _Encoded(ids, targets, Voice(most, ask.free, ask.prompt))


def _length(handle: ModelHandle, ask: Ask, max_new_tokens: int) -> int:
    """How many tokens the text may have."""
    if ask.free:
        return ask.free.tokens
    return (max_new_tokens + len(handle.tokenizer(ask.echo, add_special_tokens=False).input_ids)) * ask.generate


def _answers(
    handle: ModelHandle, ready: Sequence[_Encoded], speech: Speech, rows: int
) -> Iterator[tuple[list[int], list[Told]]]:
    """Read all pack by pack and let them speak, at most `rows` at once, which hold about `HELD` tokens: (places,
    answers) as they are done."""
    waiting: list[_Heard] = []
    caches: list[DynamicCache] = []
    for pack in packed(handle, [each.sequences for each in ready]):
        seen = read_pack(handle, pack)
        heard = _read_off(handle, pack, seen, [ready[member] for member in pack.members])
        silent = [each for each in heard if not each.path]
        if silent:
            yield [each.member for each in silent], [Told("", each.scores) for each in silent]
        speaking = [each for each in heard if each.path]
        while speaking:
            room = _room(waiting, speaking, rows)
            if room:
                waiting += speaking[:room]
                caches.append(seen.branch([each.path for each in speaking[:room]]))
                speaking = speaking[room:]
            if speaking:  # a pack may hold more than can speak at once
                yield from _spoken(handle, ready, waiting, caches, speech)
                waiting, caches = [], []
    if waiting:
        yield from _spoken(handle, ready, waiting, caches, speech)


def _room(waiting: Sequence[_Heard], more: Sequence[_Heard], rows: int) -> int:
    """How many more may wait to speak; one at least where none waits."""
    longest = max((len(each.path) for each in waiting), default=0)
    for room, each in enumerate(more):
        longest, held = max(longest, len(each.path)), len(waiting) + room
        if held and (held == rows or (held + 1) * longest > HELD):
            return room
    return len(more)


def _spoken(
    handle: ModelHandle,
    ready: Sequence[_Encoded],
    waiting: Sequence[_Heard],
    caches: Sequence[DynamicCache],
    speech: Speech,
) -> Iterator[tuple[list[int], list[Told]]]:
    lengths, first = [len(each.path) for each in waiting], [each.next for each in waiting]
    voices = [ready[each.member].voice for each in waiting]
    for ended in speak(handle, lengths, joined(caches), first, voices, speech):
        yield [waiting[row].member for row, _ in ended], [Told(text, waiting[row].scores) for row, text in ended]


@dataclass(frozen=True, slots=True)
class _Heard:
    """What reading a pack says of one ask: its place among all, its scores, the first token of its text, and, where it
    is to speak, the prompt's path in the pack."""

    member: int
    scores: dict[str, TargetScore]
    next: int
    path: list[int]


def _read_off(handle: ModelHandle, pack: Pack, seen: Seen, asks: Sequence[_Encoded]) -> list[_Heard]:
    """Scores and first words of each ask. Each place is unembedded once."""
    tails = [[path[len(ask.ids) - 1 :] for path in paths] for ask, paths in zip(asks, pack.paths, strict=True)]
    rows = {place: row for row, place in enumerate(dict.fromkeys(p for each in tails for tail in each for p in tail))}
    logits = unembed(handle, seen.hidden[torch.tensor([*rows], device=handle.device)])
    best = dict(zip(rows, logits.argmax(-1).tolist(), strict=True))
    wanted = [
        [*zip(tail, target, strict=True)]
        for ask, own in zip(asks, tails, strict=True)
        for target, tail in zip(ask.targets.values(), own, strict=False)
    ]
    logprobs = iter(_logprobs(logits, [(rows[place], token) for each in wanted for place, token in each]))
    scores = iter(
        [
            TargetScore(sum(next(logprobs) for _ in each), len(each), all(best[p] == t for p, t in each))
            for each in wanted
        ]
    )
    heard = []
    for member, ask, paths in zip(pack.members, asks, pack.paths, strict=True):
        path = paths[0][: len(ask.ids)]
        own = {target: next(scores) for target in ask.targets}
        first = ask.voice.next(logits[rows[path[-1]]], best[path[-1]])
        heard.append(_Heard(member, own, first, path if ask.voice.most else []))
    return heard


def _logprobs(logits: Tensor, wanted: Sequence[tuple[int, int]]) -> list[float]:
    """log p of each (row, token)."""
    if not wanted:
        return []
    rows, tokens = torch.tensor(wanted, device=logits.device).T
    return list((logits[rows, tokens] - logits.logsumexp(-1)[rows]).double().tolist())


@torch.inference_mode()
def score_pairs(handle: ModelHandle, pairs: Sequence[tuple[str, str]], *, rows: int = ROWS) -> list[TargetScore]:
    """log p(target | prompt) of each pair; pairs with the same prompt read it once."""
    prompts: dict[str, dict[str, None]] = {}
    for prompt, target in pairs:
        prompts.setdefault(prompt, {})[target] = None
    asks = [Ask(prompt, tuple(targets), generate=False) for prompt, targets in prompts.items()]
    told = dict(zip(prompts, tell(handle, asks, rows=rows), strict=True))
    return [told[prompt].targets[target] for prompt, target in pairs]
