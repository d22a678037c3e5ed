"""A name for every extension, and the one place that looks it up."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from editkit.errors import EditkitError, InputError, UnableError

T = TypeVar("T")


class UnknownName(InputError, KeyError):
    """A name that no extension answers to; says which names come near it."""

    def __str__(self) -> str:
        return str(self.args[0])


class BrokenExtension(UnableError):
    """Something of a third party that cannot be loaded; says which, and why."""


class Registry(Generic[T]):
    """Extensions of one kind, by name.

    The modules of `package` are imported on the first look-up, so importing a package costs nothing and no list is
    kept by hand ("": what registers stands beside the registry). Third parties join by an entry point in the group
    `editkit.<kind>`.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files `name`; a second owner of the same name is refused."""

        def keep(item: T) -> T:
            if self._items.setdefault(name, item) is not item:
                raise InputError(f"two {self.kind}s are named {name!r}; rename one of them")
            return item

        return keep

    def names(self) -> list[str]:
        self._load()
        return sorted(self._items)

    def items(self) -> list[tuple[str, T]]:
        return [(name, self._items[name]) for name in self.names()]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._items

    def __getitem__(self, name: str) -> T:
        self._load()
        try:
            return self._items[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._items) or self.names()
            raise UnknownName(f"no {self.kind} named {name!r}; there is {', '.join(near)}") from None

    def _load(self) -> None:
        if self._loaded:
            return
        if self.package:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__, f"{self.package}."):
                if not module.name.rpartition(".")[2].startswith("_"):
                    importlib.import_module(module.name)
        for point in entry_points(group=f"editkit.{self.kind}"):
            _load(point)
        self._loaded = True


def _load(point: EntryPoint) -> None:
    """Raises BrokenExtension for whatever a module of a third party raises when it is imported."""
    try:
        point.load()
    except Exception as error:
        why = str(error) if isinstance(error, EditkitError) else f"{type(error).__name__}: {error}"
        of = f" of {point.dist.name}" if point.dist else ""
        raise BrokenExtension(
            f"the extension {point.name!r}{of} ({point.group}) cannot be loaded: {why}; mend it, or uninstall it"
        ) from error
