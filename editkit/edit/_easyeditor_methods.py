"""EasyEdit's methods: which can run on a handle, with which hyperparameters, and why the others cannot."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from editkit.errors import InputError, UnableError
from editkit.handle import ModelHandle
from editkit.operators import preset_for
from editkit.patch import PatchError


@dataclass(frozen=True, slots=True)
class Method:
    """A method that can run: `folder` below easyeditor.models, and what is named there.

    `alone`: it takes one edit a call. `template`: it is given the prompt with its "{}", else the whole sentence.
    `layers`: the operator of ours whose preset says which layers. `moments`: module with its cache of covariances.
    `square`: storage of a square matrix that it is right about ("in first", "any", "none"): it tells the orientation
    of an update by its shape. `transposed`: whether it serves matrices stored (in, out), GPT-2's. `projects`: its
    module wants the null spaces of its layers. `values`: hyperparameters, as EasyEdit's own files have them; those in
    `per_layer` are made a list, one a layer.
    """

    folder: str
    apply: str
    execute: str
    hyperparams: str
    layers: str
    alone: bool = False
    template: bool = True
    moments: str = ""
    square: str = "none"
    transposed: bool = True
    projects: bool = False
    per_layer: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


SEARCH = {
    "fact_token": "subject_last",
    "v_num_grad_steps": 25,
    "v_lr": 0.5,
    "v_weight_decay": 1e-3,
    "kl_factor": 0.0625,
}
ROME = SEARCH | {
    "clamp_norm_factor": 4,
    "mom2_adjustment": False,
    "context_template_length_params": [[5, 10], [10, 10]],
}
MANY = SEARCH | {"layer_selection": "all", "mom2_adjustment": True}
FINE_TUNING = {
    "num_steps": 25,
    "lr": 5e-4,
    "weight_decay": 0,
    "kl_factor": 0,
    "norm_constraint": False,
    "batch_size": 1,
    "objective_optimization": "prompt_last",
}

NULL_SPACE = MANY | {
    "clamp_norm_factor": 0.75, "v_weight_decay": 0.5, "v_lr": 0.1, "mom2_update_weight": 15000,
    "nullspace_threshold": 2e-2, "L2": 10,
}  # fmt: skip

# The values are those of EasyEdit's hparams for llama-7b (AlphaEdit: llama3.1-8b; EMMET: gpt2-xl; EAMET: qwen2.5-7b;
# SPHERE: gpt-j-6b; MEMIT-FE: baichuan-7b). CORE has no file: MEMIT's and its class's own.
METHODS: Mapping[str, Method] = {
    "ROME": Method(
        "rome", "apply_rome_to_model", "execute_rome", "ROMEHyperParams", "rome", alone=True,
        moments="compute_u", square="in first", values=ROME,
    ),
    "R-ROME": Method(
        "r_rome", "apply_r_rome_to_model", "execute_r_rome", "R_ROMEHyperParams", "r_rome", alone=True,
        moments="compute_u", square="in first", values=ROME,
    ),
    "FT": Method(
        "ft", "apply_ft_to_model", "execute_ft", "FTHyperParams", "ft", template=False, square="any", values=FINE_TUNING
    ),
    "MEMIT": Method(
        "memit", "apply_memit_to_model", "execute_memit", "MEMITHyperParams", "memit", moments="memit_main",
        values=MANY | {"clamp_norm_factor": 4, "mom2_update_weight": 15000},
    ),
    "MEMIT-FE": Method(
        "memit_FE", "apply_memit_FE_to_model", "execute_memit", "MEMITFEHyperParams", "memit", moments="memit_FE_main",
        values=MANY | {"clamp_norm_factor": 4, "mom2_update_weight": 15000},
    ),
    "CORE": Method(
        "core", "apply_core_to_model", "execute_core", "COREHyperParams", "memit", moments="core_main",
        values=MANY | {"clamp_norm_factor": 4, "mom2_update_weight": 15000},
    ),
    "EMMET": Method(
        "emmet", "apply_emmet_to_model", "execute_emmet", "EMMETHyperParams", "emmet", moments="emmet_main",
        values=MANY | {"clamp_norm_factor": 0.75, "v_weight_decay": 0.5, "v_num_grad_steps": 20,
                       "mom2_update_weight": 10000, "update_norm_lambda": 0, "emmet_lambda": 0.1},
    ),
    "AlphaEdit": Method(
        "alphaedit", "apply_AlphaEdit_to_model", "execute_AlphaEdit", "AlphaEditHyperParams", "alphaedit",
        moments="AlphaEdit_main", square="in first", projects=True, values=NULL_SPACE,
    ),
    "SPHERE": Method(
        "SPHERE", "apply_SPHERE_to_model", "execute_AlphaEdit", "SPHEREHyperParams", "alphaedit",
        moments="SPHERE_main", square="in first", projects=True,
        values=NULL_SPACE | {"v_lr": 0.5, "cumulative_ratio": 0.5, "suppression_strength": 0.5},
    ),
    "EAMET": Method(
        "eamet", "apply_eamet_to_model", "execute_eamet", "EAMETHyperParams", "memit", moments="eamet_main",
        transposed=False, per_layer=("mom2_update_weight",),
        values=MANY | {"clamp_norm_factor": 4, "mom2_update_weight": 15000, "ks_bs": 1, "clamp_ks_factor": 1,
                       "cs_factor": 1, "mse_factor": 1, "tau": 0.07, "norm_factor": 1e-3, "delta_init": "target_init",
                       "weight_decay_method": "norm"},
    ),
}  # fmt: skip

BESIDE = "it answers through a layer put beside the model, and changes no weights that a patch could hold"
TRAINED = "it needs a network that is trained beforehand, with EasyEdit's trainer"
UNABLE: Mapping[str, str] = {
    "LoRA": "it leaves adapters in the model, and its AdaLoRA lacks the total_step that peft asks for; use `lora`",
    "DPO": "it leaves adapters in the model; use `lora`",
    "QLoRA": "it needs a quantised model; use `lora`",
    "IKE": "it changes prompts, by demonstrations from a sentence encoder; use `ike`",
    "MALMEN": TRAINED,
    **{name: f"{TRAINED}; use `{name.lower()}`" for name in ("MEND", "SERAC")},
    **dict.fromkeys(("MELO", "DEFER"), BESIDE),
    **{name: f"{BESIDE}; use `{name.lower()}`" for name in ("GRACE", "WISE")},
    **dict.fromkeys(("FT-Api", "DeepEdit-Api"), "it sends the facts to a paid service"),
    "PMET": "it hooks the output matrix of attention, which layouts here do not name; use `pmet`",
    "KN": "it knows a handful of models by name, with their places written out; use `knowledge_neurons`",
    "ULTRAEDIT": "its statistics run on from call to call, beyond what a patch of some facts holds; use `ultraedit`",
    "SimIE": "it wraps another method and keeps what it learned in its hyperparameters, beyond what a patch holds",
    "DINM": "it needs a text of general knowledge with each fact, which an edit here has not",
}

# What the bridge says itself: it follows from the handle, or from moments that are measured here.
OURS = (
    "device", "model_name", "alg_name", "stats_dir", "P_loc", "mom2_dataset", "mom2_n_samples", "mom2_dtype",
    "model_parallel", "fp16",
)  # fmt: skip


def method_named(name: str) -> Method:
    """Raises UnableError, with the reason, for one that cannot run here, and InputError for one that there is not."""
    if name in METHODS:
        return METHODS[name]
    if name in UNABLE:
        raise UnableError(f"EasyEdit's {name} does not run here: {UNABLE[name]}")
    near = difflib.get_close_matches(name, METHODS, cutoff=0.5) or METHODS
    raise InputError(f"no method of EasyEdit named {name!r}; there is {', '.join(near)}")


def settings_for(handle: ModelHandle, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All hyperparameters: those of EasyEdit's files, what the model's layout says, and the user's own on top."""
    method = method_named(name)
    taken = [key for key in given if key in OURS]
    if taken:
        raise InputError(f"hparams.{taken[0]} follows from the model here; leave it out")
    found = {**_of_the_model(handle), **_of_the_preset(handle, method), **method.values, "alg_name": name, **given}
    layers = len(_layers(found["layers"]))
    return found | {key: [found[key]] * layers for key in method.per_layer if not isinstance(found[key], list)}


