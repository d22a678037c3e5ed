"""ROME and what it shares with its kin: the fast search against the plain one, laws, and where a subject stands."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from conftest import LAYOUTS, make_handle
from edit_examples import BEFORE, EDITS, ENDING, distance, logits_with, plain_search, private_cache, read_by
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit.edit import _locate_then_edit
from editkit.edit import _search as shared
from editkit.edit._locate_then_edit import Contexts, Plan, one_after_another
from editkit.edit._search import TargetSearch, find_targets, rows_of_edit
from editkit.edit._upper import prepare
from editkit.edit.r_rome import RROME
from editkit.edit.rome import ROME
from editkit.errors import InputError
from editkit.facts import Edit, Fact
from editkit.handle import ModelHandle
from editkit.linalg import SolveError, rank_one
from editkit.moments import MomentSettings, second_moments
from editkit.operators import configured
from editkit.scoring import Ask, score_pairs, tell
from editkit.tokens import PromptTooLong, encode_pair

SEARCH = TargetSearch(steps=6, learning_rate=0.05, clamp=4.0, weight_decay=0.01, stop_below=0.0)
ARGUMENTS = (1, SEARCH, Contexts((3,), 2), MomentSettings(tokens=140, length=20))
OPERATOR = ROME(*ARGUMENTS)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with private_cache(str(tmp_path_factory.mktemp("cache"))):
        yield


# -- the fast search is the plain one --


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", [0, 1])
def test_the_fast_search_equals_the_plain_one(handle_of, layout, layer):
    handle = handle_of(layout)
    for edit in EDITS[1:]:
        key, residual, loss, steps = plain_search(handle, edit, layer, BEFORE, SEARCH)
        [found] = find_targets(handle, [edit], layer, BEFORE, SEARCH, seed=0)
        assert distance(found.key, key) < 1e-4
        assert distance(found.residual, residual) < 1e-4
        assert found.notes["loss"] == pytest.approx(loss, rel=1e-4)
        assert found.notes["steps"] == steps


def test_they_stop_at_the_same_step_and_clamp_alike(handle):
    search = dataclasses.replace(
        SEARCH, steps=25, learning_rate=0.1, clamp=8.0, weight_decay=0.0, kl_weight=0.0, stop_below=5.2
    )
    edit = ENDING[0]
    _, residual, loss, steps = plain_search(handle, edit, 1, BEFORE, search)
    [found] = find_targets(handle, [edit], 1, BEFORE, search, seed=0)
    assert 1 < steps < 25 and loss < 5.2
    assert (found.notes["steps"], found.notes["loss"]) == (steps, pytest.approx(loss, rel=1e-3))
    assert distance(found.residual, residual) < 1e-3


def test_the_residual_stays_within_the_clamp_as_the_plain_one_does(handle):
    search = TargetSearch(8, 0.5, 3.0, kl_weight=0.0, weight_decay=0.0, stop_below=0.0)
    _, residual, *_ = plain_search(handle, ENDING[0], 1, BEFORE, search)
    [found] = find_targets(handle, ENDING[:1], 1, BEFORE, search, seed=0)
    assert found.notes["relative_norm"] == pytest.approx(3.0, rel=1e-5)
    assert distance(found.residual, residual) < 1e-3


@pytest.mark.parametrize("of_block", [False, True])
@pytest.mark.parametrize("layout", ["llama", "gpt2_square"])
def test_on_bfloat16_weights_the_residual_is_held_wide(handle_of, layout, of_block):
    """Steps of Adam vanish in bfloat16. The passes are the model's: near those of the same weights in float32."""
    narrow, wide = (make_handle(layout, dtype=torch.bfloat16) for _ in range(2))
    wide.model.float()
    wide = ModelHandle.of(wide.model, wide.tokenizer)
    search = TargetSearch(8, 0.1, clamp=100.0, weight_decay=0.0, stop_below=0.0)
    [found], [other] = (
        find_targets(handle, ENDING[:1], 1, [""], search, seed=0, of_block=of_block) for handle in (narrow, wide)
    )
    assert found.residual.dtype == torch.float32
    assert float((found.residual.bfloat16().float() != found.residual).float().mean()) > 0.5
    assert distance(found.residual, other.residual) < 0.2
    assert (found.notes["products"], other.notes["products"]) == ("bfloat16", "float32")


