"""A patch file says what is wrong with it, in one line; and a patch goes on what it was made for."""

from __future__ import annotations

import errno
import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from editkit.patch import DenseDelta, LowRankDelta, PatchError, Provenance, WeightPatch, load_patch

WEIGHT = "model.layers.1.mlp.down_proj.weight"
BASE = "ab" * 32
GOOD = {"base": BASE}


def file_of(tmp_path, tensors, provenance):
    metadata = {"editkit_patch": "weight/1"} | ({} if provenance is None else {"provenance": provenance})
    save_file(tensors, tmp_path / "p.safetensors", metadata=metadata)
    return tmp_path / "p.safetensors"


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        (None, "it has no provenance"),
        ("{", "its provenance is no JSON"),
        ("[]", "its provenance is no JSON object"),
        ("null", "its provenance is no JSON object"),
        (json.dumps(GOOD | {"zzz": 1}), "its provenance has an unknown field 'zzz'"),
        (json.dumps(GOOD | {"notes": []}), "provenance.notes is \\[\\]"),
        (json.dumps(GOOD | {"base": 3}), "provenance.base is 3"),
        (json.dumps(GOOD | {"notes": {"on_top_of": 3}}), "provenance.notes.on_top_of is no list"),
        ("{}", "its provenance names no `base`"),
        (json.dumps({"base": ""}), "its provenance names no `base`"),
    ],
)
def test_a_provenance_that_is_none(tmp_path, provenance, message):
    path = file_of(tmp_path, {f"{WEIGHT}:value": torch.ones(2, 2)}, provenance)
    with pytest.raises(PatchError, match=f"p.safetensors is a damaged patch: {message}.*; make it again") as caught:
        load_patch(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"left": torch.ones(2, 2)}, r"has the parts \['left'\], it takes value, or left and right"),
        ({"value": torch.ones(2), "left": torch.ones(2)}, r"has the parts \['left', 'value'\]"),
        ({"value": torch.ones(2, 2, dtype=torch.int64)}, "is of torch.int64, no floating-point numbers"),
        ({"left": torch.ones(2, 3), "right": torch.ones(2, 2)}, r"\(2, 3\) and \(2, 2\), do not fit together"),
        ({"left": torch.ones(2), "right": torch.ones(2)}, "do not fit together"),
    ],
)
def test_a_delta_that_is_none(tmp_path, parts, message):
    path = file_of(tmp_path, {f"{WEIGHT}:{part}": tensor for part, tensor in parts.items()}, json.dumps(GOOD))
    with pytest.raises(PatchError, match=f"p.safetensors is a damaged patch: .*{WEIGHT}.*{message}"):
        load_patch(path)


def test_what_is_whole_is_read(tmp_path):
    patch = WeightPatch(
        {WEIGHT: LowRankDelta(torch.ones(2, 1), torch.ones(1, 3)), "other": DenseDelta(torch.ones(2, 2))},
        Provenance("rome", {"layer": 1}, None, BASE, "r", {"torch": "x"}, {"on_top_of": ["cd" * 32]}),
    )
    patch.save(tmp_path / "p.safetensors")
    read = load_patch(tmp_path / "p.safetensors")
    assert (read.digest, read.provenance) == (patch.digest, patch.provenance)


def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("editkit.patch.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        WeightPatch({WEIGHT: DenseDelta(torch.ones(2, 2))}, Provenance(base=BASE)).save(tmp_path / "p.safetensors")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "p.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_a_patch_of_a_stack_wants_what_is_below_it(handle):
    delta = {WEIGHT: DenseDelta(torch.ones(handle.matrix(WEIGHT).shape))}
    below = WeightPatch(delta, Provenance(base=handle.base_digest))
    above = WeightPatch(delta, Provenance(base=handle.base_digest, notes={"on_top_of": [below.digest]}))
    with pytest.raises(PatchError, match=f"on top of other patches, and {below.digest[:12]} is not on"):
        handle.apply(above)
    assert handle.patches == ()
    with handle.patched(below, above):
        assert handle.patches == (below, above)


def test_a_patch_of_weights_that_names_no_base_is_not_written(tmp_path):
    with pytest.raises(PatchError, match="names no base; give provenance.base"):
        WeightPatch({WEIGHT: DenseDelta(torch.ones(2, 2))}).save(tmp_path / "p.safetensors")
    assert list(tmp_path.iterdir()) == []
