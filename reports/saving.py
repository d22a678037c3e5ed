"""The folder of `--save`: what may stand there, and what is written."""

from __future__ import annotations

from pathlib import Path

from editkit.data import is_file
from editkit.errors import InputError, UnableError
from editkit.files import atomic_folder, check_writable
from editkit.handle import ModelHandle
from editkit.patch import Patch
from reports.spec import AuditSpec

PATCH_FILE = "editkit_patch.safetensors"


def check_save(save: Path, spec: AuditSpec, *, overwrite: bool = False) -> None:
    """Raises InputError where --save would replace anything but an earlier save, and that only with `overwrite`, and
    UnableError where nothing can be written."""
    place = save.resolve()
    if place.exists() and not place.is_dir():
        raise InputError(f"--save {save} is a file; name a new folder")
    if above := next((each for each in place.parents if each.exists() and not each.is_dir()), None):
        raise InputError(f"--save {save} lies below the file {above}; name a new folder")
    for option, name in (("facts", spec.facts.source), ("model", spec.model.name)):
        given = Path(name).expanduser() if option == "model" else Path(name)
        local = is_file(name) if option == "facts" else given.exists()
        if local and place in (given.resolve(), *given.resolve().parents):
            raise InputError(f"--save {save} would replace the {option} {name}; name a new folder")
    try:
        check_writable(place.parent)  # a new folder is made there, and then takes the old one's place
    except OSError as error:
        raise UnableError(f"cannot write to --save {save}: {error.strerror}; name a folder elsewhere") from None
    if not place.is_dir() or not any(place.iterdir()):
        return
    if not (place / PATCH_FILE).is_file():
        raise InputError(f"--save {save} is a folder that holds other files; name a new folder")
    if not overwrite:
        raise InputError(f"--save {save} holds an earlier save; name a new folder, or pass --overwrite to replace it")


def save_change(handle: ModelHandle, patch: Patch, save: Path) -> None:
    """The patch, and the checkpoint of the patched model where all that is on it is a change of weights."""
    with handle.patched(patch), atomic_folder(save, mark=PATCH_FILE) as folder:
        if handle.only_weights:
            handle.save(folder / "model")
            for file in (folder / "model").iterdir():
                file.rename(folder / file.name)
            (folder / "model").rmdir()
        patch.save(folder / PATCH_FILE)