@pytest.mark.parametrize("layout", ["llama", "gemma2", "gptj"])
def test_edits_searched_together_equal_edits_searched_alone(handle_of, layout, monkeypatch):
    handle = handle_of(layout)
    search = dataclasses.replace(
        SEARCH, steps=9, learning_rate=0.1, clamp=8.0, weight_decay=0.0, stop_below=5.4
    )  # some are done before others
    alone = [find_targets(handle, [edit], 1, BEFORE, search, seed=0)[0] for edit in ENDING]
    assert len({t.notes["steps"] for t in alone}) > 1
    for tokens in (512, 40, 1):  # all three in one batch, fewer, and each by itself
        monkeypatch.setitem(shared.TOKENS, "cpu", tokens)
        for one, other in zip(alone, find_targets(handle, ENDING, 1, BEFORE, search, seed=0), strict=True):
            assert distance(other.key, one.key) < 1e-5
            assert distance(other.residual, one.residual) < 1e-3
            assert other.notes["steps"] == one.notes["steps"]


def test_each_edit_draws_its_own_contexts_when_searched_together(handle):
    """Of another order and other company, an edit still draws what it draws alone."""
    search = dataclasses.replace(SEARCH, tokens_per_step=8, stop_below=0.0)
    before = [*BEFORE, "One two three. ", "Look at that. ", "So it goes. "]
    alone = [find_targets(handle, [edit], 1, before, search, seed=5)[0] for edit in ENDING]
    other = [find_targets(handle, [edit], 1, before, search, seed=6)[0] for edit in ENDING]
    together = find_targets(handle, ENDING, 1, before, search, seed=5)
    for one, same, another in zip(alone, together, other, strict=True):
        assert distance(same.residual, one.residual) < 1e-3
        assert distance(another.residual, one.residual) > 1e-2


def test_only_upper_blocks_run_in_a_step(handle):
    """The prefix passes every block, the suffix the lower ones; then the upper ones alone run, once for "{} is a" and once
    each step."""
    counts = [0, 0, 0]

    def counting(layer):
        def count(*_):
            counts[layer] += 1

        return handle.module("block", layer).register_forward_hook(count)

    hooks = [counting(layer) for layer in range(3)]
    try:
        find_targets(handle, EDITS[:1], 1, BEFORE, SEARCH, seed=0)
    finally:
        [hook.remove() for hook in hooks]
    assert counts == [2, 2, 2 + SEARCH.steps]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_no_change_the_upper_part_is_the_model(handle_of, layout):
    handle = handle_of(layout)
    rows = [row for edit in EDITS for row in rows_of_edit(handle, edit, BEFORE)]
    with torch.no_grad():
        upper = prepare(handle, 1, rows)
        hidden = upper.run(torch.zeros_like(upper.values))
        for number, row in enumerate(rows):
            plain = handle.backbone(torch.tensor([[*row.prefix, *row.suffix]])).last_hidden_state[0]
            wanted = plain[len(row.prefix) :]
            assert torch.allclose(hidden[number, : len(row.suffix)], wanted, rtol=1e-3, atol=1e-3)


# -- drawn contexts --


def test_all_contexts_drawn_is_the_same_as_no_drawing(handle):
    [one] = find_targets(handle, EDITS[:1], 1, BEFORE, SEARCH, seed=0)
    [other] = find_targets(handle, EDITS[:1], 1, BEFORE, dataclasses.replace(SEARCH, tokens_per_step=999), seed=1)
    assert torch.equal(one.residual, other.residual)


