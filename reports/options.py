"""The spec that a command's options ask for."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

from editkit.errors import InputError
from editkit.handle import SHOWN
from editkit.patch import load_patch
from editkit.settings import merged
from reports.spec import AuditSpec, read_spec

# Where in a spec the options stand, by the names of the commands' parameters.
PLACES = {
    "model": "model.name",
    "device": "model.device",
    "dtype": "model.dtype",
    "compute": "model.compute",
    "allow_pickle": "model.allow_pickle",
    "trust_remote_code": "model.trust_remote_code",
    "facts": "facts.source",
    "n": "facts.n",
    "all_facts": "facts.known_only",
    "seed": "seed",
    "operator": "operators",
    "probe": "probes",
}
PRESETS = ("published", "auto")
OPTIONS = {place: "--" + name.replace("_", "-") for name, place in PLACES.items()}


def asked_for(given: Mapping[str, Any]) -> AuditSpec:
    """The spec of a command: that of its file or the default one, with the options that were given on top.

    `given` are the command's parameters by name; those that no spec knows are left alone.
    """
    spec: dict[str, Any] = {}
    for name, place in PLACES.items():
        value = given.get(name)
        if value is not None and value is not False and value != []:  # a seed of 0 is given
            *parents, leaf = place.split(".")
            node = spec
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = _as_in_a_spec(name, value)
    if preset := given.get("preset"):
        if preset not in PRESETS:
            raise InputError(f"no --preset {preset!r}; there is {', '.join(PRESETS)}")
        if not spec.get("operators"):
            raise InputError("--preset needs --operator; in a spec, give an operator its `preset`")
        spec["operators"] = [{**part, "preset": preset} for part in spec["operators"]]
    if told := given.get("settings"):
        if len(spec.get("operators", ())) != 1:
            raise InputError("--set needs one --operator; in a spec, give an operator its `settings`")
        spec["operators"][0]["settings"] = reduce(merged, map(setting, told))
    return read_spec(given.get("spec"), spec, OPTIONS)


def setting(line: str) -> dict[str, Any]:
    """What --set says, like a line of TOML; a value that is no TOML is a string."""
    name, equals, value = line.partition("=")
    for written in (value, json.dumps(value)) if equals else ():
        with suppress(tomllib.TOMLDecodeError):
            return tomllib.loads(f"{name} = {written}")
    raise InputError(f"--set {line!r} is not NAME=VALUE, as in --set layer=5 or --set of.name=alphaedit")


def _as_in_a_spec(name: str, value: Any) -> Any:
    if name == "operator":
        return [{"name": each} for each in ([value] if isinstance(value, str) else value)]
    return not value if name == "all_facts" else value


def digests(names: Sequence[str] | None) -> list[str]:
    """The patches that --without names, each by its file or by a digest, or the beginning of one."""
    return [_digest(name) for name in names or ()]


def _digest(name: str) -> str:
    if Path(name).exists():
        return load_patch(Path(name)).digest
    if re.fullmatch(rf"[0-9a-f]{{{SHOWN},64}}", name):
        return name
    raise InputError(
        f"--without {name} is no file of a patch and no digest of one ({SHOWN} to 64 hexadecimal digits, as the error "
        "of a patch that lacks it gives them)"
    )
