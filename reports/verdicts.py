"""The verdict table that ends a run."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from probes.estimate import Estimate
from reports.console import out, ruling_text, table
from reports.record import Audit, Claim


def shown(estimate: Estimate) -> str:
    """0.94 [0.79, 0.98]"""
    if estimate.value is None:
        return "not measured"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f} (no interval)"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def show_verdicts(audit: Audit, folder: Path) -> None:
    """Print every claim with its estimate and ruling, and where the report is."""
    table("Verdicts", ("operator", "arm", "claim", "found", "facts", "verdict"), [_row(c) for c in audit.claims])
    out.print(Text.assemble("Taken together: ", ruling_text(audit.ruling())))
    out.print(Text(f"Report: {folder / 'report.html'}"), soft_wrap=True)


def _row(claim: Claim) -> tuple[str | Text, ...]:
    bar = f">= {claim.at_least:g}" if claim.at_least is not None else f"<= {claim.at_most:g}"
    ruling = ruling_text(claim.ruling)
    if claim.needed and claim.needed > claim.estimate.groups:
        ruling = Text.assemble(ruling, f" (needs >= {claim.needed} facts)")
    found = claim.estimate
    return claim.operator, claim.arm, f"{claim.metric} {bar}", shown(found), str(found.groups), ruling
