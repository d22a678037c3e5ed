"""The runner, on a tiny model: rounds, batches, patches, and that nothing is asked twice."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from probe_records import FACT, RECORDS, context, edit_record, forget_record

from editkit.attribute.occlusion import Occlusion
from editkit.facts import Edit, EditRecord, Fact, HeldOut
from editkit.patch import DenseDelta, WeightPatch
from editkit.scoring import Ask as Question
from editkit.scoring import score_pairs, tell
from editkit.tokens import PromptTooLong
from probes import ask
from probes.ask import Job, Key, MemoryStore, run_jobs, run_probes
from probes.judge import first_sentence, said_enough
from probes.kinds import PROBES, Context, no_attribution
from probes.verdict import Answer

ALL = [Job(name, record) for name in PROBES for record in (edit_record(), forget_record())]


class Counting(MemoryStore):
    """A store that keeps what the model was asked for: texts, and scores of single targets."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[Key] = []
        self.scores: list[tuple[Key, str]] = []
        self.batches = 0

    def put(self, replies):
        self.batches += 1
        for key, reply in replies:
            known = self.replies.get(key)
            if known is None and key.generate:
                self.texts.append(key)
            self.scores += [(key, target) for target in reply.logprob if known is None or target not in known.logprob]
        super().put(replies)

    @property
    def asked_twice(self) -> bool:
        return len(set(self.texts)) < len(self.texts) or len(set(self.scores)) < len(self.scores)


def patch_of(handle, seed=0, size=30.0):
    name = handle.weight_name("mlp_out", 1)
    delta = torch.randn(handle.matrix(name).shape, generator=torch.Generator().manual_seed(seed)) * size
    return WeightPatch({name: DenseDelta(delta)})


def by_hand(handle, patches, job, seed=0):
    """An independent runner: one probe, one question at a time."""

    def attribution(prompt, answer):
        return Occlusion()(handle, prompt, answer)

    def reply(case):
        match = re.search(r"User: (.*)\nAssistant:$", case.prompt)
        question = Question(case.prompt, case.targets, echo=match[1] if match else "")
        told = tell(handle, [question], enough=said_enough)[0]
        text = first_sentence(told.text) if said_enough(told.text) else told.text
        return text, {t: told.targets[t].mean for t in case.targets}

    rounds = PROBES[job.probe](job.record, Context(seed, attribution))
    seen, cases = [], next(rounds)
    while True:
        before = [reply(case) for case in cases]
        with handle.patched(*patches):
            after = [reply(case) for case in cases]
        seen += [(case, b, b if case.base_only else a) for case, b, a in zip(cases, before, after, strict=True)]
        try:
            cases = rounds.send([Answer(*map(as_reply, each[1:])) for each in seen[-len(cases) :]])
        except StopIteration:
            return [each for each in seen if not each[0].base_only]


def as_reply(said):
    text, logprob = said
    return ask.Reply(text, logprob, dict.fromkeys(logprob, False))


@pytest.mark.parametrize("name", ["rewrite", "multi_hop", "popularity", "keyword_emphasis"])
def test_answers_equal_those_asked_one_by_one(handle, name):
    patch = patch_of(handle)
    for job in [Job(name, RECORDS[key]) for key in ("edit", "forget")][: 1 if name == "keyword_emphasis" else 2]:
        expected = by_hand(handle, [patch], job)
        verdicts = run_probes(handle, [patch], [job])
        assert [verdict.case for verdict in verdicts] == [case for case, *_ in expected]
        for verdict, (_, *said) in zip(verdicts, expected, strict=True):
            for reply, (text, logprob) in zip((verdict.answer.before, verdict.answer.after), said, strict=True):
                assert reply.text == text
                assert reply.logprob == pytest.approx(logprob, abs=2e-4)


def test_the_patch_is_seen_after_and_only_after(handle):
    verdicts = run_probes(handle, [patch_of(handle)], [Job("rewrite", RECORDS["edit"])])
    answer = verdicts[0].answer
    before, after = (reply.logprob["Rome"] for reply in (answer.before, answer.after))
    [plain] = score_pairs(handle, [(FACT.text, "Rome")])
    assert before == pytest.approx(plain.mean, abs=1e-4)
    assert abs(after - before) > 1e-2


