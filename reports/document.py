"""What a report is made of, whatever it is written as. Texts are plain: every renderer escapes them for its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

PALETTE: Mapping[str, str] = MappingProxyType(
    {
        "ink": "#010101",
        "muted": "#020202",
        "line": "#030303",
        "paper": "#040404",
        **{f"series{i}": f"#0501{i:02x}" for i in range(6)},
    }
)
"""Names of colours, and what stands for them in a chart's specification until a renderer knows its theme."""


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    level: int = 3


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; `tone` is "plain", "note", "good", "bad" or "open" (not enough evidence)."""

    text: str
    tone: str = "plain"


@dataclass(frozen=True, slots=True)
class Quote:
    """Text of a model or a prompt: hostile until escaped. `label` says whose it is."""

    label: str
    text: str
    tone: str = "plain"


@dataclass(frozen=True, slots=True)
class Banner:
    """The answer in two words, the sentence that goes with it, and what it is about, a line each."""

    verdict: str
    text: str
    tone: str = "plain"
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exchange:
    """One prompt and what the model said before and after, each with the class of its answer. Hostile texts."""

    title: str
    text: str
    prompt: str
    before: str
    after: str
    class_before: str = ""
    class_after: str = ""
    tone: str = "bad"


@dataclass(frozen=True, slots=True)
class Exchanges:
    """Exchanges side by side."""

    items: tuple[Exchange, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Text that is shown letter by letter with its lines kept: a command, settings."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of plain texts under a caption; columns are told by their position.

    `numeric` columns hold numbers, `quoted` ones text of a model or a prompt, `verdict` is the column that gets the
    row's tone as a badge. `hints` has a text a row that explains its cell in column `hinted`. `filterable` asks HTML
    for a filter box, with a choice for each column in `choices`. `tones` has one tone a row. `note` explains the
    columns, a line each.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    filterable: bool = False
    tones: tuple[str, ...] = ()
    numeric: tuple[int, ...] = ()
    quoted: tuple[int, ...] = ()
    choices: tuple[int, ...] = ()
    verdict: int | None = None
    hints: tuple[str, ...] = ()
    hinted: int = 1
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.caption!r} has {len(self.columns)} columns and a row of {len(row)}")
        for name, texts in (("tones", self.tones), ("hints", self.hints)):
            if texts and len(texts) != len(self.rows):
                raise ValueError(f"table {self.caption!r} has {len(self.rows)} rows and {len(texts)} {name}")


@dataclass(frozen=True, slots=True)
class Chart:
    """A Vega-Lite specification, what it shows in words, and the table that says the same.

    Colours in `spec` are those of PALETTE: a renderer puts its theme's in their place. `narrow` is the same drawing for
    a narrow screen.
    """

    title: str
    spec: Mapping[str, Any]
    description: str
    table: Table | None = None
    narrow: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Details:
    """Blocks that are folded away at first."""

    summary: str
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Cards:
    """Big numbers side by side: (label, value, tone); `notes` has a text each that explains the label."""

    items: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of texts."""

    items: tuple[str, ...]


Block = Heading | Text | Banner | Quote | Exchanges | Code | Table | Chart | Details | Cards | Bullets


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a report; `order` places it, lowest first. `data` is what the JSON report carries of it."""

    id: str
    title: str
    order: int
    blocks: tuple[Block, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Document:
    title: str
    sections: tuple[Section, ...]
