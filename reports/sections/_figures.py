"""Figures of an audit as tables: which belong to a section, and how they stand in rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from probes.estimate import LEVEL, Estimate
from probes.metrics import METRICS
from reports.document import Details, Table
from reports.record import Audit, Figure
from reports.wording import (
    BY_DEFINITION,
    arm_title,
    better,
    level_text,
    metric_question,
    metric_title,
    p_text,
    stratum_title,
    told,
    variant_title,
)

HEADLINE = {  # what stands for a probe in its chart: the strictest protocol, the text that the model writes
    ("edit", "rewrite"): "efficacy_generation",
    ("edit", "rephrase"): "generalization_generation",
    ("edit", "multi_hop"): "portability_generation",
    ("edit", "neighborhood"): "specificity_generation",
    ("unlearn", "rewrite"): "forget_efficacy",
    ("unlearn", "rephrase"): "forget_generalization",
    ("unlearn", "multi_hop"): "leakage",
    ("unlearn", "neighborhood"): "retained",
}


def arms(audit: Audit) -> list[tuple[str, str, str]]:
    """(operator, task, arm) of all that was tried, also of what has no verdict yet."""
    tried = [(change.operator, change.task, change.arm) for change in audit.changes]
    told_of = [(item.operator, item.task, item.arm) for item in (*audit.figures, *audit.claims)]
    return list(dict.fromkeys(tried + audit.arms() + told_of))


def level_of(audit: Audit) -> float:
    """The level of the intervals; they all have the same."""
    told_of = [figure.row.after for figure in audit.figures] + [claim.estimate for claim in audit.claims]
    return next((estimate.level for estimate in told_of), LEVEL)


def overall(audit: Audit, wanted: Callable[[str], bool] = lambda _: True) -> list[Figure]:
    """Figures over all cases, of the metrics whose name is `wanted`: by arm, then by what is asked first."""
    found = [f for f in audit.figures if f.row.stratum is None and f.row.variant is None and wanted(f.row.metric)]
    order = arms(audit)
    return sorted(found, key=lambda f: (order.index((f.operator, f.task, f.arm)), _rank(f.row.metric)))


_PROBES = ("rewrite", "rephrase", "multi_hop", "neighborhood", "popularity", "keyword_emphasis")


def _rank(name: str) -> int:
    """Scores of several probes first, then metrics in the order of their probe, then what reads all."""
    if name not in METRICS:
        return len(_PROBES) + 2
    probes, kind = METRICS[name].probes, METRICS[name].kind
    if len(probes) == 1 and probes[0] in _PROBES:
        return 1 + _PROBES.index(probes[0])
    return 0 if kind == "combined" and probes else len(_PROBES) + 1


def by_variant(audit: Audit, wanted: Callable[[str], bool]) -> list[Figure]:
    return [f for f in audit.figures if f.row.variant is not None and wanted(f.row.metric)]


def reads_only(probe: str) -> Callable[[str], bool]:
    """Whether a metric, by its name, reads that probe and no other."""
    return lambda name: name in METRICS and METRICS[name].probes == (probe,)


def before_text(figure: Figure) -> str:
    """What stands in the column "before"; some metrics start from a value that is given by what they ask."""
    name = figure.row.metric
    if figure.row.before is None and name in METRICS and not METRICS[name].baseline:
        return BY_DEFINITION
    return told(figure.row.before)


def figure_table(caption: str, figures: Sequence[Figure], *, wording: bool = False, stratum: bool = False) -> Table:
    """One row a figure: which change, which metric, which cut, and the numbers before and after with intervals."""
    cuts = ["Wording"] * wording + ["Popularity of the changed fact"] * stratum
    columns = ("Change", "Metric", *cuts, "Before", "After", "Difference", "p (paired, Holm)")
    numeric = tuple(range(2 + len(cuts), len(columns)))
    rows = tuple(_row(figure, wording, stratum) for figure in figures)
    return Table(caption, columns, rows, numeric=numeric, note=questions(f.row.metric for f in figures))


def _row(figure: Figure, wording: bool, stratum: bool) -> tuple[str, ...]:
    row = figure.row
    cuts = [variant_title(row.variant or "all")] * wording + [_stratum(row.stratum)] * stratum
    moved = told(row.difference, signed=True) if row.difference is not None else "–"
    p = p_text(row.p_holm) if row.p_holm is not None else "–"
    which = (arm_title(figure.operator, figure.arm), metric_title(row.metric))
    return (*which, *cuts, before_text(figure), told(row.after), moved, p)


def _stratum(stratum: str | None) -> str:
    return stratum_title(stratum) if stratum else "all"


def questions(names: Iterable[str]) -> str:
    """What each metric asks and which way is better, a line each."""
    return "\n".join(
        f"{metric_title(name)}: {metric_question(name)} {better(name)}"
        for name in dict.fromkeys(names)
        if metric_question(name)
    )


def protocols(audit: Audit) -> Table | None:
    """The metrics that are told under all three protocols, these side by side."""
    wanted = ("success", "accuracy", "generation")
    stems: dict[tuple[str, str, str], dict[str, Estimate]] = {}
    for figure in overall(audit):
        stem, _, protocol = figure.row.metric.rpartition("_")
        if protocol not in wanted:  # "forget_efficacy" is itself as written, beside "forget_efficacy_success"
            stem, protocol = figure.row.metric, "generation"
        stems.setdefault((figure.operator, figure.arm, stem), {})[protocol] = figure.row.after
    rows = tuple(
        (arm_title(operator, arm), metric_title(stem), *(told(found[name]) for name in wanted))
        for (operator, arm, stem), found in stems.items()
        if all(name in found for name in wanted)
    )
    if not rows:
        return None
    columns = ("Change", "Metric, after", "By probability", "By likeliest token", "As written")
    note = (
        "By probability: the demanded object is likelier than the other one. By likeliest token: each of its tokens is "
        "the most likely one, teacher-forced. As written: the greedy text gives it. Higher is better."
    )
    return Table("The same question under three protocols", columns, rows, numeric=(2, 3, 4), note=note)


def folded(summary: str, table: Table) -> Details:
    return Details(summary, (table,))


def interval_note(audit: Audit) -> str:
    return f"Intervals are {level_text(level_of(audit))} intervals with the changed fact as the unit that was sampled."