def test_drawn_contexts_are_drawn_by_the_seed(handle):
    drawn = dataclasses.replace(SEARCH, tokens_per_step=25)
    one, same, other = (find_targets(handle, EDITS[:1], 1, BEFORE * 3, drawn, seed=s)[0].residual for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("steps", [2, 40])
def test_the_loss_that_stops_a_search_is_taken_over_all_contexts(handle, steps):
    search = TargetSearch(steps, 0.1, 8.0, kl_weight=0.0, weight_decay=0.0, stop_below=5.4, tokens_per_step=1)
    stopped = set()
    for edit in ENDING:
        [found] = find_targets(handle, [edit], 1, BEFORE, search, seed=0)
        losses = []
        for row in rows_of_edit(handle, edit, BEFORE)[:-1]:
            with torch.no_grad():
                logits = logits_with(handle, 1, [*row.prefix, *row.suffix], len(row.prefix), found.residual)
            losses.append(torch.nn.functional.cross_entropy(logits[-len(row.wanted) :], torch.tensor(row.wanted)))
        assert found.notes["loss"] == pytest.approx(float(sum(losses)) / len(losses), rel=1e-3)
        assert found.notes["steps"] == steps or found.notes["loss"] < search.stop_below
        stopped.add(found.notes["steps"] < steps)
    assert (steps == 40) in stopped


# -- the update --


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("method", "which"), [(ROME, "own_key"), (RROME, "key")])
def test_the_edited_matrix_gives_the_residual_for_the_key_on_top_of_the_old_value(handle_of, layout, method, which):
    """ROME for the key of the prompt alone, R-ROME for the mean over the contexts."""
    handle = handle_of(layout)
    patch = method(*ARGUMENTS)(handle, EDITS[:1], seed=0)
    before = OPERATOR.contexts.before(handle, 0)
    [target] = find_targets(handle, EDITS[:1], 1, before, SEARCH, seed=0)
    name = handle.weight_name("mlp_out", 1)
    key = getattr(target, which)
    old = handle.matrix(name) @ key
    with handle.patched(patch):
        new = handle.matrix(name) @ key
    assert distance(new - old, target.residual) < 1e-3


@pytest.mark.parametrize("layout", ["llama", "gpt2_square", "gemma2"])
def test_with_the_prompt_alone_as_context_r_rome_is_rome(handle_of, layout):
    handle = handle_of(layout)
    one, other = (
        method(1, SEARCH, Contexts(each=0), OPERATOR.moments)(handle, EDITS[:1], seed=0) for method in (ROME, RROME)
    )
    name = handle.weight_name("mlp_out", 1)
    assert distance(one.deltas[name].dense(), other.deltas[name].dense()) < 1e-6


def test_a_prompts_key_at_right_angles_to_the_mean_names_r_rome():
    factor, key = torch.eye(4, dtype=torch.float64), torch.tensor([1.0, 0, 0, 0])
    with pytest.raises(SolveError, match="Use r_rome"):
        rank_one(key, torch.ones(3), factor, at=torch.tensor([1e-3, 1.0, 0, 0]))


def test_the_update_reads_the_key_in_the_metric_of_the_moment(handle):
    """Its rows are along C⁻¹ k, solved by torch's general solver: not along k."""
    patch = OPERATOR(handle, EDITS[:1], seed=0)
    moment = second_moments(handle, [1], OPERATOR.moments)[1].matrix
    [target] = find_targets(handle, EDITS[:1], 1, OPERATOR.contexts.before(handle, 0), SEARCH, seed=0)
    expected = torch.linalg.solve(moment, target.key.double()).float()
    row = patch.deltas[handle.weight_name("mlp_out", 1)].right[0]
    assert torch.cosine_similarity(row, expected, 0) > 0.999
    assert torch.cosine_similarity(row, target.key, 0) < 0.99


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_new_object_gains_and_the_key_is_where_the_subject_ends(handle_of, layout):
    handle = handle_of(layout)
    edit = ENDING[2]
    operator = ROME(1, TargetSearch(8, 0.5, 30.0, 0.0, 0.0), Contexts(each=0), MomentSettings(400, 20))
    pair = [(edit.fact.text, edit.target_new)]
    before = score_pairs(handle, pair)[0].mean
    patch = operator(handle, [edit], seed=0)
    ids, _ = encode_pair(handle.tokenizer, edit.fact.text, edit.target_new)
    [row, _] = rows_of_edit(handle, edit, [""])
    with handle.patched(patch):
        assert score_pairs(handle, pair)[0].mean > before + 0.3
        changed = read_by(handle, 1, ids, len(row.prefix))[1]
    assert not torch.allclose(changed, read_by(handle, 1, ids, len(row.prefix))[1], atol=1e-2)


