"""The verdict table that ends a run."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from reports import wording
from reports.console import STYLES, out, ruling_text, table
from reports.record import Audit, Claim


def show_verdicts(audit: Audit, folder: Path) -> None:
    """Print every claim with its estimate and ruling, and where the report is."""
    table("Verdicts", ("change", "claim", "found", "verdict"), [_row(claim) for claim in audit.claims])
    out.print(Text.assemble("Taken together: ", ruling_text(audit.ruling())))
    out.print(Text(f"Report: {folder / 'report.html'}"), soft_wrap=True)


def _row(claim: Claim) -> tuple[str | Text, ...]:
    ruling = Text(wording.ruling_text(claim.ruling, claim.needed, claim.estimate.groups), style=STYLES[claim.ruling])
    wish = f"{wording.metric_title(claim.metric)} {wording.demand(claim.at_least, claim.at_most)}"
    return wording.arm_title(claim.operator, claim.arm), wish, wording.told(claim.estimate), ruling
