"""GradDiff: plain ascent where nothing is kept."""

from __future__ import annotations

import pytest
import torch
from training_examples import NEVER, QUICK_SCHEDULE, REQUEST

from editkit.completions import encode_examples, read, read_all
from editkit.facts import ForgetRequest
from editkit.operators import preset_for
from editkit.scope import EVERYTHING, Scope
from editkit.settings import build, settings_of
from editkit.training import Objective, Term, descend
from editkit.unlearn.grad_diff import GradDiff

QUICK = {"schedule": QUICK_SCHEDULE, "stopping": NEVER}


def test_without_retain_weight_it_is_gradient_ascent_to_the_bit(handle):
    forget = encode_examples(handle, REQUEST.forget)
    term = Term("forget", forget, lambda batch: read(handle, batch).total, per="token")
    plain = descend(handle, Objective((term,), forget, stopping=NEVER), QUICK_SCHEDULE, EVERYTHING, seed=0).deltas
    patch = GradDiff(retain_weight=0.0, **QUICK)(handle, REQUEST, seed=0)
    assert set(patch.deltas) == set(plain)
    assert all(torch.equal(plain[name].value, delta.value) for name, delta in patch.deltas.items())


def test_with_nothing_to_keep_it_is_the_same_again(handle):
    bare = GradDiff(**QUICK)(handle, ForgetRequest(REQUEST.forget), seed=0)
    zero = GradDiff(retain_weight=0.0, **QUICK)(handle, REQUEST, seed=0)
    assert bare.digest == zero.digest


def test_it_forgets_and_keeps(handle):
    forget, retain = (encode_examples(handle, part) for part in (REQUEST.forget, REQUEST.retain))
    before = [read_all(handle, part).total.mean() for part in (forget, retain)]
    with handle.patched(GradDiff(**QUICK)(handle, REQUEST, seed=0)):
        after = [read_all(handle, part).total.mean() for part in (forget, retain)]
    assert after[0] < before[0] - 0.5
    assert after[1] > before[1]


def test_settings_round_trip(handle):
    operator = GradDiff(scope=Scope((0, 2), ("attention",)), **QUICK)
    assert build(GradDiff, settings_of(operator)) == operator
    assert isinstance(build(GradDiff, preset_for("grad_diff", handle).settings), GradDiff)


def test_collapse_is_seen_and_noted(handle):
    """Taught first, the model then loses everything to bare ascent: the neighbours kept out of training show it."""
    from editkit.patch import WeightPatch
    from editkit.training import Schedule, Stopping
    from editkit.unlearn._losses import nll

    everything = encode_examples(handle, REQUEST.forget + REQUEST.retain)
    term = Term("taught", everything, lambda batch: nll(read(handle, batch).total))
    taught = descend(handle, Objective((term,), stopping=NEVER), Schedule(1e-2, 40), EVERYTHING, seed=0)
    with handle.patched(WeightPatch(taught.deltas)):
        harsh = GradDiff(
            retain_weight=0.0, schedule=Schedule(1e-2, 40), stopping=Stopping(forget=None, floor=0.5, watch=0.5)
        )
        notes = harsh(handle, REQUEST, seed=0).provenance.notes
    assert notes["stopped"] == "utility floor"
    assert notes["watched_after"] < 0.5 <= notes["watched_before"]


@pytest.mark.parametrize("portion", [0.0, 0.25, 0.5, 0.9])
def test_watched_examples_are_whole_answers_and_never_all(portion):
    from editkit.facts import Example
    from editkit.unlearn._request import watched

    retain = [Example(f"{wording} {i}", f"answer {i}") for i in range(8) for wording in ("a", "b")]
    chosen = watched(retain, portion, seed=1)
    assert len(chosen) == min(2 * round(8 * portion), 14)
    assert all(Example(f"{wording} {e.prompt[2:]}", e.completion) in chosen for e in chosen for wording in ("a", "b"))
    assert watched(retain, portion, seed=1) == chosen


def test_watched_examples_are_not_trained_on(handle):
    from editkit.training import Stopping
    from editkit.unlearn._request import examples_of

    examples = examples_of(handle, REQUEST, Stopping(watch=0.5), seed=0)
    assert len(examples.retain) == len(examples.watch) == 2
    assert set(examples.retain) | set(examples.watch) == set(encode_examples(handle, REQUEST.retain))
