"""A chart's specification to SVG that is safe to put into a page and takes its colours from the page's theme.

The SVG is drawn by Vega, then built anew from the few elements and attributes that a drawing needs: no link, script,
style, event handler or foreign element can come out of a label, whatever it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

import vl_convert
from markupsafe import Markup, escape

from reports.document import PALETTE, Chart
from reports.present import clean

_SVG = "{http://www.w3.org/2000/svg}"
_ELEMENTS = {"svg", "g", "path", "line", "rect", "text", "tspan", "circle"}
_ATTRIBUTES = {
    *("d", "transform", "x", "y", "x1", "x2", "y1", "y2", "dx", "dy", "cx", "cy", "r", "width", "height", "viewBox"),
    *("stroke-width", "stroke-dasharray", "stroke-miterlimit", "opacity", "fill-opacity", "stroke-opacity"),
    *("text-anchor", "font-size", "font-weight", "display"),
}
_DEFAULTS = {("opacity", "1"), ("stroke-width", "1"), ("stroke-miterlimit", "10"), ("transform", "translate(0,0)")}
_VALUE = re.compile(r"[\w .,()%+-]*\Z")  # numbers, path letters, transforms: no quote, colon, slash or bracket
_NAMES = {colour: name for name, colour in PALETTE.items()}


def drawn(chart: Chart, numbers: Iterator[int]) -> list[Markup]:
    """The chart as an `<svg role="img">` with a title and a description, and for a narrow screen as another one, of
    which the style sheet shows one; `numbers` make their ids unique in the page."""
    if chart.narrow is None:
        return [_drawn(chart, chart.spec, next(numbers), "")]
    return [
        _drawn(chart, chart.spec, next(numbers), "on-wide"),
        _drawn(chart, chart.narrow, next(numbers), "on-narrow"),
    ]


def _drawn(chart: Chart, spec: Mapping[str, Any], number: int, shown: str) -> Markup:
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(dict(spec)))
    size = f'viewBox="{_safe(root.get("viewBox", ""))}" width="{_safe(root.get("width", ""))}"'
    size += f' class="{shown}"' if shown else ""
    ids = f"chart{number}-title", f"chart{number}-text"
    head = f'<title id="{ids[0]}">{escape(clean(chart.title))}</title>'
    head += f'<desc id="{ids[1]}">{escape(clean(chart.description))}</desc>'
    body = "".join(_element(child) for child in root)
    return Markup(f'<svg role="img" aria-labelledby="{ids[0]} {ids[1]}" {size}>{head}{body}</svg>')


def _element(element: ElementTree.Element) -> str:
    name = element.tag.removeprefix(_SVG)
    if name not in _ELEMENTS or _invisible(element, name):
        return ""
    inner = str(escape(clean(element.text or ""))) + "".join(_element(child) for child in element)
    if name == "g" and not inner:
        return ""
    attributes = _attributes(element)
    return inner if name == "g" and not attributes else f"<{name}{attributes}>{inner}</{name}>"


def _invisible(element: ElementTree.Element, name: str) -> bool:
    return element.get("display") == "none" or (name == "path" and _is_background(element))


def _is_background(element: ElementTree.Element) -> bool:
    """Vega's empty rectangles behind groups: they draw nothing and are half of the file."""
    return element.get("class") in ("background", "foreground") and not (element.get("fill") or element.get("stroke"))


def _attributes(element: ElementTree.Element) -> str:
    usable = {name: value for name, value in element.attrib.items() if name in _ATTRIBUTES and _VALUE.match(value)}
    kept = [f'{name}="{value}"' for name, value in usable.items() if (name, value) not in _DEFAULTS]
    classes = [_paint(kind, element.get(kind)) for kind in ("fill", "stroke")]
    return "".join(f" {text}" for text in [*kept, *_class([name for name in classes if name])])


def _paint(kind: str, colour: str | None) -> str | None:
    """ "fill-ink" for the palette's ink: the class that the style sheet paints. Unknown colours get the ink."""
    if colour is None:
        return None
    return f"{kind}-{'none' if colour in ('none', 'transparent') else _NAMES.get(colour.lower(), 'ink')}"


def _class(names: list[str]) -> list[str]:
    return [f'class="{" ".join(names)}"'] if names else []


def _safe(value: str) -> str:
    if not _VALUE.match(value):
        raise ValueError(f"a chart came out with {value!r} for a size")
    return value
