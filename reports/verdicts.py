"""The verdict table that ends a run."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from reports import wording
from reports.console import STYLES, out, ruling_text, table
from reports.present import clean
from reports.record import Audit, Claim


def show_verdicts(audit: Audit, folder: Path) -> None:
    """Print every claim with its estimate and ruling, and where the report is."""
    arms = list(dict.fromkeys((claim.operator, claim.arm) for claim in audit.claims))
    by_arm = sorted(audit.claims, key=lambda claim: arms.index((claim.operator, claim.arm)))
    table("Verdicts", ("change", "claim", "found", "verdict"), [_row(claim, audit) for claim in by_arm])
    out.print(Text.assemble("Taken together: ", ruling_text(audit.ruling())))
    out.print(Text(f"Asked: {wording.asked_text(audit)}."))
    out.print(Text(clean(f"Report: {folder / 'report.html'}")), soft_wrap=True)


def _row(claim: Claim, audit: Audit) -> tuple[str | Text, ...]:
    ruling = Text(wording.ruling_text(claim, audit), style=STYLES[claim.ruling])
    wish = f"{wording.metric_title(claim.metric)} {wording.demand(claim.at_least, claim.at_most)}"
    return wording.arm_title(claim.operator, claim.arm), wish, wording.told(claim.estimate), ruling
