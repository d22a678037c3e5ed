"""Errors stand in one of two families, and keep their builtin bases."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import editkit
import probes
import reports
from editkit.arch import UnknownLayout
from editkit.data import DataError
from editkit.errors import EditkitError, InputError, MethodError, UnableError
from editkit.linalg import SolveError
from editkit.models import ModelError
from editkit.patch import PatchError
from editkit.registry import UnknownName
from editkit.tokens import PromptTooLong
from editkit.training import TrainingError


def ours():
    """Every exception class that a module of the three packages defines."""
    for package in (editkit, probes, reports):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            for _, kind in inspect.getmembers(module, inspect.isclass):
                if issubclass(kind, Exception) and kind.__module__ == module.__name__:
                    yield kind


def test_every_error_of_ours_stands_in_a_family():
    found = {*ours()}
    assert {DataError, SolveError, TrainingError, UnknownName} <= found
    outside = {kind for kind in found if kind is not EditkitError and not issubclass(kind, InputError | UnableError)}
    assert not outside


@pytest.mark.parametrize(
    ("kind", "family", "builtin"),
    [
        (DataError, InputError, ValueError),
        (PatchError, InputError, ValueError),
        (PromptTooLong, InputError, ValueError),
        (UnknownName, InputError, KeyError),
        (UnknownName, InputError, ValueError),
        (ModelError, UnableError, RuntimeError),
        (UnknownLayout, UnableError, ValueError),
        (SolveError, MethodError, ArithmeticError),
        (TrainingError, MethodError, RuntimeError),
    ],
)
def test_the_builtin_base_is_kept(kind, family, builtin):
    assert issubclass(kind, family) and issubclass(kind, builtin)
    assert str(kind("one line")) == "one line"
