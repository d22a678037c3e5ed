"""The parts of a spec, each checked: what an audit changes, in which model, with what, and what it demands."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from editkit.data import is_file
from editkit.models import DEFAULT_MODEL, LoadOptions
from editkit.operators import operator_class
from editkit.settings import NONE, check_settings
from probes.kinds import PROBES
from probes.metrics import METRICS

Arm = Literal["single", "stacked", "joint"]


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
    compute: Literal["float32", "native"] = "float32"

    @field_validator("device")
    @classmethod
    def _spelt_well(cls, name: str) -> str:
        try:
            return name if name == "auto" else str(torch.device(name))
        except RuntimeError:  # its own message lists twenty kinds
            raise ValueError(f"no device {name!r}; there is auto, cpu, cuda, mps") from None

    def options(self) -> LoadOptions:
        return LoadOptions(**self.model_dump(exclude={"name"}))


Number = int | Literal["all"]


def _number_or_all(n: Any) -> Any:
    if n == "all" or (isinstance(n, int) and not isinstance(n, bool) and n >= 1):
        return n
    raise ValueError(f"{n!r} is no number of facts; give one from 1 on, or 'all'")


class FactsPart(_Part):
    """Which facts are changed: a shipped data set by name or a user's file; `relations` empty means all.

    `n` facts, or "all" that can be changed; by default 8 of a shipped data set and all of a user's file. `sha256`, of
    the file or of the data set's card, is compared before the audit runs.
    """

    source: str = "world"
    sha256: str | None = None
    relations: tuple[str, ...] = ()
    n: Number = 8
    known_only: bool = True  # only facts that the base model answers right
    retain: int = Field(default=32, ge=0)  # examples that an unlearner is told to keep

    _number = field_validator("n", mode="plain")(_number_or_all)

    @model_validator(mode="before")
    @classmethod
    def _all_of_a_file(cls, data: Any) -> Any:
        own = isinstance(data, Mapping) and isinstance(data.get("source"), str) and is_file(data["source"])
        return {"n": "all", **data} if own else data


class OperatorPart(_Part):
    """One operator; `n` defaults to the facts' n, `settings` go above its preset: the "published" one for the model, or
    what a search on the model finds ("auto"). `arms`: an edit operator is tried on
    one fact at a time and on all stacked, and where it is asked for in one change for all ("joint"); an unlearner in
    one change."""

    name: str
    n: Number | None = None
    arms: tuple[Arm, ...] = ()
    preset: Literal["published", "auto"] = "published"
    settings: dict[str, Any] = {}

    _number = field_validator("n", mode="plain")(lambda n: n if n is None else _number_or_all(n))

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
        usual = ("single", "stacked") if task == "edit" else ("joint",)
        allowed = dict.fromkeys((*usual, "joint"))
        for arm in data.get("arms") or ():
            if arm not in allowed:
                raise ValueError(f"operator {data['name']!r} has no arm {arm!r}; there is {', '.join(allowed)}")
        return {**data, "arms": data.get("arms") or usual, "settings": without_null(data.get("settings") or {})}


def without_null(value: Any) -> Any:
    """None as the word that TOML can hold, so that a spec and its file have the same key."""
    if isinstance(value, Mapping):
        return {key: without_null(each) for key, each in value.items()}
    return NONE if value is None else value


class ClaimPart(_Part):
    """A demand on a metric: its whole interval must lie on the right side of the bar. No `operators` means all."""

    metric: str
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    at_most: float | None = Field(default=None, allow_inf_nan=False)
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
        metric = METRICS[self.metric]
        if (self.at_least is None) == (metric.better == "higher"):
            fitting = "at_least" if metric.better == "higher" else "at_most"
            raise ValueError(f"claim on {self.metric!r} needs {fitting}, for {metric.better} is better there")
        low, high = metric.bounds or (-math.inf, math.inf)
        if not low <= self.bar <= high:
            raise ValueError(f"claim on {self.metric!r} has the bar {self.bar:g}; it lies between {low:g} and {high:g}")
        return self

    @property
    def bar(self) -> float:
        return self.at_least if self.at_least is not None else self.at_most or 0.0

    def misfit(self, operators: Sequence[OperatorPart], probes: Sequence[str]) -> str | None:
        """Why no ruling could come of the claim with these operators and probes; None where one can."""
        metric, tasks = METRICS[self.metric], {operator.name: operator.task for operator in operators}
        unknown = [name for name in self.operators if name not in tasks]
        if unknown:
            return f"is of an operator {unknown[0]!r} that is not in this spec; there is {', '.join(tasks)}"
        other = [name for name in self.operators or tasks if metric.task not in ("both", tasks[name])]
        if other and (self.operators or len(other) == len(tasks)):
            return f"is about operators of the task {metric.task!r}, and {other[0]!r} is of {tasks[other[0]]!r}"
        unasked = self.unasked(probes)
        return f"reads the probe {unasked[0]!r}, which this spec does not ask" if unasked else None

    def unasked(self, probes: Sequence[str]) -> list[str]:
        """The probes that the metric reads and that are not among these."""
        return [probe for probe in METRICS[self.metric].probes if probe not in probes]


@functools.cache
def default_claims() -> tuple[ClaimPart, ...]:
    """Bars that eight facts can decide: a perfect run of eight has a 95 % interval from 0.68 on. Raise them with n."""
    return (
        ClaimPart(metric="efficacy_generation", at_least=0.65),
        ClaimPart(metric="generalization_generation", at_least=0.5),
        ClaimPart(metric="specificity_generation", at_least=0.65),
        ClaimPart(metric="portability_generation", at_least=0.5),
        ClaimPart(metric="forget_efficacy", at_least=0.65),
        ClaimPart(metric="forget_generalization", at_least=0.5),
        ClaimPart(metric="retained", at_least=0.65),
        ClaimPart(metric="leakage", at_most=0.35),
        ClaimPart(metric="recovery_rate", at_most=0.35),
        ClaimPart(metric="degeneration", at_most=0.35),
    )


DEFAULT_PROBES = ("rewrite", "rephrase", "keyword_emphasis", "multi_hop", "popularity", "neighborhood")


def _default_operators() -> tuple[OperatorPart, ...]:
    """Made when they are wanted: looking a name up loads what third parties have added, and that may fail."""
    return OperatorPart(name="rome"), OperatorPart(name="npo")


def _fitting_claims(so_far: Mapping[str, Any]) -> tuple[ClaimPart, ...]:
    """The default claims that a spec with these operators and probes can rule on."""
    operators, probes = so_far.get("operators", ()), so_far.get("probes", ())
    return tuple(claim for claim in default_claims() if claim.misfit(operators, probes) is None)


class AuditSpec(_Part):
    """Everything that decides an audit's outcome. The same spec on the same machine gives the same record.

    Without `claims` it makes the default ones that its operators and probes can decide; a claim of its own that none
    could is refused.
    """

    title: str = "Audit"
    seed: int = Field(0, ge=0, lt=2**63)
    level: float = Field(0.95, gt=0, lt=1)
    max_new_tokens: int = Field(12, ge=1, le=256)
    model: ModelPart = ModelPart()
    facts: FactsPart = FactsPart()
    operators: tuple[OperatorPart, ...] = Field(default_factory=_default_operators)
    probes: tuple[str, ...] = Field(DEFAULT_PROBES, validate_default=True)  # a broken one is told of before any work
    claims: tuple[ClaimPart, ...] = Field(default_factory=_fitting_claims)

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

    @model_validator(mode="after")
    def _claims_can_be_decided(self) -> AuditSpec:
        for claim in self.claims:
            if why := claim.misfit(self.operators, self.probes):
                raise ValueError(f"claim on {claim.metric!r} {why}")
        return self

    def number(self, part: OperatorPart) -> int | None:
        """How many facts an operator is tried on; None for all."""
        n = part.n or self.facts.n
        return None if n == "all" else n

    @property
    def most(self) -> int | None:
        """How many facts any operator is tried on; None for all."""
        wanted = [self.number(part) for part in self.operators]
        return None if None in wanted else max(n for n in wanted if n)

    def unclaimed(self) -> Iterator[str]:
        """A sentence for each default claim that is not made because its probes are not asked."""
        made = {claim.metric for claim in self.claims}
        for claim in default_claims():
            unasked = claim.unasked(self.probes)
            if claim.metric not in made and unasked and claim.misfit(self.operators, DEFAULT_PROBES) is None:
                yield f"No claim on {claim.metric} was made: the probe {', '.join(unasked)} was not asked."

    def key(self) -> str:
        """Names the spec: the same for the same audit."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
