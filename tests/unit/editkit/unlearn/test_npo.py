"""NPO: its own law, its fields, its record."""

from __future__ import annotations

import json

import pytest
import torch
from training_examples import NEVER, QUICK_SCHEDULE, REQUEST

from editkit.completions import encode_examples, read, read_all
from editkit.operators import preset_for
from editkit.scope import EVERYTHING, Scope
from editkit.settings import build, settings_of
from editkit.training import Objective, Schedule, Term, TrainStep, descend
from editkit.unlearn._losses import npo_at_reference
from editkit.unlearn.npo import NPO

QUICK = {"schedule": QUICK_SCHEDULE, "stopping": NEVER}


def test_the_first_loss_is_the_value_at_the_reference_plus_the_retain_loss(handle):
    seen: list[TrainStep] = []
    NPO(beta=0.3, retain_weight=0.0, **QUICK)(handle, REQUEST, seed=0, progress=seen.append)
    assert seen[1].loss == pytest.approx(npo_at_reference(0.3), rel=1e-6)


def test_small_beta_moves_the_model_as_gradient_ascent_does(handle):
    """At the reference both gradients are equal; AdamW takes no notice of their size."""
    forget = encode_examples(handle, REQUEST.forget)
    ascent = Objective((Term("forget", forget, lambda batch: read(handle, batch).total),), forget, stopping=NEVER)
    plain = descend(handle, ascent, Schedule(1e-3, 3), EVERYTHING, seed=0).deltas
    limit = NPO(beta=1e-4, retain_weight=0.0, schedule=Schedule(1e-3, 3), stopping=NEVER)(handle, REQUEST, seed=0)
    for name, delta in limit.deltas.items():
        assert torch.nn.functional.cosine_similarity(delta.value.flatten(), plain[name].value.flatten(), 0) > 0.99


def test_it_forgets_and_keeps(handle):
    forget, retain = (encode_examples(handle, part) for part in (REQUEST.forget, REQUEST.retain))
    before = [read_all(handle, part).total.mean() for part in (forget, retain)]
    patch = NPO(**QUICK)(handle, REQUEST, seed=0)
    with handle.patched(patch):
        after = [read_all(handle, part).total.mean() for part in (forget, retain)]
    assert after[0] < before[0] - 0.5
    assert after[1] > before[1]


def test_the_patch_says_how_it_was_made(handle):
    patch = NPO(scope=Scope((0, 1), ("mlp",)), **QUICK)(handle, REQUEST, seed=5)
    notes = patch.provenance.notes
    assert patch.provenance.operator == "npo" and patch.provenance.seed == 5
    assert notes["stopped"] == "steps exhausted" and notes["steps"] == 4
    assert {"forget_before", "forget_after", "watched_before", "watched_after"} <= set(notes)
    assert json.dumps(dict(notes))


def test_settings_round_trip_and_bad_ones_are_refused(handle):
    operator = NPO(scope=Scope((0, 2), ("attention",)), **QUICK)
    assert build(NPO, settings_of(operator)) == operator
    assert isinstance(build(NPO, preset_for("npo", handle).settings), NPO)
    with pytest.raises(ValueError, match="beta > 0"):
        NPO(beta=0.0)
