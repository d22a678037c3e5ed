"""What an audit shall do: read from TOML, checked, and written back fully resolved.

A spec has no hidden settings: `to_toml(spec)` gives a file that runs the same audit again.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from editkit.data import is_file
from editkit.models import DEFAULT_MODEL, LoadOptions
from editkit.operators import NONE, check_settings, operator_class
from probes.kinds import PROBES
from probes.metrics import METRICS

Arm = Literal["single", "stacked", "joint"]


class SpecError(ValueError):
    """A spec that cannot be run; the message names file, place and the way out."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPart(_Part):
    """Which model, and how it is loaded. The two permissions run code of the model's author: off unless said."""

    name: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False

    def options(self) -> LoadOptions:
        return LoadOptions(self.device, self.dtype, self.revision, self.allow_pickle, self.trust_remote_code)


class FactsPart(_Part):
    """Which facts are changed: a shipped data set by name or a user's file; `relations` empty means all.

    `n` facts, or "all" that can be changed; by default 8 of a shipped data set and all of a user's file.
    """

    source: str = "world"
    relations: tuple[str, ...] = ()
    n: int | Literal["all"] = 8
    known_only: bool = True  # only facts that the base model answers right
    retain: int = Field(32, ge=0)  # examples that an unlearner is told to keep

    @field_validator("n", mode="plain")
    @classmethod
    def _number_or_all(cls, n: Any) -> Any:
        if n == "all" or (isinstance(n, int) and not isinstance(n, bool) and n >= 1):
            return n
        raise ValueError(f"{n!r} is no number of facts; give one from 1 on, or 'all'")

    @model_validator(mode="before")
    @classmethod
    def _all_of_a_file(cls, data: Any) -> Any:
        own = isinstance(data, Mapping) and isinstance(data.get("source"), str) and is_file(data["source"])
        return {"n": "all", **data} if own else data

    @property
    def most(self) -> int | None:
        """The number of facts; None for all."""
        return None if self.n == "all" else self.n


class OperatorPart(_Part):
    """One operator; `n` defaults to the facts' n, `arms` to what its task allows, `settings` go above its preset."""

    name: str
    n: int | None = Field(None, ge=1)
    arms: tuple[Arm, ...] = ()
    settings: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        operator_class(name)
        return name

    @property
    def task(self) -> str:
        return operator_class(self.name)[0]

    @model_validator(mode="before")
    @classmethod
    def _fitting_arms(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
            return data
        task, kind = operator_class(data["name"])
        check_settings(kind, data.get("settings") or {})
        allowed = ("single", "stacked") if task == "edit" else ("joint",)
        for arm in data.get("arms") or ():
            if arm not in allowed:
                raise ValueError(f"operator {data['name']!r} has no arm {arm!r}; there is {', '.join(allowed)}")
        return {**data, "arms": data.get("arms") or allowed, "settings": _without_null(data.get("settings") or {})}


def _without_null(value: Any) -> Any:
    """None as the word that TOML can hold, so that a spec and its file have the same key."""
    if isinstance(value, Mapping):
        return {key: _without_null(each) for key, each in value.items()}
    return NONE if value is None else value


class ClaimPart(_Part):
    """A demand on a metric: its whole interval must lie on the right side of the bar. No `operators` means all."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    operators: tuple[str, ...] = ()

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        METRICS[name]
        return name

    @model_validator(mode="after")
    def _one_bar(self) -> ClaimPart:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"claim on {self.metric!r} needs one of at_least, at_most")
        return self


# Bars that eight facts can decide: a perfect run of eight has a 95 % interval from 0.68 on. Raise them with n.
DEFAULT_CLAIMS = (
    ClaimPart(metric="efficacy_generation", at_least=0.65),
    ClaimPart(metric="generalization_generation", at_least=0.5),
    ClaimPart(metric="specificity_generation", at_least=0.65),
    ClaimPart(metric="forget_efficacy", at_least=0.65),
    ClaimPart(metric="forget_generalization", at_least=0.5),
    ClaimPart(metric="retained", at_least=0.65),
    ClaimPart(metric="recovery_rate", at_most=0.35),
)
DEFAULT_PROBES = ("rewrite", "rephrase", "keyword_emphasis", "multi_hop", "popularity", "neighborhood")


class AuditSpec(_Part):
    """Everything that decides an audit's outcome. The same spec on the same machine gives the same record."""

    title: str = "Audit"
    seed: int = 0
    level: float = Field(0.95, gt=0, lt=1)
    max_new_tokens: int = Field(12, ge=1, le=256)
    model: ModelPart = ModelPart()
    facts: FactsPart = FactsPart()
    operators: tuple[OperatorPart, ...] = (OperatorPart(name="rome"), OperatorPart(name="npo"))
    probes: tuple[str, ...] = DEFAULT_PROBES
    claims: tuple[ClaimPart, ...] = DEFAULT_CLAIMS

    @field_validator("probes")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            PROBES[name]
        return names

    @field_validator("operators")
    @classmethod
    def _once(cls, operators: tuple[OperatorPart, ...]) -> tuple[OperatorPart, ...]:
        names = [operator.name for operator in operators]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"operator {twice[0]!r} stands twice; run a second audit for other settings")
        if not names:
            raise ValueError("no operator; name at least one")
        return operators

    def key(self) -> str:
        """Names the spec: the same for the same audit."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def read_spec(path: Path | None, overrides: Mapping[str, Any]) -> AuditSpec:
    """The spec of a TOML file (None: the default one) with `overrides` on top, dotted names as nested mappings."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
    except OSError as error:
        raise SpecError(f"cannot read spec {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"spec {path} is no valid TOML: {error}") from None
    return make_spec(_merged(data, overrides), str(path) if path else "the command line", path)


def make_spec(data: Mapping[str, Any], where: str = "spec", path: Path | None = None) -> AuditSpec:
    """A checked spec from plain data. Raises SpecError with all problems, one a line."""
    try:
        return AuditSpec.model_validate(data)
    except ValidationError as error:
        problems = [_told(e, path) for e in error.errors()]
        raise SpecError(f"{where}: " + "; ".join(problems)) from None


def to_toml(spec: AuditSpec) -> str:
    """The spec as TOML with every default written out."""
    return tomli_w.dumps(spec.model_dump(mode="json", exclude_none=True))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _told(error: Any, path: Path | None) -> str:
    """One validation error as a sentence with its place."""
    place = ".".join(str(part) for part in error["loc"])
    line = _line_of(path, error["loc"])
    at = f"line {line}: " if line else ""
    if error["type"] == "extra_forbidden":
        unknown = str(error["loc"][-1])
        known = _fields_at(error["loc"][:-1])
        near = difflib.get_close_matches(unknown, known) or known
        return f"{at}unknown key {place!r}; there is {', '.join(near)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{at}{place}: {message}" if place else f"{at}{message}"


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    parts = {"model": ModelPart, "facts": FactsPart, "operators": OperatorPart, "claims": ClaimPart}
    part = parts.get(str(location[0])) if location else AuditSpec
    return list(part.model_fields) if part else list(AuditSpec.model_fields)


def _line_of(path: Path | None, location: tuple[Any, ...]) -> int | None:
    """Where the last key of a location stands in the file, by a plain search: TOML readers keep no places."""
    names = [part for part in location if isinstance(part, str)]
    if path is None or not names:
        return None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.partition("=")[0].strip().strip("\"'") == names[-1] or line.strip().strip("[]") == names[-1]:
            return number
    return None