def _of_the_model(handle: ModelHandle) -> dict[str, Any]:
    arch = handle.arch
    return {
        "rewrite_module_tmp": arch.mlp_out,
        "layer_module_tmp": arch.block,
        "mlp_module_tmp": arch.mlp,
        "attn_module_tmp": arch.attention,
        "ln_f_module": arch.final_norm,
        "lm_head_module": unembedding_path(handle),
        "v_loss_layer": handle.layers - 1,
        "model_name": family(handle),
        "device": 0 if handle.device.index is None else handle.device.index,
        "mom2_dataset": "",
        "mom2_n_samples": 0,
        "mom2_dtype": "float32",
        "stats_dir": "",
        "P_loc": ".",  # has to be there; what is read from it is put into the module before
    }


def unembedding_path(handle: ModelHandle) -> str:
    """Of a tied one the embedding's path: EasyEdit looks a parameter up by the one name that torch lists it under."""
    weight = handle.model.get_output_embeddings().weight
    return next(name.removesuffix(".weight") for name, there in handle.model.named_parameters() if there is weight)


def family(handle: ModelHandle) -> str:
    """A name that EasyEdit's code reads the storage order of matrices from; the model's own could mean another one."""
    return "gpt2-xl" if handle.is_transposed(handle.weight_name("mlp_out", 0)) else "llama"


