"""Drives all probes at once: their questions are batched round by round and put to the unchanged and the changed model.

A question is asked once: of one round, of all probes, of the records that share it, and of an earlier run whose store
is given. Between rounds the patches are off, so that probes ask the unchanged model for key words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from editkit.attribute import WordScore
from editkit.attribute.occlusion import occlude
from editkit.facts import Record
from editkit.handle import ModelHandle
from editkit.patch import Patch
from editkit.scoring import MAX_NEW_TOKENS, Ask, Told, tell_in_parts
from editkit.speech import Free
from probes.framing import asked_in
from probes.judge import first_sentence, said_enough
from probes.kinds import PROBES, Attribution, Context, Rounds
from probes.verdict import Answer, Case, Reply, Verdict

Progress = Callable[[int, int], None]
"""(questions in all as far as is known, questions done)."""

Wish = tuple[str, int]
"""A prompt, and how many tokens of free text it is to be continued with: 0 for an answer."""


class Key(NamedTuple):
    """What a reply belongs to: `ModelHandle.state`, the prompt, whether the model was let speak, and, of a free text,
    how many tokens were drawn by which seed."""

    state: str
    prompt: str
    generate: bool = True
    free: int = 0
    seed: int = 0


class ReplyStore(Protocol):
    """Keeps replies. `put` is called as soon as a batch is answered; a later reply of a key holds the earlier."""

    def get(self, key: Key) -> Reply | None: ...

    def put(self, replies: Sequence[tuple[Key, Reply]]) -> None: ...


@dataclass(slots=True)
class MemoryStore:
    """Keeps replies for as long as it lives."""

    replies: dict[Key, Reply] = field(default_factory=dict)

    def get(self, key: Key) -> Reply | None:
        return self.replies.get(key)

    def put(self, replies: Sequence[tuple[Key, Reply]]) -> None:
        self.replies.update(replies)


@dataclass(frozen=True, slots=True)
class Job:
    """A probe by name, the record it asks about, and the patches that make the changed model."""

    probe: str
    record: Record
    patches: tuple[Patch, ...] = ()


def run_probes(
    handle: ModelHandle,
    patches: Sequence[Patch],
    jobs: Sequence[Job],
    *,
    seed: int = 0,
    store: ReplyStore | None = None,
    attribution: Attribution | None = None,
    progress: Progress | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[Verdict]:
    """The verdicts of all jobs, in their order, with `patches` on below the jobs' own.

    The handle as given is the unchanged model. See `run_jobs`.
    """
    stacked = [Job(job.probe, job.record, (*patches, *job.patches)) for job in jobs]
    verdicts = run_jobs(
        handle,
        stacked,
        seed=seed,
        store=store,
        attribution=attribution,
        progress=progress,
        max_new_tokens=max_new_tokens,
    )
    return [verdict for of_job in verdicts for verdict in of_job]


def run_jobs(
    handle: ModelHandle,
    jobs: Sequence[Job],
    *,
    seed: int = 0,
    store: ReplyStore | None = None,
    attribution: Attribution | None = None,
    progress: Progress | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[list[Verdict]]:
    """The verdicts of each job. All jobs go round by round together: one batch for the unchanged model, then one for
    each distinct tuple of patches, which are put on once a round. Jobs with the same patches are about one changed
    model: none of them asks whether the fact of another has stayed.

    `attribution` finds key words; by default it is occlusion on the unchanged model, asked through the store. Raises
    UnknownName for a probe that is not there and PromptTooLong for a question that the model's context cannot hold.
    """
    asker = _Asker(handle, store if store is not None else MemoryStore(), max_new_tokens, progress, seed)
    contexts = _contexts(jobs, Context(seed, attribution or asker.occlusion))
    running = [_Running(job, PROBES[job.probe](job.record, of)) for job, of in zip(jobs, contexts, strict=True)]
    for each in running:
        each.advance(None)
    while waiting := [each for each in running if each.verdicts is None]:
        _one_round(asker, waiting)
    return [each.verdicts or [] for each in running]


def replies_to(
    handle: ModelHandle,
    prompts: Iterable[str],
    *,
    store: ReplyStore,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Progress | None = None,
) -> dict[str, Reply]:
    """What the model as it is says to each prompt. Probes that are given the same store do not ask again."""
    wanted: dict[Wish, tuple[str, ...]] = dict.fromkeys(((prompt, 0) for prompt in prompts), ())
    asker = _Asker(handle, store, max_new_tokens, progress)
    asker.expect(len(wanted))
    return {prompt: reply for (prompt, _), reply in asker._replies(wanted, generate=True).items()}


def _contexts(jobs: Sequence[Job], context: Context) -> Iterator[Context]:
    """For each job the context, with what else its patches change: the facts of the jobs with the same patches."""
    together: dict[tuple[int, ...], set[tuple[str, str]]] = {}
    for job in jobs:
        together.setdefault(_arm(job), set()).add((job.record.fact.relation, job.record.fact.subject))
    for job in jobs:
        others = together[_arm(job)] if job.patches else set()
        own = (job.record.fact.relation, job.record.fact.subject)
        yield replace(context, changed_too=frozenset(others - {own}))


def _arm(job: Job) -> tuple[int, ...]:
    """Jobs with the same patches are asked together."""
    return tuple(id(patch) for patch in job.patches)


@dataclass(slots=True)
class _Running:
    """A job under way: the questions of its present round, or its verdicts."""

    job: Job
    rounds: Rounds
    cases: list[Case] = field(default_factory=list)
    verdicts: list[Verdict] | None = None

    def advance(self, answers: list[Answer] | None) -> None:
        try:
            self.cases = next(self.rounds) if answers is None else self.rounds.send(answers)
        except StopIteration as done:
            self.cases, self.verdicts = [], done.value


def _one_round(asker: _Asker, waiting: Sequence[_Running]) -> None:
    """Ask before and after, then let every probe go on, with all patches off."""
    arms: dict[tuple[int, ...], list[_Running]] = {}
    for each in waiting:
        arms.setdefault(_arm(each.job), []).append(each)
    base = [case for each in waiting for case in each.cases]
    changed = [[case for each in arm for case in each.cases if not case.base_only] for arm in arms.values()]
    asker.expect(sum(len({_wish(case) for case in cases}) for cases in (base, *changed)))
    befores = iter(asker.ask(base))
    answers: dict[int, list[Answer]] = {}
    pairs = {id(each): [(case, next(befores)) for case in each.cases] for each in waiting}
    for members, cases in zip(arms.values(), changed, strict=True):
        with asker.handle.patched(*members[0].job.patches):
            afters = iter(asker.ask(cases))
        for each in members:
            answers[id(each)] = [Answer(old, old if case.base_only else next(afters)) for case, old in pairs[id(each)]]
    for each in waiting:
        each.advance(answers[id(each)])


@dataclass(slots=True)
class _Asker:
    """Puts questions to the handle as it is, through the store."""

    handle: ModelHandle
    store: ReplyStore
    max_new_tokens: int = MAX_NEW_TOKENS
    progress: Progress | None = None
    seed: int = 0
    total: int = 0
    done: int = 0

    def ask(self, cases: Sequence[Case]) -> list[Reply]:
        """One reply a case, with the scores of the case's own targets; cases of the same prompt are asked as one."""
        wanted: dict[Wish, dict[str, None]] = {}
        for case in cases:
            wanted.setdefault(_wish(case), {}).update(dict.fromkeys(case.targets))
        replies = self._replies(wanted, generate=True)
        return [_of_targets(replies[_wish(case)], case.targets) for case in cases]

    def occlusion(self, prompt: str, answer: str) -> tuple[WordScore, ...]:
        """What each word of the prompt adds to the answer; see editkit/attribute/occlusion.py."""

        def mean_logprob(prompts: Sequence[str], target: str) -> list[float]:
            self.expect(len(set(prompts)))
            replies = self._replies({(each, 0): {target: None} for each in prompts}, generate=False)
            return [replies[each, 0].logprob[target] for each in prompts]

        return occlude(prompt, answer, mean_logprob)

    def expect(self, more: int) -> None:
        """Say that so many more questions are to come."""
        self.total += more

    def _replies(self, wanted: Mapping[Wish, Iterable[str]], *, generate: bool) -> dict[Wish, Reply]:
        """The reply to each wish with at least the wanted targets: from the store, else from the model. A reply with a
        text serves where none is asked for."""
        replies: dict[Wish, Reply] = {}
        asks: list[tuple[Wish, Ask]] = []
        for wish, targets in wanted.items():
            kept = self._kept(wish, targets, generate)
            missing = tuple(targets if kept is None else (each for each in targets if each not in kept.logprob))
            if kept is not None:
                replies[wish] = kept
            if kept is None or missing:
                asks.append((wish, self._ask(wish, missing, generate and kept is None)))
        self._advance(len(wanted) - len(asks))
        questions = [ask for _, ask in asks]
        for places, told in tell_in_parts(
            self.handle, questions, max_new_tokens=self.max_new_tokens, enough=said_enough
        ):
            fresh = {
                asks[place][0]: _merged(replies.get(asks[place][0]), each, free=questions[place].free is not None)
                for place, each in zip(places, told, strict=True)
            }
            self.store.put([(self._key(wish, generate), reply) for wish, reply in fresh.items()])
            replies |= fresh
            self._advance(len(fresh))
        return replies

    def _ask(self, wish: Wish, targets: tuple[str, ...], generate: bool) -> Ask:
        prompt, free = wish
        if free and generate:
            return Ask(prompt, targets, free=Free(free, self.seed))
        return Ask(prompt, targets, generate, echo=asked_in(prompt))

    def _key(self, wish: Wish, generate: bool) -> Key:
        prompt, free = wish
        return Key(self.handle.state, prompt, generate, free, self.seed if free else 0)

    def _kept(self, wish: Wish, targets: Iterable[str], generate: bool) -> Reply | None:
        spoken = self.store.get(self._key(wish, True))
        if generate or (spoken is not None and all(target in spoken.logprob for target in targets)):
            return spoken
        return self.store.get(self._key(wish, False))

    def _advance(self, more: int) -> None:
        self.done += more
        if self.progress is not None and more:
            self.progress(self.total, self.done)


def _wish(case: Case) -> Wish:
    return case.prompt, case.free


def _merged(kept: Reply | None, told: Told, *, free: bool) -> Reply:
    """What was known of a reply and what the model now said; of an answer, what counts."""
    logprob = {target: score.mean for target, score in told.targets.items()}
    argmax = {target: score.argmax for target, score in told.targets.items()}
    if kept is None:
        answer = first_sentence(told.text) if said_enough(told.text) and not free else told.text
        return Reply(answer, logprob, argmax)
    return Reply(kept.text, kept.logprob | logprob, kept.argmax | argmax)


def _of_targets(reply: Reply, targets: Iterable[str]) -> Reply:
    wanted = tuple(targets)
    return Reply(reply.text, {t: reply.logprob[t] for t in wanted}, {t: reply.argmax[t] for t in wanted})