def test_without_a_patch_nothing_changes_and_nothing_is_asked_twice(handle):
    store = Counting()
    verdicts = run_probes(handle, [], ALL, store=store)
    assert all(verdict.answer.before == verdict.answer.after for verdict in verdicts)
    assert {key.state for key in store.texts} == {handle.state}
    assert not store.asked_twice


def test_identical_questions_are_asked_once(handle):
    store = Counting()
    verdicts = run_probes(handle, [patch_of(handle)], ALL * 2, store=store, attribution=context().attribution)
    keys = store.texts
    prompts = {verdict.case.prompt for verdict in verdicts}
    states = {key.state for key in keys}
    assert len(states) == 2
    assert not store.asked_twice
    for state in states - {handle.state}:
        assert {key.prompt for key in keys if key.state == state} == prompts
    premises = {key.prompt for key in keys if key.state == handle.state} - prompts
    assert premises, "premises are put to the unchanged model alone"
    half = len(verdicts) // 2
    assert len(verdicts) == 2 * half


def test_targets_of_the_same_prompt_are_merged_and_told_apart_again(handle):
    store = Counting()
    jobs = [Job("rewrite", RECORDS["edit"]), Job("rewrite", RECORDS["forget"])]
    edit, forget = run_probes(handle, [], jobs, store=store)
    assert len(store.texts) == 1
    assert set(edit.answer.before.logprob) == set(edit.case.targets) == {"Paris", "Rome"}
    assert set(forget.answer.before.logprob) == set(forget.case.targets)


def test_a_finished_run_is_never_asked_again(handle, monkeypatch):
    store, patch = MemoryStore(), patch_of(handle)
    first = run_probes(handle, [patch], ALL, store=store)
    again = Counting()
    again.replies = dict(store.replies)
    monkeypatch.setattr(ask, "tell_in_parts", lambda handle, asks, **_: pytest.fail("asked") if asks else iter(()))
    assert run_probes(handle, [patch], ALL, store=again) == first
    assert again.batches == 0


def test_a_killed_run_goes_on_where_it_was(handle, monkeypatch):
    patch, store = patch_of(handle), Counting()
    whole = run_probes(handle, [patch], ALL)
    everything = Counting()
    run_probes(handle, [patch], ALL, store=everything)

    def dying(this, asks, **options):
        for number, part in enumerate(real(this, asks, rows=4, **options)):
            if store.batches == 7:
                raise KeyboardInterrupt
            assert number < 1000
            yield part

    real = ask.tell_in_parts
    monkeypatch.setattr(ask, "tell_in_parts", dying)
    before = handle.state
    with pytest.raises(KeyboardInterrupt):
        run_probes(handle, [patch], ALL, store=store)
    assert handle.state == before, "the patch is off again"
    assert 0 < len(store.texts) < len(everything.texts)
    monkeypatch.setattr(ask, "tell_in_parts", real)
    verdicts = run_probes(handle, [patch], ALL, store=store)
    assert not store.asked_twice
    assert set(store.texts) == set(everything.texts)
    assert [v.case for v in verdicts] == [v.case for v in whole]
    assert [v.class_after for v in verdicts] == [v.class_after for v in whole]


def test_a_new_target_of_a_known_prompt_is_scored_without_speaking_again(handle, monkeypatch):
    store = MemoryStore()
    run_probes(handle, [], [Job("rewrite", RECORDS["edit"])], store=store)
    asked = []
    real = ask.tell_in_parts
    monkeypatch.setattr(
        ask, "tell_in_parts", lambda handle, asks, **options: asked.extend(asks) or real(handle, asks, **options)
    )
    [verdict] = run_probes(handle, [], [Job("rewrite", RECORDS["forget"])], store=store)
    [question] = asked
    assert question.generate is False
    assert set(question.targets) == set(verdict.case.targets) - {"Paris", "Rome"}
    assert verdict.answer.before.text == store.get(Key(handle.state, FACT.text)).text


