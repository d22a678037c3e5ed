"""Write the generated parts of the README anew: `make docs`. With --check only says whether they are fresh.

A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from truth_page import KEPT, kept_rows
from truth_page import filled as numbered

from editkit.files import write_text
from reports.listing import LISTS
from reports.spec import default_claims

README = Path(__file__).resolve().parent.parent / "README.md"


def markdown_table(what: str) -> str:
    """One list of `editkit list` as a Markdown table."""
    columns, rows = LISTS[what]()
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def claims() -> str:
    """The demands of the default audit."""
    lines = ["| claim | bar |", "| --- | --- |"]
    for claim in default_claims():
        bar = f"at least {claim.at_least:g}" if claim.at_least is not None else f"at most {claim.at_most:g}"
        lines.append(f"| `{claim.metric}` | {bar} |")
    return "\n".join(lines)


def truth() -> str:
    """What docs/truth.md says in short."""
    alone, stacked = kept_rows()
    text = numbered((KEPT / "summary.md").read_text("utf-8"), alone, stacked)
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False)


PARTS: dict[str, Callable[[], str]] = {"claims": claims, "truth": truth} | {
    name: (lambda name=name: markdown_table(name)) for name in LISTS
}


def filled(text: str) -> str:
    """The README with every generated part made anew."""

    def fresh(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- begin {name} -->\n{PARTS[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin (\w+) -->.*?<!-- end \1 -->", fresh, text, flags=re.DOTALL)


def main() -> int:
    """0 where the README is fresh or was written; 1 where --check found it stale."""
    text = README.read_text(encoding="utf-8")
    new = filled(text)
    if "--check" in sys.argv:
        return int(new != text)
    write_text(README, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
