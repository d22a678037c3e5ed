"""Charts as Vega-Lite specifications: intervals with points, and stacked bars. The same numbers stand in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

from probes.estimate import Estimate
from reports.document import PALETTE, Chart, Table
from reports.present import present
from reports.record import Figure
from reports.wording import arm_title

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"  # a name; nothing is fetched
WIDTH, NARROW, STEP = 720, 340, 14  # pixels: of a whole chart on a screen and on a phone, and of a line of it
_LABEL = 44
_OVER = 22  # pixels over a row for its name, where there is no room beside it


@dataclass(frozen=True, slots=True)
class Point:
    """An estimate at its place: `row` names the line, `series` the colour."""

    row: str
    series: str
    side: Literal["before", "after"]
    estimate: Estimate


def points_of(figures: Sequence[Figure], rows: Sequence[str]) -> list[Point]:
    """Before and after of each figure in the line that `rows` names for it."""
    found = []
    for figure, row in zip(figures, rows, strict=True):
        series = arm_title(figure.operator, figure.arm)
        if figure.row.before is not None:
            found.append(Point(row, series, "before", figure.row.before))
        found.append(Point(row, series, "after", figure.row.after))
    return found


def intervals(title: str, points: Sequence[Point], axis: str, description: str, table: Table) -> Chart | None:
    """A line for each row and series: the interval as a rule, the value as a point, hollow before and filled after.

    What was before the change is the same for all arms of a row as a rule, and is then drawn once.
    """
    values = [_datum(point) for point in points if point.estimate.value is not None]
    values = list({tuple(value.items()): value for value in values}.values())
    if not values:
        return None
    rows, series = _names(values, "row"), _names(values, "series")
    series = [name for name in (BEFORE, *series) if name in series]
    encoding = {
        "y": _rows(rows),
        "yOffset": {"field": "slot", "type": "nominal", "sort": _slots(values, series)},
        "color": _colours("series", list(dict.fromkeys(series))),
    }
    ends = {"x": _share("low", axis), "x2": {"field": "high"}}
    has_ends = [{"filter": "isValid(datum.low)"}]
    rule = {"transform": has_ends, "mark": {"type": "rule", "strokeWidth": 2}, "encoding": ends}
    layers = [rule, _points("before", axis), _points("after", axis)]
    height = {"step": STEP, "for": "offset"}
    reading = f"{description} {HOLLOW if BEFORE in series else ''}Lines: the interval."
    lines = len(encoding["yOffset"]["sort"])
    narrow = _narrowed(encoding, STEP * lines)
    return Chart(
        title, _spec(values, encoding, layers, height), reading, table, _spec(values, narrow, layers, height, NARROW)
    )


BEFORE = "before the change"
HOLLOW = "Hollow: before the change. Filled: after. "


def _slots(values: Sequence[dict[str, Any]], series: Sequence[str]) -> list[str]:
    """The places of a row from above: all that was before, then the arms. Numbers the former where they differ."""
    taken: dict[str, int] = {}
    for value in values:
        if value["side"] == "before":
            value["slot"] = f"{BEFORE} {taken.setdefault(value['row'], 0)}"
            taken[value["row"]] += 1
    before = [f"{BEFORE} {i}" for i in range(max(taken.values(), default=0))]
    return before + [name for name in dict.fromkeys(series) if name != BEFORE]


def stacked(title: str, counts: Sequence[tuple[str, str, int]], description: str, table: Table) -> Chart | None:
    """Bars of (row, kind, number of cases), each row as shares of its whole."""
    values = [{"row": _short(row), "series": _short(kind), "count": n} for row, kind, n in counts if n]
    if not values:
        return None
    kinds = list(dict.fromkeys(_short(kind) for _, kind, _ in counts))
    for value in values:
        value["place"] = kinds.index(str(value["series"]))
    axis = {"format": ".0%", "grid": False}
    encoding = {
        "y": _rows(_names(values, "row")),
        "x": {"field": "count", "type": "quantitative", "stack": "normalize", "title": "share of cases", "axis": axis},
        "color": _colours("series", kinds),
        "order": {"field": "place", "type": "quantitative"},
    }
    bars = [{"mark": {"type": "bar", "height": STEP, "stroke": PALETTE["paper"]}}]
    narrow = _spec(values, _narrowed(encoding, STEP), bars, {"step": STEP + _OVER}, NARROW)
    return Chart(title, _spec(values, encoding, bars, {"step": 26}), description, table, narrow)


def _narrowed(encoding: dict[str, Any], height: int) -> dict[str, Any]:
    """The same encoding with the name over each row, which is `height` pixels high, and the legend in one column."""
    rows, colour = encoding["y"], encoding["color"]
    over = {"labelAlign": "left", "labelPadding": 0, "labelBaseline": "bottom", "labelOffset": -height / 2 - 2}
    gap = _OVER / (height + _OVER)
    scale = {"paddingInner": gap, "paddingOuter": gap}
    legend = colour["legend"] and colour["legend"] | {"columns": 1, "labelLimit": NARROW - 40}
    axis = rows["axis"] | over | {"labelLimit": NARROW - 10}
    return encoding | {"y": rows | {"axis": axis, "scale": scale}, "color": colour | {"legend": legend}}


def _datum(point: Point) -> dict[str, Any]:
    estimate = point.estimate
    series = _short(point.series) if point.side == "after" else BEFORE
    ends = {} if estimate.low is None or estimate.high is None else {"low": estimate.low, "high": estimate.high}
    place = {"row": _short(point.row), "series": series, "side": point.side, "slot": series}
    return {**place, "value": estimate.value, **ends}


def _points(side: str, axis: str) -> dict[str, Any]:
    mark: dict[str, Any] = {"type": "point", "size": 52, "strokeWidth": 2, "opacity": 1}
    mark |= {"filled": True} if side == "after" else {"filled": False, "fill": PALETTE["paper"]}
    return {
        "transform": [{"filter": f"datum.side === '{side}'"}],
        "mark": mark,
        "encoding": {"x": _share("value", axis)},
    }


def _rows(rows: Sequence[str]) -> dict[str, Any]:
    axis = {"title": None, "labelLimit": 260, "ticks": False, "domain": False, "labelPadding": 8}
    return {"field": "row", "type": "nominal", "sort": list(rows), "axis": axis, "scale": {"paddingInner": 0.25}}


def _share(field: str, axis: str) -> dict[str, Any]:
    scale = {"domain": [0, 1], "nice": False}
    return {"field": field, "type": "quantitative", "scale": scale, "title": axis, "axis": _AXIS}


_AXIS = {"values": [0, 0.2, 0.4, 0.6, 0.8, 1], "labelFlush": False}


def _colours(field: str, names: Sequence[str]) -> dict[str, Any]:
    """What was before is muted; the rest takes the series' colours in turn."""
    palette = cycle(colour for name, colour in PALETTE.items() if name.startswith("series"))
    scale = {"domain": list(names), "range": [PALETTE["muted"] if name == BEFORE else next(palette) for name in names]}
    legend = {"orient": "top", "title": None, "columns": 4, "labelLimit": 180, "symbolType": "square"}
    shown = legend | {"symbolStrokeWidth": 0, "symbolOpacity": 1} if len(names) > 1 else None
    return {"field": field, "type": "nominal", "scale": scale, "legend": shown}


def _spec(
    values: list[dict[str, Any]],
    encoding: dict[str, Any],
    layers: list[dict[str, Any]],
    height: dict[str, Any],
    width: int = WIDTH,
) -> dict[str, Any]:
    return {
        "$schema": SCHEMA,
        "width": width,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "height": height,
        "data": {"values": values},
        "encoding": encoding,
        "layer": layers,
        "config": _CONFIG,
    }


_CONFIG: dict[str, Any] = {
    "aria": False,
    "background": None,
    "font": "Liberation Sans",
    "view": {"stroke": None},
    "axis": {
        "labelColor": PALETTE["ink"],
        "titleColor": PALETTE["muted"],
        "titleFontWeight": "normal",
        "gridColor": PALETTE["line"],
        "domainColor": PALETTE["line"],
        "tickColor": PALETTE["line"],
        "labelFontSize": 13,
        "titleFontSize": 13,
    },
    "legend": {"labelColor": PALETTE["ink"], "labelFontSize": 13, "padding": 0, "offset": 10},
}


def _names(values: Sequence[dict[str, Any]], field: str) -> list[str]:
    return list(dict.fromkeys(str(value[field]) for value in values))


def _short(name: str) -> str:
    return present(name, _LABEL)
