"""What the base model knows is asked once, and where the probes find it."""

from __future__ import annotations

from collections import Counter

import pytest
from conftest import make_handle

from editkit.data import load
from editkit.scoring import tell_in_parts
from probes.ask import Job, Key, MemoryStore, _Asker, replies_to, run_probes
from probes.verdict import Reply
from reports.choose import select
from reports.spec import make_spec
from reports.watch import Silent


def test_a_fact_asked_when_it_was_chosen_is_not_generated_again(monkeypatch):
    handle, base, store = make_handle("llama"), load("world"), MemoryStore()
    spec = make_spec({"facts": {"relations": ["capital"], "n": 2, "known_only": False}, "max_new_tokens": 4})
    generated: Counter[str] = Counter()

    def counted(handle, asks, **more):
        generated.update(ask.prompt for ask in asks if ask.generate)
        return tell_in_parts(handle, asks, **more)

    monkeypatch.setattr("probes.ask.tell_in_parts", counted)
    chosen = select(handle, base, spec, store, Silent())
    records = [base.edit_record(entry, seed=0, known=chosen.known) for entry in chosen.entries]
    assert all(generated[record.fact.text] == 1 for record in records)
    run_probes(handle, [], [Job("rewrite", r) for r in records], store=store, max_new_tokens=4)
    assert all(generated[record.fact.text] == 1 for record in records)
    before = generated.copy()
    assert replies_to(handle, [records[0].fact.text], store=store, max_new_tokens=4)
    assert generated == before


def test_a_reply_with_a_text_serves_where_only_its_scores_are_wanted(monkeypatch):
    handle, store = make_handle("llama"), MemoryStore()
    spoken = Reply("Paris", {"Paris": -1.0}, {"Paris": True})
    store.put([(Key(handle.state, "The capital of France is", True), spoken)])
    asker = _Asker(handle, store, 3)
    with monkeypatch.context() as patched:
        patched.setattr("probes.ask.tell_in_parts", lambda _, asks, **__: pytest.fail("asked") if asks else iter(()))
        found = asker._replies({"The capital of France is": ("Paris",)}, generate=False)
    assert found["The capital of France is"] == spoken
    more = asker._replies({"The capital of France is": ("Rome",)}, generate=False)["The capital of France is"]
    assert set(more.logprob) == {"Rome"}, "a target that it lacks is asked for"
