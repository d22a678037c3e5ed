"""What a model's answers depend on beside its weights has a name, and all that is kept is found by it."""

from __future__ import annotations

import pytest
import torch
from conftest import LAYOUTS, make_handle, make_tokenizer
from probe_records import RECORDS
from tokenizers import pre_tokenizers
from twins import twin

from editkit.auto import _Search
from editkit.handle import ModelHandle
from editkit.identity import setup_digest_of
from editkit.patch import ModulePatch
from editkit.sampling import TextPlan
from probes.ask import Job, MemoryStore, run_probes

OTHERS = {
    "activation": {"hidden_act": "relu"},
    "norm": {"rms_norm_eps": 0.5},
    "rotation": {"rope_parameters": {"rope_type": "default", "rope_theta": 99.0}},
    "tokenizer": {"bos": True},
}


@pytest.mark.parametrize("how", OTHERS.values(), ids=OTHERS)
def test_the_same_weights_in_another_setup_are_another_model(handle, how):
    both, plan = [handle, twin(handle, **how)], TextPlan(2, 8, 0)
    assert len({each.base_digest for each in both}) == 1
    assert len({each.setup_digest for each in both}) == 2
    assert len({each.state for each in both}) == 2
    assert len({plan.key(each) for each in both}) == 2, "of text that it writes"
    assert len({_Search("rome", each, [], {}, 0, None)._key({}) for each in both}) == 2, "of settings found for it"


@pytest.mark.parametrize("how", OTHERS.values(), ids=OTHERS)
def test_replies_of_one_setup_are_not_given_for_another(handle, how):
    store, jobs, other = MemoryStore(), [Job("rewrite", RECORDS["edit"])], twin(handle, **how)
    expected = run_probes(other, [], jobs)
    assert run_probes(handle, [], jobs, store=store) != expected
    assert run_probes(other, [], jobs, store=store) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_that_is_saved_and_loaded_again_is_the_same(handle_of, layout, tmp_path):
    """Paths, versions, and what transformers writes into a config are no part of a model. (Of one made in memory it may
    load another tokenizer: the one that goes with the model's type.)"""
    handle_of(layout).save(tmp_path / "first")
    first = ModelHandle.load(str(tmp_path / "first"))
    first.save(tmp_path / "second")
    second = ModelHandle.load(str(tmp_path / "second"))
    assert (first.base_digest, first.state) == (second.base_digest, second.state)
    assert first.model.config._name_or_path != second.model.config._name_or_path


def test_names_and_versions_say_nothing(handle):
    other = twin(
        handle, _name_or_path="elsewhere", name_or_path="there", transformers_version="9.9", architectures=["A"]
    )
    assert other.state == handle.state


def test_what_was_asked_of_a_tokenizer_before_says_nothing():
    handle = make_handle()
    expected = handle.setup_digest
    handle.tokenizer(["one", "two or three"], padding=True, truncation=True, max_length=2)
    assert setup_digest_of(handle.model, handle.tokenizer) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: tokenizer.add_tokens(["Reykjavik"]),
        lambda tokenizer: tokenizer.add_special_tokens({"mask_token": "euro"}),
        lambda tokenizer: setattr(tokenizer, "eos_token", "<s>"),
        lambda tokenizer: setattr(tokenizer, "split_special_tokens", True),
        lambda tokenizer: setattr(tokenizer, "clean_up_tokenization_spaces", True),
        lambda tokenizer: setattr(tokenizer.backend_tokenizer, "pre_tokenizer", pre_tokenizers.ByteLevel()),
    ],
    ids=["token", "special token", "end", "special tokens are split", "clean-up", "space before"],
)
def test_whatever_a_tokenizer_does_otherwise_counts(handle, change):
    tokenizer = make_tokenizer()
    assert setup_digest_of(handle.model, tokenizer) == handle.setup_digest
    change(tokenizer)
    assert setup_digest_of(handle.model, tokenizer) != handle.setup_digest


class Plain:
    """A tokenizer in Python, without a JSON of its own: a vocabulary, and characters as ids."""

    all_special_ids, eos_token_id, eos_token = (0,), 0, "</s>"

    def __init__(self, **vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __call__(self, text: str) -> Plain:
        self.input_ids = [ord(letter) for letter in text]
        return self

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, ids))

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def test_a_tokenizer_without_json_is_known_by_its_vocabulary(handle):
    """In any order, and whatever its words are: one may be called as a field of a config is."""
    first, same, other = Plain(a=1, dtype=2), Plain(dtype=2, a=1), Plain(a=1, dtype=3)
    assert len({setup_digest_of(handle.model, each) for each in (first, same)}) == 1
    assert len({setup_digest_of(handle.model, each) for each in (first, other)}) == 2


def test_a_tokenizer_without_json_is_known_by_what_it_makes_of_a_sentence(handle):
    class Lower(Plain):
        def __call__(self, text: str) -> Plain:
            return super().__call__(text.lower())

    assert setup_digest_of(handle.model, Plain(a=1)) != setup_digest_of(handle.model, Lower(a=1))


def test_weights_are_no_part_of_it(handle):
    assert make_handle(seed=1).setup_digest == handle.setup_digest


def test_buffers_and_stops_count(handle):
    made = [twin(handle) for _ in range(5)]
    for model, value in zip((each.model for each in made[1:3]), (1.0, 2.0), strict=True):
        model.register_buffer("bias", torch.tensor(value))
    made[3].model.register_buffer("scratch", torch.tensor(1.0), persistent=False)
    made[4].model.generation_config.eos_token_id = [1, 7]
    plain, one, two, scratch, stops = (each.setup_digest for each in made)
    assert len({plain, one, two, stops}) == 4
    assert scratch == plain == handle.setup_digest


class Word(str):
    """Of one hash with all others: a set of them keeps the order in which they came."""

    def __hash__(self) -> int:
        return 1


def test_objects_in_a_config_are_known_by_what_they_say(handle):
    """Neither by where they lie in memory nor, of a set, by its order, which is another in each process."""
    one, two, other = (
        twin(handle, extra={"of": object(), "words": {Word(each) for each in words}}) for words in ("ab", "ba", "ac")
    )
    assert one.setup_digest == two.setup_digest != other.setup_digest


class Marked(torch.nn.Module):
    """What a patch may put in a module's place: one with a buffer of its own."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mark", torch.ones(1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden)


def test_it_is_known_under_a_patch_though_nobody_read_it_before(handle):
    fresh = twin(handle)
    with fresh.patched(ModulePatch({handle.arch.path("mlp", 1): Marked}, digest="marked")):
        assert fresh.setup_digest == handle.setup_digest