def _of_the_preset(handle: ModelHandle, method: Method) -> dict[str, Any]:
    settings = preset_for(method.layers, handle).settings
    return {"layers": list(settings.get("layers") or [settings["layer"]])}


def fitted(kind: type[Any], settings: Mapping[str, Any], given: Mapping[str, Any], words: str) -> dict[str, Any]:
    """Those of the settings that this EasyEdit knows. Raises InputError for one of the user's that it does not."""
    known = [each.name for each in fields(kind)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known) or known
            raise InputError(f"{words} has no hyperparameter {name!r}; there is {', '.join(near)}")
    return {name: value for name, value in settings.items() if name in known}


def parameters(handle: ModelHandle, name: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the parameters that the method changes. Raises InputError for layers that there are not."""
    template = settings["rewrite_module_tmp"]
    paths = [template.format(_layer(handle, layer)) for layer in _layers(settings["layers"])]
    if name == "FT":  # takes whatever holds the path in its name: a bias too
        return tuple(n for n, _ in handle.model.named_parameters() if any(path in n for path in paths))
    return tuple(f"{path}.weight" for path in paths)


def _layers(layers: Any) -> Sequence[int]:
    if not isinstance(layers, list | tuple) or not layers or not all(type(layer) is int for layer in layers):
        raise InputError(f"hparams.layers is {layers!r}, expected a list of numbers of blocks")
    return layers


def _layer(handle: ModelHandle, layer: int) -> int:
    handle.weight_name("mlp_out", layer)
    return layer


def check_model(handle: ModelHandle, name: str, names: Sequence[str]) -> None:
    """Refuse, in one line, a model that EasyEdit's code would be wrong on or fail on."""
    here, method = dict(handle.model.named_parameters()), method_named(name)
    for parameter in names:
        if not _is_base(handle, parameter, here.get(parameter)):
            raise UnableError(f"EasyEdit finds no parameter {parameter!r} in {handle.name!r}; a patch may wrap it")
        if not _orientation_known(handle, parameter, method):
            raise UnableError(f"{parameter!r} is square, and EasyEdit's {name} tells by its shape how it is stored")
        if handle.is_transposed(parameter) and not method.transposed:
            raise UnableError(f"{parameter!r} is stored (in, out), and EasyEdit's {name} multiplies it as (out, in)")
    other = next((parameter.dtype for parameter in here.values() if parameter.dtype != torch.float32), None)
    if other:
        raise UnableError(f"EasyEdit's {name} computes in float32, {handle.name!r} is {other}; load it in float32")
    if handle.prompt_rewrites:
        raise UnableError("EasyEdit knows nothing of the patch that changes prompts; take it off first")


def _is_base(handle: ModelHandle, name: str, found: Any) -> bool:
    try:
        return handle.parameter(name) is found
    except PatchError:
        return False


def _orientation_known(handle: ModelHandle, name: str, method: Method) -> bool:
    shape = handle.parameter(name).shape
    if len(shape) < 2 or shape[0] != shape[1] or method.square == "any":
        return True
    return method.square == "in first" and handle.is_transposed(name)


def measured_layers(handle: ModelHandle, name: str, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers whose second moment the method asks for. Raises UnableError for another matrix than `mlp_out`."""
    if not settings.get("mom2_adjustment") and METHODS[name].values.get("mom2_adjustment") is not True:
        return ()
    if settings["rewrite_module_tmp"] != handle.arch.mlp_out:
        raise UnableError(f"moments are measured for {handle.arch.mlp_out!r} only; set hparams.mom2_adjustment = false")
    return tuple(settings["layers"])


_BRACE = re.compile(r"[{}]")


def check_text(prompt: str, target: str) -> None:
    """Refuse braces beside the slot: EasyEdit formats prompts and targets with `str.format`."""
    for text in (prompt.replace("{}", "", 1), target):
        if _BRACE.search(text):
            raise InputError(f"EasyEdit cannot take the braces in {text!r}; write it without")
