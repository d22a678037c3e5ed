"""GRACE: how the codebook grows, what is replaced and what is not to the bit, values against a plain training."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import LAYOUTS, make_handle
from edit_examples import EDITS, ENDING, distance
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit.edit import grace
from editkit.edit._grace_patch import KIND, GracePatch, Growing, distances, nearest
from editkit.edit.grace import GRACE
from editkit.errors import InputError
from editkit.facts import Edit, Fact
from editkit.hooks import traced
from editkit.packs import packed
from editkit.patch import PatchError, Provenance, load_patch, write
from editkit.scoring import Ask, score_pairs, tell
from editkit.settings import build, settings_of
from editkit.tokens import encode, encode_pair, pad

FEW = ("llama", "gpt2_square", "gemma2")
QUICK = GRACE(1, radius=0.3, learning_rate=0.3, steps=6, stop_below=0.0)
OTHERS = [("The currency of Spain is", "the euro"), ("What is the", "capital"), ("Nina", "Rome"), ("Lima.", "Peru")]
ASKS = [Ask(prompt, (target,)) for prompt, target in OTHERS] + [Ask(e.fact.text, (e.target_new,)) for e in EDITS]


def pairs_of(edits):
    return [(edit.fact.text, edit.target_new) for edit in edits]


def edit_of(prompt, target, subject="France"):
    return Edit(Fact(subject, "r", "Paris", prompt), target)


def empty(width=2, radius=1.0, fixed=()):
    none = torch.zeros(0, width)
    return Growing(radius, torch.tensor(fixed).reshape(-1, width).float(), none, none[:, 0])


def grown(states, labels, **more):
    book = empty(**more)
    for state, label in zip(torch.tensor(states).float(), labels, strict=True):
        book.add(state, label)
    return book


# -- the codebook --


def test_a_distance_is_euclids_and_of_equals_nothing():
    keys, states = torch.randn(40, 64) * 100, torch.randn(3, 50, 64) * 100
    states[1, 7] = keys[5]
    found = distances(keys, states)
    wanted = np.linalg.norm(states.double().numpy()[:, :, None] - keys.double().numpy(), axis=-1)
    assert np.allclose(found.numpy(), wanted, rtol=1e-5)
    assert found[1, 7, 5] == 0


def test_a_radius_is_met_at_its_end_and_not_beyond():
    keys, radii = torch.zeros(1, 2), torch.ones(1)
    beyond = float(torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)))
    assert nearest(keys, radii, torch.tensor([[1.0, 0], [0, beyond], [0, 0]]))[1].tolist() == [True, False, True]


def test_what_is_far_gets_a_key_of_its_own():
    book = grown([[0, 0], [0, 2.5]], [(1,), (2,)])
    assert book.radii.tolist() == [1, 1] and book.labels == [(1,), (2,)]


def test_what_is_near_and_wants_the_same_widens_the_radius():
    book = grown([[0, 0], [0, 1.5]], [(1,), (1,)])
    assert book.radii.tolist() == [1.5] and len(book.keys) == 1
    assert grown([[0, 0], [0, 0.5]], [(1,), (1,)]).radii.tolist() == [1]


def test_what_is_near_and_wants_something_else_shares_the_way():
    book = grown([[0, 0], [0, 1.5]], [(1,), (2,)])
    assert len(book.keys) == 2
    assert book.radii[1] == 0.75 and 0.74 < book.radii[0] < 0.75


def test_a_split_never_widens():
    book = grown([[0, 0], [0, 1], [0, 1.8]], [(1,), (2,), (3,)], radius=1.0)
    assert book.radii[0] < 0.5 and book.radii[1] < 0.5


STATES = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=9, unique=True)


@settings(max_examples=200, deadline=None)
@given(states=STATES, data=st.data())
def test_every_edit_finds_what_it_wants(states, data):
    labels = [(data.draw(st.integers(0, 2)),) for _ in states]
    book = grown(states, labels, radius=data.draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])))
    book.settle(torch.tensor(states).float(), labels)
    number, inside = nearest(book.keys, book.radii, torch.tensor(states).float())
    assert inside.all()
    assert [book.labels[int(i)] for i in number] == labels
    assert len(book.keys) <= len(states)


def test_settling_is_needed():
    """The third edit takes over the second, which had no key of its own."""
    states, labels = [[0.0, 0], [0, 1.5], [0, 1.6]], [(1,), (1,), (2,)]
    book = grown(states, labels)
    number, inside = nearest(book.keys, book.radii, torch.tensor(states))
    assert (number[1], bool(inside[1])) == (1, True) and book.labels[1] == (2,)
    book.settle(torch.tensor(states), labels)
    assert len(book.keys) == 3 and book.labels[2] == (1,)


@settings(max_examples=100, deadline=None)
@given(states=STATES, fixed=STATES, data=st.data())
def test_keys_below_are_left_alone(states, fixed, data):
    states = [state for state in states if state not in fixed] or [(9, 9)]
    labels = [(data.draw(st.integers(0, 1)),) for _ in states]
    book = grown(states, labels, radius=2.0, fixed=fixed)
    book.settle(torch.tensor(states).float(), labels)
    assert not nearest(book.keys, book.radii, torch.tensor(fixed).float())[1].any()


# -- what is replaced --


@pytest.mark.parametrize("layout", LAYOUTS)
def test_own_prompts_get_their_values_and_other_tokens_what_they_had(handle_of, layout):
    handle = handle_of(layout)
    patch = QUICK(handle, EDITS, seed=0)
    for edit in EDITS:
        ids = torch.tensor([encode(handle.tokenizer, edit.fact.text)])
        with torch.no_grad(), traced(handle.model, [patch.module]) as plain:
            handle.model(ids)
        with torch.no_grad(), handle.patched(patch), traced(handle.model, [patch.module]) as seen:
            handle.model(ids)
        read, given, before = (
            x[0] for x in (seen[patch.module].input, seen[patch.module].output, plain[patch.module].output)
        )
        apart = torch.linalg.vector_norm(read[:, None] - patch.keys, dim=-1)
        for place in range(len(given)):
            number = int(apart[place].argmin())
            inside = apart[place, number] <= patch.radii[number]
            assert torch.equal(given[place], patch.values[number] if inside else before[place])
        assert apart[-1].min() < 1e-4 and apart[-1].min() <= patch.radii[apart[-1].argmin()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_new_objects_gain_and_the_notes_say_by_how_much(handle_of, layout):
    handle = handle_of(layout)
    before = score_pairs(handle, pairs_of(EDITS))
    patch = dataclasses.replace(QUICK, steps=25)(handle, EDITS, seed=0)
    with handle.patched(patch):
        after = score_pairs(handle, pairs_of(EDITS))
    assert sum(s.mean for s in after) > sum(s.mean for s in before) + 0.5
    notes = patch.provenance.notes
    assert notes["loss"] == pytest.approx(-sum(s.mean for s in after) / len(after), rel=1e-3)
    assert notes["worst_loss"] == pytest.approx(-min(s.mean for s in after), rel=1e-3)


def plain_value(handle, edit, operator):
    """Full passes of one sequence, the output at the prompt's last token replaced, torch's own Adam."""
    ids, target = encode_pair(handle.tokenizer, edit.fact.text, edit.target_new)
    whole, at, module = torch.tensor([[*ids, *target]]), len(ids) - 1, handle.module("mlp_out", operator.layer)
    with torch.no_grad(), traced(handle.model, [handle.arch.path("mlp_out", operator.layer)]) as seen:
        handle.model(whole)
    value = next(iter(seen.values())).output[0, at].clone().requires_grad_()
    adam = torch.optim.Adam([value], lr=operator.learning_rate)
    for _ in range(operator.steps):
        hook = module.register_forward_hook(
            lambda m, i, o: torch.cat([o[:, :at], value[None, None], o[:, at + 1 :]], 1)
        )
        logits = handle.model(whole).logits[0].float()
        hook.remove()
        loss = torch.nn.functional.cross_entropy(logits[at:-1], whole[0, at + 1 :])
        [value.grad] = torch.autograd.grad(loss, value)
        adam.step()
    return value.detach()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fast_training_equals_the_plain_one(handle_of, layout):
    handle, operator = handle_of(layout), dataclasses.replace(QUICK, radius=1e-3, learning_rate=0.05)
    patch = operator(handle, EDITS, seed=0)
    assert len(patch.keys) == len(EDITS)
    for edit, value in zip(EDITS, patch.values, strict=True):
        assert distance(value, plain_value(handle, edit, operator)) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", FEW)
def test_with_radius_0_every_other_prompt_is_equal_to_the_bit(layout, dtype):
    handle = make_handle(layout, dtype=dtype)
    patch = dataclasses.replace(QUICK, radius=0.0)(handle, EDITS, seed=0)
    asks = ASKS[: len(OTHERS)]
    plain, own = tell(handle, asks), score_pairs(handle, pairs_of(EDITS))
    with handle.patched(patch):
        assert tell(handle, asks) == plain
    with handle.patched(dataclasses.replace(patch, radii=torch.full_like(patch.radii, 0.05))):
        assert all(a != b for a, b in zip(score_pairs(handle, pairs_of(EDITS)), own, strict=True))


def test_a_wide_radius_changes_other_prompts(handle):
    patch = dataclasses.replace(QUICK, radius=50.0)(handle, EDITS[:1], seed=0)
    plain = score_pairs(handle, OTHERS)
    with handle.patched(patch):
        assert all(a != b for a, b in zip(score_pairs(handle, OTHERS), plain, strict=True))


def test_in_bfloat16_an_edit_holds():
    handle = make_handle("llama", dtype=torch.bfloat16)
    before = score_pairs(handle, pairs_of(EDITS))
    patch = dataclasses.replace(QUICK, steps=25)(handle, EDITS, seed=0)
    assert {t.dtype for t in patch.tensors.values()} == {torch.float32}
    with handle.patched(patch):
        after = score_pairs(handle, pairs_of(EDITS))
    assert all(a.mean > b.mean + 0.1 for a, b in zip(after, before, strict=True))


# -- several edits --


def test_a_prompt_that_goes_on_where_another_ends_is_trained_with_its_value(handle):
    edits = [edit_of("The capital of {}", "Rome"), edit_of("The capital of {} is", "Lima")]
    patch = dataclasses.replace(QUICK, radius=0.01)(handle, edits, seed=0)
    with handle.patched(patch):
        after = score_pairs(handle, pairs_of(edits))
    assert patch.provenance.notes["loss"] == pytest.approx(-sum(s.mean for s in after) / 2, rel=1e-3)
    alone = dataclasses.replace(QUICK, radius=0.01)(handle, edits[1:], seed=0)
    assert distance(patch.values[1], alone.values[0]) > 1e-3


def test_parts_of_a_large_request_add_up(handle, monkeypatch):
    whole = QUICK(handle, EDITS, seed=0)
    monkeypatch.setattr(grace, "ROWS", 2)
    assert distance(QUICK(handle, EDITS, seed=0).values, whole.values) < 1e-3


def test_edits_trained_together_end_each_at_its_own_step(handle):
    operator = dataclasses.replace(QUICK, steps=60, stop_below=4.7)
    together = operator.each(handle, EDITS, seed=0)
    alone = [operator(handle, [edit], seed=0) for edit in EDITS]
    steps = [patch.provenance.notes["steps"] for patch in together]
    assert steps == [patch.provenance.notes["steps"] for patch in alone] and len({*steps}) > 1
    for one, other in zip(together, alone, strict=True):
        assert distance(one.values, other.values) < 1e-2 and torch.equal(one.radii, other.radii)
    assert operator.each(handle, [], seed=0) == []


def test_near_edits_with_one_object_share_a_value(handle):
    edits = [edit_of("The capital of {}", "Rome"), edit_of("The capital of {}", "Rome", subject="Italy")]
    patch = dataclasses.replace(QUICK, radius=50.0)(handle, edits, seed=0)
    assert len(patch.keys) == 1


def test_an_edit_that_a_later_one_takes_over_gets_its_own_key_again(handle):
    edits = [
        edit_of("The capital of {}", object, subject)
        for subject, object in (("France", "Rome"), ("Italy", "Rome"), ("Peru", "Lima"))
    ]
    patch = dataclasses.replace(QUICK, radius=50.0, steps=20)(handle, edits, seed=0)
    assert len(patch.keys) == 3
    before = score_pairs(handle, pairs_of(edits))
    with handle.patched(patch):
        after = score_pairs(handle, pairs_of(edits))
    assert all(a.mean > b.mean + 0.1 for a, b in zip(after, before, strict=True))


def test_one_prompt_with_two_spellings_of_an_object_is_refused(handle):
    with pytest.raises(InputError, match="'The capital of France is' different objects"):
        QUICK(handle, [EDITS[0], edit_of("The capital of {} is", "ROME")], seed=0)
    twice = QUICK(handle, [EDITS[0], EDITS[0]], seed=0)
    assert len(twice.keys) == 1


# -- batches, packs, stacks --


@pytest.mark.parametrize("layout", FEW)
def test_many_prompts_answer_as_each_alone(handle_of, layout):
    handle = handle_of(layout)
    patch = dataclasses.replace(QUICK, radius=0.3, steps=20)(handle, EDITS, seed=0)
    with handle.patched(patch):
        together = tell(handle, ASKS)
        alone = [tell(handle, [ask])[0] for ask in ASKS]
    for one, other in zip(together, alone, strict=True):
        assert one.text == other.text
        for target, score in one.targets.items():
            assert score.logprob == pytest.approx(other.targets[target].logprob, abs=1e-3)


def test_prompts_are_packed_as_without_it(handle):
    bundles = [[[5, 6, 7], [5, 6, 8, 9]], [[9, 8]]]
    with handle.patched(QUICK(handle, EDITS, seed=0)):
        [pack] = packed(handle, bundles)
    assert pack.ids.shape == (1, 7)


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
def test_a_stack_holds_the_edits_of_both_and_comes_off_to_the_bit(handle_of, layout):
    handle = handle_of(layout)
    before = handle.fingerprint()
    operator = dataclasses.replace(QUICK, radius=5.0, steps=20)  # wide enough to swallow the lower keys
    lower = operator(handle, EDITS[:1], seed=0)
    with handle.patched(lower):
        first = score_pairs(handle, pairs_of(EDITS[:1]))
        upper = operator(handle, EDITS[1:2], seed=0)
        assert not nearest(upper.keys, upper.radii, lower.keys)[1].any()
        with handle.patched(upper):
            again = score_pairs(handle, pairs_of(EDITS[:1]))
            [later] = score_pairs(handle, pairs_of(EDITS[1:2]))
        assert handle.patches == (lower,)
    assert handle.fingerprint() == before
    assert again[0].mean == pytest.approx(first[0].mean, abs=1e-3)
    assert upper.provenance.notes["loss"] == pytest.approx(-later.mean, rel=1e-3)


def test_a_prompt_that_is_edited_again_says_the_newest(handle):
    operator = dataclasses.replace(QUICK, radius=0.2, steps=20)
    newer = edit_of("The capital of {} is", "Lima")
    with handle.patched(operator(handle, EDITS, seed=0)):
        old = score_pairs(handle, pairs_of([newer]))
        upper = operator(handle, [newer], seed=0)
        assert upper.radii[0] > 0.01
        with handle.patched(upper):
            [score] = score_pairs(handle, pairs_of([newer]))
    assert score.mean > old[0].mean + 0.1
    assert upper.provenance.notes["loss"] == pytest.approx(-score.mean, rel=1e-3)


# -- files and input --


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_and_loaded_answers_alike(handle_of, layout, tmp_path):
    handle = handle_of(layout)
    patch = QUICK(handle, EDITS, seed=3)
    patch.save(tmp_path / "p.safetensors")
    read = load_patch(tmp_path / "p.safetensors")
    assert type(read) is GracePatch
    assert (read.digest, read.provenance, read.module) == (patch.digest, patch.provenance, patch.module)
    with handle.patched(patch):
        wanted = tell(handle, ASKS)
    with handle.patched(read):
        assert tell(handle, ASKS) == wanted


@pytest.mark.parametrize("field", ["keys", "values", "radii", "module"])
def test_the_digest_names_all_that_the_rewriting_depends_on(handle, field):
    patch = QUICK(handle, EDITS[:1], seed=0)
    other = "model.layers.0.mlp.down_proj" if field == "module" else getattr(patch, field) + 1
    assert dataclasses.replace(patch, **{field: other}).digest != patch.digest


GOOD = {"m:keys": torch.ones(2, 3), "m:values": torch.ones(2, 4), "m:radii": torch.ones(2)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"m:keys": None}, r"it takes \['keys', 'radii', 'values'\] of one module"),
        ({"n:keys": torch.ones(2, 3)}, "of one module"),
        ({"m:more": torch.ones(1)}, "of one module"),
        ({"m:keys": torch.ones(2, 3).double()}, "keys are of torch.float64, not float32"),
        ({"m:keys": torch.ones(3)}, r"keys have shape \(3,\), they take 2 dimensions"),
        ({"m:radii": torch.ones(3)}, "2 keys, 2 values and 3 radii"),
        ({"m:values": torch.full((2, 4), torch.nan)}, "values hold values that are no numbers"),
        ({"m:keys": torch.ones(0, 3), "m:values": torch.ones(0, 4), "m:radii": torch.ones(0)}, "it has 0 keys"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, changed, message):
    tensors = {key: tensor for key, tensor in (GOOD | changed).items() if tensor is not None}
    write(tmp_path / "p.safetensors", KIND, tensors, Provenance(base="ab"))
    with pytest.raises(PatchError, match=f"p.safetensors is a damaged patch: .*{message}.*; make it again"):
        load_patch(tmp_path / "p.safetensors")


def test_a_patch_without_a_base_is_neither_written_nor_read(handle, tmp_path):
    patch = dataclasses.replace(QUICK(handle, EDITS[:1], seed=0), provenance=Provenance())
    with pytest.raises(PatchError, match="names no base"):
        patch.save(tmp_path / "p.safetensors")
    write(tmp_path / "p.safetensors", KIND, GOOD, Provenance())
    with pytest.raises(PatchError, match="names no `base`"):
        load_patch(tmp_path / "p.safetensors")


def test_a_patch_of_another_model_does_not_go_on(handle):
    before = handle.fingerprint()
    for module, message in (("model.layers.1.mlp.down_proj", r"for a matrix \(4, 3\)"), ("no.such", "no parameter")):
        patch = GracePatch(module, Provenance(), torch.ones(2, 3), torch.ones(2, 4), torch.ones(2))
        with pytest.raises(PatchError, match=message):
            handle.apply(patch)
    assert handle.fingerprint() == before


def test_the_model_with_it_is_no_checkpoint(handle, tmp_path):
    with handle.patched(QUICK(handle, EDITS[:1], seed=0)) as patched:
        assert patched.patches[0].relative_norm(handle) is None
        with pytest.raises(PatchError, match="no change of weights"):
            handle.save(tmp_path / "model")


def test_settings_round_trip_and_bad_input_is_refused(handle):
    assert build(GRACE, json.loads(json.dumps(settings_of(QUICK)))) == QUICK
    with pytest.raises(InputError, match="radius >= 0"):
        GRACE(0, radius=-1.0)
    with pytest.raises(InputError, match="no layer 9"):
        GRACE(9)(handle, EDITS, seed=0)


def test_it_stops_when_every_loss_is_small_enough(handle):
    patch = dataclasses.replace(QUICK, stop_below=1e9)(handle, ENDING, seed=0)
    assert patch.provenance.notes["steps"] == 0
