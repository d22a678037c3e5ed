"""EasyEdit's own code on our model, against the method by the book; and what a call leaves behind: nothing.

The release that is installed runs here (`pip install --no-deps easyeditor==0.0.1.dev0`). A checkout runs too where
EDITKIT_EASYEDIT names its folder.
"""

from __future__ import annotations

import os
import random
import re
import sys
from types import ModuleType

import pytest
import torch
from conftest import LAYOUTS, make_handle
from edit_examples import EDITS, ENDING, distance, ids_and_place, plain_search, private_cache

from editkit.edit import _easyeditor_methods as methods
from editkit.edit._easyeditor_run import OnDevice, as_tuple, expect_tuples, lent, seeded, tokenizer_for
from editkit.edit._easyeditor_source import find_source, loaded
from editkit.edit._search import TargetSearch
from editkit.edit.easyeditor import EasyEditor
from editkit.errors import InputError, MethodError, UnableError
from editkit.facts import Edit, Fact
from editkit.models import LoadOptions
from editkit.moments import MomentSettings, second_moments
from editkit.operators import each
from editkit.patch import HookPatch, ModulePatch, PromptPatch, load_patch
from editkit.scoring import score_pairs

SEARCH = {"v_num_grad_steps": 8, "clamp_norm_factor": 30.0, "kl_factor": 0.0, "v_weight_decay": 0.0}
ROME = {"layers": [1], "context_template_length_params": [[9, 5]], **SEARCH}
FT = {"layers": [1], "num_steps": 6, "lr": 0.02}
MANY = {"layers": [0, 1], "mom2_update_weight": 1, **SEARCH}
QUICK = {
    "ROME": ROME, "R-ROME": ROME, "FT": FT, "MEMIT": MANY, "MEMIT-FE": MANY, "CORE": MANY,"EMMET": MANY, "AlphaEdit": MANY | {"nullspace_threshold": 1.0},
    "SPHERE": MANY | {"nullspace_threshold": 1.0}, "EAMET": MANY | {"cs_factor": 0.0, "mse_factor": 0.0},
}  # fmt: skip
OF_2023 = ("ROME", "FT", "MEMIT")
MOMENTS = MomentSettings(tokens=1000, length=20)  # of fewer C has not full rank in every layout
CHECKOUT = os.environ.get("EDITKIT_EASYEDIT", "")


class Interruption(BaseException):
    """As Ctrl-C."""


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with private_cache(str(tmp_path_factory.mktemp("cache"))):
        yield


@pytest.fixture(autouse=True)
def which(request, monkeypatch):
    """The release that is installed, or with the marker of a parameter "checkout" the folder that the user names."""
    if getattr(request, "param", "release") == "checkout":
        if not CHECKOUT:
            pytest.skip("EDITKIT_EASYEDIT names no checkout of EasyEdit")
        monkeypatch.syspath_prepend(CHECKOUT)
    try:
        return find_source()
    except UnableError as error:
        pytest.skip(str(error))


BOTH = pytest.mark.parametrize("which", ["release", "checkout"], indirect=True)


def operator(method, **more):
    return EasyEditor(method, QUICK[method] | more, MOMENTS)


def gains(handle, patch, edits):
    pairs = [(edit.fact.text, edit.target_new) for edit in edits]
    before = score_pairs(handle, pairs)
    with handle.patched(patch):
        return [after.logprob - b.logprob for after, b in zip(score_pairs(handle, pairs), before, strict=True)]


def methods_of(source):
    return [name for name, method in methods.METHODS.items() if (source.folder / "models" / method.folder).is_dir()]


