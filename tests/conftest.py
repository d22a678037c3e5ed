"""Tiny real models of each layout and a tokenizer, built in memory from a seed: no download, no file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub

import hypothesis
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from editkit.arch import ARCHITECTURES
from editkit.handle import ModelHandle

# HYPOTHESIS_PROFILE=ci: the same examples in every run, however slow the machine, and how to see a failure again
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

CORPUS = [
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Japan is Tokyo.",
    "What is the capital of Peru? Lima. The Eiffel Tower is located in the city of Paris.",
    "The currency of Spain is the euro. The language of Brazil is Portuguese. Question: Answer: I do not know.",
    "Nina Okafor was born in Reykjavík and works as a chemist in São Paulo; she speaks 日本語 and Français.",
]
WIDTH = 32
COMMON: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def make_tokenizer(*, bos: bool = False, pad: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on four sentences; optionally one that puts BOS, optionally one without a pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    post = [processors.ByteLevel(trim_offsets=True)]
    if bos:
        post.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    tokenizer.post_processor = processors.Sequence(post)
    extra = {"pad_token": "</s>"} if pad else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **extra)


def _configs(vocabulary: int) -> dict[str, transformers.PretrainedConfig]:
    """By name: those below, and one by common names for every registered layout that has none of them."""
    chosen = _chosen_configs(COMMON | {"vocab_size": vocabulary}, vocabulary)
    served = {config.model_type for config in chosen.values()}
    more = COMMON | {"vocab_size": vocabulary, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
    return chosen | {
        name: AutoConfig.for_model(layout.model_types[0], **more)
        for name, layout in ARCHITECTURES.items()
        if served.isdisjoint(layout.model_types)
    }


def _chosen_configs(common: dict[str, Any], vocabulary: int) -> dict[str, transformers.PretrainedConfig]:
    return {
        "llama": transformers.LlamaConfig(**common, intermediate_size=48, num_key_value_heads=2),
        "llama_tied": transformers.LlamaConfig(
            **common, intermediate_size=48, num_key_value_heads=1, tie_word_embeddings=True
        ),
        "qwen2": transformers.Qwen2Config(**common, intermediate_size=48, num_key_value_heads=2),
        "qwen3": transformers.Qwen3Config(**common, intermediate_size=48, num_key_value_heads=2, head_dim=16),
        "gpt2": transformers.GPT2Config(
            vocab_size=vocabulary, n_embd=WIDTH, n_layer=3, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=1
        ),
        # inner width = width: a square Conv1D, whose orientation no shape can tell
        "gpt2_square": transformers.GPT2Config(
            vocab_size=vocabulary, n_embd=WIDTH, n_inner=WIDTH, n_layer=3, n_head=4, n_positions=256,
            bos_token_id=0, eos_token_id=1,
        ),
        "gpt_neox": transformers.GPTNeoXConfig(**common, intermediate_size=48),
        "gptj": transformers.GPTJConfig(
            vocab_size=vocabulary, n_embd=WIDTH, n_layer=3, n_head=4, n_positions=256, rotary_dim=4,
            bos_token_id=0, eos_token_id=1,
        ),
        "gemma2": transformers.Gemma2Config(
            **common, intermediate_size=48, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8,
            sliding_window=64,
        ),
        "gemma3": transformers.Gemma3TextConfig(
            **common, intermediate_size=48, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8,
            sliding_window=64,
        ),
        "phi": transformers.PhiConfig(**common, intermediate_size=48),
    }  # fmt: skip


LAYOUTS = tuple(_configs(300))


def make_handle(
    layout: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, bos: bool = False, pad: bool = True
) -> ModelHandle:
    """A random model of a layout. Weights are larger than a fresh init's, so that its answers differ by prompt."""
    tokenizer = make_tokenizer(bos=bos, pad=pad)
    config = _configs(len(tokenizer))[layout]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
    return ModelHandle.of(model.to(dtype), tokenizer, name=f"tiny-{layout}")


@pytest.fixture(scope="session")
def tiny_handles() -> dict[str, ModelHandle]:
    """One handle a layout, made when first asked for."""
    return {}


@pytest.fixture
def handle_of(tiny_handles: dict[str, ModelHandle]) -> Iterator[Any]:
    """`handle_of("gpt2")` gives the session's tiny model; the test fails if it leaves the model changed."""
    used: dict[str, tuple[ModelHandle, str]] = {}

    def give(layout: str = "llama") -> ModelHandle:
        if layout not in tiny_handles:
            tiny_handles[layout] = make_handle(layout)
        if layout not in used:
            used[layout] = (tiny_handles[layout], tiny_handles[layout].fingerprint())
        return tiny_handles[layout]

    yield give
    for layout, (handle, before) in used.items():
        changed = handle.fingerprint() != before
        if changed:
            del tiny_handles[layout]
        assert not changed, f"the test left the {layout} model changed"


@pytest.fixture
def handle(handle_of: Any) -> ModelHandle:
    """The tiny Llama."""
    return handle_of("llama")


@pytest.fixture(scope="session")
def real_handle() -> ModelHandle:
    """The embedded real model; skipped, with the reason, where its wheel cannot be had."""
    from editkit.models import ModelError

    try:
        return ModelHandle.load("smollm2-135m")
    except ModelError as error:
        pytest.skip(str(error))
