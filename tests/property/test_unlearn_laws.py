"""Laws over generated requests: restoring, scope, padding; on a tiny model."""

from __future__ import annotations

import pytest
import torch
from conftest import make_handle
from hypothesis import given, settings
from hypothesis import strategies as st
from training_examples import NEVER

from editkit.completions import collate, encode_examples, gradient_attention, read, read_all
from editkit.facts import Example, ForgetRequest
from editkit.scope import EVERYTHING, IN_BLOCKS, Scope
from editkit.training import Schedule, TrainStep
from editkit.unlearn._losses import npo_at_reference
from editkit.unlearn.grad_diff import GradDiff
from editkit.unlearn.npo import NPO

HANDLE = make_handle("gpt2")
STATE = HANDLE.fingerprint()
texts = st.text("abcdefgh ãé.?日", min_size=1, max_size=16).filter(str.strip)
examples = st.builds(Example, texts, texts)
scopes = st.one_of(
    st.just(EVERYTHING),
    st.builds(Scope, st.sets(st.integers(0, 2), min_size=1).map(tuple), st.sampled_from(IN_BLOCKS).map(lambda m: (m,))),
)
operators = st.sampled_from([NPO, GradDiff])


@st.composite
def requests(draw):
    every = draw(st.lists(examples, min_size=1, max_size=5, unique=True))
    cut = draw(st.integers(1, len(every)))
    return ForgetRequest(tuple(every[:cut]), tuple(every[cut:]))


@pytest.fixture(autouse=True)
def unchanged():
    yield
    assert HANDLE.fingerprint() == STATE


@settings(max_examples=25, deadline=None)
@given(request=requests(), scope=scopes, kind=operators, seed=st.integers(0, 9))
def test_patches_hold_what_is_in_scope_and_leave_the_rest_to_the_bit(request, scope, kind, seed):
    patch = kind(schedule=Schedule(1e-3, 2), stopping=NEVER, scope=scope)(HANDLE, request, seed=seed)
    assert set(patch.deltas) <= set(scope.parameters(HANDLE))
    before = {name: p.detach().clone() for name, p in HANDLE.model.named_parameters()}
    with HANDLE.patched(patch):
        for name, parameter in HANDLE.model.named_parameters():
            assert torch.equal(parameter, before[name]) == (name not in patch.deltas)
    again = kind(schedule=Schedule(1e-3, 2), stopping=NEVER, scope=scope)(HANDLE, request, seed=seed)
    assert again.digest == patch.digest


@settings(max_examples=25, deadline=None)
@given(
    request=requests(),
    scope=scopes,
    kind=operators,
    step=st.integers(0, 2),
    error=st.sampled_from([KeyboardInterrupt, ValueError]),
)
def test_a_run_broken_at_any_step_leaves_the_model_as_it_was(request, scope, kind, step, error):
    def strike(at: TrainStep) -> None:
        if at.step == step:
            raise error("struck")

    with pytest.raises(error, match="struck"):
        kind(schedule=Schedule(1e-2, 2), stopping=NEVER, scope=scope)(HANDLE, request, seed=0, progress=strike)
    assert HANDLE.fingerprint() == STATE


@settings(max_examples=40, deadline=None)
@given(chosen=st.lists(examples, min_size=2, max_size=6), filler=st.integers(2, 300))
def test_neither_company_nor_filler_changes_an_answer(chosen, filler):
    encoded = encode_examples(HANDLE, chosen)
    alone = [float(read_all(HANDLE, [one]).total) for one in encoded]
    batch = collate(HANDLE, encoded, range(len(encoded)))
    batch.padded.ids[~batch.padded.mask] = filler
    with torch.no_grad(), gradient_attention(HANDLE):
        assert read(HANDLE, batch).total.tolist() == pytest.approx(alone, abs=5e-4)


@settings(max_examples=15, deadline=None)
@given(request=requests(), beta=st.floats(0.05, 3))
def test_npo_begins_at_its_value_at_the_reference(request, beta):
    seen: list[TrainStep] = []
    operator = NPO(beta=beta, retain_weight=0.0, schedule=Schedule(1e-3, 1), stopping=NEVER)
    operator(HANDLE, request, seed=0, progress=seen.append)
    assert seen[1].loss == pytest.approx(npo_at_reference(beta), rel=1e-5)
