"""Causal tracing: what is put back comes back, and what was never lost has no effect."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYOUTS
from edit_examples import EDITS

import editkit.locate.causal_trace as module
from editkit.errors import InputError
from editkit.locate import LOCATORS
from editkit.locate.causal_trace import KINDS, Blind, CausalTrace
from editkit.tokens import encode_pair, subject_span

FACTS = [edit.fact for edit in EDITS]
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
EACH_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


def blind_of(handle, trace, scale=0.5, facts=FACTS):
    return Blind.of(handle, facts, trace, scale, seed=0)


def near(found, wanted):
    return torch.allclose(found / wanted, torch.ones_like(found), rtol=0, atol=2e-3)


@EACH_LAYOUT
@torch.no_grad()
def test_everything_put_back_is_the_clean_run_and_nothing_the_noisy_one(handle_of, layout):
    handle, trace = handle_of(layout), CausalTrace("hidden", samples=2)
    blind = blind_of(handle, trace)
    assert not near(blind.corrupted, blind.clean_probability[blind.owner])
    every = torch.ones_like(blind.only(0))
    for layer in range(handle.layers):
        assert near(trace.restored(blind, layer, every), blind.clean_probability[blind.owner])
        for kind in KINDS:
            other = CausalTrace(kind, samples=2, window=2)
            assert near(other.restored(blind_of(handle, other), layer, ~every), blind.corrupted)


@EACH_LAYOUT
@EACH_KIND
@torch.no_grad()
def test_one_state_put_back_is_as_in_a_full_run_by_the_book(handle_of, layout, kind):
    handle, trace = handle_of(layout), CausalTrace(kind, window=2, samples=2)
    blind = blind_of(handle, trace)
    for layer in range(handle.layers):
        found = trace.restored(blind, layer, blind.only(blind.subject_last))
        wanted = [by_the_book(handle, blind, row, kind, layer) for row in range(len(found))]
        assert near(found, torch.tensor(wanted))


def by_the_book(handle, blind, row, kind, layer):
    """One sequence, unpadded and uncached: the noise of a row on the subject, a state of the clean run at its end."""
    fact = FACTS[int(blind.owner[row])]
    ids, target = encode_pair(handle.tokenizer, fact.text, fact.object)
    span = subject_span(handle.tokenizer, fact.prompt, fact.subject)
    layers = [layer] if kind == "hidden" else [each for each in (layer - 1, layer) if each >= 0]
    modules = [handle.module(KINDS[kind], each) for each in layers]
    kept = {}

    def keep(m, i, o):
        kept[m] = (o[0] if isinstance(o, tuple) else o).clone()

    def put(m, i, o):
        out = (o[0] if isinstance(o, tuple) else o).clone()
        out[0, span.last] = kept[m][0, span.last]
        return (out, *o[1:]) if isinstance(o, tuple) else out

    def blur(m, i, o):
        out = o.clone()
        out[0, span.start : span.stop] += blind.noise[row, : span.stop - span.start]
        return out

    def run(hooks):
        held = [m.register_forward_hook(h) for m, h in hooks]
        log_probs = handle.model(torch.tensor([ids + target])).logits[0].double().log_softmax(-1)
        for each in held:
            each.remove()
        return float(sum(log_probs[len(ids) - 1 + i, t] for i, t in enumerate(target)).exp())

    run([(m, keep) for m in modules])
    return run([(handle.module("embedding"), blur), *((m, put) for m in modules)])


@EACH_KIND
def test_without_noise_nothing_has_an_effect(handle, kind):
    trace = CausalTrace(kind, noise=0.0, samples=2, window=2)
    for found in trace.traces(handle, FACTS, seed=0):
        assert found.clean == pytest.approx(found.corrupted, rel=1e-4)
        for effect in (each for row in found.effects for each in row):
            assert abs(effect) < 1e-4 * found.clean


@EACH_KIND
def test_a_layers_score_is_the_mean_effect_at_the_subjects_last_token(handle, kind):
    trace = LOCATORS["causal_trace"](kind=kind, window=2, samples=3)
    scores, heard = trace(handle, FACTS, seed=1), []
    traces = trace.traces(handle, FACTS, seed=1, progress=lambda *what: heard.append(what))
    scale = max(each.clean + each.corrupted for each in traces)
    for layer, each in enumerate(scores):
        wanted = sum(one.effects[layer][one.subject_last] for one in traces) / len(traces)
        assert each.layer == layer and each.score == pytest.approx(wanted, abs=1e-4 * scale)
    assert heard[-1] == ("tracing facts", 3, 3)


def test_tokens_and_shapes(handle):
    fact = FACTS[1]
    [found] = CausalTrace(samples=1).traces(handle, [fact], seed=0)
    assert "".join(found.tokens) == fact.text
    assert "".join(found.tokens[: found.subject_last + 1]) == fact.subject
    assert len(found.effects) == handle.layers and {len(row) for row in found.effects} == {len(found.tokens)}


def test_the_last_layers_block_has_no_effect_before_the_prompts_end(handle):
    """What the last block gives is read only where a token of the object is predicted."""
    for found in CausalTrace("hidden", samples=2).traces(handle, FACTS, seed=0):
        *before, end = found.effects[-1]
        assert all(abs(each) < 1e-4 * found.clean for each in before) and abs(end) > 1e-3 * found.clean


def test_facts_in_groups_are_as_together(handle, monkeypatch):
    trace = CausalTrace(window=2, samples=2)
    whole = trace(handle, FACTS, seed=0)
    monkeypatch.setattr(module, "FACTS", 2)
    monkeypatch.setattr(module, "TOKENS", 30)
    scale = max(abs(each.score) for each in whole)
    for one, other in zip(whole, trace(handle, FACTS, seed=0), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-3 * scale)


def test_the_seed_draws_the_noise(handle):
    trace = CausalTrace(window=2, samples=2)
    first, again, other = (trace(handle, FACTS, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("wrong", [{"kind": "mlps"}, {"window": 0}, {"samples": 0}, {"noise": -1.0}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(InputError):
        CausalTrace(**wrong)


def test_no_facts(handle):
    with pytest.raises(InputError, match="no facts"):
        CausalTrace()(handle, [], seed=0)


@EACH_KIND
def test_an_error_in_its_midst_leaves_the_model_as_it_was(handle, kind):
    before = handle.fingerprint()

    def strike(*_):
        raise KeyboardInterrupt

    hook = handle.module("block", 2).register_forward_hook(strike)
    with pytest.raises(KeyboardInterrupt):
        CausalTrace(kind, samples=1)(handle, FACTS, seed=0)
    hook.remove()
    assert handle.fingerprint() == before
