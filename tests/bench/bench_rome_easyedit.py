"""ROME here and in EasyEdit, one after the other in one process, on the same facts and with the same settings:

    python tests/bench/bench_rome_easyedit.py CHECKOUT [MODEL]

CHECKOUT is a folder with EasyEdit's source; of its requirements its ROME needs matplotlib and PyYAML. Ours is measured
with all contexts in every step ("same settings"), with the preset, and both in the products that the CPU is fast at and
in float32. A target is "held" as far as it is likely after contexts that neither search has seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from bench_rome import FACTS, HELD_OUT_SEED, SEED
from rich.console import Console
from rich.table import Table

from editkit.edit._locate_then_edit import Contexts
from editkit.edit.rome import ROME
from editkit.facts import Edit
from editkit.handle import ModelHandle
from editkit.models import DEFAULT_MODEL
from editkit.operators import configured
from editkit.patch import DenseDelta, WeightPatch
from editkit.scoring import score_pairs


def main() -> None:
    checkout, name = Path(sys.argv[1]), (sys.argv[2] if len(sys.argv) > 2 else DEFAULT_MODEL)
    handle = ModelHandle.load(name)
    preset: ROME = configured("rome", handle)[0]
    held = Contexts().before(handle, HELD_OUT_SEED)[1:]
    arms = {"EasyEdit": peer(checkout, handle, preset)}
    for products in dict.fromkeys(("float32", "auto")):
        for drawn in dict.fromkeys((0, preset.target.tokens_per_step)):
            target = dataclasses.replace(preset.target, products=products, tokens_per_step=drawn)
            label = f"editkit, {products}, {drawn or 'all'} tokens a step"
            arms[label] = ours(handle, dataclasses.replace(preset, target=target))
    for arm in arms.values():  # contexts and moments are made, and everything is warm
        arm(FACTS[0])
    table = Table("fact", "arm", "seconds", "times faster", "p(new) held")
    for edit in FACTS:
        first = math.nan
        for label, arm in arms.items():
            began = time.perf_counter()
            patch = arm(edit)
            seconds = time.perf_counter() - began
            first = seconds if math.isnan(first) else first
            with handle.patched(patch):
                scores = score_pairs(handle, [(context + edit.fact.text, edit.target_new) for context in held])
            likely = sum(math.exp(score.logprob) for score in scores) / len(scores)
            table.add_row(edit.fact.subject, label, f"{seconds:.1f}", f"{first / seconds:.1f}", f"{likely:.2f}")
    Console().print(table)
    Console().print(f"{torch.get_num_threads()} threads")


def ours(handle: ModelHandle, operator: ROME) -> Callable[[Edit], WeightPatch]:
    return lambda edit: operator(handle, [edit], seed=SEED)


def peer(checkout: Path, handle: ModelHandle, preset: ROME) -> Callable[[Edit], WeightPatch]:
    """EasyEdit's ROME with the preset's settings; as in all its own settings, without C."""
    for package in ("easyeditor", "easyeditor.models"):  # their __init__ files import every method and its needs
        stub = types.ModuleType(package)
        stub.__path__ = [str(checkout.joinpath(*package.split(".")))]
        sys.modules[package] = stub
    from easyeditor.models.rome import ROMEHyperParams, execute_rome

    block = handle.arch.path("block", 0).replace(".0", ".{}")
    settings = ROMEHyperParams(
        layers=[preset.layer],
        fact_token="subject_last",
        v_num_grad_steps=preset.target.steps,
        v_lr=preset.target.learning_rate,
        v_loss_layer=handle.layers - 1,
        v_weight_decay=preset.target.weight_decay,
        clamp_norm_factor=preset.target.clamp,
        kl_factor=preset.target.kl_weight,
        mom2_adjustment=False,
        context_template_length_params=[[length, preset.contexts.each] for length in preset.contexts.lengths],
        rewrite_module_tmp=handle.arch.path("mlp_out", 0).replace(".0.", ".{}."),
        layer_module_tmp=block,
        mlp_module_tmp=f"{block}.mlp",
        attn_module_tmp=f"{block}.self_attn",
        ln_f_module="model.norm",
        lm_head_module="lm_head",
        mom2_dataset="wikipedia",
        mom2_n_samples=0,
        mom2_dtype="float32",
        alg_name="ROME",
        device="cpu",
        model_name=handle.name,
        stats_dir="",
    )
    name = handle.weight_name("mlp_out", preset.layer)

    def run(edit: Edit) -> WeightPatch:
        request = {"prompt": edit.fact.prompt, "subject": edit.fact.subject, "target_new": edit.target_new}
        with contextlib.redirect_stdout(io.StringIO()):
            [(left, right)] = execute_rome(handle.model, handle.tokenizer, request, settings).values()
        delta = left[:, None] @ right[None]
        return WeightPatch({name: DenseDelta((delta if delta.shape == handle.matrix(name).shape else delta.T).float())})

    return run


if __name__ == "__main__":
    main()