def test_patches_go_on_once_a_round_and_arms_are_kept_apart(handle, monkeypatch):
    one, two = patch_of(handle, 1), patch_of(handle, 2)
    put_on = []
    real = type(handle).apply
    monkeypatch.setattr(type(handle), "apply", lambda self, patch: put_on.append(patch) or real(self, patch))
    jobs = [Job(name, RECORDS["edit"], patches) for patches in ((one,), (two,), (one, two)) for name in PROBES]
    of_jobs = run_jobs(handle, jobs, attribution=context().attribution)
    rounds = 2  # multi_hop asks its premises first
    assert [id(p) for p in put_on] == [id(p) for p in (one, two, one, two)] * rounds
    rewrites = [verdicts[0] for job, verdicts in zip(jobs, of_jobs, strict=True) if job.probe == "rewrite"]
    assert len({verdict.answer.after.logprob["Rome"] for verdict in rewrites}) == 3
    assert len({verdict.answer.before.logprob["Rome"] for verdict in rewrites}) == 1
    for verdict, patches in zip(rewrites, ((one,), (two,), (one, two)), strict=True):
        with handle.patched(*patches):
            [plain] = score_pairs(handle, [(FACT.text, "Rome")])
        assert verdict.answer.after.logprob["Rome"] == pytest.approx(plain.mean, abs=1e-4)


def test_key_words_are_found_on_the_unchanged_model(handle):
    states = []

    def attribution(prompt, answer):
        states.append(handle.state)
        return Occlusion()(handle, prompt, answer)

    job = Job("keyword_emphasis", RECORDS["edit"])
    given = run_probes(handle, [patch_of(handle)], [job], attribution=attribution)
    assert set(states) == {handle.state}
    assert [v.case for v in given] == [v.case for v in run_probes(handle, [patch_of(handle)], [job])]


def test_progress_ends_with_all_done_and_never_goes_back(handle):
    seen = []
    run_probes(handle, [patch_of(handle)], ALL, progress=lambda total, done: seen.append((total, done)))
    totals, dones = zip(*seen, strict=True)
    assert list(totals) == sorted(totals)
    assert list(dones) == sorted(dones)
    assert totals[-1] == dones[-1]
    assert all(done <= total for total, done in seen)


def test_an_unknown_probe_is_refused_before_anything_is_asked(handle):
    with pytest.raises(KeyError, match="no probe named 'rephrased'; there is rephrase"):
        run_probes(handle, [], [Job("rephrased", RECORDS["edit"])])


def test_a_prompt_that_is_too_long_is_named(handle):
    record = edit_record(paraphrases=("{} " + "word " * 400,))
    with pytest.raises(PromptTooLong, match="shorten it"):
        run_probes(handle, [], [Job("rephrase", record)], attribution=no_attribution)


def test_no_jobs_no_verdicts(handle):
    assert run_probes(handle, [], []) == []


def others_of(verdicts, kind):
    return {(verdict.case.relation, verdict.case.prompt) for verdict in verdicts if verdict.case.probe == kind}


@pytest.mark.parametrize("kind", ["neighborhood", "popularity", "multi_hop"])
def test_what_is_changed_along_is_no_neighbour_that_must_stay(handle, kind):
    """Norway's capital is a neighbour of France's, and Lyon's country a step to it, unless they are changed as well."""
    patch = patch_of(handle)
    norway = EditRecord("capital/no", Edit(replace(FACT, subject="Norway", object="Oslo"), "Lima"), HeldOut())
    lyon = EditRecord(
        "city_country/lyon", Edit(Fact("Lyon", "city_country", "France", "{} lies in"), "Peru"), HeldOut()
    )
    jobs = [Job(kind, record, (patch,)) for record in (RECORDS["edit"], norway, lyon)]
    together, alone = run_jobs(handle, jobs)[0], run_jobs(handle, jobs[:1])[0]
    gone = others_of(alone, kind) - others_of(together, kind)
    named = {"multi_hop": "The capital of the country of Lyon is"}.get(kind, "The capital of Norway is")
    assert {prompt for _, prompt in gone} == {named}
    assert others_of(run_jobs(handle, [replace(job, patches=()) for job in jobs])[0], kind) == others_of(alone, kind)


def test_free_texts_of_one_store_are_told_apart_by_their_seed_and_from_answers(handle):
    store = Counting()
    jobs = [Job("fluency", edit_record()), Job("rewrite", edit_record())]
    texts = {
        seed: [v.answer.before.text for v in run_probes(handle, [], jobs, seed=seed, store=store)] for seed in (1, 2)
    }
    assert texts[1][:2] != texts[2][:2], "each seed draws its own"
    assert texts[1][2] == texts[2][2] and texts[1][2] not in texts[1][:2], "an answer is not drawn"
    assert len(store.texts) == 5 and not store.asked_twice
    again = run_probes(handle, [], jobs, seed=1, store=store)
    assert [v.answer.before.text for v in again] == texts[1] and len(store.texts) == 5
