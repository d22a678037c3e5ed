"""The report as GitHub-flavoured Markdown. Long tables are cut; the cases are all in cases.parquet."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import singledispatch

from reports.document import (
    Banner,
    Block,
    Bullets,
    Cards,
    Chart,
    Code,
    Details,
    Document,
    Exchange,
    Exchanges,
    Heading,
    Quote,
    Table,
    Text,
)
from reports.present import clean, present
from reports.record import Audit
from reports.render import RENDERERS

ROWS = 60  # of a filterable table
_SIGNS = {"good": "✓ ", "bad": "✗ ", "open": "? "}
_MEANING = re.compile(r"[\\`*_{}\[\]<>|#~&$]|(?<=:)//|(?i:(?<=www)\.)")
_INTERVAL = re.compile(
    r"\[[-+]?[\d.]+, [-+]?[\d.]+\](?![\[(:])"
)  # of an estimate: reads better unescaped, links nowhere
_STARTS = re.compile(r"^(?:\d+(?=[.)](?:\s|$))|(?=[-+](?:\s|$)|--|=))")  # a line that would be a list or a rule


@RENDERERS.register("markdown")
def render(document: Document, audit: Audit) -> str:
    parts = [f"# {escape(document.title)}"]
    for section in document.sections:
        parts.append(f"## {escape(section.title)}")
        parts += [written(block) for block in section.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Text that means nothing to Markdown, in one line; a `|` is safe in a cell."""
    shown, pieces, last = clean(text), [], 0
    for match in _INTERVAL.finditer(shown):
        pieces += [_escaped(shown[last : match.start()]), match.group()]
        last = match.end()
    return _STARTS.sub(r"\g<0>\\", "".join([*pieces, _escaped(shown[last:])]).lstrip())


def _escaped(text: str) -> str:
    return _MEANING.sub(lambda match: "\\" + match.group(), text)


@singledispatch
def written(block: Block) -> str:
    """One block as Markdown."""
    raise TypeError(f"Markdown cannot write a {type(block).__name__}; add it to reports/render/markdown.py")


@written.register
def _(block: Heading) -> str:
    return f"{'#' * block.level} {escape(block.text)}"


@written.register
def _(block: Text) -> str:
    return _SIGNS.get(block.tone, "") + escape(block.text)


@written.register
def _(block: Banner) -> str:
    lines = ["\n".join(f"- {escape(line)}" for line in block.lines)] if block.lines else []
    return "\n\n".join([f"**{_SIGNS.get(block.tone, '')}{escape(block.verdict)}.** {escape(block.text)}", *lines])


@written.register
def _(block: Quote) -> str:
    return f"> {escape(block.label)}: {escape(present(block.text))}"


@written.register
def _(block: Code) -> str:
    """Fenced by more backticks than it holds; lines are kept, the rest of what is invisible is shown."""
    lines = "\n".join(clean(line) for line in block.text.split("\n"))
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", lines)), default=0))
    return f"{escape(block.label)}:\n\n{fence}text\n{lines}\n{fence}"


@written.register
def _(block: Cards) -> str:
    notes = block.notes or ("",) * len(block.items)
    lines = (
        f"- {escape(label)}: {_SIGNS.get(tone, '')}{escape(value)}{'. ' * bool(note)}{escape(note)}"
        for (label, value, tone), note in zip(block.items, notes, strict=True)
    )
    return "\n".join(lines)


@written.register
def _(block: Bullets) -> str:
    return "\n".join(f"- {escape(text)}" for text in block.items)


@written.register
def _(block: Exchanges) -> str:
    return "\n\n".join(_exchange(item) for item in block.items)


def _exchange(item: Exchange) -> str:
    lines = [
        f"- **{_SIGNS.get(item.tone, '')}{escape(item.title)}.** {escape(item.text)}",
        f"  - Prompt: {escape(present(item.prompt))}",
        f"  - Before ({escape(item.class_before)}): {escape(present(item.before))}",
        f"  - After ({escape(item.class_after)}): {escape(present(item.after))}",
    ]
    return "\n".join(lines)


@written.register
def _(block: Table) -> str:
    cut = block.rows[:ROWS] if block.filterable else block.rows
    texts = [_cell(present) if place in block.quoted else escape for place in range(len(block.columns))]
    lines = [
        _line(map(escape, block.columns)),
        _line("---:" if place in block.numeric else "---" for place in range(len(block.columns))),
        *(_line(text(cell) for text, cell in zip(texts, row, strict=True)) for row in cut),
    ]
    hinted = zip(cut, block.hints or [""] * len(cut), strict=False)
    notes = list(dict.fromkeys(f"{row[block.hinted]}: {hint}" for row, hint in hinted if hint))
    left = len(block.rows) - len(cut)
    notes += block.note.split("\n") if block.note else []
    notes = ["\n".join(f"- {escape(line)}" for line in notes)] if notes else []
    notes += [f"{left:,} further rows are in cases.parquet and report.html."] if left else []
    return "\n\n".join([f"**{escape(block.caption)}**", "\n".join(lines), *notes])


def _cell(shown: Callable[[str, int], str]) -> Callable[[str], str]:
    return lambda text: escape(shown(text, 160))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


@written.register
def _(block: Chart) -> str:
    table = [written(block.table)] if block.table is not None else []
    return "\n\n".join([f"**{escape(block.title)}.** {escape(block.description)}", *table])


@written.register
def _(block: Details) -> str:
    return "\n\n".join([f"**{escape(block.summary)}**", *(written(inner) for inner in block.blocks)])
