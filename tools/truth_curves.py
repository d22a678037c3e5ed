"""The picture of docs/truth.md: what is left of edits made one on top of the other, as their number grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import vl_convert

CURVES = {
    "retention": "edits that still hold",
    "elsewhere": "… in another wording",
    "collateral": "other facts still known",
}
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down")


def curves(stacked: Sequence[Mapping[str, Any]]) -> str:
    """An SVG with a panel a share and a line an operator, dashed where many edits are made at once, from rows of
    `tests/bench/bench_sequential.py`."""
    names = sorted({row["operator"] for row in stacked})
    points = [
        {name: row[name] for name in ("operator", "edits", "batch")} | {"what": title, "share": row[what][0]}
        for row in stacked
        for what, title in CURVES.items()
    ]
    ticks = sorted({row["edits"] for row in stacked})
    shapes = [SHAPES[place % len(SHAPES)] for place in range(len(names))]
    encoding = {
        "x": {
            "field": "edits",
            "type": "quantitative",
            "scale": {"type": "log", "domain": [1, max(ticks)]},
            "axis": {"values": ticks, "title": "edits made", "grid": False},
        },
        "y": {"field": "share", "type": "quantitative", "scale": {"domain": [0, 1]}, "axis": {"title": None}},
        "color": {
            "field": "operator",
            "type": "nominal",
            "scale": {"domain": names, "scheme": "tableau20" if len(names) > 10 else "tableau10"},
            "legend": {"title": None},
        },
        "strokeDash": {"field": "batch", "type": "nominal", "legend": None},
        "shape": {"field": "operator", "type": "nominal", "scale": {"domain": names, "range": shapes}},
    }
    return vl_convert.vegalite_to_svg(
        {
            "data": {"values": points},
            "background": "white",
            "facet": {"column": {"field": "what", "type": "nominal", "sort": [*CURVES.values()], "title": None}},
            "spec": {
                "width": 230,
                "height": 260,
                "mark": {"type": "line", "point": {"size": 45, "filled": True}},
                "encoding": encoding,
            },
            "config": {"header": {"labelFontSize": 13, "labelFontWeight": "bold"}, "view": {"stroke": "#ccc"}},
        }
    )
