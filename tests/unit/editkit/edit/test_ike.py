"""IKE: what is put before a prompt, what is left alone, and that a file keeps it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import make_handle
from edit_examples import EDITS
from hypothesis import given
from hypothesis import strategies as st

from editkit.edit._demonstrations import CYCLE, LESSONS, Lesson, drawn
from editkit.edit._ike_patch import KIND, InContext, InContextPatch, NewFact
from editkit.edit.ike import IKE
from editkit.errors import InputError
from editkit.facts import Edit, Example, Fact
from editkit.patch import PatchError, Provenance, load_patch, write
from editkit.scoring import Ask, score_pairs, tell
from editkit.settings import build, settings_of
from editkit.tokens import PromptTooLong

ZERO = IKE(demonstrations=0)
PROMPTS = ["The capital of France is", "Nina Okafor was born in", "2 + 2 =", "", "In which city is the Eiffel Tower?"]


def capital(country, city="Rome"):
    return Edit(Fact(country, "capital", "Paris", "The capital of {} is"), city)


def rewriting(*facts, shown=(), copies=(), most_facts=4, scoped=False):
    return InContext(tuple(NewFact(*fact) for fact in facts), shown, copies, most_facts, scoped)


def of_subjects(*subjects, **settings):
    return rewriting(*((subject, f"The capital of {subject} is", "Rome") for subject in subjects), **settings)


def new_facts(text):
    """The subjects' lines right before the question."""
    *lines, question = text.rpartition("\n\n")[2].split("\n")
    assert question.startswith("Prompt: ") and all(line.startswith("New Fact: ") for line in lines)
    return [line.removeprefix("New Fact: ") for line in lines]


def test_the_text_is_the_papers():
    rewrite = rewriting(("France", "The capital of France is", "Rome"), shown=("New Fact: a\nPrompt: b\n\n",))
    assert rewrite("France's capital is") == (
        "New Fact: a\nPrompt: b\n\n"
        "New Fact: The capital of France is Rome\nPrompt: The capital of France is Rome\n\n"
        "New Fact: The capital of France is Rome\nPrompt: France's capital is"
    )


@given(st.text(), st.booleans())
def test_the_prompt_stands_at_the_end_and_only_scoped_leaves_it_alone(prompt, scoped):
    rewrite = of_subjects("France", "Guinea", scoped=scoped)
    text = rewrite(prompt)
    assert text.endswith(prompt)
    assert (text == prompt) == (scoped and not rewrite.named(prompt))


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("The capital of France is", {0}),
        ("FRANCE?", {0}),
        ("Françe and guinea", {0, 1}),
        ("Francesca was born in", set()),
        ("The capital of Equatorial Guinea is", {2}),
        ("Equatorial Guinea borders Guinea", {1, 2}),
        ("Where is Eiffel Tower?", {3}),
        ("日本語の首都は", {4}),
        ("", set()),
    ],
)
def test_a_subject_is_named_by_whole_words_and_the_longest_name(prompt, named):
    rewrite = of_subjects("France", "Guinea", "Equatorial Guinea", "the Eiffel Tower", "日本語")
    assert rewrite.named(prompt) == named


def test_a_subject_without_letters_is_never_named():
    assert of_subjects("!!!").named("!!! wrote") == set()


def test_of_many_edits_a_prompt_gets_those_it_names_and_the_nearest_stands_last():
    rewrite = rewriting(
        ("France", "The capital of France is", "Rome"),
        ("Peru", "The capital of Peru is", "Oslo"),
        ("France", "The currency of France is", "the yen"),
    )
    assert new_facts(rewrite("The currency of France is called")) == [
        "The capital of France is Rome",
        "The currency of France is the yen",
    ]
    assert new_facts(rewrite("The capital of Peru is")) == ["The capital of Peru is Oslo"]
    one = dataclasses.replace(rewrite, most_facts=1)
    assert new_facts(one("The currency of France is called")) == ["The currency of France is the yen"]


def test_a_prompt_that_names_none_gets_the_nearest():
    rewrite = rewriting(("Peru", "The capital of Peru is", "Oslo"), ("Bach", "The instrument of Bach is", "the drum"))
    assert new_facts(rewrite("The capital of Chile is")) == ["The capital of Peru is Oslo"]
    assert new_facts(rewrite("The instrument of Mozart is")) == ["The instrument of Bach is the drum"]


def test_other_edits_take_the_places_of_copies_and_no_more():
    rewrite = of_subjects("France", "Peru", "Chile", "Spain", copies=("<c1>", "<c2>"))
    text = rewrite("The capital of France is")
    assert "<c" not in text and len({s for s in ("Peru", "Chile", "Spain") if s in text}) == 2
    alone = of_subjects("France", copies=("<c1>", "<c2>"))("The capital of France is")
    assert alone.startswith("<c1><c2>")


