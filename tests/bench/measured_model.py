"""The model that a benchmark measures on, and a clock that waits for its device."""

from __future__ import annotations

import argparse
import time

import torch

from editkit.handle import ModelHandle
from editkit.models import DEFAULT_MODEL, LoadOptions


def ask_for_model(options: argparse.ArgumentParser) -> None:
    options.add_argument("--model", default=DEFAULT_MODEL)
    options.add_argument("--device", default="auto")
    options.add_argument("--dtype", default="float32", help="of the weights")
    options.add_argument(
        "--compute", default="float32", choices=("float32", "native"), help="of changes of narrower ones"
    )


def load_model(given: argparse.Namespace) -> ModelHandle:
    options = LoadOptions(device=given.device, dtype=given.dtype, compute=given.compute)
    handle = ModelHandle.load(given.model, options)
    print(f"{handle.name}, {given.dtype} computed in {given.compute}, on {handle.device}", flush=True)
    return handle


def now(handle: ModelHandle) -> float:
    """Seconds, once the device has done all that it was told."""
    if handle.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()
