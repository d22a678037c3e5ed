"""What `editkit remove` does: take one patch out of a stack, and tell what that does to the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.text import Text

from editkit.errors import InputError
from editkit.handle import ModelHandle
from editkit.interference import Moved, Neighbour, Removal, removal
from editkit.patch import WeightPatch, load_patch
from reports.console import out, table
from reports.spec import AuditSpec
from reports.watch import Watch
from reports.wording import plural


def remove(
    spec: AuditSpec,
    files: Sequence[Path],
    which: Path,
    save: Path | None,
    watch: Watch,
    *,
    without: Sequence[str] = (),
) -> None:
    """Put the patches on in their order, take `which` out, print the report, and save what is left as a checkpoint.
    `without` are digests of patches that may be lacking."""
    if files.count(which) != 1:
        raise InputError(f"--take-out {which} must be one of the patches, named once; given are {_listed(files)}")
    patches, place = [load_patch(file) for file in files], files.index(which)
    left = [(file, patch) for file, patch in zip(files, patches, strict=True) if file != which]
    if save is not None and (outside := [file for file, patch in left if not isinstance(patch, WeightPatch)]):
        raise InputError(
            f"{_listed(outside)}: no change of weights, so no checkpoint can hold what is left; leave --save out, and "
            "give the patches that stay with --on"
        )
    watch.phase(f"Loading {spec.model.name}")
    handle = ModelHandle.load(spec.model.name, spec.model.options())
    handle.waive(*without)
    for patch in patches:
        handle.apply(patch)
    watch.phase("Asking with all patches, and without the one")
    found = removal(handle, place)
    _show(found, files)
    if save is not None:
        watch.phase("Saving")
        handle.remove(place)
        handle.save(save)
        out.print(
            Text(f"The model with the other {plural(len(files) - 1, 'patch', 'patches')}: {save}"), soft_wrap=True
        )


def _listed(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files)) or "none"


def _show(found: Removal, files: Sequence[Path]) -> None:
    own = [(str(files[found.place]), found.operator, "taken out", "", *_edit(moved)) for moved in found.own]
    others = [row for other in found.others for row in _rows(other, str(files[other.place]))]
    table(
        "Without it",
        ("patch", "operator", "made on it", "overlap", "prompt", "log p before", "after", ""),
        own + others,
    )
    told = sum(len(other.edits) for other in found.others)
    lines = (
        f"{found.gone} of its own {plural(len(found.own), 'edit')} gone; of {plural(told, 'edit')} of the others "
        f"{found.lost} lost.",
        "An edit holds where each token of its new object is the most likely one. Overlap: the share of a patch's "
        "change that reads what the one taken out reads; 0 none, 1 all.",
        *_apart(found.others, files),
        *_again(found, files),
    )
    for line in lines:
        out.print(Text(line), soft_wrap=True)


def _apart(others: Sequence[Neighbour], files: Sequence[Path]) -> Iterator[str]:
    """Why some have no overlap, each reason once."""
    for reason in dict.fromkeys(other.apart for other in others if other.apart):
        there = [files[other.place] for other in others if other.apart == reason]
        yield f"No overlap can be told of {_listed(there)}: {reason}."


def _again(found: Removal, files: Sequence[Path]) -> Iterator[str]:
    if any(other.made_on_top for other in found.others):
        yield f"To put on again what was made on top of it, give --without {files[found.place]}."


def _rows(other: Neighbour, file: str) -> list[tuple[str, ...]]:
    share = "" if other.overlap is None else f"{other.overlap:.2f}"
    head = (file, other.operator, "yes" if other.made_on_top else "no", share)
    return [(*head, *_edit(moved)) for moved in other.edits] or [(*head, "tells no edits", "", "", "")]


def _edit(moved: Moved) -> tuple[str, str, str, str]:
    ending = {(True, False): "lost", (False, True): "gained", (True, True): "holds", (False, False): "did not hold"}
    prompt = f"{moved.prompt} {moved.target_new}"
    return prompt, f"{moved.before:.2f}", f"{moved.after:.2f}", ending[moved.held, moved.holds]
