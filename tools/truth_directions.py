"""What the literature expects of the operators, each held against the rows that are kept.

A share is above another where its interval lies wholly above the other's, and "near 1" where it lies above `NEAR`.
Overlapping intervals decide nothing; a row that is not kept leaves the direction unmeasured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NEAR = 0.9
WORLD, COUNTERFACT = "world", "counterfact"
STACKS = (10, 300)  # few edits and hundreds
BATCH = 100  # edits at once, as the papers on long sequences make them


class Share(NamedTuple):
    name: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True, slots=True)
class Kept:
    """The rows: of edits alone by where their facts are from and operator, of edits one on top of the other by
    operator, number and how many at once."""

    alone: Mapping[tuple[str, str], Mapping[str, Any]]
    stacked: Mapping[tuple[str, int, int], Mapping[str, Any]]

    def of(self, operator: str, figure: str, source: str = WORLD) -> Share | None:
        found = self.alone.get((source, operator), {}).get("figures", {}).get(figure)
        return Share(f"`{operator}`", *found[:3]) if found else None

    def after(self, operator: str, edits: int, figure: str, batch: int = 1) -> Share | None:
        row = self.stacked.get((operator, edits, batch))
        told = f"`{operator}` after {edits}" + (f", {batch} at once" if batch > 1 else "")
        return Share(told, *row[figure]) if row else None


Pairs = Sequence[tuple[Share | None, Share | None]]
Ask = Callable[[Kept], Pairs]
"""Pairs of shares of which the first should be above the second; a None is not measured."""


def rule(pairs: Pairs) -> tuple[str, str]:
    """The ruling, and the numbers it rests on."""
    known = [(upper, lower) for upper, lower in pairs if upper is not None and lower is not None]
    told = ", ".join(dict.fromkeys(str(share) for pair in known for share in pair if share.name))
    if not pairs or len(known) < len(pairs):
        return "not measured", told
    if all(upper.low > lower.high for upper, lower in known):
        return "supported", told
    return ("not supported" if any(upper.high < lower.low for upper, lower in known) else "not decided"), told


def near_one(figure: str, *operators: str, source: str = WORLD) -> Ask:
    return lambda kept: [(kept.of(name, figure, source), Share("", NEAR, NEAR, NEAR)) for name in operators]


def above(figure: str, operators: Sequence[str], other: str, source: str = WORLD) -> Ask:
    return lambda kept: [(kept.of(name, figure, source), kept.of(other, figure, source)) for name in operators]


def above_all(figure: str, operator: str) -> Ask:
    def pairs(kept: Kept) -> Pairs:
        ours = (name for (source, name), row in kept.alone.items() if source == WORLD and not row.get("set"))
        others = [name for name in ours if name != operator]
        return [(kept.of(operator, figure), kept.of(name, figure)) for name in others]

    return pairs


def within(operator: str, upper: str, lower: str) -> Ask:
    return lambda kept: [(kept.of(operator, upper), kept.of(operator, lower))]


def decays(operator: str, figure: str) -> Ask:
    few, many = STACKS
    return lambda kept: [(kept.after(operator, few, figure), kept.after(operator, many, figure))]


def outlasts(operator: str, other: str, figure: str, batch: int = 1) -> Ask:
    many = STACKS[1]
    return lambda kept: [(kept.after(operator, many, figure, batch), kept.after(other, many, figure, batch))]


def near_one_after(operator: str, figure: str) -> Ask:
    return lambda kept: [(kept.after(operator, STACKS[1], figure), Share("", NEAR, NEAR, NEAR))]


DIRECTIONS: tuple[tuple[str, Ask], ...] = (
    ("ROME, MEMIT and AlphaEdit: efficacy near 1", near_one("efficacy", "rome", "memit", "alphaedit")),
    (
        "ROME, MEMIT and AlphaEdit reach more other wordings than FT-L",
        above("generalization", ("rome", "memit", "alphaedit"), "ft_l"),
    ),
    ("IKE reaches more other wordings than every other operator above", above_all("generalization", "ike")),
    ("… but gives way when its answer is disputed", within("ike", "generalization", "disputed")),
    ("… and when the old object is asserted", within("ike", "generalization", "contradicted")),
    ("… then more than ROME and MEMIT do", above("contradicted", ("rome", "memit"), "ike")),
    (
        "On CounterFact ROME, MEMIT and AlphaEdit: efficacy near 1",
        near_one("efficacy (ES)", "rome", "memit", "alphaedit", source=COUNTERFACT),
    ),
    (
        "… and in the paraphrases more than FT-L",
        above("paraphrases (PS)", ("rome", "memit", "alphaedit"), "ft_l", source=COUNTERFACT),
    ),
    ("GRACE is specific (near 1)", near_one("specificity", "grace")),
    ("… and does not generalize: ROME reaches more other wordings", above("generalization", ("rome",), "grace")),
    ("ROME decays under hundreds of edits: retention falls", decays("rome", "retention")),
    ("… and so does what the model knew besides", decays("rome", "collateral")),
    ("R-ROME decays more slowly: after hundreds of edits more is retained", outlasts("r_rome", "rome", "retention")),
    ("… and more is left of what the model knew besides", outlasts("r_rome", "rome", "collateral")),
    (
        "AlphaEdit holds: after hundreds of edits more is retained than with ROME",
        outlasts("alphaedit", "rome", "retention"),
    ),
    ("… and more is left of what the model knew besides", outlasts("alphaedit", "rome", "collateral")),
    ("… all but everything (near 1)", near_one_after("alphaedit", "collateral")),
    (
        f"AlphaEdit, {BATCH} edits at once: more is retained than with MEMIT",
        outlasts("alphaedit", "memit", "retention", BATCH),
    ),
    ("… and more is left of what the model knew besides", outlasts("alphaedit", "memit", "collateral", BATCH)),
    (
        "UltraEdit holds: one edit at a time, more is retained than with ROME",
        outlasts("ultraedit", "rome", "retention"),
    ),
    (f"… {BATCH} at once, more than with MEMIT", outlasts("ultraedit", "memit", "retention", BATCH)),
    ("… and more is left of what the model knew besides", outlasts("ultraedit", "memit", "collateral", BATCH)),
    ("WISE holds: after hundreds of edits more is retained than with ROME", outlasts("wise", "rome", "retention")),
    ("… and than with GRACE in another wording", outlasts("wise", "grace", "elsewhere")),
    ("… and more is left of what the model knew besides than with ROME", outlasts("wise", "rome", "collateral")),
    (
        "RECT spares what the model knew: after hundreds of MEMIT's edits more is left of it",
        outlasts("rect", "memit", "collateral"),
    ),
    ("PRUNE spares it as well", outlasts("prune", "memit", "collateral")),
    ("A bound on the norm spares it as well", outlasts("norm_bound", "memit", "collateral")),
)


def directions(
    alone: Mapping[str, Sequence[Mapping[str, Any]]], stacked: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, str]]:
    """(what is expected, the ruling, the numbers) for each, from rows of edits alone by where their facts are from."""
    by_name = {(source, row["operator"]): row for source, rows in alone.items() for row in rows}
    kept = Kept(by_name, {(row["operator"], row["edits"], row["batch"]): row for row in stacked})
    return [(says, *rule(ask(kept))) for says, ask in DIRECTIONS]
