"""The gradient loop: masking, padding, parts, restoring, stopping."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import LAYOUTS, make_handle
from training_examples import FORGET, NEVER, QUICK_SCHEDULE, REQUEST, RETAIN

from editkit.completions import collate, encode_examples, gradient_attention, parts, read, read_all, share
from editkit.facts import Example
from editkit.scope import EVERYTHING, Scope
from editkit.tokens import PromptTooLong
from editkit.training import (
    Objective,
    Schedule,
    Stopping,
    Term,
    TrainingError,
    TrainStep,
    descend,
    reason_to_stop,
)
from editkit.unlearn._losses import nll


def nll_term(handle, examples=RETAIN, **settings):
    encoded = encode_examples(handle, examples)
    return Term("retain", encoded, lambda batch: nll(read(handle, batch).total), per="token", **settings)


def objective(handle, **settings):
    forget = encode_examples(handle, FORGET)
    return Objective((nll_term(handle),), forget, stopping=NEVER, **settings)


def huggingface_loss(handle, examples):
    """transformers' own cross-entropy with labels of -100 on prompt and padding."""
    encoded = encode_examples(handle, examples)
    batch = collate(handle, encoded, range(len(encoded)))
    labels = batch.padded.ids.masked_fill(~batch.padded.mask, -100)
    for row, example in enumerate(encoded):
        labels[row, : example.start] = -100
    padded = batch.padded
    output = handle.model(
        input_ids=padded.ids, attention_mask=padded.mask.long(), position_ids=padded.positions, labels=labels
    )
    return output.loss


@pytest.mark.parametrize("layout", LAYOUTS)
def test_token_mean_of_nll_is_the_loss_of_transformers(handle_of, layout):
    handle = handle_of(layout)
    encoded = encode_examples(handle, FORGET + RETAIN)
    with torch.no_grad(), gradient_attention(handle):
        answers = read(handle, collate(handle, encoded, range(len(encoded))))
        wanted = huggingface_loss(handle, FORGET + RETAIN)
    assert float(nll(answers.total).sum() / answers.tokens.sum()) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_size_and_padding_do_not_matter(handle_of, layout):
    handle = handle_of(layout)
    encoded = encode_examples(handle, FORGET + RETAIN)
    with torch.no_grad(), gradient_attention(handle):
        together = read(handle, collate(handle, encoded, range(len(encoded)))).total
        alone = [float(read(handle, collate(handle, encoded, [row])).total) for row in range(len(encoded))]
    assert together.tolist() == pytest.approx(alone, abs=2e-4)
    assert read_all(handle, encoded).total.tolist() == pytest.approx(alone, abs=2e-4)


def test_only_completion_tokens_count(handle):
    encoded = encode_examples(handle, FORGET)
    batch = collate(handle, encoded, [0, 1, 2])
    assert batch.targets.tolist() == [token for e in encoded for token in e.ids[e.start :]]
    assert batch.owner.tolist() == [row for row, e in enumerate(encoded) for _ in range(e.tokens)]
    hidden = []

    def keep(module, inputs, output):
        hidden.append(output.last_hidden_state)
        hidden[0].retain_grad()

    hook = handle.backbone.register_forward_hook(keep)
    try:
        embedded = read(handle, batch).total.sum()
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(embedded, hidden[0])
    moved = gradient.abs().sum(-1) > 0
    assert torch.equal(moved, batch.predicts)  # no other position's prediction is in the loss


def test_what_fills_the_padding_does_not_matter(handle):
    batch = collate(handle, encode_examples(handle, FORGET), [0, 1, 2])
    filled = batch.padded.ids.masked_fill(~batch.padded.mask, 77)
    assert (filled != batch.padded.ids).any()
    other = replace(batch, padded=replace(batch.padded, ids=filled))
    with torch.no_grad(), gradient_attention(handle):
        assert torch.equal(read(handle, batch).total, read(handle, other).total)


def test_parts_hold_every_row_once_within_the_budget(handle):
    encoded = encode_examples(handle, FORGET + RETAIN)
    groups = list(parts(encoded, range(len(encoded)), tokens=40))
    assert sorted(row for group in groups for row in group) == list(range(len(encoded)))
    assert len(groups) > 1
    assert all(len(group) == 1 or len(group) * max(len(encoded[r].ids) for r in group) <= 40 for group in groups)