@given(st.integers(0, 32), st.integers(0, 9))
def test_demonstrations_are_different_and_in_the_papers_shares(number, seed):
    rest, copies = drawn(LESSONS, number, seed)
    assert len({*rest, *copies}) == len(rest) + len(copies) == number
    assert len(copies) == number // 8
    assert drawn(LESSONS, number, seed) == (rest, copies)


def test_the_shares_are_one_to_three_to_four():
    assert [CYCLE.count(kind) for kind in ("copy", "update", "retain")] == [1, 3, 4]


def test_the_seed_orders_the_demonstrations(handle):
    operator = IKE(demonstrations=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(handle), "context", 10_000)
        digests = {operator(handle, EDITS, seed=seed).digest for seed in range(3)}
    assert len(digests) == 3


def test_more_demonstrations_than_there_are():
    with pytest.raises(InputError, match="40 demonstrations need 20 of kind 'retain' and the lessons give 16"):
        IKE(demonstrations=40)
    with pytest.raises(InputError, match="at least 0"):
        IKE(demonstrations=-1)
    with pytest.raises(InputError, match="most_facts is 0"):
        IKE(most_facts=0)


def test_lessons_of_the_settings_are_used(handle):
    lesson = Lesson("Ice is", "hot", ("How is ice?",), (Example("Fire is", "warm"),))
    operator = IKE(demonstrations=2, lessons=(lesson,))
    assert build(IKE, json.loads(json.dumps(settings_of(operator)))) == operator
    text = operator(handle, [capital("France")], seed=0).rewrite("The capital of France is")
    assert "New Fact: Ice is hot\nPrompt: Fire is warm\n\n" in text
    assert "New Fact: Ice is hot\nPrompt: How is ice? hot\n\n" in text


def test_a_fact_of_several_lines_is_one_line():
    fact = NewFact("France", "Q: What is the capital of France?\nA:", "Rome")
    assert fact.line == "Q: What is the capital of France? A: Rome"


def test_it_makes_no_weights_and_leaves_them_alone(handle):
    before = handle.fingerprint()
    patch = ZERO(handle, EDITS, seed=0)
    assert handle.fingerprint() == before
    with handle.patched(patch):
        assert patch.parameters == () and patch.relative_norm(handle) is None
        assert handle.prompt_rewrites == [patch.rewrite]
    assert handle.fingerprint() == before


def test_in_scope_it_moves_and_off_scope_it_is_equal_to_the_bit(handle):
    scoped = IKE(demonstrations=0, scoped=True)(handle, [capital("France")], seed=0)
    anyway = ZERO(handle, [capital("France")], seed=0)
    inside, outside = [("The capital of France is", "Rome")], [("2 + 2 =", "4"), ("Nina Okafor was born in", "Peru")]
    asks = [Ask(prompt) for prompt, _ in outside]
    plain, plain_outside, said = score_pairs(handle, inside), score_pairs(handle, outside), tell(handle, asks)
    with handle.patched(scoped):
        assert score_pairs(handle, inside) != plain
        assert score_pairs(handle, outside) == plain_outside
        assert tell(handle, asks) == said
    with handle.patched(anyway):
        assert all(a != b for a, b in zip(score_pairs(handle, outside), plain_outside, strict=True))


def test_the_text_it_makes_is_what_is_scored(handle):
    patch = ZERO(handle, [capital("France")], seed=0)
    by_hand = [(patch.rewrite("The capital of France is"), "Rome")]
    wanted = score_pairs(handle, by_hand)
    with handle.patched(patch):
        assert score_pairs(handle, [("The capital of France is", "Rome")]) == wanted


def test_a_stack_is_one_text_with_the_newest_fact_last(handle):
    below, above = (ZERO(handle, [edit], seed=0) for edit in (capital("France"), capital("Peru", "Oslo")))
    text = above.rewrite(below.rewrite("Is France like Peru?"))
    assert new_facts(text) == ["The capital of France is Rome", "The capital of Peru is Oslo"]
    assert text.endswith("\nPrompt: Is France like Peru?") and text.count("\nPrompt: Is") == 1


def test_of_a_stack_only_those_speak_that_know_the_subject():
    """Or each would say its nearest fact, and a hundred patches a hundred facts about something else."""
    stack = [of_subjects(country) for country in ("Peru", "Chad", "Chile", "Japan")]

    def through(text, stack=stack):
        for each in stack:
            text = each(text)
        return text

    fact = "The capital of {} is Rome".format
    two = [fact("Peru"), fact("Japan")]  # the lowest knows of no other
    assert new_facts(through("The capital of Japan is")) == two
    assert new_facts(through("The capital of Peru is")) == [fact("Peru")]
    assert new_facts(through("2 + 2 =")) == [fact("Peru")]
    scoped = [dataclasses.replace(each, scoped=True) for each in stack]
    assert new_facts(through("The capital of Japan is", scoped)) == [fact("Japan")]
    assert through("2 + 2 =", scoped) == "2 + 2 ="