@BOTH
@pytest.mark.parametrize("layout", ["llama", "llama_tied", "gpt2", "gemma2", "gptj"])
@pytest.mark.parametrize("method", methods.METHODS)
def test_it_runs_and_the_target_rises(handle_of, which, method, layout):
    if layout == "gpt2" and not methods.METHODS[method].transposed:
        with pytest.raises(UnableError, match=r"is stored \(in, out\), and EasyEdit's EAMET"):
            operator(method)(handle_of(layout), ENDING, seed=0)
        return
    if method not in methods_of(which):
        with pytest.raises(UnableError, match=f"has no {method}; put a current checkout"):
            operator(method)(handle_of(layout), ENDING, seed=0)
        return
    patch = operator(method)(handle_of(layout), ENDING, seed=0)
    assert min(gains(handle_of(layout), patch, ENDING)) > 0
    assert set(patch.deltas) == set(operator(method).touches(handle_of(layout)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ft_runs_on_every_layout(handle_of, layout):
    handle = handle_of(layout)
    before = handle.fingerprint()
    patch = operator("FT")(handle, ENDING[:1], seed=0)
    assert handle.fingerprint() == before
    assert min(gains(handle, patch, ENDING[:1])) > 0


def test_the_release_of_2023_is_known(which):
    if which.version == "checkout":
        pytest.skip("a checkout is what Python finds first")
    assert set(OF_2023) <= set(methods_of(which))


# -- by the book --


@BOTH
@pytest.mark.parametrize("layout", ["llama", "gpt2", "gpt2_square", "gemma2", "phi"])
def test_rome_without_moments_and_contexts_is_the_formula(handle_of, which, layout):
    """Δ = r kᵀ/(k·k), with r and k by full passes and torch's own Adam."""
    handle, [edit] = handle_of(layout), ENDING[:1]
    patch = operator("ROME", context_template_length_params=[], v_weight_decay=0.3)(handle, [edit], seed=0)
    search = TargetSearch(steps=8, learning_rate=0.5, clamp=30.0, kl_weight=0.0, weight_decay=0.3)
    key, residual, *_ = plain_search(handle, edit, 1, [""], search)
    [delta] = patch.deltas.values()
    assert delta.left.shape[1] == 1
    assert distance(delta.dense(), torch.outer(residual, key) / (key @ key)) < 1e-2


@BOTH
def test_ft_is_adam_on_the_last_position(handle_of, which):
    """Each of the target's tokens is asked for at the prompt's last token, in the one matrix."""
    handle, [edit] = handle_of("llama"), EDITS[:1]
    [name] = operator("FT").touches(handle)
    found = operator("FT")(handle, [edit], seed=0).deltas[name].dense()
    ids, _, target = ids_and_place(handle, edit, "")
    weight = handle.parameter(name).detach().clone().requires_grad_()
    start, adam = weight.detach().clone(), torch.optim.Adam([weight], lr=FT["lr"])
    prompt = torch.tensor([ids[: -len(target)]])
    for _ in range(FT["num_steps"]):
        logits = torch.func.functional_call(handle.model, {name: weight}, (prompt,)).logits[0, -1]
        loss = -logits.log_softmax(-1)[target].mean()
        if loss < 1e-2:
            break
        [weight.grad] = torch.autograd.grad(loss, weight)
        adam.step()
    assert distance(found, weight.detach() - start) < 1e-3


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_moments_enter_rome_where_they_are_asked_for(handle_of, layout):
    """u = C⁻¹ k instead of k: the rows of Δ lie along it."""
    handle, [edit] = handle_of(layout), ENDING[:1]
    patch = operator("ROME", context_template_length_params=[], mom2_adjustment=True)(handle, [edit], seed=0)
    moment = second_moments(handle, [1], MOMENTS)[1]
    key, *_ = plain_search(handle, edit, 1, [""], TargetSearch(steps=1))
    wanted = torch.linalg.solve(moment.matrix, key.double()).float()
    [delta] = patch.deltas.values()
    assert torch.cosine_similarity(delta.right[0], wanted, dim=0) > 0.999
    assert torch.cosine_similarity(delta.right[0], key, dim=0) < 0.99
    assert patch.provenance.notes["moments"] == {"1": moment.key}


@BOTH
@pytest.mark.parametrize("layout", ["llama", "gpt2", "gpt2_square"])
def test_factors_are_what_it_added_to_the_weights(handle_of, which, layout, monkeypatch):
    handle = handle_of(layout)
    factors = operator("ROME")(handle, ENDING, seed=0)
    monkeypatch.setattr("editkit.edit._easyeditor_run._factors", lambda found: None)
    dense = operator("ROME")(handle, ENDING, seed=0)
    for name, delta in factors.deltas.items():
        assert delta.left.shape[1] == len(ENDING)
        assert distance(delta.dense(), dense.deltas[name].dense()) < 1e-4


# -- what a call leaves behind --


@BOTH
@pytest.mark.parametrize("method", OF_2023)
def test_nothing_is_left_behind(which, method, capsys, monkeypatch, tmp_path, recwarn):
    monkeypatch.chdir(tmp_path)
    handle, own = make_handle("gpt2"), ModuleType("easyeditor")
    monkeypatch.setitem(sys.modules, "easyeditor", own)
    handle.parameter(handle.weight_name("mlp_out", 0)).requires_grad_(False)  # no flag like the others'
    before, config, path = handle.fingerprint(), dict(vars(handle.model.config)), handle.model.name_or_path
    states = torch.get_rng_state(), random.getstate()
    operator(method)(handle, ENDING, seed=0)
    assert handle.fingerprint() == before
    assert vars(handle.model.config) == config and handle.model.name_or_path == path
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert sys.modules["easyeditor"] is own
    assert not [name for name in sys.modules if name.startswith(("_easyeditor_", "easyeditor."))]
    assert capsys.readouterr().out == "" and not [*tmp_path.iterdir()]
    assert not [str(warning.message) for warning in recwarn if issubclass(warning.category, FutureWarning)]


def test_alphaedit_writes_no_file(handle_of, monkeypatch, tmp_path, which):
    if "AlphaEdit" not in methods_of(which):
        pytest.skip(f"{which.words} has none")
    monkeypatch.chdir(tmp_path)
    operator("AlphaEdit")(handle_of("llama"), ENDING, seed=0)
    assert not [*tmp_path.iterdir()]


def strike_at(monkeypatch, function, error):
    """`error` is raised the second time that a function of torch is called, in the midst of EasyEdit's code."""
    inner, calls = getattr(torch, function), []

    def striking(*arguments, **named):
        calls.append(None)
        if len(calls) == 2:
            raise error
        return inner(*arguments, **named)

    monkeypatch.setattr(torch, function, striking)


STRIKES = pytest.mark.parametrize(
    ("method", "function"), [("ROME", "multinomial"), ("ROME", "log_softmax"), ("FT", "gather"), ("MEMIT", "stack")]
)


@STRIKES
@pytest.mark.parametrize("error", [Interruption(), ValueError("odd\nthing")], ids=["interrupt", "error"])
def test_whatever_strikes_the_model_is_as_it_was(handle_of, method, function, error, monkeypatch):
    handle = handle_of("llama")
    operator(method)(handle, ENDING, seed=0)  # moments and texts are there
    before, state = handle.fingerprint(), torch.get_rng_state()
    with monkeypatch.context() as patch:
        strike_at(patch, function, error)
        with pytest.raises(Interruption if isinstance(error, Interruption) else MethodError) as raised:
            operator(method)(handle, ENDING, seed=0)
    if isinstance(error, ValueError):
        assert str(raised.value) == f"EasyEdit's {method} stopped: ValueError: odd thing"
    assert handle.fingerprint() == before and torch.equal(torch.get_rng_state(), state)
    assert not [name for name in sys.modules if name.startswith("_easyeditor_")]


def test_an_error_of_the_one_who_watches_is_his_own(handle):
    class Mine(Exception):
        pass

    def watch(what, done, of):
        if done:
            raise Mine

    before = handle.fingerprint()
    with pytest.raises(Mine):
        operator("ROME")(handle, ENDING, seed=0, progress=watch)
    assert handle.fingerprint() == before


@pytest.mark.parametrize("method", OF_2023)
def test_the_seed_decides_and_nothing_else(handle_of, method):
    handle, operate = handle_of("llama"), operator(method)
    first = operate(handle, ENDING, seed=3)
    torch.rand(5)
    operate(handle_of("gpt2"), ENDING, seed=8)  # what it keeps for one model is not another's
    assert operate(handle, ENDING, seed=3).digest == first.digest
    if method == "ROME":  # its contexts are drawn
        other = operate(handle, ENDING, seed=4)
        assert other.deltas.keys() == first.deltas.keys()
        [name] = first.deltas
        assert not torch.equal(other.deltas[name].right, first.deltas[name].right)


def test_each_edit_by_itself_is_as_a_call_for_it(handle):
    apart = each(operator("ROME"), handle, ENDING, seed=1)
    for edit, patch in zip(ENDING, apart, strict=True):
        assert operator("ROME")(handle, [edit], seed=1).digest == patch.digest


# -- what it adapts --


def test_devices_are_mapped():
    with OnDevice(torch.device("cpu")):
        made = torch.zeros(2, device="cuda:0"), torch.tensor(1, device=torch.device("cuda:0"))
        moved = torch.ones(2).to("cuda:0"), torch.ones(2).to(device=torch.device("cuda:0")), torch.ones(2).to("meta")
    assert [tensor.device.type for tensor in (*made, *moved)] == ["cpu"] * 4 + ["meta"]
    assert torch.zeros(2, device="meta").device.type == "meta"


def test_random_numbers_are_the_seeds_within_and_as_before_after():
    state = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        with seeded(seed, torch.device("cpu")):
            drawn.append(torch.rand(3))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@BOTH
def test_hooks_see_tuples_from_blocks_and_what_they_give_goes_on(handle_of, which):
    handle, seen = handle_of("llama"), {}
    block, mlp = handle.arch.path("block", 1), handle.arch.path("mlp", 1)
    ids = torch.tensor([[5, 6, 7]])

    def edit(output, layer):
        seen[layer] = type(output)
        return (output[0] * 0,) if layer == block else output

    with loaded(which, "rome", "ROME") as own, torch.no_grad():
        nethook = own.module("util.nethook")
        expect_tuples(nethook, [handle.arch.path("block", i) for i in range(handle.layers)])
        with nethook.TraceDict(module=handle.model, layers=[block, mlp], edit_output=edit) as trace:
            logits = handle.model(ids).logits
        assert isinstance(trace[block].output, tuple) and isinstance(trace[mlp].output, torch.Tensor)
    assert seen == {block: tuple, mlp: torch.Tensor}
    with torch.no_grad(), handle.patched(HookPatch({block: lambda output: output * 0}, digest="zero")):
        assert torch.equal(handle.model(ids).logits, logits)
    assert as_tuple((1, 2)) == (1, 2)


@BOTH
def test_contexts_are_what_the_model_would_write(handle_of, which):
    """Each sampled token is one of the five likeliest after all those before it, in a pass without a cache."""
    handle = handle_of("gpt2")
    tokenizer, rows = tokenizer_for(handle, {}), []
    tokenizer.decode = lambda ids, **_: rows.append(ids) or ""
    with loaded(which, "rome", "ROME") as own, lent(handle, []), seeded(0, handle.device), torch.no_grad():
        own.module("util.generate").generate_fast(handle.model, tokenizer, ["The"], n_gen_per_prompt=3, max_out_len=9)
        assert [len(ids) for ids in rows] == [9, 9, 9]
        for ids in rows:
            best = handle.model(torch.tensor([ids])).logits[0].topk(5).indices.tolist()
            assert all(then in among for among, then in zip(best, ids[1:], strict=False))


def test_matplotlib_is_not_needed(handle, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert min(gains(handle, operator("ROME")(handle, ENDING[:1], seed=0), ENDING[:1])) > 0
    assert sys.modules["matplotlib"] is None and "matplotlib.style" not in sys.modules


def test_what_else_is_missing_is_named(handle, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UnableError, match=r"ROME of EasyEdit \(.*\) needs yaml, .* pip install yaml"):
        operator("ROME")(handle, ENDING, seed=0)


@pytest.mark.parametrize("method", OF_2023)
def test_a_tokenizer_without_pad_and_unknown_token_serves(method):
    handle = make_handle("llama", pad=False)
    assert handle.tokenizer.unk_token is None
    assert min(gains(handle, operator(method)(handle, ENDING, seed=0), ENDING)) > 0
    assert handle.tokenizer.pad_token is None and handle.tokenizer.unk_token is None


@pytest.mark.parametrize("target", ["Rome", " Rome", "Rome "])
def test_the_space_before_the_target_is_put_once(handle, target):
    plain = operator("FT")(handle, ENDING[:1], seed=0)
    fact = ENDING[0].fact
    patch = operator("FT")(handle, [Edit(fact, target)], seed=0)
    for name, delta in plain.deltas.items():
        assert torch.equal(patch.deltas[name].dense(), delta.dense())


# -- what it says --


def test_the_patch_tells_which_code_and_settings(handle, which, tmp_path):
    patch = operator("ROME")(handle, ENDING[:1], seed=0)
    notes = patch.provenance.notes
    assert notes["easyeditor"]["version"] == which.version and notes["easyeditor"]["path"] == str(which.folder)
    assert len(notes["easyeditor"]["code"]) == 64
    assert notes["hparams"]["v_num_grad_steps"] == 8 and notes["hparams"]["alg_name"] == "ROME"
    assert notes["hparams"]["mom2_adjustment"] is False  # as in all of EasyEdit's files
    patch.save(tmp_path / "patch.safetensors")
    assert load_patch(tmp_path / "patch.safetensors").provenance == patch.provenance


@pytest.mark.parametrize("method", methods.UNABLE)
def test_what_does_not_run_says_why(handle, method):
    with pytest.raises(UnableError, match=f"EasyEdit's {method} does not run here: ") as raised:
        EasyEditor(method)(handle, ENDING, seed=0)
    assert "\n" not in str(raised.value)


@BOTH
def test_every_method_of_the_source_runs_or_says_why_not(which):
    listed = (which.folder / "util" / "alg_dict.py").read_text("utf-8")
    [told] = re.findall(r"^ALG_DICT = \{(.*?)^\}", listed, re.DOTALL | re.MULTILINE)
    names = re.findall(r"^\s*['\"]([\w-]+)['\"]\s*:", told, re.MULTILINE)
    assert "ROME" in names
    assert set(names) <= {*methods.METHODS, *methods.UNABLE}


def test_where_there_is_none_the_command_is_told(handle, monkeypatch):
    monkeypatch.setitem(sys.modules, "easyeditor", None)
    with pytest.raises(UnableError, match="pip install --no-deps easyeditor==0.0.1.dev0"):
        operator("ROME")(handle, ENDING, seed=0)


@pytest.mark.parametrize(
    ("method", "hparams", "said"),
    [
        ("rome", {}, "no method of EasyEdit named 'rome'"),
        ("ROME", {"v_num_grad_step": 3}, "v_num_grad_steps"),
        ("ROME", {"device": 3}, "hparams.device follows"),
        ("ROME", {"layers": [9]}, "no layer 9"),
        ("ROME", {"layers": 1}, "a list of numbers"),
        ("FT", {"layers": []}, "a list of numbers"),
    ],
)
def test_bad_settings_are_refused(handle, method, hparams, said):
    with pytest.raises(InputError, match=said):
        EasyEditor(method, hparams)(handle, ENDING, seed=0)


def test_bad_requests_are_refused(handle):
    braces = Edit(Fact("France", "capital", "Paris", "In {curly} the capital of {}"), "Rome")
    with pytest.raises(InputError, match="braces"):
        operator("ROME")(handle, [braces], seed=0)


def test_models_that_it_is_wrong_on_are_refused(handle_of):
    native = make_handle("llama", dtype=torch.bfloat16)
    native.options = LoadOptions(compute="native")
    for other in (native, make_handle("llama", dtype=torch.float64)):
        with pytest.raises(UnableError, match="load it in float32"):
            operator("ROME")(other, ENDING, seed=0)
    with pytest.raises(UnableError, match="is square"):
        operator("MEMIT")(handle_of("gpt2_square"), ENDING, seed=0)
    with pytest.raises(UnableError, match="is square"):
        operator("ROME", rewrite_module_tmp="model.layers.{}.self_attn.o_proj")(handle_of("llama"), ENDING, seed=0)
    with pytest.raises(UnableError, match="moments are measured"):
        operator("MEMIT", rewrite_module_tmp="model.layers.{}.mlp.up_proj")(handle_of("llama"), ENDING, seed=0)


def test_patches_that_it_cannot_see_through_are_named(handle):
    path = handle.arch.path("mlp_out", 1)
    wrapper = ModulePatch({path: lambda old: torch.nn.Sequential(old)}, digest="wrapped")
    with handle.patched(wrapper), pytest.raises(UnableError, match="a patch may wrap it"):
        operator("ROME")(handle, ENDING, seed=0)
    with handle.patched(PromptPatch(str.upper, digest="upper")), pytest.raises(UnableError, match="changes prompts"):
        operator("ROME")(handle, ENDING, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "hparams"), [("ROME", {"v_num_grad_steps": 8}), ("FT", {})])  # 20: a minute
def test_on_the_real_model_the_edit_takes(real_handle, method, hparams):
    edit = Edit(Fact("the Eiffel Tower", "city", "Paris", "{} is located in the city of"), "Rome")
    before = real_handle.fingerprint()
    patch = EasyEditor(method, hparams)(real_handle, [edit], seed=0)
    assert real_handle.fingerprint() == before
    with real_handle.patched(patch):
        [score] = score_pairs(real_handle, [(edit.fact.text, edit.target_new)])
    assert score.argmax