def test_a_step_does_not_depend_on_how_it_is_cut(handle, monkeypatch):
    def gradients():
        kept = {}

        def keep(parameters):
            kept.update({name: p.grad.clone() for name, p in parameters.items()})

        descend(handle, objective(handle, regrad=keep), Schedule(1e-3, 1), EVERYTHING, seed=0)
        return kept

    whole = gradients()
    monkeypatch.setattr("editkit.training.parts", lambda examples, rows: ([row] for row in rows))
    for name, cut in gradients().items():
        assert torch.allclose(whole[name], cut, atol=1e-5 * float(whole[name].abs().max()) + 1e-8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_those_of_transformers_loss(handle_of, layout):
    handle = handle_of(layout)
    with gradient_attention(handle):
        names, parameters = zip(*handle.model.named_parameters(), strict=True)
        plain = torch.autograd.grad(huggingface_loss(handle, RETAIN), parameters)
    seen = {}
    asked = objective(handle, regrad=lambda ps: seen.update({n: p.grad.clone() for n, p in ps.items()}))
    descend(handle, asked, Schedule(1e-3, 1), EVERYTHING, seed=0)
    for name, gradient in zip(names, plain, strict=True):
        assert torch.allclose(seen[name], gradient, atol=2e-5 * float(gradient.abs().max()) + 1e-7), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_deltas_are_of_parameters_in_scope_and_fit_their_matrices(handle_of, layout):
    handle = handle_of(layout)
    before = handle.fingerprint()
    scope = Scope((1,), ("mlp_out",))
    descent = descend(handle, objective(handle), QUICK_SCHEDULE, scope, seed=0)
    assert handle.fingerprint() == before
    assert set(descent.deltas) == set(scope.parameters(handle))
    name = handle.weight_name("mlp_out", 1)
    assert descent.deltas[name].value.shape == handle.matrix(name).shape


def test_a_transposed_weight_is_moved_the_way_it_was_trained(handle_of):
    """A square Conv1D: only the loss can tell which way round the delta lies."""
    from editkit.patch import WeightPatch

    handle = handle_of("gpt2_square")
    asked = objective(handle)
    examples = encode_examples(handle, RETAIN)
    descent = descend(handle, asked, Schedule(3e-3, 8), Scope((1,), ("mlp_out",)), seed=0)
    last = {}

    def watch(parameters):
        last.update({name: p.detach().clone() for name, p in parameters.items()})

    descend(handle, replace(asked, regrad=watch), Schedule(3e-3, 9), Scope((1,), ("mlp_out",)), seed=0)
    with handle.patched(WeightPatch(descent.deltas)):
        for name, value in last.items():  # as the ninth step found them
            assert torch.allclose(handle.parameter(name), value, atol=1e-6)
        after = float(read_all(handle, examples).total.sum())
    assert after > float(read_all(handle, examples).total.sum())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("step", [0, 1, 3])
def test_an_interrupted_run_leaves_no_trace(handle, error, step):
    frozen, used = handle.parameter("model.norm.weight"), handle.parameter("lm_head.weight")
    gradient = torch.ones_like(used)
    frozen.requires_grad_(False)
    used.grad = gradient
    before = handle.fingerprint()

    def stop(at: TrainStep) -> None:
        if at.step == step:
            raise error("now")

    try:
        with pytest.raises(error, match="now"):
            descend(handle, objective(handle), QUICK_SCHEDULE, EVERYTHING, seed=0, progress=stop)
        assert handle.fingerprint() == before
        assert used.grad is gradient and torch.equal(gradient, torch.ones_like(used))
    finally:
        frozen.requires_grad_(True)
        used.grad = None


def test_only_parameters_in_scope_get_gradients(handle):
    scope = Scope((2,), ("mlp",))
    inside = set(scope.parameters(handle))

    def look(parameters):
        assert set(parameters) == inside
        trained = {name for name, p in handle.model.named_parameters() if p.requires_grad or p.grad is not None}
        assert trained == inside

    descend(handle, objective(handle, regrad=look), Schedule(1e-3, 1), scope, seed=0)


def test_a_model_under_no_grad_is_trained_all_the_same(handle):
    with torch.no_grad():
        assert descend(handle, objective(handle), Schedule(1e-3, 1), EVERYTHING, seed=0).deltas


def test_same_seed_same_deltas_and_the_seed_orders_the_batches(handle):
    schedule = replace(QUICK_SCHEDULE, batch=2)
    runs = [descend(handle, objective(handle), schedule, EVERYTHING, seed=seed).deltas for seed in (3, 3, 4)]
    assert all(torch.equal(runs[0][name].value, runs[1][name].value) for name in runs[0])
    assert any(not torch.equal(runs[0][name].value, runs[2][name].value) for name in runs[0])


def test_a_term_without_weight_is_not_computed(handle):
    asked = objective(handle)
    idle = replace(asked.terms[0], weight=0.0, loss=lambda batch: pytest.fail("computed"))
    descent = descend(handle, replace(asked, terms=(*asked.terms, idle)), Schedule(1e-3, 1), EVERYTHING, seed=0)
    assert descent.deltas


def test_no_steps_no_deltas(handle):
    assert descend(handle, objective(handle), Schedule(steps=0), EVERYTHING, seed=0).deltas == {}


def test_bfloat16_models_keep_updates_smaller_than_their_steps():
    handle = make_handle("llama", dtype=torch.bfloat16)
    before = handle.fingerprint()
    descent = descend(handle, objective(handle), Schedule(1e-6, 3), Scope(modules=("mlp",)), seed=0)
    assert handle.fingerprint() == before
    largest = max(float(delta.value.abs().max()) for delta in descent.deltas.values())
    assert 1e-7 < largest < 1e-5
    assert all(delta.value.dtype == torch.float32 for delta in descent.deltas.values())


def test_projection_is_the_last_word(handle):
    asked = objective(handle, project=lambda name, value, original: value.clamp_(original - 1e-4, original + 1e-4))
    descent = descend(handle, asked, Schedule(1e-2, 3), EVERYTHING, seed=0)
    assert max(float(delta.value.abs().max()) for delta in descent.deltas.values()) <= 1.01e-4


def test_a_loss_that_is_not_finite_is_an_error_and_leaves_no_trace(handle):
    before = handle.fingerprint()
    term = Term("forget", encode_examples(handle, FORGET), lambda batch: read(handle, batch).total * math.nan)
    with pytest.raises(TrainingError, match="loss is nan at step 1; use a smaller learning rate"):
        descend(handle, Objective((term,)), QUICK_SCHEDULE, EVERYTHING, seed=0)
    assert handle.fingerprint() == before


def test_it_stops_at_the_declared_threshold(handle):
    """Taught the retain examples, the model answers them; then it is made to forget until at most half are answered."""
    from editkit.patch import WeightPatch

    taught = descend(handle, objective(handle), Schedule(1e-2, 40), EVERYTHING, seed=0)
    with handle.patched(WeightPatch(taught.deltas)):
        examples = encode_examples(handle, RETAIN)
        assert share(read_all(handle, examples)) == 1
        ascent = Term("forget", examples, lambda batch: read(handle, batch).total)
        asked = Objective((ascent,), examples, stopping=Stopping(forget=0.5))
        seen: list[TrainStep] = []
        notes = descend(handle, asked, Schedule(1e-3, 60), EVERYTHING, seed=0, progress=seen.append).notes
    assert notes["stopped"] == "threshold reached"
    assert 0 < notes["steps"] < 60 and notes["steps"] == seen[-1].step
    assert notes["forget_before"] == 1 and notes["forget_after"] == seen[-1].forget <= 0.5
    assert all(step.forget > 0.5 for step in seen[:-1])


def at(step, forget, retain):
    return TrainStep(step, 9, forget, retain)


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (at(1, 0.5, 0.9), None),
        (at(1, 0.2, 0.9), "threshold reached"),
        (at(0, 0.2, 0.9), "nothing to forget"),
        (at(1, 0.2, 0.39), "utility floor"),
        (at(1, 0.9, 0.39), "utility floor"),
        (at(1, 0.9, math.nan), None),
        (at(1, math.nan, 0.9), None),
    ],
)
def test_reasons_to_stop(now, reason):
    assert reason_to_stop([at(0, 1.0, 0.8), now], Stopping(forget=0.2, floor=0.5)) == reason


def test_warm_up_and_checks_come_when_they_should(handle):
    seen: list[TrainStep] = []
    schedule = Schedule(1e-3, 5, warmup=5, check_every=2)
    descend(handle, objective(handle), schedule, EVERYTHING, seed=0, progress=seen.append)
    assert [step.step for step in seen] == [0, 2, 4, 5]
    first = descend(handle, objective(handle), Schedule(1e-3, 1, warmup=5), EVERYTHING, seed=0)
    assert max(float(d.value.abs().max()) for d in first.deltas.values()) == pytest.approx(2e-4, rel=0.01)


def test_bad_input_names_the_way_out(handle):
    with pytest.raises(ValueError, match="learning_rate > 0"):
        Schedule(learning_rate=0)
    with pytest.raises(ValueError, match="not between 0 and 1"):
        Stopping(forget=1.5)
    with pytest.raises(PromptTooLong, match="shorten it"):
        encode_examples(handle, [Example("word " * 400, "x")])
    assert REQUEST.forget == FORGET