def test_a_patch_above_looks_at_the_question_alone():
    below, above = of_subjects("France"), of_subjects("France", scoped=True)
    rewritten = below("The sky is")
    assert above(rewritten) == rewritten


@pytest.mark.parametrize("scoped", [False, True])
def test_saved_and_loaded_rewrites_alike(handle, tmp_path, scoped):
    patch = IKE(demonstrations=1, scoped=scoped)(handle, EDITS, seed=4)
    patch.save(tmp_path / "p.safetensors")
    read = load_patch(tmp_path / "p.safetensors")
    assert type(read) is InContextPatch
    assert (read.digest, read.provenance, read.rewrite) == (patch.digest, patch.provenance, patch.rewrite)
    assert [read.rewrite(p) for p in PROMPTS] == [patch.rewrite(p) for p in PROMPTS]


def test_a_process_that_imported_no_operator_loads_it(handle, tmp_path):
    patch = ZERO(handle, [capital("France")], seed=0)
    patch.save(tmp_path / "p.safetensors")
    code = (
        "import sys; from pathlib import Path; from editkit.patch import load_patch\n"
        "assert not any(name.startswith('editkit.edit') for name in sys.modules)\n"
        "patch = load_patch(Path(sys.argv[1])); print(patch.digest); print(patch.rewrite('The capital of France is'))"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p.safetensors")],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    digest, _, text = done.stdout.partition("\n")
    assert digest == patch.digest and text.rstrip("\n") == patch.rewrite("The capital of France is")


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(InContext)])
def test_the_digest_names_all_that_the_rewriting_depends_on(field):
    one = of_subjects("France")
    changed = {"facts": of_subjects("Peru").facts, "shown": ("a",), "copies": ("a",), "most_facts": 1, "scoped": True}
    other = dataclasses.replace(one, **{field: changed[field]})
    assert InContextPatch.of(one, Provenance()).digest != InContextPatch.of(other, Provenance()).digest


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": torch.zeros(1)}, "rewrite"),
        ({"rewrite": torch.zeros(1)}, "no bytes"),
        ({"rewrite": torch.tensor([123], dtype=torch.uint8)}, "JSONDecodeError"),
        ({"rewrite": torch.tensor([255], dtype=torch.uint8)}, "UnicodeDecodeError"),
        ({"rewrite": torch.tensor([*b"[]"], dtype=torch.uint8)}, "no JSON object"),
        ({"rewrite": torch.tensor([*b"{}"], dtype=torch.uint8)}, "needs facts"),
        ({"rewrite": torch.tensor([*b'{"scoped": 3}'], dtype=torch.uint8)}, "expected bool"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, tensors, message):
    write(tmp_path / "p.safetensors", KIND, tensors, Provenance(base="ab"))
    with pytest.raises(PatchError, match=f"p.safetensors is a damaged patch.*{message}.*make it again"):
        load_patch(tmp_path / "p.safetensors")


def test_the_model_with_it_is_no_checkpoint(handle, tmp_path):
    with handle.patched(ZERO(handle, [capital("France")], seed=0)):
        with pytest.raises(PatchError, match="no change of weights and cannot be saved as a checkpoint"):
            handle.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_the_context_cannot_hold_is_an_error_that_names_the_setting(handle):
    with pytest.raises(PromptTooLong, match="with 32 demonstrations, 'tiny-llama' takes 256; ask for fewer"):
        IKE()(handle, [capital("France")], seed=0)


def test_a_prompt_too_long_only_with_its_context_says_so(handle):
    long = "France " * 12
    pair = [(long, "Rome")]
    fits = score_pairs(handle, pair)
    edits = [Edit(Fact("France", f"r{n}", "Paris", f"Word {n} of {{}} is"), "Rome") for n in range(4)]
    with handle.patched(*(IKE(demonstrations=0, most_facts=1)(handle, [edit], seed=0) for edit in edits)):
        with pytest.raises(PromptTooLong, match="as the patches that are on rewrite it, needs .* takes 256"):
            score_pairs(handle, pair)
    assert score_pairs(handle, pair) == fits


def test_a_patch_below_counts_towards_the_context():
    handle = make_handle("llama")
    edits = [Edit(Fact("France", f"r{n}", "Paris", f"Word {n} of {{}} is"), "Rome") for n in range(9)]
    operator = IKE(demonstrations=0)
    with pytest.raises(PromptTooLong, match="with 0 demonstrations"):
        for edit in edits:
            handle.apply(operator(handle, [edit], seed=0))
    assert handle.patches
