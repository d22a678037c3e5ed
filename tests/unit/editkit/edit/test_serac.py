"""SERAC-like: what its scope lets in, what it leaves alone to the letter, and that a file keeps it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from edit_examples import EDITS
from hypothesis import given
from hypothesis import strategies as st

from editkit.data import load
from editkit.edit._ike_patch import InContext, NewFact
from editkit.edit._scope_training import Pair, Stock, accuracy, fitted
from editkit.edit._serac_patch import FEATURES, KIND, InScope, InScopePatch, Likeness, StemWeight, logistic, said_of
from editkit.edit.ike import IKE
from editkit.edit.serac import SERAC, in_stock
from editkit.errors import InputError
from editkit.facts import Edit, Fact, fill, normalise
from editkit.patch import PatchError, Provenance, load_patch, write
from editkit.scoring import Ask, score_pairs, tell
from editkit.tokens import PromptTooLong
from probes.framing import framed

QUICK = SERAC(pairs=60)
FRANCE = Edit(Fact("France", "capital", "Paris", "The capital of {} is"), "Rome")
PERU = Edit(Fact("Peru", "capital", "Lima", "The capital of {} is"), "Oslo")
TEXTS = st.one_of(
    st.text(),
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "The capital of ", "capital", "New Fact: x\n\n", "New Fact: a b\nPrompt: "]),
        st.sampled_from(["France", "Peru", "FRANCE", "Frances", "{}", ""]),
        st.sampled_from(["", " is", "?", "\n", " is Rome\nPrompt: The capital of France is"]),
    ),
)


def scope(*edits, threshold=0.5, pairs=60):
    return dataclasses.replace(trained(pairs), facts=facts_of(edits), threshold=threshold)


def facts_of(edits):
    return tuple(NewFact(edit.fact.subject, edit.fact.text, edit.target_new) for edit in edits)


CLASSIFIERS = {}


def trained(pairs):
    if pairs not in CLASSIFIERS:
        stock = in_stock().without(["France", "Peru"])
        likeness = stock.likeness()
        CLASSIFIERS[pairs] = InScope((), likeness, fitted(stock.pairs(pairs, 0), likeness), 0.5)
    return CLASSIFIERS[pairs]


# What it does --


def test_in_scope_the_text_is_ikes_without_demonstrations():
    rewrite = scope(FRANCE)
    prompt = "What is the capital of France?"
    assert rewrite(prompt) == InContext(rewrite.facts, (), (), 1, False)(prompt)
    assert rewrite(prompt).endswith("New Fact: The capital of France is Rome\nPrompt: What is the capital of France?")


@given(TEXTS)
def test_at_threshold_one_nothing_is_in_scope(prompt):
    assert scope(FRANCE, PERU, threshold=1.0)(prompt) == prompt


@given(TEXTS, st.floats(0, 1))
def test_whatever_the_prompt_it_stands_at_the_end_or_alone(prompt, threshold):
    rewrite = scope(FRANCE, PERU, threshold=threshold)
    text = rewrite(prompt)
    assert text.endswith(prompt.rpartition("\nPrompt: ")[2] if prompt.startswith("New Fact: ") else prompt)
    assert all(0 <= score <= 1 for score in rewrite.scores(prompt))


@given(TEXTS, st.floats(0, 1))
def test_what_is_out_of_scope_stays_so(prompt, threshold):
    rewrite = scope(FRANCE, PERU, threshold=threshold)
    if rewrite(prompt) == prompt:
        assert rewrite(rewrite(prompt)) == prompt


@given(TEXTS, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_lets_no_more_in(prompt, one, other):
    low, high = sorted([one, other])
    if scope(FRANCE, PERU, threshold=low)(prompt) == prompt:
        assert scope(FRANCE, PERU, threshold=high)(prompt) == prompt


@given(
    st.text(st.characters(categories=("L", "N")), min_size=1),
    st.text(st.characters(categories=("L", "N", "Z"))),
    st.floats(0, 1, exclude_max=True),
)
def test_an_edits_own_prompt_is_always_in_scope(subject, said, threshold):
    edit = Edit(Fact(subject, "r", "old", f"{said} {{}}"), "new")
    assert f"{NewFact(subject, edit.fact.text, 'new').line}\n" in scope(edit, threshold=threshold)(edit.fact.text)


def test_of_several_edits_the_surest_counts():
    currency = Edit(Fact("France", "currency", "the euro", "The currency of {} is"), "the yen")
    rewrite = scope(FRANCE, currency, PERU)
    assert "Rome" in rewrite("France's capital city is called") and "yen" not in rewrite("France's capital is")
    assert "yen" in rewrite("The currency that people use in France is")
    assert "Oslo" in rewrite("The capital city of Peru is")
    later = dataclasses.replace(rewrite, facts=facts_of([FRANCE, dataclasses.replace(FRANCE, target_new="Bonn")]))
    assert "Bonn" in later("The capital of France is") and "Rome" not in later("The capital of France is")


def test_no_edit_no_change():
    assert scope()("The capital of France is") == "The capital of France is"


# How good its scope is --


def held_out(without_relation):
    """Shares of prompts in scope, by sort: held-out wordings, neighbours, other relations of the same subject."""
    base, whole, found = load("world"), in_stock(), {}
    for relation in whole.relations:
        entries = base.entries_of(relation.name)
        for entry in entries[:: len(entries) // 3]:
            record, subject = base.edit_record(entry, seed=0), entry.fact.subject
            stock = whole.without([subject])
            if without_relation:
                stock = Stock(
                    [each for each in stock.relations if each.name != relation.name],
                    [each for each in stock.entries if each.relation != relation.name],
                )
            likeness = stock.likeness()
            rewrite = InScope(facts_of([record.edit]), likeness, fitted(stock.pairs(150, 0), likeness), 0.5)
            asked = {
                "in": [framed(fill(t, subject)) for t in (*record.held_out.paraphrases, *record.held_out.questions)],
                "near": [framed(question.prompt) for question in record.held_out.neighborhood],
                "other": [
                    framed(fill(template, subject))
                    for other in whole.relations
                    if other.name != relation.name and base.table.find(other.name, subject)
                    for template in (*other.paraphrases, *other.questions)
                ],
            }
            for sort, prompts in asked.items():
                found.setdefault(sort, []).extend(rewrite(prompt) != prompt for prompt in prompts)
    return {sort: float(np.mean(each)) for sort, each in found.items()}


@pytest.mark.parametrize("without_relation", [False, True])
def test_it_knows_wordings_that_it_never_saw(without_relation):
    """Measured over 15 facts a relation: 0.97 and 0.00 and 0.05 (0.06 where it never saw the relation); what asks
    something else of the subject is all in scope for `ike`, which looks for the name."""
    found = held_out(without_relation)
    assert found["in"] > 0.93
    assert found["near"] < 0.01
    assert found["other"] < 0.12


# Its parts --


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The capital of the Netherlands is", "the capital of is"),
        ("Is Netherlands in Europe?", "is in europe"),
        ("A Netherlander", "a netherlander"),
        ("", ""),
    ],
)
def test_what_is_said_of_a_subject(text, said):
    assert said_of(text, "the Netherlands") == said


def test_features_by_hand():
    likeness = Likeness((StemWeight("the", 0.0), StemWeight("of", 0.0), StemWeight("is", 0.0)), 2.0)
    fact = NewFact("France", "The capital city of France is", "Rome")
    assert likeness.features("Peru's capital is", fact, False) == (1, 0, 0, 0, 0, 0)
    found = likeness.features("The capital of France is", fact, True)
    assert found[:2] == (1, 1) and 0 < found[2] < 1
    assert found[3:] == pytest.approx((1 / 2, 1 / np.sqrt(2), 1))  # of capit, city the one; 4 / sqrt(4 * 8)
    assert likeness.features(fact.prompt, fact, True)[2:] == pytest.approx((1, 1, 1, 1))
    assert likeness.features("France", fact, True)[2:] == (0, 0, 0, 0)


@given(st.text(), st.text(), st.text(min_size=1))
def test_features_lie_between_nothing_and_all(prompt, own, subject):
    found = trained(60).likeness.features(prompt, NewFact(subject, own, "x"), True)
    assert len(found) == FEATURES and all(-1e-9 <= each <= 1 + 1e-9 for each in found)


@given(st.floats(-1e6, 1e6))
def test_the_logistic_function(x):
    with np.errstate(over="ignore"):
        assert logistic(x) == pytest.approx(1 / (1 + np.exp(-x)), abs=1e-12)
    assert logistic(x) + logistic(-x) == pytest.approx(1)


def test_the_fit_has_no_better_neighbour():
    stock = in_stock()
    likeness, pairs = stock.likeness(), stock.pairs(60, 0)
    x = np.array([likeness.features(p.prompt, p.fact, p.named) for p in pairs])
    y = np.array([p.inside for p in pairs], dtype=float)

    def loss(w):
        return np.mean(np.logaddexp(0, x @ w) - y * (x @ w)) + 1e-3 / 2 * w @ w

    best = np.array(fitted(pairs, likeness))
    for step in np.eye(FEATURES) * 0.01:
        assert loss(best) < min(loss(best + step), loss(best - step))
    assert accuracy(pairs, likeness, best) > 0.9 > accuracy(pairs, likeness, -best)


def test_pairs_are_made_of_seen_wordings_and_of_other_subjects():
    stock = in_stock().without(["France", "Guinea"])
    pairs = stock.pairs(200, 3)
    assert pairs == stock.pairs(200, 3) != stock.pairs(200, 4)
    assert {pair.inside for pair in pairs} == {True, False}
    names = {entry.fact.subject for entry in stock.entries}
    assert not names & {"France", "Guinea", "Equatorial Guinea", "Papua New Guinea"}
    unseen = {normalise(t.replace("{}", " ")) for r in stock.relations for t in (*r.paraphrases, *r.questions)}
    for pair in pairs:
        assert pair.fact.subject in names
        assert said_of(pair.prompt, pair.fact.subject) not in unseen
        assert pair.named == (pair.fact.subject in pair.prompt)


def test_without_stock_there_are_no_pairs():
    assert Stock((), ()).pairs(3, 0) == []
    assert Pair("France", NewFact("France", "a", "b"), True).named


# The operator and its file --


def test_it_is_trained_by_the_seed_on_other_subjects(handle):
    one, again, other = (QUICK(handle, [FRANCE], seed=seed) for seed in (0, 0, 1))
    assert one.digest == again.digest != other.digest
    assert one.rewrite.coefficients != other.rewrite.coefficients
    assert one.provenance.notes["accuracy"] > 0.85


def test_out_of_scope_it_is_equal_to_the_bit(handle):
    patch = QUICK(handle, EDITS, seed=0)
    inside, outside = [("The capital of France is", "Rome")], [("2 + 2 =", "4"), ("The currency of France is", "Peru")]
    asks = [Ask(prompt) for prompt, _ in outside]
    plain, plain_outside, said = score_pairs(handle, inside), score_pairs(handle, outside), tell(handle, asks)
    before = handle.fingerprint()
    with handle.patched(patch):
        assert score_pairs(handle, inside) != plain
        assert score_pairs(handle, outside) == plain_outside and tell(handle, asks) == said
    assert handle.fingerprint() == before


def test_a_stack_is_one_text_with_the_newest_edit_last(handle):
    below, above = (
        QUICK(handle, [edit], seed=0).rewrite for edit in (FRANCE, dataclasses.replace(FRANCE, target_new="Bonn"))
    )
    text = above(below("The capital of France is"))
    assert text.endswith(
        "New Fact: The capital of France is Rome\nNew Fact: The capital of France is Bonn\nPrompt: The capital of France is"
    )
    peru = QUICK(handle, [PERU], seed=0).rewrite
    assert peru(below("The capital of France is")) == below("The capital of France is")
    assert peru(below("The capital of Peru is")) == peru("The capital of Peru is")


def test_it_looks_at_the_question_under_an_ike_patch(handle):
    below = IKE(demonstrations=0)(handle, [FRANCE], seed=0).rewrite
    above = QUICK(handle, [FRANCE], seed=0).rewrite
    assert above(below("The sky is")) == below("The sky is")


def test_saved_and_loaded_rewrites_alike(handle, tmp_path):
    patch = QUICK(handle, EDITS, seed=4)
    patch.save(tmp_path / "p.safetensors")
    read = load_patch(tmp_path / "p.safetensors")
    assert type(read) is InScopePatch
    assert (read.digest, read.provenance, read.rewrite) == (patch.digest, patch.provenance, patch.rewrite)
    prompts = [edit.fact.text for edit in EDITS] + ["2 + 2 =", "", "The capital of France is called"]
    assert [read.rewrite(p) for p in prompts] == [patch.rewrite(p) for p in prompts]
    assert [read.rewrite.scores(p) for p in prompts] == [patch.rewrite.scores(p) for p in prompts]


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(InScope)])
def test_the_digest_names_all_that_the_rewriting_depends_on(field):
    one = scope(FRANCE)
    changed = {"facts": (), "likeness": Likeness((), 1.0), "coefficients": (0.0,) * FEATURES, "threshold": 0.1}
    other = dataclasses.replace(one, **{field: changed[field]})
    assert InScopePatch.of(one, Provenance()).digest != InScopePatch.of(other, Provenance()).digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficients": [1.0]}, "1 coefficients, it takes 6"),
        ({"threshold": None}, "expected float"),
        ({"facts": [{"subject": "a"}]}, "needs prompt, target_new"),
        ({"more": 1}, "no setting"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, message):
    given = {**json.loads(scope(FRANCE).written), **change}
    tensor = torch.frombuffer(bytearray(json.dumps(given).encode()), dtype=torch.uint8)
    write(tmp_path / "p.safetensors", KIND, {"rewrite": tensor}, Provenance(base="ab"))
    with pytest.raises(PatchError, match=f"p.safetensors is a damaged patch.*{message}.*make it again"):
        load_patch(tmp_path / "p.safetensors")


def test_what_cannot_be_is_refused(handle):
    with pytest.raises(InputError, match="threshold is 1.5"):
        SERAC(threshold=1.5)
    with pytest.raises(InputError, match="pairs is 0"):
        SERAC(pairs=0)
    with pytest.raises(PromptTooLong, match="'tiny-llama' takes 256; shorten it"):
        QUICK(handle, [Edit(Fact("France", "r", "a", f"{'word ' * 60}{{}}"), "b")], seed=0)
