"""WISE: routing to the bit, the margins, TIES against numpy, one step against a plain one."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import LAYOUTS, make_handle
from edit_examples import EDITS, ENDING, distance, private_cache
from hypothesis import given
from hypothesis import strategies as st
from tables import QUICK as TABLE

from editkit.edit import wise
from editkit.edit._locate_then_edit import Contexts
from editkit.edit._wise_patch import KIND, WisePatch, merged
from editkit.edit.wise import WISE, Margins, Unrelated
from editkit.errors import InputError
from editkit.hooks import traced
from editkit.linalg import SolveError
from editkit.packs import packed
from editkit.patch import PatchError, Provenance, load_patch, write
from editkit.scoring import Ask, score_pairs, tell
from editkit.settings import build, settings_of
from editkit.tokens import encode, encode_pair, pad, subject_span

FEW = ("llama", "gpt2_square", "gemma2")
QUICK = build(WISE, TABLE["wise"])
OTHERS = [("The currency of Spain is", "the euro"), ("What is the", "capital"), ("Nina", "Rome"), ("Lima.", "Peru")]
ASKS = [Ask(prompt, (target,)) for prompt, target in OTHERS] + [Ask(e.fact.text, (e.target_new,)) for e in EDITS]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with private_cache(str(tmp_path_factory.mktemp("cache"))):
        yield


def pairs_of(edits):
    return [(edit.fact.text, edit.target_new) for edit in edits]


def infinite(patch):
    return dataclasses.replace(patch, threshold=torch.tensor(torch.inf))


# -- routing --


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", FEW)
def test_with_an_infinite_threshold_everything_is_equal_to_the_bit(layout, dtype):
    handle = make_handle(layout, dtype=dtype)
    patch = QUICK(handle, ENDING, seed=0)
    plain = tell(handle, ASKS)
    with handle.patched(infinite(patch)):
        assert tell(handle, ASKS) == plain
    with handle.patched(dataclasses.replace(patch, threshold=torch.tensor(-1.0))):
        assert all(one != other for one, other in zip(tell(handle, ASKS), plain, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_each_token_is_routed_by_its_own_length(handle_of, layout):
    handle = handle_of(layout)
    patch = QUICK(handle, EDITS, seed=0)
    routes = []
    for text in [edit.fact.text for edit in EDITS] + [prompt for prompt, _ in OTHERS]:
        ids = torch.tensor([encode(handle.tokenizer, text)])
        with traced(handle.model, [patch.module]) as plain:
            handle.model(ids)
        with handle.patched(patch), traced(handle.model, [patch.module]) as seen:
            handle.model(ids)
        read, given, before = (
            x[0] for x in (seen[patch.module].input, seen[patch.module].output, plain[patch.module].output)
        )
        change = read.double() @ patch.delta.double().T
        inside = change.norm(dim=1) > patch.threshold
        assert torch.equal(given[~inside], before[~inside])
        assert torch.allclose(given[inside].double(), (before.double() + change)[inside], atol=1e-4)
        routes += inside.tolist()
    assert any(routes) and not all(routes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_subjects_of_the_edits_are_in_scope(handle_of, layout):
    handle = handle_of(layout)
    patch = QUICK(handle, EDITS, seed=0)
    for edit in EDITS:
        ids = torch.tensor([encode(handle.tokenizer, edit.fact.text)])
        at = subject_span(handle.tokenizer, edit.fact.prompt, edit.fact.subject).last
        with torch.no_grad(), traced(handle.model, [patch.module]) as seen:
            handle.model(ids)
        assert (patch.delta @ seen[patch.module].input[0, at].float()).norm() > patch.threshold


def test_onward_the_answer_is_in_scope_too(handle):
    """Each token by itself: what comes after the prompt must not fall out of the side memory."""
    operator = dataclasses.replace(QUICK, in_scope="onward", steps=20, share=0.5)
    patch = operator(handle, EDITS[1:2], seed=0)
    [edit] = EDITS[1:2]
    ids, target = encode_pair(handle.tokenizer, edit.fact.text, edit.target_new)
    at = subject_span(handle.tokenizer, edit.fact.prompt, edit.fact.subject).last
    assert len(target) > 1
    with torch.no_grad(), traced(handle.model, [patch.module]) as seen:
        handle.model(torch.tensor([[*ids, *target[:-1]]]))
    lengths = (seen[patch.module].input[0].float() @ patch.delta.T).norm(dim=1)
    assert (lengths[at:] > patch.threshold).all()


# -- training --


@pytest.mark.parametrize("in_scope", ["subject", "onward"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_new_objects_gain(handle_of, layout, in_scope):
    handle = handle_of(layout)
    before = score_pairs(handle, pairs_of(ENDING))
    patch = dataclasses.replace(QUICK, in_scope=in_scope, steps=20)(handle, ENDING, seed=0)
    with handle.patched(patch):
        after = score_pairs(handle, pairs_of(ENDING))
    assert sum(s.mean for s in after) > sum(s.mean for s in before) + 0.3


def side_by_hand(handle, edit, operator):
    """Δ after some steps: full passes of one sequence, Δ added at the subject's last token, torch's own SGD."""
    ids, target = encode_pair(handle.tokenizer, edit.fact.text, edit.target_new)
    at = subject_span(handle.tokenizer, edit.fact.prompt, edit.fact.subject).last
    whole, module = torch.tensor([[*ids, *target]]), handle.module("mlp_out", operator.layer)
    delta = torch.zeros(handle.matrix(handle.weight_name("mlp_out", operator.layer)).shape, requires_grad=True)
    sgd = torch.optim.SGD([delta], operator.learning_rate)
    read = []
    for _ in range(operator.steps):
        read.clear()

        def add(module, inputs, output):
            read.append(inputs[0][0, : len(ids) + len(target) - 1].detach())
            return torch.cat(
                [output[:, :at], output[:, at : at + 1] + inputs[0][:, at : at + 1] @ delta.T, output[:, at + 1 :]], 1
            )

        hook = module.register_forward_hook(add)
        logits = handle.model(whole).logits[0].float()
        hook.remove()
        loss = torch.nn.functional.cross_entropy(logits[len(ids) - 1 : -1], whole[0, len(ids) :])
        lengths = (read[0] @ delta.T).norm(dim=1)
        inside, outside = lengths[at : at + 1], torch.cat([lengths[:at], lengths[at + 1 :]])
        for lack in (
            outside - operator.margins.alpha,
            operator.margins.beta - inside,
            operator.margins.gamma - inside + outside,
        ):
            if (lack > 0).any():
                loss = loss + operator.margins.weight * lack[lack > 0].mean()
        [delta.grad] = torch.autograd.grad(loss, delta)
        sgd.step()
        with torch.no_grad():
            delta.clamp_(-operator.bound, operator.bound)
    return delta.detach()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fast_training_equals_the_plain_one(handle_of, layout):
    handle = handle_of(layout)
    operator = dataclasses.replace(
        QUICK,
        steps=5,
        learning_rate=0.05,
        margins=Margins(0.5, 2.0, 1.0, 0.7),
        contexts=Contexts(each=0),
        unrelated=Unrelated(texts=0),
    )
    patch = operator(handle, EDITS[1:2], seed=0)
    assert distance(patch.delta, side_by_hand(handle, EDITS[1], operator)) < 1e-2


def test_in_one_step_edits_together_move_it_as_each_alone_would(handle):
    """The rate is that of one edit: many in one call must not share it."""
    operator = dataclasses.replace(
        QUICK, steps=1, learning_rate=0.01, bound=100.0, stop_below=0.0, margins=Margins(weight=0.0)
    )
    both = operator(handle, EDITS[:2], seed=0).delta
    alone = [operator(handle, [edit], seed=0).delta for edit in EDITS[:2]]
    assert distance(both, sum(alone)) < 1e-4


def test_entries_outside_the_mask_stay_and_none_passes_the_bound(handle):
    patch = dataclasses.replace(QUICK, mask=0.25, bound=0.01)(handle, EDITS, seed=0)
    assert 0.15 < float((patch.delta != 0).float().mean()) < 0.35
    assert patch.delta.abs().max() == torch.tensor(0.01)


def test_the_seed_draws_the_mask(handle):
    operator = dataclasses.replace(QUICK, mask=0.25, contexts=Contexts(each=0), unrelated=Unrelated(texts=0))
    one, again, other = (operator(handle, EDITS, seed=seed).delta for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one != 0, other != 0)


def test_the_margins_part_what_is_in_scope_from_what_is_not(handle_of):
    handle = handle_of("gpt_neox")
    with_margins = dataclasses.replace(QUICK, steps=60, learning_rate=0.3, share=0.9)
    without = dataclasses.replace(with_margins, margins=Margins(1e9, 0.0, -1e9))
    above = {}
    for name, operator in (("with", with_margins), ("without", without)):
        notes = operator(handle, ENDING, seed=0).provenance.notes
        above[name] = notes["out_of_scope"]["largest"] / notes["threshold"]
    assert above["with"] < 0.8 * above["without"]


def test_the_threshold_is_a_share_of_the_least_in_scope(handle):
    half, whole = (dataclasses.replace(QUICK, share=share)(handle, EDITS, seed=0) for share in (0.25, 0.5))
    assert torch.equal(half.delta, whole.delta)
    assert float(whole.threshold) == pytest.approx(2 * float(half.threshold))


def test_parts_of_a_large_request_add_up(handle, monkeypatch):
    operator = dataclasses.replace(QUICK, steps=3, learning_rate=0.05)
    whole = operator(handle, EDITS, seed=0)
    monkeypatch.setattr(wise, "ROWS", 2)
    assert distance(operator(handle, EDITS, seed=0).delta, whole.delta) < 1e-3


def test_a_layer_that_cannot_reach_is_an_error_that_says_what_to_do(handle):
    before = handle.fingerprint()
    with pytest.raises(SolveError, match="cannot edit at layer 2.*lower layer, or in_scope = 'onward'"):
        dataclasses.replace(QUICK, layer=2)(handle, EDITS[:1], seed=0)
    assert handle.fingerprint() == before
    dataclasses.replace(QUICK, layer=2, in_scope="onward")(handle, EDITS[:1], seed=0)


# -- shards --


@given(st.integers(1, 4), st.floats(0.05, 1.0), st.integers(0, 1000))
def test_merging_is_ties_by_hand(number, density, seed):
    draw = np.random.default_rng(seed)
    deltas = draw.normal(size=(number, 5, 7)).astype(np.float32) * (draw.random((number, 5, 7)) < 0.6)
    kept = np.zeros_like(deltas)
    for one, into in zip(deltas, kept, strict=True):
        places = np.argsort(-np.abs(one).ravel(), kind="stable")[: max(1, int(density * one.size))]
        into.ravel()[places] = one.ravel()[places]
    wanted = np.zeros((5, 7))
    for row in range(5):
        for column in range(7):
            own = kept[:, row, column]
            sign = 1 if own.sum() >= 0 else -1
            agree = own[np.sign(own) == sign]
            wanted[row, column] = agree.mean() if len(agree) else 0
    assert np.allclose(merged([*torch.from_numpy(deltas)], density).numpy(), wanted, atol=1e-6)


def test_shards_part_the_edits_and_are_merged(handle):
    operator = dataclasses.replace(QUICK, shards=2, mask=0.3)
    patch = operator(handle, ENDING, seed=0)
    assert len(patch.provenance.notes["shards"]) == 2
    before = score_pairs(handle, pairs_of(ENDING))
    with handle.patched(patch):
        after = score_pairs(handle, pairs_of(ENDING))
    assert after[0].mean > before[0].mean + 0.1 and after[2].mean > before[2].mean + 0.1  # one of each shard
    assert len(operator(handle, ENDING[:1], seed=0).provenance.notes["shards"]) == 1
    assert [len(shard) for shard in wise._dealt([[]] * 7, 3)] == [3, 3, 1]


# -- batches, packs, stacks --


@pytest.mark.parametrize("layout", FEW)
def test_many_prompts_answer_as_each_alone(handle_of, layout):
    handle = handle_of(layout)
    with handle.patched(QUICK(handle, EDITS, seed=0)):
        together = tell(handle, ASKS)
        alone = [tell(handle, [ask])[0] for ask in ASKS]
        [pack] = packed(handle, [[[5, 6, 7], [5, 6, 8, 9]], [[9, 8]]])
    assert pack.ids.shape == (1, 7)
    for one, other in zip(together, alone, strict=True):
        assert one.text == other.text
        for target, score in one.targets.items():
            assert score.logprob == pytest.approx(other.targets[target].logprob, abs=1e-3)


@pytest.mark.parametrize("layout", FEW)
@torch.no_grad()
def test_padding_does_not_matter(handle_of, layout):
    handle = handle_of(layout)
    texts = [encode(handle.tokenizer, edit.fact.text) for edit in EDITS]
    last = {}
    with handle.patched(QUICK(handle, EDITS, seed=0)):
        for side in ("left", "right"):
            padded = pad(texts, side=side, pad_id=1)
            hidden = handle.backbone(
                input_ids=padded.ids, attention_mask=padded.mask.long(), position_ids=padded.positions
            )
            last[side] = [hidden.last_hidden_state[row, own.nonzero()[-1, 0]] for row, own in enumerate(padded.mask)]
    assert torch.allclose(torch.stack(last["left"]), torch.stack(last["right"]), atol=1e-3)


@pytest.mark.parametrize("layout", FEW)
def test_a_stack_speaks_for_both_and_comes_off_to_the_bit(handle_of, layout):
    handle = handle_of(layout)
    before = handle.fingerprint()
    plain = score_pairs(handle, pairs_of(ENDING))
    lower = QUICK(handle, ENDING[:1], seed=0)
    with handle.patched(lower):
        below = score_pairs(handle, pairs_of(ENDING))
        upper = QUICK(handle, ENDING[1:], seed=0)
        with handle.patched(upper):
            both = score_pairs(handle, pairs_of(ENDING))
        assert score_pairs(handle, pairs_of(ENDING)) == below
        with handle.patched(infinite(upper)):
            assert score_pairs(handle, pairs_of(ENDING)) == below
    assert handle.fingerprint() == before
    assert below[0].mean > plain[0].mean
    assert sum(s.mean for s in both[1:]) > sum(s.mean for s in below[1:])


def test_in_bfloat16_an_edit_holds():
    handle = make_handle("llama", dtype=torch.bfloat16)
    before = score_pairs(handle, pairs_of(ENDING))
    patch = QUICK(handle, ENDING, seed=0)
    assert {t.dtype for t in patch.tensors.values()} == {torch.float32}
    with handle.patched(patch):
        after = score_pairs(handle, pairs_of(ENDING))
    assert sum(s.mean for s in after) > sum(s.mean for s in before) + 0.3


# -- files and input --


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_and_loaded_answers_alike(handle_of, layout, tmp_path):
    handle = handle_of(layout)
    patch = QUICK(handle, EDITS, seed=3)
    patch.save(tmp_path / "p.safetensors")
    read = load_patch(tmp_path / "p.safetensors")
    assert type(read) is WisePatch
    assert (read.digest, read.provenance, read.module) == (patch.digest, patch.provenance, patch.module)
    with handle.patched(patch):
        wanted = tell(handle, ASKS)
    with handle.patched(read):
        assert tell(handle, ASKS) == wanted


@pytest.mark.parametrize("field", ["delta", "threshold", "module"])
def test_the_digest_names_all_that_the_rewriting_depends_on(handle, field):
    patch = QUICK(handle, EDITS[:1], seed=0)
    other = "model.layers.0.mlp.down_proj" if field == "module" else getattr(patch, field) + 1
    assert dataclasses.replace(patch, **{field: other}).digest != patch.digest


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"m:delta": None}, r"it takes \['delta', 'threshold'\] of one module"),
        ({"m:threshold": torch.ones(1)}, r"threshold have shape \(1,\), they take 0 dimensions"),
        ({"m:threshold": torch.tensor(torch.nan)}, "threshold hold values that are no numbers"),
        ({"m:delta": torch.ones(2, 2).bfloat16()}, "delta are of torch.bfloat16, not float32"),
        ({"m:delta": torch.full((2, 2), torch.inf)}, "delta holds values that are not finite"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, changed, message):
    good = {"m:delta": torch.ones(2, 2), "m:threshold": torch.tensor(1.0)}
    tensors = {key: tensor for key, tensor in (good | changed).items() if tensor is not None}
    write(tmp_path / "p.safetensors", KIND, tensors, Provenance(base="ab"))
    with pytest.raises(PatchError, match=f"p.safetensors is a damaged patch: .*{message}.*; make it again"):
        load_patch(tmp_path / "p.safetensors")


def test_its_norm_is_that_of_the_side_memory(handle):
    patch = QUICK(handle, EDITS[:1], seed=0)
    weight = handle.parameter(f"{patch.module}.weight")
    assert patch.relative_norm(handle) == pytest.approx(float(patch.delta.norm() / weight.detach().norm()), rel=1e-5)


def test_settings_round_trip_and_bad_input_is_refused(handle):
    assert build(WISE, json.loads(json.dumps(settings_of(QUICK)))) == QUICK
    for wrong, message in (
        ({"in_scope": "all"}, "in_scope is 'all'; there is subject, onward"),
        ({"share": 1.0}, "share < 1"),
        ({"mask": 0.0}, "0 < mask <= 1"),
        ({"shards": 0}, "shards >= 1"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(QUICK, **wrong)