def test_several_edits_are_one_on_top_of_the_other(handle):
    together = OPERATOR(handle, EDITS, seed=0)
    name = handle.weight_name("mlp_out", 1)
    assert together.deltas[name].left.shape[1] == len(EDITS)
    handle.base_digest  # noqa: B018 (read before patches are on)
    total = torch.zeros(handle.matrix(name).shape)
    depth = len(handle.patches)
    try:
        for edit in EDITS:
            patch = OPERATOR(handle, [edit], seed=0)
            total += patch.deltas[name].dense()
            handle.apply(patch)
    finally:
        handle.rollback(depth)
    assert distance(together.deltas[name].dense(), total) < 1e-4


def test_the_notes_say_how_each_search_went(handle):
    notes = OPERATOR(handle, EDITS[:2], seed=0).provenance.notes
    assert [sorted(n) for n in notes["searches"]] == [["loss", "products", "relative_norm", "steps"]] * 2
    assert notes["moment_tokens"] == 140 and len(notes["moment"]) == 64


def test_progress_comes_to_its_end(handle):
    heard = []
    OPERATOR(handle, EDITS[:2], seed=3, progress=lambda *what: heard.append(what))
    assert [what for what in heard if what[0] == "searching values"] == [("searching values", n, 2) for n in range(3)]


# -- where the subject stands --

SUBJECTS = ["Japan", "Nina Okafor", "São Paulo", "日本語", "the Eiffel Tower", "O'Neill (actor)", "x"]
TEMPLATES = [
    "{} is",
    "The capital of {} is",
    "Is {}?",
    "In {}'s house one speaks",
    "«{}»",
    "Japan and {} and Japan: x is",
]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_rows_are_cut_before_the_subjects_last_token(subject, template, bos):
    handle = _shared_handle(bos)
    edit = Edit(Fact(subject, "r", "nothing", template), "São Paulo")
    rows = rows_of_edit(handle, edit, BEFORE)
    for context, row in zip(BEFORE, rows[:-1], strict=True):
        ids, target = encode_pair(handle.tokenizer, context + edit.fact.text, "São Paulo")
        assert [*row.prefix, *row.suffix] == [*ids, *target[:-1]]
        assert list(row.wanted) == target
        _check_end(handle, row, context + template.split("{}")[0] + subject)
    assert not rows[-1].wanted
    _check_end(handle, rows[-1], subject)
    assert handle.tokenizer.decode([*rows[-1].prefix, *rows[-1].suffix], skip_special_tokens=True) == f"{subject} is a"


def _check_end(handle, row, text):
    """The suffix's first token covers the last letter of `text`: with it the text is whole, without it not."""
    short = handle.tokenizer.decode(row.prefix, skip_special_tokens=True)
    whole = handle.tokenizer.decode([*row.prefix, row.suffix[0]], skip_special_tokens=True)
    assert whole.startswith(text)
    assert not short.startswith(text)


def _shared_handle(bos, cache={}):  # noqa: B006 (Hypothesis forbids function-scoped fixtures)
    if bos not in cache:
        cache[bos] = make_handle("llama", bos=bos)
    return cache[bos]


@settings(deadline=None, max_examples=30)
@given(subject=st.text("abcÄß日 x", min_size=1, max_size=9).filter(str.strip).map(str.strip), bos=st.booleans())
def test_any_subject_can_be_found(subject, bos):
    handle = _shared_handle(bos)
    edit = Edit(Fact(subject, "r", "nothing", "So {} is in"), "Lima")
    for context, row in zip(BEFORE, rows_of_edit(handle, edit, BEFORE), strict=False):
        _check_end(handle, row, f"{context}So {subject}")


@pytest.mark.parametrize("bos", [False, True])
def test_a_subject_that_is_the_first_token_needs_no_prefix(bos):
    handle = _shared_handle(bos)
    edit = Edit(Fact("x", "r", "nothing", "{} is"), "Lima")
    key, residual, *_ = plain_search(handle, edit, 1, [""], SEARCH)
    [found] = find_targets(handle, [edit], 1, [""], SEARCH, seed=0)
    assert distance(found.key, key) < 1e-4
    assert distance(found.residual, residual) < 1e-4


