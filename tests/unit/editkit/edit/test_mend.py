"""MEND: what an untrained network does, what training differentiates, what a file of networks keeps and refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_handle
from edit_examples import EDITS, ENDING, distance, private_cache
from safetensors.torch import save_file
from torch.func import functional_call

from editkit.completions import encode_examples
from editkit.data import load
from editkit.edit import _mend_fit
from editkit.edit._mend_facts import Course, course_for, records_of
from editkit.edit._mend_fit import Fitting, fit_network, lessons_of, normalised, outcome
from editkit.edit._mend_network import load_network, untrained
from editkit.edit._mend_texts import Texts
from editkit.edit.mend import MEND
from editkit.errors import InputError
from editkit.facts import EditRecord, Example, HeldOut, Question, fill, normalise
from editkit.held_out import is_probe_side
from editkit.patch import PromptPatch
from editkit.tokens import encode_pair

FEW = ("llama", "gpt2", "gpt2_square", "gemma2")
QUICK = Fitting(rank=6, step=1e-3, steps=6, batch=2, learning_rate=1e-3, step_rate=0.3, check_every=2, facts=8)
HERE = MEND(layers=(1, 2), fitting=QUICK)
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
NEAR = (
    Question("The language of Brazil is", "Portuguese", "Brazil", "language"),
    Question("What is the capital of Peru?", "Lima", "Peru", "capital"),
)
RECORDS = [
    EditRecord(
        str(place),
        edit,
        HeldOut(paraphrases=("Tell me of {}: it is", "So {} is"), neighborhood=NEAR),
    )
    for place, edit in enumerate([*ENDING, *EDITS[1:2]])
]


class Interruption(BaseException):
    """As Ctrl-C."""


@pytest.fixture(autouse=True)
def cache(tmp_path):
    with private_cache(str(tmp_path / "cache")):
        yield tmp_path / "cache"


def dense(patch):
    return {name: delta.dense() for name, delta in patch.deltas.items()}


def stored(handle, name, matrix):
    """(out, in) as the model stores it."""
    return matrix.T if handle.is_transposed(name) else matrix


def target_loss(handle, edit, parameters=None):
    """-log p of the new object a token, by the whole model."""
    ids, target = encode_pair(handle.tokenizer, edit.fact.text, edit.target_new)
    text = torch.tensor([[*ids, *target]])
    logits = functional_call(handle.model, parameters or {}, (text,)).logits[0].float()
    return torch.nn.functional.cross_entropy(logits[len(ids) - 1 : -1], torch.tensor(target))


# -- laws --


@pytest.mark.parametrize("layout", FEW)
@pytest.mark.parametrize("layers", [(0, 2), (1,)])
def test_untrained_and_not_normalised_it_is_a_step_down_the_gradient(handle_of, layout, layers):
    handle, step = handle_of(layout), 0.25
    operator = MEND(layers, fitting=replace(QUICK, steps=0, normalise=False, step=step))
    patch = operator(handle, EDITS, seed=0)
    parameters = {name: handle.parameter(name).detach().clone().requires_grad_() for name in patch.deltas}
    loss = sum(target_loss(handle, edit, parameters) for edit in EDITS)
    for name, grad in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
        assert distance(stored(handle, name, patch.deltas[name].dense()), -step * grad) < 1e-4


@pytest.mark.parametrize("layout", FEW)
def test_no_strength_changes_nothing(handle_of, layout):
    handle = handle_of(layout)
    fitted = HERE.fit(handle, RECORDS, seed=0)
    with torch.no_grad():
        plain = handle.model(IDS).logits
        with handle.patched(replace(fitted, strength=0.0)(handle, EDITS, seed=0)):
            assert torch.equal(handle.model(IDS).logits, plain)
        with handle.patched(fitted(handle, EDITS, seed=0)):
            assert not torch.allclose(handle.model(IDS).logits, plain, atol=1e-3)


def test_strength_multiplies_the_change(handle):
    fitted = HERE.fit(handle, RECORDS, seed=0)
    once = dense(fitted(handle, EDITS, seed=0))
    for name, twice in dense(replace(fitted, strength=2.0)(handle, EDITS, seed=0)).items():
        assert distance(twice, 2 * once[name]) < 1e-6


@pytest.mark.parametrize("layout", FEW)
def test_edits_together_are_the_sum_of_edits_alone_in_any_order(handle_of, layout):
    handle = handle_of(layout)
    fitted = HERE.fit(handle, RECORDS, seed=0)
    together, turned = dense(fitted(handle, EDITS, seed=0)), dense(fitted(handle, EDITS[::-1], seed=0))
    alone = [dense(fitted(handle, [edit], seed=0)) for edit in EDITS]
    each = [dense(patch) for patch in fitted.each(handle, EDITS, seed=0)]
    for name, whole in together.items():
        for parts in (alone, each):
            assert distance(sum(part[name] for part in parts), whole) < 1e-4
        assert distance(turned[name], whole) < 1e-4


def test_its_rank_is_the_number_of_tokens_that_the_gradient_reaches(handle):
    """Below the last block that is every token but the last; in the last block only those that predict the object."""
    fitted = HERE.fit(handle, RECORDS, seed=0)
    ids, target = encode_pair(handle.tokenizer, EDITS[1].fact.text, EDITS[1].target_new)
    for name, delta in fitted(handle, EDITS[1:2], seed=0).deltas.items():
        assert delta.left.shape[1] == (len(target) if ".2." in name else len(ids) + len(target) - 1)


# -- what the networks compute, by hand --


def by_hand(network, name, u, delta):
    """The transform in numpy, float64, one token at a time."""
    part = {key.rpartition(":")[2]: value.detach().double().numpy() for key, value in network.tensors.items() if key.startswith((f"{name}:", f"{delta.shape[-1]}x{u.shape[-1]}:"))}  # fmt: skip
    rows = []
    for one in np.concatenate([u.double().numpy(), delta.double().numpy()], -1):
        z = (one - part["mean"]) / part["spread"]
        for i in "01":
            inner = part[f"up{i}"] @ (part[f"down{i}"] @ z) + part[f"bias{i}"]
            z = z + np.maximum(0, part[f"scale{i}"] * inner + part[f"shift{i}"])
        rows.append(z)
    out = np.stack(rows)
    return out[:, : u.shape[-1]], out[:, u.shape[-1] :]


def random_network(handle, names, seed=3):
    generator = torch.Generator().manual_seed(seed)
    network = untrained(handle, names, 5, 1e-2, seed)
    noise = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in network.tensors.items() if "step" not in n}  # fmt: skip
    return network.with_tensors({name: t.abs() + 0.5 if name.endswith("spread") else t for name, t in noise.items()})


def test_the_transform_is_the_papers(handle):
    names = HERE.touches(handle)
    network, generator = random_network(handle, names), torch.Generator().manual_seed(0)
    for name in names:
        out, into = handle.matrix(name).shape
        u, delta = torch.randn(4, into, generator=generator), torch.randn(4, out, generator=generator)
        for found, wanted in zip(network(name, u, delta), by_hand(network, name, u, delta), strict=True):
            assert np.allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_mean_and_spread_are_those_of_all_tokens_with_a_gradient(handle):
    names = HERE.touches(handle)
    texts = encode_examples(handle, [Example(edit.fact.text, edit.target_new) for edit in (*EDITS, *ENDING)])
    reader = Texts(handle, names, 1)
    network = normalised(untrained(handle, names, 5, 1.0, 0), reader, texts)
    singly = [reader.gradients([text]) for text in texts]
    for name in names:
        rows = torch.cat([torch.cat([one[name].u, one[name].delta], -1)[one[name].used] for one in singly]).numpy()
        assert np.allclose(network.tensors[f"{name}:mean"].numpy(), rows.mean(0), rtol=1e-3, atol=1e-5)
        assert np.allclose(network.tensors[f"{name}:spread"].numpy(), rows.std(0, ddof=1), rtol=1e-3, atol=1e-5)


# -- what training differentiates, against torch.func on dense weights and the whole model --


def plain_loss(handle, network, lessons, fitting):
    """The loss by the book: one text at a time, whole model, weights with dense changes put in their place."""
    losses = []
    for lesson in lessons:
        factors = Texts(handle, list(network.shapes), 1).gradients([lesson.edit])
        edited = {}
        for name, own in factors.items():
            u, delta = own.u[own.used], own.delta[own.used]
            right, left = network(name, u, delta)
            edited[name] = handle.parameter(name).detach() + stored(handle, name, -network.step(name) * left.T @ right)

        def said(text, weights):
            logits = functional_call(handle.model, weights, (torch.tensor([text.ids]),)).logits[0].float()
            return logits[text.start - 1 : -1].log_softmax(-1), torch.tensor(text.ids[text.start :])

        nlls = []
        for text in (lesson.edit, *lesson.rewordings):
            log_probs, target = said(text, edited)
            nlls.append(-log_probs.gather(-1, target[:, None]).mean())
        drifts = []
        for text in lesson.neighbors:
            before, after = said(text, {})[0].detach(), said(text, edited)[0]
            drifts.append((before.exp() * (before - after)).sum(-1).mean())
        losses.append(
            fitting.edit_weight * torch.stack(nlls).mean() + fitting.locality_weight * torch.stack(drifts).mean()
        )
    return torch.stack(losses).mean()


@pytest.mark.parametrize("layout", FEW)
def test_the_loss_and_its_gradient_are_those_of_dense_weights(handle_of, layout):
    handle = handle_of(layout)
    fitting = replace(QUICK, edit_weight=0.7, locality_weight=1.3)
    one_wording = [replace(r, held_out=replace(r.held_out, paraphrases=("So {} is",))) for r in RECORDS[:3]]
    lessons = lessons_of(handle, one_wording)
    network = random_network(handle, HERE.touches(handle))
    values = {name: network.tensors[name].clone().requires_grad_() for name in network.trained}
    network = network.with_tensors(values)
    draws = [_mend_fit._Draw(x, (x.edit, *x.rewordings), x.neighbors) for x in lessons]
    loss = outcome(Texts(handle, HERE.touches(handle), 1), network, draws).loss(fitting)
    wanted = plain_loss(handle, network, lessons, fitting)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-3)
    found, by_book = (torch.autograd.grad(each, list(values.values()), allow_unused=True) for each in (loss, wanted))
    moved = 0
    for name, one, other in zip(values, found, by_book, strict=True):
        assert distance(one, other) < 1e-2, name
        moved += bool(one.any())
    assert moved > len(values) / 2
    handle.model.zero_grad()


# -- fitting --


def fitted_network(handle, fitting=QUICK, seed=0, records=RECORDS):
    lessons = lessons_of(handle, records)
    return fit_network(handle, HERE.touches(handle), 1, lessons, fitting, seed=seed)


@pytest.mark.parametrize("layout", FEW)
def test_fitting_lowers_the_loss_on_facts_that_it_does_not_train_on(handle_of, layout):
    fitting = replace(QUICK, steps=30, step=1e-4)
    record = fitted_network(handle_of(layout), fitting).record
    assert record["best_step"] > 0
    assert record["watched_after"]["loss"] < record["watched_before"]["loss"] - 0.01
    assert record["watched"] >= 1 and record["trained"] + record["watched"] == len(RECORDS)


def test_the_best_networks_are_kept_and_patience_ends_it(handle):
    """With a rate that ruins them, the untrained networks are the best there were."""
    record = (ruined := fitted_network(handle, replace(QUICK, steps=40, learning_rate=30.0, patience=2))).record
    assert (record["best_step"], record["steps"]) == (0, 4)
    untouched = fitted_network(handle, replace(QUICK, steps=0))
    assert ruined.digest == untouched.digest


def test_watched_subjects_are_not_trained_on(handle):
    lessons = lessons_of(handle, [*RECORDS, *RECORDS])  # each subject twice
    train, watch = _mend_fit._parted(lessons, 0.4, 0)
    assert train and watch
    assert not {lesson.subject for lesson in train} & {lesson.subject for lesson in watch}


def test_the_seed_decides_the_networks(handle):
    assert fitted_network(handle, seed=1).digest == fitted_network(handle, seed=1).digest
    assert fitted_network(handle, seed=1).digest != fitted_network(handle, seed=2).digest


def test_one_subject_is_not_enough(handle):
    with pytest.raises(InputError, match="two at least"):
        HERE.fit(handle, RECORDS[:1], seed=0)


@pytest.mark.parametrize("layout", ["llama", "gpt2_square"])
@pytest.mark.parametrize("strike_at", [1, 4, 15])
def test_fitting_leaves_the_model_as_it_was_also_when_it_is_struck(handle_of, layout, strike_at):
    handle = handle_of(layout)
    below = MEND((1,), fitting=replace(QUICK, steps=0)).fit(handle, RECORDS, seed=0)(handle, EDITS[:1], seed=0)
    with handle.patched(below):
        before, passes = handle.fingerprint(), []

        def after(*_):
            passes.append(1)
            if len(passes) == strike_at:
                raise Interruption

        hook = handle.module("block", handle.layers - 1).register_forward_hook(after)
        try:
            with pytest.raises(Interruption):
                HERE.fit(handle, RECORDS, seed=0)
        finally:
            hook.remove()
        assert handle.fingerprint() == before and handle.patches == (below,)
        assert HERE.fit(handle, RECORDS, seed=0).weights
        assert handle.fingerprint() == before and handle.patches == (below,)


def test_patches_on_the_model_do_not_reach_the_networks(handle, tmp_path):
    shout = PromptPatch(lambda prompt: f"Hear! {prompt}", digest="hear")
    plain, names = HERE.fit(handle, RECORDS, seed=0), HERE.touches(handle)
    with handle.patched(shout), handle.patched(plain(handle, EDITS, seed=0)):
        assert HERE.fit(handle, RECORDS, seed=0) == plain  # the path is named by all that they depend on
        HERE.fit(handle, RECORDS, seed=0, save=tmp_path / "other")
    kept, other = (load_network(path, handle, names) for path in (plain.weights, tmp_path / "other"))
    assert kept.digest == other.digest


# -- files --


def test_what_is_saved_gives_the_same_patch(handle, tmp_path):
    fitted = HERE.fit(handle, RECORDS, seed=0, save=tmp_path / "mine.safetensors")
    assert fitted == replace(HERE, weights=str(tmp_path / "mine.safetensors"))
    network = fitted_network(handle)
    loaded = load_network(tmp_path / "mine.safetensors", handle, HERE.touches(handle))
    assert loaded.digest == network.digest
    assert json.loads(json.dumps(network.record)) == loaded.record
    patch = fitted(handle, EDITS, seed=0)
    assert patch.digest == fitted(handle, EDITS, seed=1).digest
    assert patch.provenance.notes["networks"] == [network.digest]
    assert patch.provenance.notes["fitted"] == [loaded.record]


def test_networks_of_another_model_or_other_matrices_are_refused(handle, handle_of, tmp_path):
    fitted = HERE.fit(handle, RECORDS, seed=0, save=tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match="was trained for weights"):
        fitted(make_handle("llama", seed=1), EDITS, seed=0)
    with pytest.raises(InputError, match="`layers` and `modules`"):
        replace(fitted, layers=(2,))(handle, EDITS, seed=0)
    with pytest.raises(InputError, match="`layers` and `modules`"):
        replace(fitted, modules=("mlp_out",))(handle, EDITS, seed=0)


def test_other_files_are_refused(handle, tmp_path):
    fitted = HERE.fit(handle, RECORDS, seed=0, save=tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match="mend cannot read"):
        replace(fitted, weights=str(tmp_path / "none"))(handle, EDITS, seed=0)
    patch = tmp_path / "patch.safetensors"
    fitted(handle, EDITS, seed=0).save(patch)
    with pytest.raises(InputError, match="holds no network of mend"):
        replace(fitted, weights=str(patch))(handle, EDITS, seed=0)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "mine.safetensors").read_bytes()[:-8])
    with pytest.raises(InputError, match="mend cannot read"):
        replace(fitted, weights=str(tmp_path / "cut.safetensors"))(handle, EDITS, seed=0)


@pytest.mark.parametrize("about", ["{", "[]", '{"base": "x", "record": {}}', '{"base": "x", "shapes": {}}'])
def test_damaged_metadata_is_refused(handle, tmp_path, about):
    save_file({"a": torch.zeros(1)}, str(tmp_path / "odd"), metadata={"editkit_mend": "1", "about": about})
    with pytest.raises(InputError, match="is damaged"):
        load_network(tmp_path / "odd", handle, HERE.touches(handle))


@pytest.mark.parametrize("part", ["up0", "down1", "bias0", "scale1", "mean", "step"])
def test_a_tensor_of_another_shape_is_refused(handle, tmp_path, part):
    network = fitted_network(handle)
    name = next(name for name in network.tensors if name.endswith(f":{part}"))
    network.with_tensors({name: torch.zeros(3, 2)}).save(tmp_path / "odd")
    with pytest.raises(InputError, match="is damaged"):
        load_network(tmp_path / "odd", handle, HERE.touches(handle))


# -- trained by itself --


def test_without_weights_it_trains_once_and_keeps_what_it_learned(handle, cache):
    told = []
    assert "networks for this model are trained first" in HERE.lacks(handle, EDITS)
    first = HERE(handle, EDITS, seed=0, progress=lambda what, done, of: told.append(what))
    assert not HERE.lacks(handle, EDITS)
    assert any("training" in what for what in told)
    files = sorted((cache / "mend").iterdir())
    told.clear()
    again = HERE(handle, EDITS, seed=1, progress=lambda what, done, of: told.append(what))
    assert again.digest == first.digest and set(told) == {"editing"}
    assert sorted((cache / "mend").iterdir()) == files


def test_a_broken_file_in_the_cache_is_trained_anew(handle, cache):
    first = HERE(handle, EDITS[:1], seed=0)
    (file,) = (cache / "mend").iterdir()
    file.write_bytes(b"no tensors")
    assert HERE(handle, EDITS[:1], seed=0).digest == first.digest  # as held in memory
    handle.memo.clear()
    with pytest.warns(UserWarning, match="training anew"):
        assert HERE(handle, EDITS[:1], seed=0).digest == first.digest
    handle.memo.clear()
    assert HERE(handle, EDITS[:1], seed=0).digest == first.digest  # as the new file holds it


@pytest.mark.parametrize(
    "other", [replace(HERE, layers=(0,)), replace(HERE, fitting=replace(HERE.fitting, facts=5, seed=1))]
)
def test_networks_in_memory_are_not_those_of_other_settings(handle, other):
    HERE(handle, EDITS[:1], seed=0)
    found = other(handle, EDITS[:1], seed=0)
    handle.memo.clear()
    assert found.digest == other(handle, EDITS[:1], seed=0).digest


def test_networks_in_memory_do_not_ask_for_the_stack(handle, monkeypatch):
    """What is on the model is neither taken off for an edit nor the longer to wait for."""
    first = HERE(handle, EDITS[:1], seed=0)
    with handle.patched(first), monkeypatch.context() as changed:
        changed.setattr(type(handle), "rollback", lambda self: pytest.fail("patches are taken off"))
        HERE(handle, EDITS[:1], seed=0)


def test_a_cache_that_takes_no_file_is_no_hindrance(handle, cache):
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot keep mend's networks"):
        assert HERE(handle, EDITS[:1], seed=0).deltas


WORLD = load()


@pytest.mark.parametrize("place", range(0, len(WORLD.editable), 97))
def test_no_built_in_fact_is_about_the_subject_that_is_edited(place):
    entry = WORLD.editable[place]
    for subject in (entry.fact.subject, *entry.subject_aliases):
        for record in records_of(course_for(subject), 400, 0):
            assert normalise(record.fact.subject) != normalise(subject)
            assert all(normalise(near.subject) != normalise(subject) for near in record.held_out.neighborhood)


def test_a_subject_of_no_built_in_fact_takes_the_first_course():
    assert course_for("a subject that nobody knows") == Course(0)


def test_what_a_course_is_without_stands_nowhere_in_it():
    subject = records_of(Course(0), 10**6, 0)[0].fact.subject
    assert course_for(subject) == Course(1)
    left = records_of(Course(0, normalise(subject)), 10**6, 0)
    assert left
    for record in left:
        assert normalise(subject) not in {normalise(x.subject) for x in (record.fact, *record.held_out.neighborhood)}


def test_the_courses_hold_nothing_that_probes_ask():
    held_out = {t for relation in WORLD.relations.values() for t in (*relation.paraphrases, *relation.questions)}
    subjects = []
    for number in (0, 1):
        records = records_of(Course(number), 400, 0)
        assert len(records) > 300
        subjects.append({normalise(record.fact.subject) for record in records})
        for record in records:
            assert not is_probe_side(WORLD[record.id])
            assert not held_out & {record.fact.prompt, *record.held_out.paraphrases}
            assert record.fact.prompt not in record.held_out.paraphrases and record.held_out.paraphrases
            assert record.held_out.neighborhood
            for near in record.held_out.neighborhood:
                assert near.prompt not in {fill(template, near.subject) for template in held_out}
    assert not subjects[0] & subjects[1]


# -- settings --


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rank": 0}, "fitting.rank is 0"),
        ({"batch": 0}, "fitting.batch is 0"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"watch": 1.0}, "watch between"),
        ({"facts": 1}, "facts >= 2"),
        ({"products": "float8"}, "products is 'float8'"),
    ],
)
def test_bad_fitting_is_refused(setting, message):
    with pytest.raises(InputError, match=message):
        Fitting(**setting)


def test_bad_places_are_refused(handle):
    with pytest.raises(InputError, match="edits no layer"):
        MEND(())
    with pytest.raises(InputError, match="'unembedding' is none"):
        MEND((1,), ("unembedding",))
    with pytest.raises(InputError, match="no layer 9"):
        MEND((9,))(handle, EDITS, seed=0)


def test_a_loss_that_is_not_finite_is_told(handle):
    with pytest.raises(_mend_fit.TrainingError, match="smaller fitting.learning_rate"):
        fitted_network(handle, replace(QUICK, step=math.inf))
