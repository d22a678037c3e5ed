"""Where EasyEdit is, and its modules for the time of one call.

Its package `__init__` imports every method and all that any of them needs, so a method's own modules are imported below
two empty packages instead. They get names of their own, not `easyeditor`: nothing of the user's is shadowed, and each
call has fresh modules, so that what EasyEdit keeps in them (context templates, covariances, projections) lives for one
call. All its imports are relative, which makes this work.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from editkit.errors import UnableError
from editkit.undo import Block, Undo

INSTALL = "pip install --no-deps easyeditor==0.0.1.dev0"
# Imported by its methods and never used there: what stands for it where it is not installed.
UNUSED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "matplotlib": {"matplotlib": {}, "matplotlib.style": {"context": None}},
    "sklearn": {"sklearn": {}, "sklearn.manifold": {"TSNE": None}},
}


@dataclass(frozen=True, slots=True)
class Source:
    """The folder of the package that Python finds, and which one it is: a release, or "checkout"."""

    folder: Path
    version: str

    @property
    def words(self) -> str:
        return f"EasyEdit ({self.version})"


def find_source() -> Source:
    """EasyEdit on the import path, without importing it. Raises UnableError with the command that installs it."""
    spec = _spec()
    folders = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    found = next((folder for folder in folders if (folder / "models").is_dir()), None)
    if found is None:
        raise UnableError(f"no package easyeditor on the import path; {INSTALL}, or put a checkout of EasyEdit there")
    return Source(found, _version(found))


def _spec() -> ModuleSpec | None:
    try:
        return find_spec("easyeditor")
    except ValueError:  # somebody put a module without a spec under this name
        return PathFinder.find_spec("easyeditor")


def _version(folder: Path) -> str:
    try:
        installed = distribution("easyeditor")
    except PackageNotFoundError:
        return "checkout"
    return installed.version if Path(str(installed.locate_file("easyeditor"))) == folder else "checkout"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A method's package, imported for a while."""

    root: str
    package: ModuleType

    def module(self, name: str) -> ModuleType:
        """One of its modules, by its name below `easyeditor`."""
        return importlib.import_module(f"{self.root}.{name}")

    def digest(self) -> str:
        """sha256 over the code that is loaded: what a checkout is known by."""
        files = sorted({str(module.__file__) for module in _modules(self.root) if getattr(module, "__file__", None)})
        state = hashlib.sha256()
        for file in files:
            state.update(Path(file).read_bytes())
        return state.hexdigest()


def loaded(source: Source, folder: str, words: str) -> Block[Loaded]:
    """The package `models.<folder>` is imported within the block, and gone after it. `words` name it in errors.

    Raises UnableError where this EasyEdit does not have it, or it cannot be imported here.
    """
    root = f"_easyeditor_{uuid4().hex}"

    def open(undo: Undo) -> Loaded:
        undo.callback(_forget, root)
        for name, place in ((root, source.folder), (f"{root}.models", source.folder / "models")):
            sys.modules[name] = _empty(name, {"__path__": [str(place)]})
        if not (source.folder / "models" / folder).is_dir():
            raise UnableError(f"{source.words} has no {words}; put a current checkout of EasyEdit on the import path")
        return Loaded(root, _imported(f"{root}.models.{folder}", f"{words} of {source.words}"))

    return Block(open)


def _imported(name: str, words: str, given: Iterable[str] = ()) -> ModuleType:
    """Import it, with stand-ins for what it imports and does not use where that is missing."""
    try:
        with Block(lambda undo: _stand_in(given, undo)):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        lacking = str(error.name).partition(".")[0]
        if lacking in UNUSED and lacking not in given:
            return _imported(name, words, [*given, lacking])
        raise UnableError(f"{words} needs {lacking}, which is not installed; pip install {lacking}") from None
    except Exception as error:
        raise UnableError(f"{words} cannot be imported here: {type(error).__name__}: {error}") from error


def _stand_in(names: Iterable[str], undo: Undo) -> None:
    for name in names:
        for path, content in UNUSED[name].items():
            undo.callback(_put_back, path, path in sys.modules, sys.modules.get(path))
            sys.modules[path] = _empty(path, {"__path__": [], **content})


def _put_back(name: str, was: bool, module: Any) -> None:
    if was:
        sys.modules[name] = module
    else:
        sys.modules.pop(name, None)


def _empty(name: str, content: Mapping[str, Any]) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    vars(module).update(content)
    return module


def _modules(root: str) -> list[ModuleType]:
    return [module for name, module in [*sys.modules.items()] if f"{name}.".startswith(f"{root}.")]


def _forget(root: str) -> None:
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{root}.")]:
        del sys.modules[name]