def test_contexts_are_seeded_and_hold_no_slot(handle, monkeypatch):
    contexts = Contexts((9, 14), 2)
    assert len(contexts.before(handle, 0)) == 5 and contexts.before(handle, 0)[0] == ""
    assert contexts.before(handle, 0) != contexts.before(handle, 1)
    assert Contexts(each=0).before(handle, 0) == [""]
    monkeypatch.setattr(_locate_then_edit, "sampled_texts", lambda handle, plan: ["a {} b\n c {"])
    assert Contexts((3,), 1).before(handle, 0) == ["", "a b c. "]


# -- errors --


def test_a_solve_that_fails_names_the_subject_and_leaves_the_model(handle):
    before = handle.fingerprint()
    calls = []

    def solve(target):
        calls.append(1)
        if len(calls) == 2:
            raise SolveError("the key is nothing")
        return target.residual[:, None], target.key[None]

    with pytest.raises(SolveError, match="cannot edit 'Nina Okafor' at layer 1: the key is nothing"):
        one_after_another(handle, EDITS, Plan(1, SEARCH, Contexts(each=0), solve), seed=0)
    assert handle.fingerprint() == before


def test_flags_of_parameters_are_put_back(handle):
    parameter = handle.model.get_submodule(handle.arch.final_norm).weight
    parameter.requires_grad_(False)
    try:
        before = handle.fingerprint()
        with torch.inference_mode():
            find_targets(handle, EDITS[:1], 1, BEFORE, SEARCH, seed=0)
        assert handle.fingerprint() == before
    finally:
        parameter.requires_grad_(True)


def test_a_layer_from_which_nothing_reaches_the_object_is_refused(handle):
    """In the last block a change stays at its token."""
    with pytest.raises(SolveError, match="cannot edit 'France' at layer 2: no change of this layer's value can"):
        dataclasses.replace(OPERATOR, layer=2)(handle, EDITS[:1], seed=0)
    ends_with_subject = Edit(Fact("France", "r", "Paris", "The capital of {}"), "Rome")
    assert dataclasses.replace(OPERATOR, layer=2)(handle, [ends_with_subject], seed=0).deltas


def test_bad_input_is_refused(handle):
    with pytest.raises(ValueError, match="no layer 7"):
        dataclasses.replace(OPERATOR, layer=7)(handle, EDITS, seed=0)
    with pytest.raises(ValueError, match="steps >= 1"):
        TargetSearch(steps=0)
    long = Edit(Fact("France", "r", "Paris", "word " * 300 + "{} is"), "Rome")
    with pytest.raises(PromptTooLong, match="shorten the prompt"):
        OPERATOR(handle, [long], seed=0)


@pytest.mark.parametrize("name", ["kl_weight", "weight_decay", "tokens_per_step"])
def test_a_weight_below_zero_rewards_what_it_should_cost(name):
    with pytest.raises(InputError, match=f"{name}.*>= 0"):
        TargetSearch(**{name: -1})
    assert getattr(TargetSearch(**{name: 0}), name) == 0


def test_a_model_that_gives_no_numbers_is_an_error():
    handle = make_handle("llama")
    with torch.no_grad():
        handle.model.get_submodule(handle.arch.final_norm).weight.fill_(math.nan)
    with pytest.raises(SolveError, match="not finite; load the model in float32"):
        find_targets(handle, EDITS[:1], 1, [""], SEARCH, seed=0)


# -- the real model --


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rome", "r_rome"])
def test_on_the_embedded_model_the_tower_moves_and_the_louvre_stays(real_handle, name):
    """The preset, on a sentence that it is known to serve: other wordings follow, neighbours do not."""
    edit = Edit(Fact("the Eiffel Tower", "city", "Paris", "{} is located in the city of"), "Rome")
    moves = ["The Eiffel Tower is located in the city of", "Which city is the Eiffel Tower in? It is in"]
    stays = ["The Louvre is located in the city of", "The capital of France is"]
    patch = configured(name, real_handle)[0](real_handle, [edit], seed=0)
    with real_handle.patched(patch):
        told = [each.text for each in tell(real_handle, [Ask(prompt) for prompt in (*moves, *stays)])]
    assert all(text.startswith("Rome") for text in told[:2])
    assert all(text.startswith("Paris") for text in told[2:])
