"""On a GPU every operator does what it does on the CPU: it runs, leaves the model as it was, moves the answer, and its
patch comes off to the bit. What it finds is not asked to be the same to the bit there."""

from __future__ import annotations

import pytest
import torch
from conftest import make_handle
from edit_examples import private_cache
from operator_calls import asked, call_on, changes, moves_the_right_way

from editkit.errors import UnableError
from editkit.operators import EDITS, UNLEARNERS
from editkit.patch import load_patch

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with private_cache(str(tmp_path_factory.mktemp("cache"))):
        yield


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def handle(request):
    handle = make_handle("llama", dtype=request.param)
    handle.model.to(DEVICE)
    return handle


@pytest.mark.parametrize("name", [*EDITS.names(), *UNLEARNERS.names()])
def test_a_patch_is_made_put_on_and_taken_off_there(name, handle, tmp_path):
    before = handle.fingerprint()
    try:
        patch = call_on(name, handle)
    except UnableError as error:
        pytest.skip(str(error))
    assert handle.device.type == DEVICE and handle.fingerprint() == before
    moved = changes(handle, patch, asked(name))
    assert moves_the_right_way(name, patch, moved)
    assert handle.fingerprint() == before
    patch.save(tmp_path / "patch.safetensors")
    elsewhere, kept = make_handle("llama", dtype=handle.dtype), load_patch(tmp_path / "patch.safetensors")
    assert changes(elsewhere, kept, asked(name)) == pytest.approx(moved, rel=0.1, abs=0.1)
